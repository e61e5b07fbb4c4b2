//! Load spike: many more clients than the shards can serve, at the same time.
//!
//! In one run of [`IN_RUNS`] it comes twice. Under faults it tests that a rejected statement had no
//! effect. After the recovery [`checkers::overload`](crate::checkers::overload) judges admission
//! control by it. The shards' database servers are slow meanwhile, so that their capacity is
//! limited.

use super::client::{SimulatedClient, Step};
use super::table::{ADD, SPIKE_KEYS};
use super::users::Users;
use crate::history::events::ADDITION;
use crate::history::load_spike::{Answer, Overload, Period};
use crate::membership_model::MachineCommand;
use crate::process::{self, below, once_in};
use evenkeel_protocol::Failure;
use evenkeel_protocol::shard::{ShardReply, ShardRequest};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// A load spike comes in one run of this many.
pub const IN_RUNS: u64 = 8;
/// Clients in it.
const SPIKE_CLIENTS: u64 = 300;
/// As many clients as the shards can serve.
const FEW: u64 = 8;
/// How long a database server takes for a statement meanwhile, in milliseconds, at most.
const SLOW_MS: u64 = 20;
/// Time until the load spike under faults, in milliseconds, at most; and its duration.
const COMES_MS: u64 = 3_000;
const STAYS_MS: u64 = 1_500;
/// The periods after the recovery, in milliseconds: few clients, the load spike, and few clients
/// again.
const CALM_MS: u64 = 1_000;
const SPIKE_MS: u64 = 3_000;
/// How long an answer is waited for, in milliseconds.
const ANSWER_MS: u64 = 5_000;
/// The number of the first client of a load spike: above those of the other clients.
const FIRST_NUMBER: u64 = 1_000;

/// A load spike under faults.
pub(super) async fn under_faults(users: Users) {
    evenkeel_host::sleep(Duration::from_millis(below(COMES_MS))).await;
    slow(&users, SLOW_MS);
    let period = come(&users, SPIKE_CLIENTS, STAYS_MS).await;
    slow(&users, 0);
    let mut history = users.history.borrow_mut();
    history.add("refusals of a load spike under faults", refused(&period));
    history.add("answers to a load spike under faults", answered(&period));
}

/// A load spike after the recovery, with a period before and one after it.
pub(super) async fn after_recovery(users: &Users) {
    slow(users, SLOW_MS);
    let before = come(users, FEW, CALM_MS).await;
    let during = come(users, SPIKE_CLIENTS, SPIKE_MS).await;
    let after = come(users, FEW, CALM_MS).await;
    slow(users, 0);
    let mut history = users.history.borrow_mut();
    history.add("refusals of a load spike when all is well", refused(&during));
    history.add("answers to a load spike when all is well", answered(&during));
    history.overload = Some(Overload { before, during, after });
}

fn refused(period: &Period) -> u64 {
    period.answers.iter().filter(|answer| answer.refused).count() as u64
}

fn answered(period: &Period) -> u64 {
    period.answers.len() as u64 - refused(period)
}

fn slow(users: &Users, ms: u64) {
    users.membership.borrow_mut().command(MachineCommand::SlowServers(ms));
}

/// A number of clients for a period; returns when the last of them has its answer.
async fn come(users: &Users, clients: u64, for_ms: u64) -> Period {
    let began_ms = process::now_ms();
    let answers = Rc::new(RefCell::new(Vec::new()));
    let mut spike = tokio::task::JoinSet::new();
    for number in 0..clients {
        let (mut client, answers) = (SimulatedClient::new(users.clone(), number_of(users)), answers.clone());
        spike.spawn_local(async move {
            // Not all in one millisecond.
            evenkeel_host::sleep(Duration::from_millis(number % 50)).await;
            while process::now_ms() < began_ms + for_ms {
                add_in_spike(&mut client, began_ms + for_ms, &answers).await;
            }
        });
    }
    while spike.join_next().await.is_some() {}
    Period { began_ms, for_ms, answers: answers.take() }
}

fn number_of(users: &Users) -> u64 {
    let mut history = users.history.borrow_mut();
    history.spike_clients += 1;
    FIRST_NUMBER + history.spike_clients
}

/// Adds one to a counter; tries until it is done, or until `until_ms` if it certainly is not.
async fn add_in_spike(client: &mut SimulatedClient, until_ms: u64, answers: &RefCell<Vec<Answer>>) {
    let key = SPIKE_KEYS.start + below((SPIKE_KEYS.end - SPIKE_KEYS.start) as u64) as i64;
    let (sent_ms, id) = (process::now_ms(), client.id());
    let request = ShardRequest::Statement(SimulatedClient::request(id, ADD, vec![key.into()]));
    let mut shard = client.route(key);
    let mut perhaps = false;
    while process::now_ms() < until_ms || (perhaps && process::now_ms() < until_ms + ANSWER_MS) {
        let Some((by, address, connection)) = client.leader_of(shard).await else {
            evenkeel_host::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let asked_ms = process::now_ms();
        let reply = match connection.call_within(&request, Duration::from_millis(ANSWER_MS)).await {
            Ok(reply) => reply,
            Err(error) => {
                perhaps |= !error.never_sent();
                client.unanswered::<()>(by, address, &error);
                continue;
            }
        };
        let refused = matches!(reply, ShardReply::Failed(Failure::Overloaded { .. }));
        if refused || matches!(reply, ShardReply::Rows(_)) {
            answers.borrow_mut().push(Answer { asked_ms, answered_ms: process::now_ms(), refused });
        }
        match client.answered(by, asked_ms, reply, &mut shard, key).await {
            Step::Answered(ShardReply::Rows(reply)) => {
                let value = reply.rows.int(0, 0).unwrap_or(-1);
                client.record(key, ADDITION, sent_ms, Some(value));
                return;
            }
            Step::Answered(_) | Step::Perhaps => perhaps = true,
            Step::Never if !perhaps => return,
            Step::Never | Step::Again => {}
        }
    }
    if perhaps {
        client.record(key, ADDITION, sent_ms, None);
    }
}
/// Whether a load spike comes in this run.
pub fn drawn() -> bool {
    once_in(IN_RUNS)
}
