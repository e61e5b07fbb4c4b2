//! Load spike: many more clients than the shards can serve, at the same time.
//!
//! In one run of [`IN_RUNS`] it comes twice. Under faults it tests that a rejected statement had no
//! effect. After the recovery [`checkers::overload`](crate::checkers::overload) judges admission
//! control by it. The shards' database servers are slow meanwhile, so that their capacity is
//! limited.

use super::client::SimulatedClient;
use super::counters::add;
use super::table::SPIKE_KEYS;
use super::users::Users;
use crate::history::load_spike::{Overload, Period};
use crate::membership_model::MachineCommand;
use crate::process::{self, below, once_in};
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
    let mut connecting = tokio::task::JoinSet::new();
    for _ in 0..clients {
        connecting.spawn_local(SimulatedClient::connect(users.clone(), 1));
    }
    let connected = connecting.join_all().await;
    let began_ms = process::now_ms();
    let mut spike = tokio::task::JoinSet::new();
    for (number, mut client) in connected.into_iter().enumerate() {
        spike.spawn_local(async move {
            // Not all in one millisecond.
            evenkeel_host::sleep(Duration::from_millis(number as u64 % 50)).await;
            let mut answers = Vec::new();
            while process::now_ms() < began_ms + for_ms {
                let key = SPIKE_KEYS.start + below((SPIKE_KEYS.end - SPIKE_KEYS.start) as u64) as i64;
                add(&mut client, key).await;
                answers.append(&mut client.seen().statements);
            }
            answers
        });
    }
    let answers = spike.join_all().await.into_iter().flatten().collect();
    Period { began_ms, for_ms, answers }
}

/// Whether a load spike comes in this run.
pub fn drawn() -> bool {
    once_in(IN_RUNS)
}
