//! Supervision of PostgreSQL: starting it again, and when the replica is eligible to lead.
//!
//! A replica is its log and its PostgreSQL. The log does not depend on PostgreSQL: it votes and
//! accepts entries from its own disk. PostgreSQL can crash, fail to start, run out of disk space or
//! lose its data. Its content follows from the log (invariant 3), so it can be brought up to date
//! or made again. While PostgreSQL cannot serve, the replica is *ineligible to lead*: it votes and
//! stores entries, and a replica whose PostgreSQL works leads.
//!
//! | event | reaction |
//! |---|---|
//! | the server, or a session with a proposed entry, ended (R1) | started again, without limit |
//! | the disk is full | the server stays down until [`MIN_FREE_BYTES`] are free |
//! | the start fails | tried again with growing pauses; the reason is logged |
//! | the data is gone | made again: empty, then from the log, or from a peer if the log has been compacted |
//! | the data is damaged | moved away after `DAMAGE_TRIES` starts, if the log or a peer has it, and made again |
//! | the server does not answer for `PULSE_BOUND_MS` | killed, and started again |
//!
//! The replica becomes eligible again once PostgreSQL holds everything that the log had decided
//! when PostgreSQL was opened; later if PostgreSQL has failed repeatedly ([`Relapses`]).
//!
//! Not done: repair of a replica whose data neither its log nor any reachable peer has. It keeps
//! trying and logs an error.

use super::handles::ReplicaHandles;
use super::membership;
use super::process::ReplicaProcess;
use crate::migration::peers;
use crate::postgres::PostgresHandle;
use crate::postgres::{Connector, PostgresError, SessionRole};
use evenkeel_protocol::shard::{ShardReply, ShardRequest};
use std::time::Duration;

/// PostgreSQL is not started with less room than this on its disk, in bytes: two segments of its
/// own log, without which it dies in the middle of something rather sooner than later.
pub const MIN_FREE_BYTES: u64 = 32 << 20;
/// Between tries to start PostgreSQL, in milliseconds: at first, and at most. Each doubles the
/// wait.
const FIRST_WAIT_MS: u64 = 100;
const MOST_WAIT_MS: u64 = 5_000;
/// How often the room on the disk is looked at while there is too little, in milliseconds.
const ROOM_MS: u64 = 250;
/// Starts in a row that must find the data damaged before it is given up.
const DAMAGE_TRIES: u32 = 3;
/// How long a peer may take to say how far it is, in milliseconds.
const ASK_MS: u64 = 2_000;
/// How often PostgreSQL is asked whether it is there, and how long it may take to say so, in
/// milliseconds. A loaded machine takes a second; ten is a server that hangs.
const PULSE_MS: u64 = 1_000;
const PULSE_BOUND_MS: u64 = 10_000;
/// A PostgreSQL that lasted this long was well, in milliseconds.
const WELL_MS: u64 = 30_000;
/// How long a replica stays ineligible after its second failure in a row, and at most, in
/// milliseconds. Each failure doubles it.
const FIRST_REST_MS: u64 = 250;
const MOST_REST_MS: u64 = 5_000;

/// Recent failures of PostgreSQL: a replica that fails whenever it leads must not keep taking the
/// lead. Pure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Relapses {
    in_a_row: u32,
}

impl Relapses {
    /// PostgreSQL has failed, having lasted this long.
    pub fn failed_after(&mut self, lasted: Duration) {
        self.in_a_row = if lasted >= Duration::from_millis(WELL_MS) { 1 } else { self.in_a_row.saturating_add(1) };
    }

    /// How long to stay ineligible although PostgreSQL works. The first failure costs nothing.
    pub fn rest(self) -> Duration {
        Duration::from_millis(match self.in_a_row {
            0 | 1 => 0,
            more => (FIRST_REST_MS << (more - 2).min(16)).min(MOST_REST_MS),
        })
    }
}

/// Starts PostgreSQL, again if it runs, and returns when it accepts sessions, however long that
/// takes. The caller has made the replica ineligible and ended its leadership (R1).
pub(crate) async fn bring_up(process: &ReplicaProcess, postgres: &mut PostgresHandle) {
    let (mut failures, mut damaged) = (0u32, 0u32);
    loop {
        wait_for_room(process, postgres).await;
        let error = match postgres.restart().await {
            Ok(()) => return,
            Err(error) => error,
        };
        failures += 1;
        metrics::counter!("evenkeel_postgres_start_failures_total").increment(1);
        // Once each time the wait has doubled, then with every try, which is seldom.
        tracing::error!(shard = %process.config.shard, replica = process.config.replica, %error, failures,
            "PostgreSQL does not start; this replica votes and does not serve");
        damaged = if matches!(error, PostgresError::Damaged { .. }) { damaged + 1 } else { 0 };
        if damaged >= DAMAGE_TRIES && rebuild(process, postgres).await {
            (failures, damaged) = (0, 0);
            continue;
        }
        let wait_ms = (FIRST_WAIT_MS << failures.min(16)).min(MOST_WAIT_MS);
        evenkeel_host::sleep(Duration::from_millis(wait_ms)).await;
    }
}

/// Keeps the server down while its disk is full: each start would need space and leave less to the
/// next.
async fn wait_for_room(process: &ReplicaProcess, postgres: &mut PostgresHandle) {
    let mut told = false;
    while let Ok(free_bytes) = postgres.free_bytes()
        && free_bytes < MIN_FREE_BYTES
    {
        if !std::mem::replace(&mut told, true) {
            tracing::error!(shard = %process.config.shard, replica = process.config.replica, free_bytes,
                "PostgreSQL's disk is full; this replica votes and does not serve until {MIN_FREE_BYTES} bytes are free");
            if let Err(error) = postgres.halt().await {
                tracing::error!(%error, "PostgreSQL does not end");
            }
        }
        evenkeel_host::sleep(Duration::from_millis(ROOM_MS)).await;
    }
}

/// Moves PostgreSQL's data away, if the log or a peer has everything that it held. Returns whether
/// it did.
pub(crate) async fn rebuild(process: &ReplicaProcess, postgres: &mut PostgresHandle) -> bool {
    if !can_be_rebuilt(process).await {
        tracing::error!(shard = %process.config.shard, replica = process.config.replica,
            "PostgreSQL's data is damaged, and neither the log nor a peer that answers has its content");
        return false;
    }
    match postgres.discard().await {
        Ok(()) => {
            metrics::counter!("evenkeel_postgres_rebuilt_total").increment(1);
            tracing::warn!(shard = %process.config.shard, replica = process.config.replica, "makes PostgreSQL's data again");
            true
        }
        Err(error) => {
            tracing::error!(%error, "damaged data cannot be moved away");
            false
        }
    }
}

async fn can_be_rebuilt(process: &ReplicaProcess) -> bool {
    let first_retained = process.log.status().first_retained.0;
    if first_retained <= 1 {
        return true;
    }
    let bound = Duration::from_millis(ASK_MS);
    // Those of now: some may have taken the place of those in the configuration.
    let replicas = membership::addresses(&process.log.membership().borrow());
    let others = replicas.iter().filter(|(replica, _)| **replica != process.config.replica);
    let asked = others.map(|(_, address)| peers::ask(*address, &ShardRequest::Inspect, bound));
    let answers = futures::future::join_all(asked).await;
    answers.into_iter().any(
        |answer| matches!(answer, Ok(ShardReply::Inspect(peer)) if peer.applied.saturating_add(1) >= first_retained),
    )
}

/// Lets the replica lead once its PostgreSQL has what was decided when it was opened, no row is
/// missing, and `rest` is over. Never returns.
pub(crate) async fn come_back(
    process: &ReplicaProcess,
    handles: &ReplicaHandles,
    postgres: &PostgresHandle,
    rest: Duration,
) {
    handles.progress.reached(process.log.status().decided.0).await;
    // The sender lives as long as `handles`.
    let _ = handles.whole.subscribe().wait_for(|whole| *whole).await;
    evenkeel_host::sleep(rest).await;
    if let Err(error) = postgres.forget_discarded().await {
        tracing::warn!(%error, "damaged data stays where it was put");
    }
    process.log.set_ineligible(false);
    std::future::pending().await
}

/// Asks PostgreSQL now and then whether it is there; returns when it is not, and says what
/// happened.
pub(crate) async fn watch_pulse(connector: &Connector) -> String {
    let client = match connector.connect(SessionRole::Admin).await {
        Ok(client) => client,
        Err(error) => return format!("PostgreSQL takes no session to be watched on: {error}"),
    };
    loop {
        evenkeel_host::sleep(Duration::from_millis(PULSE_MS)).await;
        let asked = evenkeel_host::now();
        match evenkeel_host::timeout(Duration::from_millis(PULSE_BOUND_MS), client.batch_execute("SELECT 1")).await {
            Ok(Ok(())) => metrics::histogram!("evenkeel_postgres_pulse_seconds")
                .record(evenkeel_host::elapsed(asked).as_secs_f64()),
            Ok(Err(error)) => return format!("the session that watches PostgreSQL was lost: {error}"),
            Err(_) => return format!("PostgreSQL has not answered for {PULSE_BOUND_MS} ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_fails_again_and_again_stays_ineligible_for_longer() {
        let mut relapses = Relapses::default();
        let mut rests = Vec::new();
        for _ in 0..8 {
            relapses.failed_after(Duration::from_secs(1));
            rests.push(relapses.rest().as_millis());
        }
        assert_eq!(rests, [0, 250, 500, 1_000, 2_000, 4_000, 5_000, 5_000]);
        relapses.failed_after(Duration::from_millis(WELL_MS));
        assert_eq!(relapses.rest(), Duration::ZERO, "it was well in between");
    }
}
