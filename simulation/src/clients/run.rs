//! The work of all clients, from setting up to the last look at every key.

use super::client::{SimulatedClient, StatementOutcome};
use super::table::{
    ACCOUNTS, CLIENTS, COUNTERS, CREATE, DISTANT_ACCOUNTS, DISTANT_TALLY, NAME, PUT, READ, SPIKE_KEYS, TALLY, wanted,
};
use super::users::Users;
use super::{coordination_users, counters, large_values, load_spike, payments, sessions};
use crate::history::SharedHistory;
use crate::history::events::Last;
use crate::membership_changes;
use crate::membership_model::SharedMembership;
use crate::operators;
use crate::process::{below, once_in};
use crate::registry::Registry;
use crate::shard_calls::ShardCalls;
use evenkeel_placement_driver::replica::ReplicaHandles;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::shard::Inspection;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Clients with sessions, whose writes are answered before their COMMIT.
const SESSIONS: u64 = 2;
/// Users of the coordination store.
const KV_USERS: u64 = 2;
/// Clients that pay, in runs with payments.
const PAYERS: u64 = 3;
/// Clients that only read.
const WATCHERS: u64 = 2;
/// Between two reads of a watcher, in milliseconds, at most.
const WATCH_MS: u64 = 12;
/// After this time a failed creation of the table is repeated, in milliseconds.
const CREATE_AGAIN_MS: u64 = 50;
/// After this time a leader is searched again, in milliseconds.
const INSPECT_AGAIN_MS: u64 = 20;
/// Between two operations of a client, in milliseconds, at most.
const THINK_MS: u64 = 40;

/// Everything that runs on the clients' machine.
pub async fn run(registry: Registry, history: SharedHistory, membership: SharedMembership, shards: u32) -> String {
    operators::add_shards(&registry, shards).await;
    let users = Users { registry, history, membership, shards, calls: ShardCalls::default() };
    let mut first = SimulatedClient::connect(users.clone(), 1).await;
    // A creation whose answer is lost has happened or not.
    while first.client.routes().table(NAME).is_none() {
        if let Err(error) = first.client.execute(CREATE, &[]).await {
            users.history.borrow_mut().waiting_for = format!("(the table: {error})");
            evenkeel_host::sleep(Duration::from_millis(CREATE_AGAIN_MS)).await;
        }
    }
    let pays = users.membership.borrow().payments;
    for account in ACCOUNTS.chain(DISTANT_ACCOUNTS.into_iter().filter(|_| pays)) {
        while !matches!(first.execute(PUT, &[account.into()]).await, StatementOutcome::Answered(_)) {}
    }
    users.history.borrow_mut().set_up = true;
    let mut working = tokio::task::JoinSet::new();
    for number in 1..=CLIENTS {
        working.spawn_local(work(users.clone(), number));
    }
    for _ in 0..WATCHERS {
        working.spawn_local(watch(users.clone()));
    }
    for _ in 0..SESSIONS {
        working.spawn_local(sessions::run(users.clone()));
    }
    // A restored placement driver loses later writes to the coordination store, so there is nothing
    // to check.
    if !users.membership.borrow().restored {
        for number in 1..=KV_USERS {
            working.spawn_local(coordination_users::run(users.clone(), number));
        }
        for prefix in coordination_users::PREFIXES {
            tokio::task::spawn_local(coordination_users::watch(users.clone(), prefix));
        }
    }
    if users.membership.borrow().load_spike {
        working.spawn_local(load_spike::under_faults(users.clone()));
    }
    for _ in 0..if pays { PAYERS } else { 0 } {
        working.spawn_local(payments::run(users.clone()));
    }
    working.spawn_local(operators::send_requests(users.clone()));
    working.spawn_local(membership_changes::replace_replicas(users.clone()));
    working.spawn_local(membership_changes::resize_placement_driver(users.clone()));
    while working.join_next().await.is_some() {}
    last_look(&users, first).await;
    std::future::pending().await
}

/// A client's work: random operations under faults; afterwards one write of each of its counters.
async fn work(users: Users, number: u64) {
    let mut client = SimulatedClient::connect(users.clone(), 1 + below(2) as usize).await;
    while users.history.borrow().healed_ms.is_none() {
        if users.membership.borrow().large && once_in(3) {
            large_values::fill(&mut client, number).await;
        } else {
            counters::operate(&mut client).await;
        }
        evenkeel_host::sleep(Duration::from_millis(below(THINK_MS))).await;
    }
    // Everything recovers: every key takes writes again.
    for key in COUNTERS.filter(|key| *key as u64 % CLIENTS + 1 == number) {
        while !counters::add(&mut client, key).await {
            users.history.borrow_mut().waiting_for = format!("(counter {key} takes no write: {})", client.trouble());
        }
    }
}

/// Reads under faults.
async fn watch(users: Users) {
    let mut client = SimulatedClient::connect(users.clone(), 1 + below(2) as usize).await;
    while users.history.borrow().healed_ms.is_none() {
        let key = wanted();
        match below(8) {
            0..=1 => counters::local(&mut client, key).await,
            2..=3 => counters::leader(&mut client, key).await,
            _ => counters::read(&mut client, key).await,
        }
        evenkeel_host::sleep(Duration::from_millis(below(WATCH_MS))).await;
    }
}

/// Reads every key, and asks every leader for its ranges, after everything has finished.
async fn last_look(users: &Users, mut client: SimulatedClient) {
    operators::clear_away(users);
    until_finished(users).await;
    if users.membership.borrow().load_spike {
        users.history.borrow_mut().waiting_for = "(the end of an overload)".into();
        load_spike::after_recovery(users).await;
        until_finished(users).await;
    }
    {
        let mut history = users.history.borrow_mut();
        history.recovered = true;
        history.waiting_for = "(a read of each counter)".into();
    }
    let mut last = Last::new();
    let pays = users.membership.borrow().payments;
    let distant = DISTANT_ACCOUNTS.into_iter().chain([DISTANT_TALLY]).filter(|_| pays);
    for key in COUNTERS.chain(ACCOUNTS).chain([TALLY]).chain(SPIKE_KEYS).chain(distant) {
        loop {
            if let StatementOutcome::Answered(answer) = client.execute(READ, &[key.into()]).await {
                last.insert(key, answer.rows.int(0, 0).unwrap_or(0));
                break;
            }
            let trouble = format!("(a read of {key}: {})", client.trouble());
            users.history.borrow_mut().waiting_for = trouble;
        }
    }
    large_values::last_look(users, &mut client).await;
    let mut owners = Vec::new();
    for shard in 1..=users.shards {
        let inspection = inspect_leader(users, ShardId(shard)).await;
        owners.extend(inspection.ranges.into_iter().filter(|r| r.4).map(|r| (ShardId(shard), r.3)));
    }
    let mut history = users.history.borrow_mut();
    history.owners = owners;
    history.last = Some(last);
}

/// The state of a shard's leader.
async fn inspect_leader(users: &Users, shard: ShardId) -> Inspection {
    loop {
        let replicas = users.membership.borrow().addresses(shard);
        match users.calls.inspect(replicas).await {
            Ok(inspection) => return inspection,
            Err(why) => users.history.borrow_mut().waiting_for = format!("(shard {shard}'s leader: {why})"),
        }
        evenkeel_host::sleep(Duration::from_millis(INSPECT_AGAIN_MS)).await;
    }
}

/// Waits until every operator, drain and change of members has ended, and every watch has delivered
/// all changes.
async fn until_finished(users: &Users) {
    let running = |users: &Users| {
        let (registry, membership) = (users.registry.read(), users.membership.borrow());
        let of = |shared: &Arc<ReplicaHandles>| {
            operators::unfinished(shared, &membership).map(|what| format!("{}: {what}", shared.config.replica))
        };
        let lingers = membership.lingering().map(|part| format!("{part:?} has left and goes on"));
        let all: Vec<String> = registry.values().filter_map(of).chain(lingers).collect();
        (!all.is_empty()).then(|| all.join("; "))
    };
    let mut purged = BTreeSet::new();
    while let Some(operator) = running(users) {
        operators::register_strangers(users).await;
        operators::purge_copies(users, &mut purged).await;
        users.history.borrow_mut().waiting_for.clone_from(&operator);
        evenkeel_host::sleep(Duration::from_millis(100)).await;
    }
    users.history.borrow_mut().waiting_for = "(a watch of the coordination store)".into();
    while !coordination_users::watched_all(users) {
        evenkeel_host::sleep(Duration::from_millis(20)).await;
    }
}
