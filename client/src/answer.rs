//! The answer to a statement.

use evenkeel_protocol::shard::StatementReply;
use evenkeel_protocol::{Column, RowBatch, ShardId};
use std::sync::Arc;

/// The answer to a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The columns of the result; empty if the statement returns none.
    pub columns: Arc<[Column]>,
    /// The rows of the result, with values in PostgreSQL's binary format.
    pub rows: RowBatch,
    /// The number of rows inserted, updated, deleted or returned.
    pub affected: u64,
    /// The shard that answered; of a scan over several shards, the first.
    pub shard: ShardId,
    /// The number of attempts after the first.
    pub retries: u32,
    /// The command that a session executed itself: `BEGIN`, `COMMIT`, `ROLLBACK`, `SET`, `RESET` or
    /// `SHOW`. As in PostgreSQL, the `COMMIT` of a transaction in which a statement has failed is
    /// answered with `ROLLBACK`.
    pub command: Option<&'static str>,
    /// Of a `local` read, its staleness bound in milliseconds: the answer contains everything that
    /// was acknowledged this long before it left the replica. Of a scan over several ranges, the
    /// largest bound.
    pub staleness_ms: Option<u64>,
}

impl Answer {
    pub(crate) fn new(reply: StatementReply, shard: ShardId, retries: u32) -> Answer {
        let StatementReply { columns, rows, affected, staleness_ms } = reply;
        Answer { columns, rows, affected, shard, retries, command: None, staleness_ms }
    }
}
