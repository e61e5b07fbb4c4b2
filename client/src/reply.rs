//! A shard's reply and its origin.

use crate::error::ClientError;
use crate::link::Link;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{ShardReply, StatementReply};
use evenkeel_protocol::{ShardId, SqlError};
use evenkeel_rpc::ReplyStream;

/// A reply to a request, from one replica.
pub(crate) struct ReplicaReply {
    pub reply: ShardReply,
    pub shard: ShardId,
    pub replica: u64,
    pub link: Link,
    /// The transaction's number on the connection, if one has begun; otherwise 0.
    pub transaction: u64,
    /// When the request was sent, on the client's clock.
    pub sent_ms: u64,
    /// Present if more follows: after an early acknowledgement the outcome of the COMMIT (R28),
    /// after the first item of a pass-through statement the other items.
    pub outcome: Option<ReplyStream<ShardReply>>,
}

/// The reply to a statement.
pub(crate) fn rows(reply: ShardReply) -> Result<StatementReply, ClientError> {
    match reply {
        ShardReply::Rows(reply) => Ok(reply),
        other => Err(unexpected(&other)),
    }
}

/// The error for a reply of the wrong kind.
pub(crate) fn unexpected(reply: &ShardReply) -> ClientError {
    let text: String = format!("{reply:?}").chars().take(80).collect();
    let error = SqlError::new(codes::INTERNAL, format!("a shard answered with what was not asked for: {text}"));
    ClientError::Sql(error.hint("Do all parts of the store have the same version?"))
}
