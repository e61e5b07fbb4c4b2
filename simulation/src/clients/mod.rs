//! Users: what they ask for, how they try again, and what they saw.
//!
//! Each client sends a statement under one id until it has an answer, goes where it is redirected, and gives up after a while: then the
//! outcome is unknown. What certainly did not happen is not part of the history.

mod asking;
mod counters;
pub mod crowd;
pub mod kv;
pub mod large;
mod sessions;

pub use asking::Client;

use crate::changes;
use crate::operators;
use crate::oracles::overload::Overload;
use crate::process::{below, once_in};
use crate::site;
use crate::world::{Part, Registry, shard_info};
use asking::Outcome;
use evenkeel_placement_driver::replica::ReplicaHandles;
use evenkeel_protocol::{Durability, KeyInterval, ShardId, TableSchema};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Keys that are counters.
pub const COUNTERS: Range<i64> = 0..40;
/// Keys that are accounts, between which money is moved.
pub const ACCOUNTS: Range<i64> = 50..54;
/// The counter of transfers, in the same transactions.
const TALLY: i64 = 55;
/// Clients at work.
const CLIENTS: u64 = 6;
/// Clients with sessions, whose writes are answered before their COMMIT.
const SESSIONS: u64 = 2;
/// Users of the coordination store.
const KV_USERS: u64 = 2;
/// Clients that only read, and stay with whom they ask for as long as it answers.
const WATCHERS: u64 = 2;
/// Between two reads of a watcher, in milliseconds, at most.
const WATCH_MS: u64 = 12;
/// Between two operations of a client, in milliseconds, at most.
const THINK_MS: u64 = 40;
/// The table.
pub const CREATE: &str = "CREATE TABLE counters (id bigint PRIMARY KEY, v bigint, kept text)";
const PUT: &str = "INSERT INTO counters (id, v) VALUES ($1, 0) ON CONFLICT (id) DO NOTHING";
const READ: &str = "SELECT v FROM counters WHERE id = $1";

/// How an addition was made.
pub const ADDITION: &str = "an addition";
const TRANSFER: &str = "a transfer's addition";
/// A read at level `local`.
pub const LOCAL: &str = "a local read";
/// A read at level `leader`.
pub const LEADER: &str = "a read at level leader";

/// A shard and one of its replicas.
pub type Replica = (u32, u64);

/// One operation on a counter, as its client saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Which counter.
    pub key: i64,
    /// Whether it added one; else it read.
    pub adds: bool,
    /// How, for people.
    pub how: &'static str,
    /// When it was sent, in milliseconds.
    pub sent_ms: u64,
    /// When it was answered.
    pub answered_ms: u64,
    /// What it saw; `None` if the outcome is unknown.
    pub seen: Option<i64>,
    /// Who answered, if anybody did.
    pub by: Option<Replica>,
}

/// A write that was answered before its COMMIT, and is gone (R28).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// The level at which it was answered.
    pub durability: Durability,
    /// Who answered it.
    pub by: Replica,
    /// When it was sent, in milliseconds.
    pub sent_ms: u64,
    /// When it was known to be gone.
    pub told_ms: u64,
    /// Who said so for certain.
    pub told_by: Replica,
    /// Whether who answered it said that its leadership was over before it was decided.
    pub deposed: bool,
}

/// A replica has said that it does not lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    /// Which.
    pub by: Replica,
    /// When it was asked, in milliseconds.
    pub asked_ms: u64,
    /// When it was answered.
    pub answered_ms: u64,
}

/// What the counters held in the end.
pub type Last = BTreeMap<i64, i64>;

/// What clients and the world tell each other.
#[derive(Debug, Default)]
pub struct Told {
    /// The cluster can be used.
    pub set_up: bool,
    /// Since when everything is healed.
    pub healed_ms: Option<u64>,
    /// Everything works again.
    pub recovered: bool,
    /// The clients must end.
    pub stop: bool,
    /// The last look.
    pub last: Option<Last>,
    /// Who owns what, at the last look.
    pub owners: Vec<(ShardId, KeyInterval)>,
    /// What happened.
    pub history: Vec<Event>,
    /// Writes that were answered before their COMMIT and lost.
    pub losses: Vec<Loss>,
    /// Who has said that it does not lead.
    pub denials: Vec<Denial>,
    /// Which processes died when, and with them what was in their memory.
    pub crashes: Vec<(u64, Part)>,
    /// How often what the simulation is for has happened, by kind.
    pub counts: BTreeMap<&'static str, u64>,
    /// What users of the coordination store saw.
    pub kv: kv::History,
    /// What may be in the columns that hold large values.
    pub filled: BTreeMap<i64, large::Filled>,
    /// Clients that have come in crowds so far.
    pub crowd: u64,
    /// The overload when all was well, if there was one.
    pub overload: Option<Overload>,
    /// What must not happen at all.
    pub trouble: Option<String>,
    /// What is waited for, for whoever loses patience.
    pub waiting_for: String,
}

impl Told {
    /// Something happened that the simulation is for.
    pub fn count(&mut self, kind: &'static str) {
        self.add(kind, 1);
    }

    /// It happened so many times.
    pub fn add(&mut self, kind: &'static str, times: u64) {
        *self.counts.entry(kind).or_default() += times;
    }

    /// Something that must not happen; the first is kept.
    pub fn wrong(&mut self, sentence: String) {
        self.trouble.get_or_insert(sentence);
    }
}

/// What clients share.
#[derive(Clone)]
pub struct Users {
    /// The placement drivers.
    pub registry: Registry,
    /// What they tell.
    pub told: Rc<RefCell<Told>>,
    /// The machines.
    pub site: site::Shared,
    /// How many shards there are.
    pub shards: u32,
    /// The table.
    pub schema: Arc<TableSchema>,
}

impl Users {
    /// Where a shard's replicas are as far as a user knows: those that it began with, and those in some placement driver's table. So replicas
    /// that have left are asked too.
    pub fn replicas(&self, shard: u32) -> BTreeMap<u64, SocketAddr> {
        let mut known = shard_info(shard).replicas;
        let registry = self.registry.borrow();
        if let Some(driver) = registry.values().nth(below(registry.len() as u64) as usize)
            && let Some(shard) = driver.applied().state.shards.get(&ShardId(shard))
        {
            known.extend(&shard.info.replicas);
        }
        known
    }
}

/// Everything that runs on the clients' machine.
pub async fn run(registry: Registry, told: Rc<RefCell<Told>>, site: site::Shared, shards: u32) -> String {
    let schema = match operators::set_up(&registry, shards).await {
        Ok(schema) => schema,
        Err(reason) => return reason,
    };
    let users = Users { registry, told, site, shards, schema };
    let mut first = Client::new(users.clone(), 0);
    for account in ACCOUNTS {
        while !matches!(first.statement(PUT, vec![account.into()], account).await, Outcome::Answered(_)) {}
    }
    users.told.borrow_mut().set_up = true;
    let mut working = tokio::task::JoinSet::new();
    for number in 1..=CLIENTS {
        working.spawn_local(work(users.clone(), number));
    }
    for number in 1..=WATCHERS {
        working.spawn_local(watch(users.clone(), CLIENTS + number));
    }
    for number in 1..=SESSIONS {
        working.spawn_local(sessions::run(users.clone(), CLIENTS + WATCHERS + number));
    }
    // A placement driver that is restored loses what was written to it since, and that is all there is to say of it.
    if !users.site.borrow().restored {
        for number in 1..=KV_USERS {
            working.spawn_local(kv::run(users.clone(), number));
        }
        for prefix in kv::PREFIXES {
            tokio::task::spawn_local(kv::watch(users.clone(), prefix));
        }
    }
    if users.site.borrow().crowded {
        working.spawn_local(crowd::while_it_hurts(users.clone()));
    }
    working.spawn_local(operators::give_orders(users.clone()));
    working.spawn_local(changes::replace_replicas(users.clone()));
    working.spawn_local(changes::change_drivers(users.clone()));
    while working.join_next().await.is_some() {}
    last_look(&users, first).await;
    std::future::pending().await
}

/// A client's work: while it hurts, whatever comes; afterwards until each counter has been written once more.
async fn work(users: Users, number: u64) {
    let mut client = Client::new(users.clone(), number);
    while users.told.borrow().healed_ms.is_none() {
        if users.site.borrow().large && once_in(3) {
            large::fill(&mut client, number).await;
        } else {
            client.something().await;
        }
        tokio::time::sleep(Duration::from_millis(below(THINK_MS))).await;
    }
    // Everything recovers: every key takes writes again.
    for key in COUNTERS.filter(|key| *key as u64 % CLIENTS + 1 == number) {
        while !client.add(key).await {
            users.told.borrow_mut().waiting_for = format!("(counter {key} takes no write: {})", client.trouble());
        }
    }
}

/// Reads, and nothing else, while it hurts.
async fn watch(users: Users, number: u64) {
    let mut client = Client::new(users.clone(), number);
    while users.told.borrow().healed_ms.is_none() {
        let key = wanted();
        match below(8) {
            0..=1 => client.local(key).await,
            2..=3 => client.leader(key).await,
            _ => client.read(key).await,
        }
        tokio::time::sleep(Duration::from_millis(below(WATCH_MS))).await;
    }
}

/// A counter: some are wanted more than others.
fn wanted() -> i64 {
    if once_in(2) { COUNTERS.start + below(4) as i64 * 10 } else { below(COUNTERS.end as u64) as i64 }
}

/// What is there in the end.
async fn last_look(users: &Users, mut client: Client) {
    operators::clear_away(users);
    settled(users).await;
    if users.site.borrow().crowded {
        users.told.borrow_mut().waiting_for = "(the end of an overload)".into();
        crowd::when_all_is_well(users).await;
        settled(users).await;
    }
    {
        let mut told = users.told.borrow_mut();
        told.recovered = true;
        told.waiting_for = "(a read of each counter)".into();
    }
    let mut last = Last::new();
    for key in COUNTERS.chain(ACCOUNTS).chain([TALLY]).chain(crowd::KEYS) {
        loop {
            if let Outcome::Answered(reply) = client.statement(READ, vec![key.into()], key).await {
                last.insert(key, reply.rows.int(0, 0).unwrap_or(0));
                break;
            }
            let shard = client.route(key);
            let trouble = format!("(a read of {key} on shard {shard}: {})", client.trouble());
            users.told.borrow_mut().waiting_for = trouble;
        }
    }
    large::last_look(users, &mut client).await;
    let mut owners = Vec::new();
    for shard in 1..=users.shards {
        users.told.borrow_mut().waiting_for = format!("(shard {shard}'s leader)");
        let inspection = client.inspect_leader(shard).await;
        owners.extend(inspection.ranges.into_iter().filter(|r| r.4).map(|r| (ShardId(shard), r.3)));
    }
    let mut told = users.told.borrow_mut();
    told.owners = owners;
    told.last = Some(last);
}

/// Waits until every operator, drain and change of members has ended, and every watch has told everything.
async fn settled(users: &Users) {
    let running = |users: &Users| {
        let (registry, site) = (users.registry.borrow(), users.site.borrow());
        let of = |shared: &Arc<ReplicaHandles>| {
            operators::unsettled(shared, &site).map(|what| format!("{}: {what}", shared.config.replica))
        };
        let lingers = site.lingering().map(|part| format!("{part:?} has left and goes on"));
        let all: Vec<String> = registry.values().filter_map(of).chain(lingers).collect();
        (!all.is_empty()).then(|| all.join("; "))
    };
    let mut purged = BTreeSet::new();
    while let Some(operator) = running(users) {
        operators::register_strangers(users).await;
        operators::purge_copies(users, &mut purged).await;
        users.told.borrow_mut().waiting_for.clone_from(&operator);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    users.told.borrow_mut().waiting_for = "(a watch of the coordination store)".into();
    while !kv::watched_all(users) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
