//! The answering side: accepts connections, reads requests within the memory budget, and passes
//! them to a [`Service`].

use crate::budget::{Budget, Share, kibibytes};
use crate::frame::{self, FrameReader, Kind, Outgoing};
use crate::limits::{
    MAX_CONNECTIONS, MAX_REPLY_BYTES_PER_CONNECTION, MAX_REQUEST_BYTES, MAX_REQUESTS_PER_CONNECTION, WRITE_QUEUE_FRAMES,
};
use evenkeel_host::{Listener, Stream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::future::Future;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::AsyncRead;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Bytes of a request that must have arrived before memory for the rest is reserved.
const HEAD_BYTES: usize = 64 << 10;

/// Answers the requests of a server.
pub trait Service: Send + Sync + 'static {
    /// The type of its requests.
    type Request: DeserializeOwned + Send + 'static;
    /// The type of its replies.
    type Reply: Serialize + Send + 'static;
    /// What the service keeps for each connection.
    type Session: Send + Sync + 'static;

    /// A connection has been accepted.
    fn opened(&self, peer: SocketAddr) -> Self::Session;

    /// A connection has ended. Requests of it may still be in execution.
    fn closed(&self, session: Arc<Self::Session>) {
        drop(session);
    }

    /// Executes a request. Requests of one connection run concurrently.
    fn call(
        self: Arc<Self>,
        session: Arc<Self::Session>,
        request: Self::Request,
        replier: Replier<Self::Reply>,
    ) -> impl Future<Output = ()> + Send;
}

/// The unanswered requests of one connection, with the channel that reports that their caller has
/// stopped waiting.
#[derive(Default)]
pub(crate) struct Callers(Mutex<HashMap<u64, oneshot::Sender<()>>>);

impl Callers {
    fn callers(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports that a caller has stopped waiting.
    fn given_up(&self, id: u64) {
        if let Some(caller) = self.callers().remove(&id) {
            // Fails if the service does not observe it.
            let _ = caller.send(());
        }
    }
}

/// Completes when the caller of a request has stopped waiting. See [`Replier::gone`].
pub struct Gone {
    frames: mpsc::Sender<Outgoing>,
    given_up: oneshot::Receiver<()>,
}

impl Gone {
    /// Waits until the caller has stopped waiting, or its connection has ended.
    pub async fn gone(self) {
        tokio::select! {
            Ok(()) = self.given_up => {}
            () = self.frames.closed() => {}
        }
    }
}

/// Answers one request. Dropped without an answer, it fails the request with
/// [`crate::RpcError::Lost`].
pub struct Replier<Rep> {
    id: u64,
    frames: mpsc::Sender<Outgoing>,
    /// Memory for the unwritten replies of this connection.
    memory: Budget,
    callers: Arc<Callers>,
    given_up: Option<oneshot::Receiver<()>>,
    answered: bool,
    reply: PhantomData<fn(Rep)>,
}

impl<Rep: Serialize> Replier<Rep> {
    pub(crate) fn new(id: u64, frames: mpsc::Sender<Outgoing>, memory: Budget, callers: Arc<Callers>) -> Replier<Rep> {
        let (caller, given_up) = oneshot::channel();
        callers.callers().insert(id, caller);
        Replier { id, frames, memory, callers, given_up: Some(given_up), answered: false, reply: PhantomData }
    }

    /// A future that completes when the caller has stopped waiting or its connection has ended.
    /// Only the first call observes the caller; the futures of further calls complete at the end of
    /// the connection.
    pub fn gone(&mut self) -> Gone {
        let given_up = self.given_up.take().unwrap_or_else(|| oneshot::channel().1);
        Gone { frames: self.frames.clone(), given_up }
    }

    /// Sends the only or last reply. If it is too long for a frame, the request fails with
    /// [`crate::RpcError::Lost`].
    pub async fn reply(mut self, reply: &Rep) {
        match frame::encode(self.id, Kind::Reply, reply) {
            Ok(frame) => self.send_last(frame).await,
            Err(reason) => tracing::error!(reason, "a reply cannot be sent"),
        }
    }

    /// As [`Replier::reply`]. If the reply is too long for a frame, the reply that `instead` makes
    /// of the reason is sent.
    pub async fn reply_or(mut self, reply: &Rep, instead: impl FnOnce(&str) -> Rep) {
        match frame::encode(self.id, Kind::Reply, reply) {
            Ok(frame) => self.send_last(frame).await,
            Err(reason) => self.reply(&instead(&reason)).await,
        }
    }

    async fn send_last(&mut self, frame: Vec<u8>) {
        self.answered = true;
        // A caller that is gone needs no answer.
        self.send(frame).await;
    }

    /// Sends a reply of a stream that is not the last; waits while the connection is behind.
    /// `false` if the caller is gone.
    pub async fn item(&mut self, reply: &Rep) -> bool {
        match frame::encode(self.id, Kind::Item, reply) {
            Ok(frame) => self.send(frame).await,
            Err(reason) => {
                tracing::error!(reason, "a reply cannot be sent");
                false
            }
        }
    }

    /// Queues a frame as soon as there is memory for it. `false` if the connection has ended.
    async fn send(&self, bytes: Vec<u8>) -> bool {
        let wanted = kibibytes(bytes.len()).min(kibibytes(MAX_REPLY_BYTES_PER_CONNECTION));
        let memory = tokio::select! {
            memory = self.memory.take(wanted) => memory.ok(),
            () = self.frames.closed() => return false,
        };
        self.frames.send(Outgoing { bytes, memory }).await.is_ok()
    }

    /// Whether the caller's connection has ended.
    pub fn is_closed(&self) -> bool {
        self.frames.is_closed()
    }
}

impl<Rep> Drop for Replier<Rep> {
    fn drop(&mut self) {
        self.callers.callers().remove(&self.id);
        if !self.answered {
            // If the queue is full, the caller runs into its own time limit.
            let _ = self.frames.try_send(frame::empty(self.id, Kind::Dropped).into());
        }
    }
}

/// Serves connections until `shutdown` completes, and then closes them.
pub async fn serve<S: Service>(listener: impl Into<Listener>, service: Arc<S>, shutdown: impl Future<Output = ()>) {
    serve_within(listener.into(), service, shutdown, MAX_REQUEST_BYTES).await;
}

/// As [`serve`], with another limit on the bytes of unanswered requests.
pub(crate) async fn serve_within<S: Service>(
    listener: Listener,
    service: Arc<S>,
    shutdown: impl Future<Output = ()>,
    request_bytes: usize,
) {
    let mut connections = JoinSet::new();
    // One budget for all connections: it bounds the memory of the process.
    let requests = Budget::of_bytes(request_bytes);
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) if connections.len() < MAX_CONNECTIONS => {
                    connections.spawn(serve_connection(stream, peer, service.clone(), requests.clone()));
                }
                Ok((_, peer)) => tracing::warn!(%peer, "{MAX_CONNECTIONS} connections are open; another is closed"),
                // Most likely there are no free file descriptors; existing connections continue.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    evenkeel_host::sleep(std::time::Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn serve_connection<S: Service>(stream: Stream, peer: SocketAddr, service: Arc<S>, requests: Budget) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
    }
    let (read, write) = stream.into_split();
    let (frames, queue) = mpsc::channel(WRITE_QUEUE_FRAMES);
    // Aborted with this task: requests in execution must not keep a dead connection half open.
    let mut writer = JoinSet::new();
    writer.spawn(frame::write_all(write, queue));
    let open = OpenConnection { session: Arc::new(service.opened(peer)), service };
    let ended = tokio::select! {
        ended = read_requests(FrameReader::new(read), &open.service, &open.session, &frames, requests) => ended,
        _ = writer.join_next() => Ok(()),
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "rpc connection ended");
    }
}

/// Reports the end of the connection to the service, also when the task is aborted.
struct OpenConnection<S: Service> {
    service: Arc<S>,
    session: Arc<S::Session>,
}

impl<S: Service> Drop for OpenConnection<S> {
    fn drop(&mut self) {
        self.service.closed(self.session.clone());
    }
}

/// Waits until a request of `length` bytes has arrived, and reserves memory for it. Memory is
/// reserved before the bytes are read: unread bytes stay with the sender. A large request reserves
/// in two steps, so that a request of which only the beginning arrives occupies little. Waiting for
/// memory has no time limit because the sender does not cause it.
pub(crate) async fn admit<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    length: usize,
    requests: &Budget,
) -> std::io::Result<Share> {
    let head = length.min(HEAD_BYTES);
    let mut taken = requests.take(kibibytes(head)).await?;
    reader.arrive(head, frame::due(head)).await?;
    if length > head {
        taken.merge(requests.take(kibibytes(length) - kibibytes(head)).await?);
        reader.arrive(length, frame::due(length)).await?;
    }
    Ok(taken)
}

async fn read_requests<S: Service>(
    mut reader: FrameReader<evenkeel_host::ReadHalf>,
    service: &Arc<S>,
    session: &Arc<S::Session>,
    frames: &mpsc::Sender<Outgoing>,
    requests: Budget,
) -> std::io::Result<()> {
    let replies = Budget::of_bytes(MAX_REPLY_BYTES_PER_CONNECTION);
    let in_flight = Budget::new(MAX_REQUESTS_PER_CONNECTION);
    let callers = Arc::new(Callers::default());
    while let Some(length) = reader.length().await? {
        let taken = admit(&mut reader, length, &requests).await?;
        let Some((id, kind, body)) = reader.next().await? else { break };
        if kind == Kind::GivenUp {
            callers.given_up(id);
            continue;
        }
        if kind != Kind::Request {
            return Err(std::io::Error::other("a reply from a client"));
        }
        let request = frame::decode(&body)?;
        let place = in_flight.take(1).await?;
        let replier = Replier::new(id, frames.clone(), replies.clone(), callers.clone());
        let (service, session) = (service.clone(), session.clone());
        tokio::spawn(async move {
            service.call(session, request, replier).await;
            drop((place, taken));
        });
    }
    Ok(())
}
