//! The calling side.

use crate::frame::{self, FrameReader, Kind, Outgoing};
use crate::{RpcError, WRITE_QUEUE_FRAMES};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Stream items received and not yet taken.
const STREAM_QUEUE_ITEMS: usize = 16;

enum Waiting<Rep> {
    One(oneshot::Sender<Rep>),
    Many(mpsc::Sender<Rep>),
}

struct Shared<Rep> {
    address: SocketAddr,
    next_id: AtomicU64,
    /// Who waits for which reply; `None` once the connection has ended.
    waiting: Mutex<Option<HashMap<u64, Waiting<Rep>>>>,
}

impl<Rep> Shared<Rep> {
    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<u64, Waiting<Rep>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, id: u64) {
        if let Some(waiting) = self.waiting().as_mut() {
            waiting.remove(&id);
        }
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

/// Takes a request off the waiting list when its caller stops waiting.
struct Forget<'a, Rep> {
    shared: &'a Shared<Rep>,
    id: u64,
}

impl<Rep> Drop for Forget<'_, Rep> {
    fn drop(&mut self) {
        self.shared.forget(self.id);
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
        let shared = Arc::new(Shared { address, next_id: AtomicU64::new(1), waiting });
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
        let (sender, receiver) = oneshot::channel();
        let id = self.send(request, Waiting::One(sender)).await?;
        let _forget = Forget { shared: &self.shared, id };
        receiver.await.map_err(|_| RpcError::Lost(format!("{} ended it without a reply", self.shared.address)))
    }

    /// The same, for at most `timeout`.
    pub async fn call_within(&self, request: &Req, timeout: Duration) -> Result<Rep, RpcError> {
        match tokio::time::timeout(timeout, self.call(request)).await {
            Ok(reply) => reply,
            Err(_) => Err(RpcError::TimedOut(timeout.as_millis() as u64)),
        }
    }

    /// Sends a request that is answered by a stream.
    pub async fn stream(&self, request: &Req) -> Result<ReplyStream<Rep>, RpcError> {
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE_ITEMS);
        self.send(request, Waiting::Many(sender)).await?;
        Ok(ReplyStream { receiver, _open: self.frames.clone() })
    }

    async fn send(&self, request: &Req, waiting: Waiting<Rep>) -> Result<u64, RpcError> {
        let lost = || RpcError::Lost(format!("{} has closed it", self.shared.address));
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = frame::encode(id, Kind::Request, request).map_err(RpcError::Unsendable)?;
        self.shared.waiting().as_mut().ok_or_else(lost)?.insert(id, waiting);
        if self.frames.send(frame.into()).await.is_err() {
            self.shared.forget(id);
            return Err(lost());
        }
        Ok(id)
    }
}

/// The replies to a streaming request; its connection lives at least as long as this. Ends when the server has sent the last, or is lost: a protocol that must tell these
/// apart sends a last item that says so.
pub struct ReplyStream<Rep> {
    receiver: mpsc::Receiver<Rep>,
    /// Keeps the connection open, even if nobody else holds it.
    _open: mpsc::Sender<Outgoing>,
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
                Some(Waiting::Many(sender)) => Some(sender.clone()),
                _ => None,
            }
        };
        match (kind, many) {
            (Kind::Reply | Kind::Item, Some(sender)) => {
                // A receiver that has gone away wants no more.
                if sender.send(frame::decode(&body)?).await.is_err() || kind == Kind::Reply {
                    shared.forget(id);
                }
            }
            (Kind::Reply, None) => {
                let waiting = shared.waiting().as_mut().and_then(|w| w.remove(&id));
                if let Some(Waiting::One(sender)) = waiting {
                    let _ = sender.send(frame::decode(&body)?);
                }
            }
            (Kind::Dropped, _) => shared.forget(id),
            // An item for a caller that has stopped waiting.
            (Kind::Item, None) => {}
            (Kind::Request, _) => return Err(std::io::Error::other("a request from a server")),
        }
    }
    Ok(())
}
