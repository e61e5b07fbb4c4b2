//! Autocommit statements that write or lock rows.

use super::context::LeaderContext;
use super::early_acknowledgement::EarlyReply;
use super::failures::unknown;
use super::job::Job;
use super::plan_cache::BoundPlan;
use super::row_locks::RowLocks;
use super::standalone::StandaloneStatements;
use super::statement_ids::StatementIds;
use super::write_queue::WriteQueues;
use evenkeel_protocol::shard::{StatementReply, StatementRequest};
use evenkeel_protocol::{Failure, SqlError};
use evenkeel_sql::Touches;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Sends each statement to the write queue of its row, or runs it alone if it touches several rows.
pub struct Writes {
    /// The leadership.
    pub context: Arc<LeaderContext>,
    /// Ids of statements.
    pub ids: Arc<StatementIds>,
    /// Queues of statements on single rows.
    pub queues: Arc<WriteQueues>,
    /// Statements on several rows.
    pub standalone: Arc<StandaloneStatements>,
    /// Known row locks.
    pub row_locks: Arc<RowLocks>,
}

impl Writes {
    /// Executes a statement. At a durability below `disk` it is also answered through `early`
    /// (R28).
    pub(super) async fn execute(
        &self,
        request: StatementRequest,
        bound: Arc<BoundPlan>,
        touches: Touches,
        early: Option<EarlyReply>,
    ) -> Result<StatementReply, Failure> {
        if request.clip.is_some() {
            return Err(SqlError::unsupported("a write cannot be clipped", "Name the rows by key.").into());
        }
        let _attempt = self.ids.begin(request.id)?;
        let table = bound.schema.as_ref().map(|s| s.id).unwrap_or_default();
        let ranges = self.context.shared.latches.acquire(table, &touches, &[]).await?;
        self.context.check_plan(&bound)?;
        // Not earlier: the answers of an adopted range came with the range.
        if let Some(reply) = self.ids.answered_before(request.id)? {
            return Ok(reply);
        }
        let (answer, answered) = oneshot::channel();
        let (key, single) = match &touches {
            Touches::Keys(keys) => (keys.first().cloned(), keys.len() == 1),
            _ => (None, false),
        };
        let job = Job { request, plan: bound, ranges, table, key, arrived: evenkeel_host::now(), early, answer };
        if single {
            self.queues.enqueue(job);
        } else {
            // It may lock any of these rows. Statements on them must not wait for it inside a
            // batch.
            let mut rows = self.row_locks.holder();
            rows.may_hold(table, &touches);
            self.standalone.run(job).await;
        }
        answered.await.unwrap_or_else(|_| Err(unknown("the leadership ended")))
    }
}
