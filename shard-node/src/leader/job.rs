//! A write that waits to be executed.

use super::early_acknowledgement::EarlyReply;
use super::latches::RangeHandle;
use super::plan_cache::BoundPlan;
use evenkeel_protocol::shard::{StatementReply, StatementRequest};
use evenkeel_protocol::{Failure, Key, TableId};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;

/// An autocommit statement that writes or locks rows, with everything that it needs to be executed
/// and answered.
pub struct Job {
    /// The statement.
    pub request: StatementRequest,
    /// Its plan.
    pub plan: Arc<BoundPlan>,
    /// Its right to use its ranges. It is dropped after the answer.
    pub ranges: RangeHandle,
    /// Its table.
    pub table: TableId,
    /// A key that it touches.
    pub key: Option<Key>,
    /// The time of its arrival.
    pub arrived: Instant,
    /// Where an answer before the COMMIT goes, at a durability below `disk` (R28).
    pub early: Option<EarlyReply>,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<StatementReply, Failure>>,
}

impl Job {
    /// Answers the statement.
    pub(super) fn answer(self, result: Result<StatementReply, Failure>) {
        // A client that has gone does not receive the answer. The statement's effect remains.
        let _ = self.answer.send(result);
    }
}
