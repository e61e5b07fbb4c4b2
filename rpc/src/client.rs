//! The calling side.

use crate::frame::{self, FrameReader, Kind, Outgoing};
use crate::{MAX_REQUESTS_PER_CONNECTION, RpcError, URGENT_REQUESTS_PER_CONNECTION, WRITE_QUEUE_FRAMES};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Stream items received and not yet taken.
const STREAM_QUEUE_ITEMS: usize = 16;

enum Waiting<Rep> {
    One(oneshot::Sender<Rep>),
    Many(mpsc::Sender<Rep>),
    /// Nobody any more; the server may still be executing it.
    Nobody,
}

/// A request under way, and its place among them unless it is urgent: taken until the server has answered, whoever waits for that.
struct UnderWay<Rep> {
    waiting: Waiting<Rep>,
    _place: Option<OwnedSemaphorePermit>,
}

struct Shared<Rep> {
    address: SocketAddr,
    next_id: AtomicU64,
    /// The requests that the server has not answered; `None` once the connection has ended.
    waiting: Mutex<Option<HashMap<u64, UnderWay<Rep>>>>,
    /// Places for requests that are not urgent.
    places: Arc<Semaphore>,
}

impl<Rep> Shared<Rep> {
    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<u64, UnderWay<Rep>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server has answered.
    fn forget(&self, id: u64) {
        if let Some(waiting) = self.waiting().as_mut() {
            waiting.remove(&id);
        }
    }

    /// Nobody waits for the answer any more; `false` if it has come already.
    fn give_up(&self, id: u64) -> bool {
        let mut waiting = self.waiting();
        let under_way = waiting.as_mut().and_then(|waiting| waiting.get_mut(&id));
        under_way.map(|under_way| under_way.waiting = Waiting::Nobody).is_some()
    }
}

/// A connection to a server that takes `Req` and answers `Rep`. Clones share it; it ends when the last clone is dropped or
/// the peer closes it.
pub struct Connection<Req, Rep> {
    frames: mpsc::Sender<Outgoing>,
    shared: Arc<Shared<Rep>>,
    request: PhantomData<fn(Req)>,
}

impl<Req, Rep> Clone for Connection<Req, Rep> {
    fn clone(&self) -> Self {
        Connection { frames: self.frames.clone(), shared: self.shared.clone(), request: PhantomData }
    }
}

/// A caller that waits. When it stops before the answer has come, the server is told: what changes nothing need not be finished.
struct Caller<Rep> {
    shared: Arc<Shared<Rep>>,
    /// Keeps the connection open, even if nobody else holds it.
    frames: mpsc::Sender<Outgoing>,
    id: u64,
}

impl<Rep> Drop for Caller<Rep> {
    fn drop(&mut self) {
        if self.shared.give_up(self.id) {
            // If the queue is full the server does what nobody waits for.
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
        let stream = tokio::time::timeout(timeout, evenkeel_host::connect(address))
            .await
            .map_err(|_| failed(format!("no answer within {} ms", timeout.as_millis())))?
            .map_err(|e| failed(e.to_string()))?;
        stream.set_nodelay(true).map_err(|e| failed(e.to_string()))?;
        let (read, write) = stream.into_split();
        let (frames, queue) = mpsc::channel(WRITE_QUEUE_FRAMES);
        let waiting = Mutex::new(Some(HashMap::new()));
        let places = Arc::new(Semaphore::new(MAX_REQUESTS_PER_CONNECTION - URGENT_REQUESTS_PER_CONNECTION));
        let shared = Arc::new(Shared { address, next_id: AtomicU64::new(1), waiting, places });
        let reading = shared.clone();
        tokio::spawn(async move {
            let writer = tokio::spawn(frame::write_all(write, queue));
            let ended = read_replies(FrameReader::new(read), &reading).await;
            tracing::trace!(%address, ?ended, "rpc connection ended");
            // Dropping the senders tells everyone who waits.
            reading.waiting().take();
            writer.abort();
        });
        Ok(Connection { frames, shared, request: PhantomData })
    }

    /// Where it leads.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        // One that cannot be written to any more is over, even if its peer has not been heard to end it.
        self.frames.is_closed() || self.shared.waiting().is_none()
    }

    /// Sends a request and waits for its reply, without a limit of time: dropping the future stops waiting, and the
    /// request may be executed all the same.
    pub async fn call(&self, request: &Req) -> Result<Rep, RpcError> {
        let place = self.place().await?;
        self.call_in(request, Some(place)).await
    }

    /// The same for a request that others may be waiting for: it waits for no place.
    pub async fn call_urgently(&self, request: &Req) -> Result<Rep, RpcError> {
        self.call_in(request, None).await
    }

    async fn call_in(&self, request: &Req, place: Option<OwnedSemaphorePermit>) -> Result<Rep, RpcError> {
        let (sender, receiver) = oneshot::channel();
        let _caller = self.send(request, Waiting::One(sender), place).await?;
        receiver.await.map_err(|_| RpcError::Lost(format!("{} ended it without a reply", self.shared.address)))
    }

    /// As [`Connection::call`], for at most `timeout`.
    pub async fn call_within(&self, request: &Req, timeout: Duration) -> Result<Rep, RpcError> {
        match tokio::time::timeout(timeout, self.call(request)).await {
            Ok(reply) => reply,
            Err(_) => Err(RpcError::TimedOut(timeout.as_millis() as u64)),
        }
    }

    /// Sends a request that is answered by a stream.
    pub async fn stream(&self, request: &Req) -> Result<ReplyStream<Rep>, RpcError> {
        let place = self.place().await?;
        self.stream_in(request, Some(place)).await
    }

    /// The same for a request that others may be waiting for: it waits for no place.
    pub async fn stream_urgently(&self, request: &Req) -> Result<ReplyStream<Rep>, RpcError> {
        self.stream_in(request, None).await
    }

    async fn stream_in(
        &self,
        request: &Req,
        place: Option<OwnedSemaphorePermit>,
    ) -> Result<ReplyStream<Rep>, RpcError> {
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE_ITEMS);
        let caller = self.send(request, Waiting::Many(sender), place).await?;
        Ok(ReplyStream { receiver, _caller: caller })
    }

    /// A place among the requests under way, as soon as there is one.
    async fn place(&self) -> Result<OwnedSemaphorePermit, RpcError> {
        let place = self.shared.places.clone().acquire_owned();
        let place = tokio::select! {
            biased;
            place = place => place.ok(),
            () = self.frames.closed() => None,
        };
        place.ok_or_else(|| self.lost())
    }

    fn lost(&self) -> RpcError {
        RpcError::Lost(format!("{} has closed it", self.shared.address))
    }

    async fn send(
        &self,
        request: &Req,
        waiting: Waiting<Rep>,
        place: Option<OwnedSemaphorePermit>,
    ) -> Result<Caller<Rep>, RpcError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = frame::encode(id, Kind::Request, request).map_err(RpcError::Unsendable)?;
        // Until there is room for it the server has not heard of it.
        let room = self.frames.reserve().await.map_err(|_| self.lost())?;
        let under_way = UnderWay { waiting, _place: place };
        self.shared.waiting().as_mut().ok_or_else(|| self.lost())?.insert(id, under_way);
        room.send(frame.into());
        Ok(Caller { shared: self.shared.clone(), frames: self.frames.clone(), id })
    }
}

/// The replies to a streaming request; its connection lives at least as long as this. Ends when the server has sent the last, or is lost: a protocol that must tell these
/// apart sends a last item that says so. Dropped before that, the server is told that nobody waits.
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
    shared: &Shared<Rep>,
) -> std::io::Result<()> {
    while let Some((id, kind, body)) = frames.next().await? {
        let many = {
            let mut waiting = shared.waiting();
            let Some(waiting) = waiting.as_mut() else { return Ok(()) };
            match waiting.get(&id) {
                Some(UnderWay { waiting: Waiting::Many(sender), .. }) => Some(sender.clone()),
                _ => None,
            }
        };
        match (kind, many) {
            (Kind::Reply | Kind::Item, Some(sender)) => {
                // A receiver that has gone away wants no more, and the server has been told.
                let _ = sender.send(frame::decode(&body)?).await;
                if kind == Kind::Reply {
                    shared.forget(id);
                }
            }
            (Kind::Reply, None) => {
                let under_way = shared.waiting().as_mut().and_then(|w| w.remove(&id));
                if let Some(UnderWay { waiting: Waiting::One(sender), .. }) = under_way {
                    let _ = sender.send(frame::decode(&body)?);
                }
            }
            (Kind::Dropped, _) => shared.forget(id),
            // An item for a caller that has stopped waiting.
            (Kind::Item, None) => {}
            (Kind::Request | Kind::GivenUp, _) => return Err(std::io::Error::other("a request from a server")),
        }
    }
    Ok(())
}
