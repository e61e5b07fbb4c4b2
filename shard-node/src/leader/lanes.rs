//! Lanes: autocommit statements that name one row each, many to a PostgreSQL transaction and a log entry (R10).
//!
//! A lane takes all that waits, runs it as one group, and waits for the log; meanwhile the next batch gathers. Statements
//! on the same row share a lane, so that lanes never wait for each other. A batch in which PostgreSQL refuses something, or which meets
//! a lock of an open transaction for longer than a few milliseconds, is rolled back and each of its statements is run alone.

use super::Leader;
use super::group::{Ended, Job};
use super::session::UserSession;
use evenkeel_protocol::{Failure, Key, TableId};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Statements that may wait for a lane.
pub const QUEUE_JOBS: usize = 8192;
/// Statements in one batch.
const MAX_BATCH: usize = 128;
/// A lane never waits long for a lock: what holds it may be a transaction that waits for its client (R10).
pub const SESSION_SETTINGS: &str = "SET lock_timeout = '5ms'";

/// Which lane a row's statements go through.
pub fn lane_of(table: TableId, key: &Key, lanes: usize) -> usize {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one((table, key));
    (hash % lanes as u64) as usize
}

/// Runs a lane until the reign ends.
pub async fn run(leader: Arc<Leader>, mut session: UserSession, mut queue: mpsc::Receiver<Job>) {
    let mut ended = leader.reign.ended();
    loop {
        let first = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => break,
            job = queue.recv() => match job {
                Some(job) => job,
                None => return,
            },
        };
        let mut batch = vec![first];
        while batch.len() < MAX_BATCH {
            match queue.try_recv() {
                Ok(job) => batch.push(job),
                Err(_) => break,
            }
        }
        metrics::histogram!("evenkeel_batch_statements").record(batch.len() as f64);
        match leader.run_group(&session, batch, false).await {
            Ended::Answered => {}
            Ended::Split(jobs) => {
                for job in jobs {
                    let leader = leader.clone();
                    tokio::spawn(async move { leader.run_alone(job).await });
                }
            }
            Ended::SessionLost => match reopen(&leader).await {
                Some(opened) => session = opened,
                None => break,
            },
        }
    }
    queue.close();
    while let Some(job) = queue.recv().await {
        let _ = job.answer.send(Err(Failure::NotLeader { leader: None }));
    }
}

/// A new session after one was lost without harm: nothing that it had proposed was open.
async fn reopen(leader: &Leader) -> Option<UserSession> {
    if leader.reign.has_ended() {
        return None;
    }
    let opened = async {
        let session = UserSession::new(leader.shared.connector.connect(crate::postgres::Role::User).await?);
        session.simple(SESSION_SETTINGS).await?;
        Ok::<_, crate::store::StoreError>(session)
    };
    match opened.await {
        Ok(session) => Some(session),
        Err(error) => {
            leader.no_session(&error);
            None
        }
    }
}
