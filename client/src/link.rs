//! A connection to a replica of a shard, with the urgency of requests and the numbers of
//! transactions.
//!
//! Most requests share the connections of a pool. A pass-through transaction has a connection of
//! its own, since a stream that is read slowly delays whatever comes on its connection. When its
//! last user drops it, such a connection is kept for the next transaction.

use evenkeel_protocol::shard::{ShardReply, ShardRequest};
use evenkeel_rpc::{Connection, Pool, ReplyStream, RpcError};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The connections to all replicas of all shards.
pub(crate) type ShardPool = Pool<ShardRequest, ShardReply>;

/// The most unused connections that are kept for pass-through transactions, for each address.
const MAX_KEPT_PER_ADDRESS: usize = 64;

/// A connection to a replica. Clones share it.
#[derive(Clone)]
pub(crate) struct Link {
    connection: Connection<ShardRequest, ShardReply>,
    _kept: Option<Arc<Kept>>,
}

impl From<Connection<ShardRequest, ShardReply>> for Link {
    fn from(connection: Connection<ShardRequest, ShardReply>) -> Link {
        Link { connection, _kept: None }
    }
}

/// The unused connections by address.
type Unused = Arc<Mutex<HashMap<SocketAddr, Vec<Connection<ShardRequest, ShardReply>>>>>;

/// Keeps a connection when its last user drops it.
struct Kept {
    connection: Connection<ShardRequest, ShardReply>,
    unused: Unused,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.connection.is_closed() {
            return;
        }
        let mut unused = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = unused.entry(self.connection.address()).or_default();
        if kept.len() < MAX_KEPT_PER_ADDRESS {
            kept.push(self.connection.clone());
        }
    }
}

/// Connections that have one user each.
pub(crate) struct OwnLinks {
    unused: Unused,
    connect_timeout: Duration,
}

impl OwnLinks {
    /// No connection is open.
    pub(crate) fn new(connect_timeout: Duration) -> OwnLinks {
        OwnLinks { unused: Arc::default(), connect_timeout }
    }

    /// An unused connection to `address`, or a new one.
    pub(crate) async fn get(&self, address: SocketAddr) -> Result<Link, RpcError> {
        let connection = match self.unused_to(address) {
            Some(connection) => connection,
            None => Connection::connect(address, self.connect_timeout).await?,
        };
        let kept = Kept { connection: connection.clone(), unused: self.unused.clone() };
        Ok(Link { connection, _kept: Some(Arc::new(kept)) })
    }

    fn unused_to(&self, address: SocketAddr) -> Option<Connection<ShardRequest, ShardReply>> {
        let mut unused = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = unused.get_mut(&address)?;
        while let Some(connection) = kept.pop() {
            if !connection.is_closed() {
                return Some(connection);
            }
        }
        unused.remove(&address);
        None
    }
}

impl Link {
    /// Sends a request and waits for its answer; dropping the future stops waiting.
    pub(crate) async fn call(&self, request: &ShardRequest) -> Result<ShardReply, RpcError> {
        match is_urgent(request) {
            true => self.connection.call_urgently(request).await,
            false => self.connection.call(request).await,
        }
    }

    /// Sends a request that is answered by a stream.
    pub(crate) async fn stream(&self, request: &ShardRequest) -> Result<ReplyStream<ShardReply>, RpcError> {
        match is_urgent(request) {
            true => self.connection.stream_urgently(request).await,
            false => self.connection.stream(request).await,
        }
    }

    /// A number that no other transaction on this connection has.
    pub(crate) fn new_transaction(&self) -> u64 {
        self.connection.new_number()
    }

    /// Whether the connection has ended, and with it every transaction on it.
    pub(crate) fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }
}

/// Whether statements in flight may wait for this request: the end of a transaction releases its
/// rows.
fn is_urgent(request: &ShardRequest) -> bool {
    matches!(request, ShardRequest::Commit { .. } | ShardRequest::Rollback { .. })
}
