//! The calling side: one connection and its requests in flight.

use crate::budget::{Budget, Share};
use crate::error::RpcError;
use crate::frame::{self, FrameReader, Kind, Outgoing};
use crate::limits::{MAX_REQUESTS_PER_CONNECTION, URGENT_REQUESTS_PER_CONNECTION, WRITE_QUEUE_FRAMES};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Stream items that have arrived and are not yet taken.
const STREAM_QUEUE_ITEMS: usize = 16;

/// Where the replies to a request go.
enum ReplyTo<Rep> {
    One(oneshot::Sender<Rep>),
    Stream(mpsc::Sender<Rep>),
    /// The caller has stopped waiting; the server may still execute the request.
    Nobody,
}

/// A request in flight. It keeps its place until the server has answered, even if its caller stops
/// waiting. Urgent requests have no place.
struct InFlight<Rep> {
    reply_to: ReplyTo<Rep>,
    _place: Option<Share>,
}

/// The state that a connection's clones share with the task that reads replies.
struct RequestTable<Rep> {
    address: SocketAddr,
    next_id: AtomicU64,
    next_number: AtomicU64,
    /// The requests that the server has not answered; `None` once the connection has ended.
    in_flight: Mutex<Option<HashMap<u64, InFlight<Rep>>>>,
    /// Places for requests that are not urgent.
    places: Budget,
}

impl<Rep> RequestTable<Rep> {
    fn in_flight(&self) -> MutexGuard<'_, Option<HashMap<u64, InFlight<Rep>>>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a request that the server has answered.
    fn remove(&self, id: u64) -> Option<InFlight<Rep>> {
        self.in_flight().as_mut()?.remove(&id)
    }

    /// Records that the caller has stopped waiting. `false` if the answer has arrived already.
    fn give_up(&self, id: u64) -> bool {
        let mut table = self.in_flight();
        let request = table.as_mut().and_then(|requests| requests.get_mut(&id));
        request.map(|request| request.reply_to = ReplyTo::Nobody).is_some()
    }
}

/// A connection to a server that takes `Req` and answers `Rep`. Clones share it. It ends when the
/// last clone is dropped or the peer closes it.
pub struct Connection<Req, Rep> {
    frames: mpsc::Sender<Outgoing>,
    table: Arc<RequestTable<Rep>>,
    request: PhantomData<fn(Req)>,
}

impl<Req, Rep> Clone for Connection<Req, Rep> {
    fn clone(&self) -> Self {
        Connection { frames: self.frames.clone(), table: self.table.clone(), request: PhantomData }
    }
}

/// A caller that waits. Dropped before the answer arrives, it notifies the server, which need not
/// finish a request that changes nothing.
struct Caller<Rep> {
    table: Arc<RequestTable<Rep>>,
    /// Keeps the connection open.
    frames: mpsc::Sender<Outgoing>,
    id: u64,
}

impl<Rep> Drop for Caller<Rep> {
    fn drop(&mut self) {
        if self.table.give_up(self.id) {
            // If the queue is full, the server executes the request for nobody.
            let _ = self.frames.try_send(frame::empty(self.id, Kind::GivenUp).into());
        }
    }
}

impl<Req, Rep> Connection<Req, Rep>
where
    Req: Serialize,
    Rep: DeserializeOwned + Send + 'static,
{
    /// Connects within `timeout`.
    pub async fn connect(address: SocketAddr, timeout: Duration) -> Result<Self, RpcError> {
        let failed = |reason: String| RpcError::Connect { address, reason };
        let stream = evenkeel_host::timeout(timeout, evenkeel_host::connect(address))
            .await
            .map_err(|_| failed(format!("no answer within {} ms", timeout.as_millis())))?
            .map_err(|e| failed(e.to_string()))?;
        stream.set_nodelay(true).map_err(|e| failed(e.to_string()))?;
        let (read, write) = stream.into_split();
        let (frames, queue) = mpsc::channel(WRITE_QUEUE_FRAMES);
        let table = Arc::new(RequestTable {
            address,
            next_id: AtomicU64::new(1),
            next_number: AtomicU64::new(1),
            in_flight: Mutex::new(Some(HashMap::new())),
            places: Budget::new(MAX_REQUESTS_PER_CONNECTION - URGENT_REQUESTS_PER_CONNECTION),
        });
        let reading = table.clone();
        tokio::spawn(async move {
            let writer = tokio::spawn(frame::write_all(write, queue));
            let ended = read_replies(FrameReader::new(read), &reading).await;
            tracing::trace!(%address, ?ended, "rpc connection ended");
            // Dropping the senders fails every request in flight.
            reading.in_flight().take();
            writer.abort();
        });
        Ok(Connection { frames, table, request: PhantomData })
    }

    /// Sends a request and waits for its reply without a time limit. Dropping the future stops
    /// waiting; the request may be executed all the same.
    pub async fn call(&self, request: &Req) -> Result<Rep, RpcError> {
        let place = self.place().await?;
        self.call_in(request, Some(place)).await
    }

    /// As [`Connection::call`], for a request on which other requests may wait: it needs no place.
    pub async fn call_urgently(&self, request: &Req) -> Result<Rep, RpcError> {
        self.call_in(request, None).await
    }

    async fn call_in(&self, request: &Req, place: Option<Share>) -> Result<Rep, RpcError> {
        let (sender, receiver) = oneshot::channel();
        let _caller = self.send(request, ReplyTo::One(sender), place).await?;
        receiver.await.map_err(|_| RpcError::Lost(format!("{} ended it without a reply", self.table.address)))
    }

    /// As [`Connection::call`], for at most `timeout`.
    pub async fn call_within(&self, request: &Req, timeout: Duration) -> Result<Rep, RpcError> {
        match evenkeel_host::timeout(timeout, self.call(request)).await {
            Ok(reply) => reply,
            Err(_) => Err(RpcError::TimedOut(timeout.as_millis() as u64)),
        }
    }

    /// Sends a request that is answered by a stream.
    pub async fn stream(&self, request: &Req) -> Result<ReplyStream<Rep>, RpcError> {
        let place = self.place().await?;
        self.stream_in(request, Some(place)).await
    }

    /// As [`Connection::stream`], for a request on which other requests may wait: it needs no
    /// place.
    pub async fn stream_urgently(&self, request: &Req) -> Result<ReplyStream<Rep>, RpcError> {
        self.stream_in(request, None).await
    }

    async fn stream_in(&self, request: &Req, place: Option<Share>) -> Result<ReplyStream<Rep>, RpcError> {
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE_ITEMS);
        let caller = self.send(request, ReplyTo::Stream(sender), place).await?;
        Ok(ReplyStream { receiver, _caller: caller })
    }

    /// Takes a place among the requests in flight as soon as one is free.
    async fn place(&self) -> Result<Share, RpcError> {
        let place = tokio::select! {
            biased;
            place = self.table.places.take(1) => place.ok(),
            () = self.frames.closed() => None,
        };
        place.ok_or_else(|| self.lost())
    }

    async fn send(&self, request: &Req, reply_to: ReplyTo<Rep>, place: Option<Share>) -> Result<Caller<Rep>, RpcError> {
        let id = self.table.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = frame::encode(id, Kind::Request, request).map_err(RpcError::Unsendable)?;
        // The request is registered once there is room to send it: before that the server cannot
        // know of it.
        let room = self.frames.reserve().await.map_err(|_| self.lost())?;
        let request = InFlight { reply_to, _place: place };
        self.table.in_flight().as_mut().ok_or_else(|| self.lost())?.insert(id, request);
        room.send(frame.into());
        Ok(Caller { table: self.table.clone(), frames: self.frames.clone(), id })
    }
}

impl<Req, Rep> Connection<Req, Rep> {
    /// The server's address.
    pub fn address(&self) -> SocketAddr {
        self.table.address
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        // A connection that cannot be written to is over, even if no end from its peer has been
        // read.
        self.frames.is_closed() || self.table.in_flight().is_none()
    }

    /// A number that this connection has not given before, from 1. It names something that lives as
    /// long as the connection, for example a transaction.
    pub fn new_number(&self) -> u64 {
        self.table.next_number.fetch_add(1, Ordering::Relaxed)
    }

    fn lost(&self) -> RpcError {
        RpcError::Lost(format!("{} has closed it", self.table.address))
    }
}

/// The replies to a streaming request. It keeps its connection open. It ends when the server has
/// sent the last reply, or when the connection is lost: a protocol that must tell these apart sends
/// a last item that says so. Dropped earlier, it notifies the server.
pub struct ReplyStream<Rep> {
    receiver: mpsc::Receiver<Rep>,
    _caller: Caller<Rep>,
}

impl<Rep> ReplyStream<Rep> {
    /// The next reply.
    pub async fn next(&mut self) -> Option<Rep> {
        self.receiver.recv().await
    }
}

async fn read_replies<Rep: DeserializeOwned>(
    mut frames: FrameReader<evenkeel_host::ReadHalf>,
    table: &RequestTable<Rep>,
) -> std::io::Result<()> {
    while let Some((id, kind, body)) = frames.next().await? {
        let stream = {
            let mut table = table.in_flight();
            let Some(requests) = table.as_mut() else { return Ok(()) };
            match requests.get(&id) {
                Some(InFlight { reply_to: ReplyTo::Stream(sender), .. }) => Some(sender.clone()),
                _ => None,
            }
        };
        match (kind, stream) {
            (Kind::Reply | Kind::Item, Some(sender)) => {
                // If the receiver is gone, the server has been notified already.
                let _ = sender.send(frame::decode(&body)?).await;
                if kind == Kind::Reply {
                    table.remove(id);
                }
            }
            (Kind::Reply, None) => {
                if let Some(InFlight { reply_to: ReplyTo::One(sender), .. }) = table.remove(id) {
                    let _ = sender.send(frame::decode(&body)?);
                }
            }
            (Kind::Dropped, _) => drop(table.remove(id)),
            // An item for a caller that has stopped waiting.
            (Kind::Item, None) => {}
            (Kind::Request | Kind::GivenUp, _) => return Err(std::io::Error::other("a request from a server")),
        }
    }
    Ok(())
}
