//! A connection to a replica of a shard, with the urgency of requests and the numbers of
//! transactions.

use evenkeel_protocol::shard::{ShardReply, ShardRequest};
use evenkeel_rpc::{Connection, Pool, ReplyStream, RpcError};

/// The connections to all replicas of all shards.
pub(crate) type ShardPool = Pool<ShardRequest, ShardReply>;

/// A connection to a replica. Clones share it.
#[derive(Clone)]
pub(crate) struct Link(Connection<ShardRequest, ShardReply>);

impl From<Connection<ShardRequest, ShardReply>> for Link {
    fn from(connection: Connection<ShardRequest, ShardReply>) -> Link {
        Link(connection)
    }
}

impl Link {
    /// Sends a request and waits for its answer; dropping the future stops waiting.
    pub(crate) async fn call(&self, request: &ShardRequest) -> Result<ShardReply, RpcError> {
        match is_urgent(request) {
            true => self.0.call_urgently(request).await,
            false => self.0.call(request).await,
        }
    }

    /// Sends a request that is answered by a stream.
    pub(crate) async fn stream(&self, request: &ShardRequest) -> Result<ReplyStream<ShardReply>, RpcError> {
        match is_urgent(request) {
            true => self.0.stream_urgently(request).await,
            false => self.0.stream(request).await,
        }
    }

    /// A number that no other transaction on this connection has.
    pub(crate) fn new_transaction(&self) -> u64 {
        self.0.new_number()
    }

    /// Whether the connection has ended, and with it every transaction on it.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// Whether statements in flight may wait for this request: the end of a transaction releases its
/// rows.
fn is_urgent(request: &ShardRequest) -> bool {
    matches!(request, ShardRequest::Commit { .. } | ShardRequest::Rollback { .. })
}
