//! Statements that run alone: each in a transaction and an entry of its own, on a session that may
//! wait for locks.
//!
//! These are statements on several rows, statements that PostgreSQL rejected in a batch, statements
//! on rows that may be locked, and statements whose entry needs several parts (R12).

use super::context::LeaderContext;
use super::failures::unknown;
use super::group_commit::GroupCommit;
use super::job::Job;
use super::session_pool::SessionPool;
use std::sync::Arc;

/// See the module.
pub struct StandaloneStatements {
    context: Arc<LeaderContext>,
    pool: Arc<SessionPool>,
    group: Arc<GroupCommit>,
}

impl StandaloneStatements {
    /// Statements on sessions of this pool.
    pub fn new(context: Arc<LeaderContext>, pool: Arc<SessionPool>, group: Arc<GroupCommit>) -> StandaloneStatements {
        StandaloneStatements { context, pool, group }
    }

    /// Runs a job as a group of one, and answers it.
    pub(super) async fn run(&self, job: Job) {
        let session = match self.context.took(self.pool.take().await) {
            Ok(session) => session,
            Err(failure) => return job.answer(Err(failure)),
        };
        let result = self.group.run(&session, vec![job], true).await;
        if !result.session_lost {
            self.pool.put_back(session);
        }
        // A job that runs alone is always answered.
        for job in result.run_alone.into_iter().chain(result.run_again) {
            job.answer(Err(unknown("a single statement was split")));
        }
    }
}
