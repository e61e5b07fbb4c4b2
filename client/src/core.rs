//! The state that all handles of one client share, and its two background tasks.
//!
//! It owns the client's identity (the `client` part of every [`TxnId`]), its clock, the routing
//! table, the connections and the hints about replicas. The background tasks, which keep the
//! routing table fresh, end with the last handle.

use crate::config::ClientConfig;
use crate::error::ClientError;
use crate::inquiry::Inquiries;
use crate::leaders::{Leaders, SilentReplicas};
use crate::link::{Link, OwnLinks, ShardPool};
use crate::observer::ReplyObserver;
use crate::placement_driver::Api;
use crate::routing::{RouteUpdates, StatementCache};
use crate::stats::Counters;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::routing::RoutingTable;
use evenkeel_protocol::shard::ShardReply;
use evenkeel_protocol::{ShardId, SqlError, TxnId};
use evenkeel_rpc::RpcError;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

/// The shared state of one client.
pub(crate) struct ClientCore {
    pub(crate) config: ClientConfig,
    pub(crate) routing: Arc<RouteUpdates>,
    pub(crate) placement_driver: Arc<dyn Api>,
    pub(crate) statements: StatementCache,
    pub(crate) leaders: Leaders,
    pub(crate) silent: SilentReplicas,
    pub(crate) inquiries: Inquiries,
    pub(crate) counters: Arc<Counters>,
    observer: Arc<dyn ReplyObserver>,
    pool: Arc<ShardPool>,
    own_links: OwnLinks,
    /// Drawn at random, so that the ids of different clients differ.
    id: u64,
    sequence: AtomicU64,
    started: Instant,
    started_unix_ms: u64,
    tasks: OnceLock<[AbortHandle; 2]>,
}

impl Drop for ClientCore {
    fn drop(&mut self) {
        self.tasks.get().into_iter().flatten().for_each(AbortHandle::abort);
    }
}

impl ClientCore {
    /// A core with an empty routing table and without background tasks. `id` is a random number.
    pub(crate) fn new(
        config: ClientConfig,
        id: u64,
        api: Arc<dyn Api>,
        observer: Arc<dyn ReplyObserver>,
    ) -> ClientCore {
        let connect_timeout = Duration::from_millis(config.connect_timeout_ms);
        let pool = Arc::new(ShardPool::new(config.connections_per_replica, connect_timeout));
        let counters = Arc::new(Counters::default());
        ClientCore {
            routing: Arc::new(RouteUpdates::new(&config, api.clone(), pool.clone(), counters.clone())),
            placement_driver: api,
            statements: StatementCache::new(config.statement_cache_entries),
            leaders: Leaders::default(),
            silent: SilentReplicas::default(),
            inquiries: Inquiries::default(),
            counters,
            observer,
            pool,
            own_links: OwnLinks::new(connect_timeout),
            id,
            sequence: AtomicU64::new(1),
            started: evenkeel_host::now(),
            started_unix_ms: evenkeel_host::wall_ms(),
            tasks: OnceLock::new(),
            config,
        }
    }

    /// Fetches the routing table for the first time, trying again until `connect_patience_ms` have
    /// passed, and starts the background tasks.
    pub(crate) async fn start(&self) -> Result<(), ClientError> {
        let mut wait_ms = 10;
        while let Err(reason) = self.routing.refresh().await {
            if self.now_ms() + wait_ms >= self.config.connect_patience_ms {
                let error = SqlError::new(codes::CONNECTION_FAILURE, reason);
                return Err(ClientError::Unavailable(
                    error.hint(format!("Is one of these a placement driver? {}", self.config.endpoints.join(", "))),
                ));
            }
            evenkeel_host::sleep(Duration::from_millis(wait_ms)).await;
            wait_ms = (wait_ms * 2).min(500);
        }
        self.tasks.get_or_init(|| {
            let watch = tokio::spawn(self.routing.clone().watch());
            let refresh = tokio::spawn(self.routing.clone().refresh_when_wanted());
            [watch.abort_handle(), refresh.abort_handle()]
        });
        Ok(())
    }

    /// Milliseconds on this client's clock.
    pub(crate) fn now_ms(&self) -> u64 {
        evenkeel_host::elapsed(self.started).as_millis() as u64
    }

    /// Milliseconds since the Unix epoch: the machine's clock when the client was created, advanced
    /// by this client's clock. Setting the machine's clock therefore changes no id's age.
    pub(crate) fn unix_ms(&self) -> u64 {
        self.started_unix_ms + self.now_ms()
    }

    /// A new id. It names one statement or transaction and is the same in all of its attempts
    /// (R14).
    pub(crate) fn new_id(&self) -> TxnId {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        TxnId { client: self.id, sequence, first_sent_ms: self.unix_ms() }
    }

    /// The current routing table.
    pub(crate) fn routes(&self) -> Arc<RoutingTable> {
        self.routing.table()
    }

    /// As [`ClientCore::fetch_until`]. Whether that succeeded shows in the table.
    pub(crate) async fn refresh_until(&self, deadline_ms: u64) {
        let _ = self.fetch_until(deadline_ms).await;
    }

    /// Fetches the routing table, until `deadline_ms` at most.
    ///
    /// # Errors
    /// One sentence.
    pub(crate) async fn fetch_until(&self, deadline_ms: u64) -> Result<(), String> {
        let left = Duration::from_millis(deadline_ms.saturating_sub(self.now_ms()));
        let fetched = evenkeel_host::timeout(left, self.routing.refresh()).await;
        fetched.unwrap_or_else(|_| Err("the placement driver has not answered in time".to_string()))
    }

    /// A replica has replied to a request that was sent at `sent_ms` on the client's clock.
    pub(crate) fn observe(&self, (shard, replica): (ShardId, u64), sent_ms: u64, reply: &ShardReply) {
        self.observer.replied(shard, replica, self.now_ms().saturating_sub(sent_ms), reply);
    }

    /// A connection to the replica at `address` that nobody else uses now.
    pub(crate) async fn own_link(&self, address: SocketAddr) -> Result<Link, RpcError> {
        self.own_links.get(address).await
    }

    /// A connection to the replica at `address`.
    pub(crate) async fn link(&self, address: SocketAddr) -> Result<Link, RpcError> {
        self.pool.get(address).await.map(Link::from)
    }
}
