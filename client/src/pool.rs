//! Connections to replicas: a fixed number per replica, shared by all statements, made when first needed and again when they end.
//!
//! It owns the connections. It promises that one attempt to connect is under way per connection at a time, and that all
//! who waited for an attempt that failed learn of it together, instead of each waiting for one more.

use evenkeel_protocol::shard::{ShardReply, ShardRequest};
use evenkeel_rpc::{Connection, ReplyStream, RpcError};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// A connection to a replica.
pub(crate) struct Link {
    connection: Connection<ShardRequest, ShardReply>,
    next_transaction: AtomicU64,
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
        self.next_transaction.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether it has ended, and with it every transaction on it.
    pub(crate) fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }
}

/// Whether statements under way may be waiting for this: the end of a transaction lets go of its rows.
fn is_urgent(request: &ShardRequest) -> bool {
    matches!(request, ShardRequest::Commit { .. } | ShardRequest::Rollback { .. })
}

#[derive(Default)]
struct Slot {
    link: RwLock<Option<Arc<Link>>>,
    /// Held while connecting; remembers the last failure and when it came.
    connecting: tokio::sync::Mutex<Option<(Instant, RpcError)>>,
}

impl Slot {
    fn live(&self) -> Option<Arc<Link>> {
        self.link.read().unwrap_or_else(PoisonError::into_inner).as_ref().filter(|link| !link.is_closed()).cloned()
    }

    async fn get(&self, address: SocketAddr, timeout: Duration) -> Result<Arc<Link>, RpcError> {
        if let Some(link) = self.live() {
            return Ok(link);
        }
        let asked_at = Instant::now();
        let mut last_failure = self.connecting.lock().await;
        if let Some(link) = self.live() {
            return Ok(link);
        }
        if let Some((at, error)) = last_failure.as_ref()
            && *at >= asked_at
        {
            return Err(error.clone());
        }
        match Connection::connect(address, timeout).await {
            Ok(connection) => {
                let link = Arc::new(Link { connection, next_transaction: AtomicU64::new(1) });
                *self.link.write().unwrap_or_else(PoisonError::into_inner) = Some(link.clone());
                Ok(link)
            }
            Err(error) => {
                *last_failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

struct Replica {
    slots: Vec<Slot>,
    turn: AtomicUsize,
}

/// The connections to all replicas.
pub(crate) struct Pool {
    replicas: RwLock<HashMap<SocketAddr, Arc<Replica>>>,
    connections_per_replica: usize,
    connect_timeout: Duration,
}

impl Pool {
    /// An empty pool.
    pub(crate) fn new(connections_per_replica: usize, connect_timeout_ms: u64) -> Pool {
        let connect_timeout = Duration::from_millis(connect_timeout_ms);
        Pool { replicas: RwLock::default(), connections_per_replica, connect_timeout }
    }

    /// A connection to the replica at `address`: its connections take turns.
    pub(crate) async fn get(&self, address: SocketAddr) -> Result<Arc<Link>, RpcError> {
        let replica = self.replica(address);
        let turn = replica.turn.fetch_add(1, Ordering::Relaxed) % replica.slots.len();
        replica.slots[turn].get(address, self.connect_timeout).await
    }

    fn replica(&self, address: SocketAddr) -> Arc<Replica> {
        if let Some(replica) = self.replicas.read().unwrap_or_else(PoisonError::into_inner).get(&address) {
            return replica.clone();
        }
        let slots = || (0..self.connections_per_replica).map(|_| Slot::default()).collect();
        let mut replicas = self.replicas.write().unwrap_or_else(PoisonError::into_inner);
        replicas
            .entry(address)
            .or_insert_with(|| Arc::new(Replica { slots: slots(), turn: AtomicUsize::new(0) }))
            .clone()
    }

    /// Forgets the replicas that are no longer part of the store. Transactions keep their connections until they end.
    pub(crate) fn retain(&self, in_use: impl Fn(&SocketAddr) -> bool) {
        self.replicas.write().unwrap_or_else(PoisonError::into_inner).retain(|address, _| in_use(address));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_rpc::{Replier, Service, serve};
    use std::sync::atomic::AtomicUsize;
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    /// Answers everything, and counts connections.
    #[derive(Default)]
    struct Yes {
        opened: AtomicUsize,
    }

    impl Service for Yes {
        type Request = ShardRequest;
        type Reply = ShardReply;
        type Session = ();

        fn opened(&self, _: SocketAddr) {
            self.opened.fetch_add(1, Ordering::Relaxed);
        }

        async fn call(self: Arc<Self>, _: Arc<()>, _: ShardRequest, replier: Replier<ShardReply>) {
            replier.reply(&ShardReply::Done).await;
        }
    }

    async fn start(address: SocketAddr) -> (SocketAddr, Arc<Yes>, JoinHandle<()>) {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = Arc::new(Yes::default());
        (address, service.clone(), tokio::spawn(serve(listener, service, std::future::pending())))
    }

    #[tokio::test]
    async fn connections_are_shared_and_made_again_when_they_end() {
        let (address, service, server) = start(([127, 0, 0, 1], 0).into()).await;
        let pool = Arc::new(Pool::new(2, 1_000));
        let ask = || async { pool.get(address).await?.call(&ShardRequest::WhoLeads).await };
        futures::future::join_all((0..100).map(|_| ask())).await.into_iter().for_each(|reply| drop(reply.unwrap()));
        assert_eq!(service.opened.load(Ordering::Relaxed), 2);
        let numbers: Vec<u64> = [pool.get(address).await.unwrap(), pool.get(address).await.unwrap()]
            .iter()
            .flat_map(|link| [link.new_transaction(), link.new_transaction()])
            .collect();
        assert_eq!(numbers, [1, 2, 1, 2]);
        server.abort();
        // Whatever is asked for while it is down fails; nobody waits for ever.
        while ask().await.is_ok() {}
        assert!(ask().await.is_err());
        let (_, service, _server) = start(address).await;
        for _ in 0..10 {
            ask().await.unwrap();
        }
        assert_eq!(service.opened.load(Ordering::Relaxed), 2);
        pool.retain(|_| false);
        ask().await.unwrap();
        assert_eq!(service.opened.load(Ordering::Relaxed), 3);
    }

    /// Breaks if those who wait for a connection attempt each make their own after it has failed.
    #[tokio::test]
    async fn a_failure_to_connect_is_shared_by_all_who_waited() {
        // A listener that never accepts, with its queue full: connecting takes until the time limit.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut filling = Vec::new();
        while let Ok(stream) =
            tokio::time::timeout(Duration::from_millis(50), tokio::net::TcpStream::connect(address)).await
        {
            filling.push(stream.unwrap());
        }
        let pool = Pool::new(1, 200);
        let began = Instant::now();
        let all = futures::future::join_all((0..50).map(|_| pool.get(address))).await;
        assert!(all.iter().all(Result::is_err));
        assert!(began.elapsed() < Duration::from_secs(3), "{:?} for one time limit of 200 ms", began.elapsed());
    }
}
