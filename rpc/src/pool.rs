//! Connections to many addresses. Each address has a fixed number of connections, which are made
//! when first needed and again when they end.
//!
//! The pool owns the connections. It promises that at most one attempt to connect is in progress
//! per connection, and that all callers that wait for an attempt share its failure instead of each
//! making another attempt.
//!
//! Not done: connections that are no longer used stay open until [`Pool::retain`] removes their
//! address.

use crate::connection::Connection;
use crate::error::RpcError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// The place of one connection.
struct Slot<Req, Rep> {
    connection: RwLock<Option<Connection<Req, Rep>>>,
    /// Locked while connecting; the last failure and its time.
    connecting: tokio::sync::Mutex<Option<(Instant, RpcError)>>,
}

impl<Req, Rep> Slot<Req, Rep> {
    fn empty() -> Slot<Req, Rep> {
        Slot { connection: RwLock::new(None), connecting: tokio::sync::Mutex::new(None) }
    }

    fn open(&self) -> Option<Connection<Req, Rep>> {
        let connection = self.connection.read().unwrap_or_else(PoisonError::into_inner);
        connection.as_ref().filter(|connection| !connection.is_closed()).cloned()
    }
}

impl<Req, Rep> Slot<Req, Rep>
where
    Req: Serialize,
    Rep: DeserializeOwned + Send + 'static,
{
    async fn get(&self, address: SocketAddr, timeout: Duration) -> Result<Connection<Req, Rep>, RpcError> {
        if let Some(connection) = self.open() {
            return Ok(connection);
        }
        let asked_at = evenkeel_host::now();
        let mut last_failure = self.connecting.lock().await;
        if let Some(connection) = self.open() {
            return Ok(connection);
        }
        if let Some((at, error)) = last_failure.as_ref()
            && *at >= asked_at
        {
            return Err(error.clone());
        }
        match Connection::connect(address, timeout).await {
            Ok(connection) => {
                *self.connection.write().unwrap_or_else(PoisonError::into_inner) = Some(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                *last_failure = Some((evenkeel_host::now(), error.clone()));
                Err(error)
            }
        }
    }
}

struct AddressSlots<Req, Rep> {
    slots: Vec<Slot<Req, Rep>>,
    turn: AtomicUsize,
}

/// Connections by address.
pub struct Pool<Req, Rep> {
    addresses: RwLock<HashMap<SocketAddr, Arc<AddressSlots<Req, Rep>>>>,
    per_address: usize,
    connect_timeout: Duration,
}

impl<Req, Rep> Pool<Req, Rep>
where
    Req: Serialize,
    Rep: DeserializeOwned + Send + 'static,
{
    /// An empty pool with `per_address` connections (at least 1) to each address. One attempt to
    /// connect takes at most `connect_timeout`.
    pub fn new(per_address: usize, connect_timeout: Duration) -> Pool<Req, Rep> {
        Pool { addresses: RwLock::default(), per_address: per_address.max(1), connect_timeout }
    }

    /// A connection to `address`; the connections of an address take turns.
    ///
    /// # Errors
    /// [`RpcError::Connect`].
    pub async fn get(&self, address: SocketAddr) -> Result<Connection<Req, Rep>, RpcError> {
        let slots = self.slots(address);
        let turn = slots.turn.fetch_add(1, Ordering::Relaxed) % slots.slots.len();
        slots.slots[turn].get(address, self.connect_timeout).await
    }

    fn slots(&self, address: SocketAddr) -> Arc<AddressSlots<Req, Rep>> {
        if let Some(slots) = self.addresses.read().unwrap_or_else(PoisonError::into_inner).get(&address) {
            return slots.clone();
        }
        let empty = || {
            let slots = (0..self.per_address).map(|_| Slot::empty()).collect();
            Arc::new(AddressSlots { slots, turn: AtomicUsize::new(0) })
        };
        let mut addresses = self.addresses.write().unwrap_or_else(PoisonError::into_inner);
        addresses.entry(address).or_insert_with(empty).clone()
    }

    /// A connection to `address` if one is open.
    pub fn open(&self, address: SocketAddr) -> Option<Connection<Req, Rep>> {
        let slots = self.addresses.read().unwrap_or_else(PoisonError::into_inner).get(&address)?.clone();
        slots.slots.iter().find_map(Slot::open)
    }

    /// Removes the addresses for which `in_use` is false. A connection ends when its last user
    /// drops it.
    pub fn retain(&self, in_use: impl Fn(&SocketAddr) -> bool) {
        self.addresses.write().unwrap_or_else(PoisonError::into_inner).retain(|address, _| in_use(address));
    }

    /// Removes an address: its next user connects again. Users of its present connections keep
    /// them.
    pub fn remove(&self, address: SocketAddr) {
        self.addresses.write().unwrap_or_else(PoisonError::into_inner).remove(&address);
    }

    /// Removes the addresses without an open connection, once the pool has more than `most`
    /// addresses.
    pub fn trim(&self, most: usize) {
        let mut addresses = self.addresses.write().unwrap_or_else(PoisonError::into_inner);
        if addresses.len() > most {
            addresses.retain(|_, slots| slots.slots.iter().any(|slot| slot.open().is_some()));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Replier, Service, serve};
    use std::sync::atomic::AtomicUsize;
    use tokio::net::TcpListener;
    use tokio::task::{JoinHandle, JoinSet};

    /// Answers every request and counts connections.
    #[derive(Default)]
    struct Yes {
        opened: AtomicUsize,
    }

    impl Service for Yes {
        type Request = ();
        type Reply = ();
        type Session = ();

        fn opened(&self, _: SocketAddr) {
            self.opened.fetch_add(1, Ordering::Relaxed);
        }

        async fn call(self: Arc<Self>, _: Arc<()>, (): (), replier: Replier<()>) {
            replier.reply(&()).await;
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
        let pool = Arc::new(Pool::<(), ()>::new(2, Duration::from_secs(1)));
        let ask = || {
            let pool = pool.clone();
            async move { pool.get(address).await?.call(&()).await }
        };
        let mut all = JoinSet::new();
        (0..100).for_each(|_| drop(all.spawn(ask())));
        all.join_all().await.into_iter().for_each(|reply| reply.unwrap());
        assert_eq!(service.opened.load(Ordering::Relaxed), 2);
        let numbers: Vec<u64> = [pool.get(address).await.unwrap(), pool.get(address).await.unwrap()]
            .iter()
            .flat_map(|connection| [connection.new_number(), connection.new_number()])
            .collect();
        assert_eq!(numbers, [1, 2, 1, 2]);
        server.abort();
        // Requests fail while the server is down; none of them waits for ever.
        while ask().await.is_ok() {}
        assert!(ask().await.is_err());
        let (_, service, _server) = start(address).await;
        for _ in 0..10 {
            ask().await.unwrap();
        }
        assert_eq!(service.opened.load(Ordering::Relaxed), 2);
        pool.trim(0);
        ask().await.unwrap();
        assert_eq!(service.opened.load(Ordering::Relaxed), 2, "open connections are not trimmed");
        pool.retain(|_| false);
        ask().await.unwrap();
        assert_eq!(service.opened.load(Ordering::Relaxed), 3);
        pool.remove(address);
        ask().await.unwrap();
        assert_eq!(service.opened.load(Ordering::Relaxed), 4);
    }

    /// Breaks if callers that wait for a failing attempt to connect each make their own attempt
    /// afterwards.
    #[tokio::test]
    async fn a_failure_to_connect_is_shared_by_all_who_waited() {
        // A listener that never accepts, with its queue full: connecting takes until the time
        // limit.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut filling = Vec::new();
        while let Ok(stream) =
            evenkeel_host::timeout(Duration::from_millis(50), tokio::net::TcpStream::connect(address)).await
        {
            filling.push(stream.unwrap());
        }
        let pool = Arc::new(Pool::<(), ()>::new(1, Duration::from_millis(200)));
        let began = evenkeel_host::now();
        let mut all = JoinSet::new();
        for _ in 0..50 {
            let pool = pool.clone();
            all.spawn(async move { pool.get(address).await.is_err() });
        }
        assert!(all.join_all().await.into_iter().all(|failed| failed));
        assert!(
            evenkeel_host::elapsed(began) < Duration::from_secs(3),
            "{:?} for one time limit of 200 ms",
            evenkeel_host::elapsed(began)
        );
    }
}
