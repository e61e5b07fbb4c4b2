//! Lanes: autocommit statements that name one row each, many to a PostgreSQL transaction and a log entry (R10).
//!
//! A lane takes what waits, up to the limits of [`super::batch`], runs it as one group, and waits for the log; meanwhile the next batch
//! gathers. Statements on the same row share a lane, so that lanes never wait for each other. A statement on a row that something else is
//! known to lock waits beside the lane, and one that PostgreSQL refuses, or whose entry needs parts, is run alone, at most
//! [`ALONE_PER_LANE`] at a time; all without the others.

use super::Leader;
use super::batch::{Budget, Weight};
use super::group::{self, Job};
use super::row_locks::{Known, Turn};
use super::session::UserSession;
use evenkeel_protocol::{Failure, Key, SqlError, TableId};
use std::collections::VecDeque;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Statements that may wait for a lane.
pub const QUEUE_JOBS: usize = 8192;
/// Statements of a lane that run alone at the same time.
pub const ALONE_PER_LANE: usize = 4;
/// How long a statement waits for a row that something else locks, in milliseconds, before it is refused; as long as PostgreSQL waits for a
/// lock outside of lanes.
const ROW_WAIT_MS: u64 = 2_000;
/// A lane does not wait long for a lock that is not known of (R10), nor for a statement that computes for long.
pub const SESSION_SETTINGS: &str = "SET lock_timeout = '50ms'; SET statement_timeout = '5s'";

/// Which lane a row's statements go through.
pub fn lane_of(table: TableId, key: &Key, lanes: usize) -> usize {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one((table, key));
    (hash % lanes as u64) as usize
}

/// Runs a lane until the leadership ends.
pub async fn run(leader: Arc<Leader>, mut session: UserSession, mut queue: mpsc::Receiver<Job>) {
    let mut ended = leader.leadership.ended();
    // Taken from the queue, and not run yet.
    let mut waiting: VecDeque<Job> = VecDeque::new();
    while !leader.leadership.has_ended() {
        if waiting.is_empty() {
            let first = tokio::select! {
                biased;
                _ = ended.wait_for(|ended| *ended) => break,
                job = queue.recv() => job,
            };
            match first {
                Some(job) => waiting.push_back(job),
                None => return,
            }
        }
        let batch = gather(&leader, &mut waiting, &mut queue);
        if batch.is_empty() {
            continue;
        }
        metrics::histogram!("evenkeel_batch_statements").record(batch.len() as f64);
        let ran = leader.run_group(&session, batch, false).await;
        for job in ran.apart {
            aside(&leader, job, true);
        }
        for job in ran.again.into_iter().rev() {
            waiting.push_front(job);
        }
        if ran.session_lost {
            match reopen(&leader).await {
                Some(opened) => session = opened,
                None => break,
            }
        }
    }
    queue.close();
    for job in waiting {
        job.answer(Err(Failure::NotLeader { leader: None }));
    }
    while let Some(job) = queue.recv().await {
        job.answer(Err(Failure::NotLeader { leader: None }));
    }
}

/// Takes what waits into one batch, until that is full. What something else locks is put aside.
fn gather(leader: &Arc<Leader>, waiting: &mut VecDeque<Job>, queue: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let (mut batch, mut budget) = (Vec::new(), Budget::default());
    while let Some(job) = waiting.pop_front().or_else(|| queue.try_recv().ok()) {
        let free = job.key.as_ref().is_none_or(|key| leader.row_locks.known(job.table, key) == Known::Free);
        if !free {
            aside(leader, job, false);
        } else if Weight::of(&job).needs_parts() {
            aside(leader, job, true);
        } else if budget.take(Weight::of(&job)) {
            batch.push(job);
        } else {
            waiting.push_front(job);
            break;
        }
    }
    batch
}

/// Has a job wait for its row beside the lane. If it is to run `alone`, or the row may be locked even then, it runs alone; else it comes back to its lane.
fn aside(leader: &Arc<Leader>, job: Job, alone: bool) {
    let leader = leader.clone();
    tokio::spawn(async move {
        let since = if alone { Instant::now() } else { job.arrived };
        let deadline = since + Duration::from_millis(ROW_WAIT_MS);
        let key = job.key.clone().unwrap_or_default();
        let mut ended = leader.leadership.ended();
        let turn = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => return job.answer(Err(Failure::NotLeader { leader: None })),
            turn = leader.row_locks.turn(job.table, &key, alone, deadline) => turn,
        };
        match turn {
            Turn::Free => leader.to_lane(job),
            Turn::Alone(row) => {
                // Never closed.
                let _place = leader.alone.acquire().await;
                leader.run_alone(job).await;
                drop(row);
            }
            Turn::Expired => job.answer(Err(group::contention(&SqlError::new("55P03", "the row stayed locked")))),
        }
    });
}

/// A new session after one was lost without harm: nothing that it had proposed was open.
async fn reopen(leader: &Leader) -> Option<UserSession> {
    if leader.leadership.has_ended() {
        return None;
    }
    let opened = async {
        let session = UserSession::new(leader.shared.connector.connect(crate::postgres::Role::User).await?);
        session.simple(SESSION_SETTINGS).await?;
        Ok::<_, crate::storage::StoreError>(session)
    };
    match opened.await {
        Ok(session) => Some(session),
        Err(error) => {
            leader.no_session(&error);
            None
        }
    }
}
