//! A view of the replies of single replicas, for programs that must know more than the answer to a
//! statement: which replica said what, and when.
//!
//! It changes nothing: the client decides without it.

use evenkeel_protocol::ShardId;
use evenkeel_protocol::shard::ShardReply;

/// Sees the replies of replicas in the order in which they arrive. It is called in the middle of a
/// statement, so it must not block.
pub trait ReplyObserver: Send + Sync {
    /// A replica of a shard has replied, this many milliseconds after the request was sent. A write
    /// that is acknowledged early (R28) has two replies: [`ShardReply::Early`], and the end of its
    /// COMMIT.
    fn replied(&self, shard: ShardId, replica: u64, after_ms: u64, reply: &ShardReply);
}

/// Sees nothing.
impl ReplyObserver for () {
    fn replied(&self, _: ShardId, _: u64, _: u64, _: &ShardReply) {}
}
