//! The answering side.

use crate::frame::{self, FrameReader, Kind, Outgoing, room_of};
use crate::{
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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

/// The beginning of a request, in bytes, that must have arrived before the room for the rest is taken.
const HEAD_BYTES: usize = 64 << 10;

/// What a server does with requests.
pub trait Service: Send + Sync + 'static {
    /// What it takes.
    type Request: DeserializeOwned + Send + 'static;
    /// What it answers.
    type Reply: Serialize + Send + 'static;
    /// What it keeps per connection.
    type Session: Send + Sync + 'static;

    /// A connection has been made.
    fn opened(&self, peer: SocketAddr) -> Self::Session;

    /// A connection has ended; requests of it may still be under way.
    fn closed(&self, session: Arc<Self::Session>) {
        drop(session);
    }

    /// A request has come. Requests of one connection run at the same time.
    fn call(
        self: Arc<Self>,
        session: Arc<Self::Session>,
        request: Self::Request,
        replier: Replier<Self::Reply>,
    ) -> impl Future<Output = ()> + Send;
}

/// The requests of one connection that are not answered yet, and whom to tell when their callers stop waiting.
#[derive(Default)]
pub(crate) struct Callers(Mutex<HashMap<u64, oneshot::Sender<()>>>);

impl Callers {
    fn callers(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A caller no longer waits.
    fn given_up(&self, id: u64) {
        if let Some(caller) = self.callers().remove(&id) {
            // A service that does not ask does not hear it.
            let _ = caller.send(());
        }
    }
}

/// Completes when nobody waits for a request's reply any more. See [`Replier::gone`].
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

/// Answers one request. Dropped without an answer, it tells the caller so.
pub struct Replier<Rep> {
    id: u64,
    frames: mpsc::Sender<Outgoing>,
    /// What is left for replies of this connection that are not written yet, in KiB.
    room: Arc<Semaphore>,
    callers: Arc<Callers>,
    given_up: Option<oneshot::Receiver<()>>,
    answered: bool,
    reply: PhantomData<fn(Rep)>,
}

impl<Rep: Serialize> Replier<Rep> {
    pub(crate) fn new(
        id: u64,
        frames: mpsc::Sender<Outgoing>,
        room: Arc<Semaphore>,
        callers: Arc<Callers>,
    ) -> Replier<Rep> {
        let (caller, given_up) = oneshot::channel();
        callers.callers().insert(id, caller);
        Replier { id, frames, room, callers, given_up: Some(given_up), answered: false, reply: PhantomData }
    }

    /// Completes when nobody waits for the reply any more. To be asked for once; a second time it completes at the connection's end only.
    pub fn gone(&mut self) -> Gone {
        let given_up = self.given_up.take().unwrap_or_else(|| oneshot::channel().1);
        Gone { frames: self.frames.clone(), given_up }
    }

    /// Sends the only or last reply. One that no frame can hold is not sent; the caller is told that the request was given up.
    pub async fn reply(mut self, reply: &Rep) {
        match frame::encode(self.id, Kind::Reply, reply) {
            Ok(frame) => self.send_last(frame).await,
            Err(reason) => tracing::error!(reason, "a reply cannot be sent"),
        }
    }

    /// The same; of a reply that no frame can hold, what `instead` makes of the reason.
    pub async fn reply_or(mut self, reply: &Rep, instead: impl FnOnce(&str) -> Rep) {
        match frame::encode(self.id, Kind::Reply, reply) {
            Ok(frame) => self.send_last(frame).await,
            Err(reason) => self.reply(&instead(&reason)).await,
        }
    }

    async fn send_last(&mut self, frame: Vec<u8>) {
        self.answered = true;
        // A caller that has gone needs no answer.
        self.send(frame).await;
    }

    /// Sends a reply with more to come; waits while the connection is behind. `false` if the caller has gone.
    pub async fn item(&mut self, reply: &Rep) -> bool {
        match frame::encode(self.id, Kind::Item, reply) {
            Ok(frame) => self.send(frame).await,
            Err(reason) => {
                tracing::error!(reason, "a reply cannot be sent");
                false
            }
        }
    }

    /// Waits until there is room, or the caller has gone.
    async fn send(&self, bytes: Vec<u8>) -> bool {
        let wanted = room_of(bytes.len()).min(room_of(MAX_REPLY_BYTES_PER_CONNECTION));
        let room = self.room.clone().acquire_many_owned(wanted);
        let room = tokio::select! {
            room = room => room.ok(),
            () = self.frames.closed() => return false,
        };
        self.frames.send(Outgoing { bytes, room }).await.is_ok()
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
            // If the queue is full the caller learns it from its own time limit.
            let _ = self.frames.try_send(frame::empty(self.id, Kind::Dropped).into());
        }
    }
}

/// Serves connections until `shutdown` completes; then ends them all.
pub async fn serve<S: Service>(listener: impl Into<Listener>, service: Arc<S>, shutdown: impl Future<Output = ()>) {
    serve_within(listener.into(), service, shutdown, MAX_REQUEST_BYTES).await;
}

/// The same, with another limit on the bytes of requests that are not answered yet.
pub(crate) async fn serve_within<S: Service>(
    listener: Listener,
    service: Arc<S>,
    shutdown: impl Future<Output = ()>,
    request_bytes: usize,
) {
    let mut connections = JoinSet::new();
    // One for all connections: what counts is what the process holds.
    let requests = Arc::new(Semaphore::new(room_of(request_bytes) as usize));
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) if connections.len() < MAX_CONNECTIONS => {
                    connections.spawn(serve_connection(stream, peer, service.clone(), requests.clone()));
                }
                Ok((_, peer)) => tracing::warn!(%peer, "{MAX_CONNECTIONS} connections are open; another is closed"),
                // Out of file descriptors, most likely: the connections that exist go on.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn serve_connection<S: Service>(stream: Stream, peer: SocketAddr, service: Arc<S>, requests: Arc<Semaphore>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
    }
    let (read, write) = stream.into_split();
    let (frames, queue) = mpsc::channel(WRITE_QUEUE_FRAMES);
    // Dropped with this task, however it ends: requests still under way must not keep a dead connection half open.
    let mut writer = JoinSet::new();
    writer.spawn(frame::write_all(write, queue));
    let open = OpenSession { session: Arc::new(service.opened(peer)), service };
    let ended = tokio::select! {
        ended = read_requests(FrameReader::new(read), &open.service, &open.session, &frames, requests) => ended,
        _ = writer.join_next() => Ok(()),
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "rpc connection ended");
    }
}

/// Tells the service of the connection's end, however it comes.
struct OpenSession<S: Service> {
    service: Arc<S>,
    session: Arc<S::Session>,
}

impl<S: Service> Drop for OpenSession<S> {
    fn drop(&mut self) {
        self.service.closed(self.session.clone());
    }
}

/// Reads a request of `length` bytes whole, with the room that it takes. Room is taken before what it is for is read, since what is not read
/// stays with its sender; and that of a large request in two steps, so that one of which no more than the beginning ever comes has
/// taken little. Waiting for room is not the sender's fault, and so has no limit.
pub(crate) async fn admit<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    length: usize,
    requests: &Arc<Semaphore>,
) -> std::io::Result<OwnedSemaphorePermit> {
    let take = |room: u32| {
        let requests = requests.clone();
        async move { requests.acquire_many_owned(room).await.map_err(std::io::Error::other) }
    };
    let head = length.min(HEAD_BYTES);
    let mut taken = take(room_of(head)).await?;
    reader.arrive(head, frame::due(head)).await?;
    if length > head {
        taken.merge(take(room_of(length) - room_of(head)).await?);
        reader.arrive(length, frame::due(length)).await?;
    }
    Ok(taken)
}

async fn read_requests<S: Service>(
    mut reader: FrameReader<evenkeel_host::ReadHalf>,
    service: &Arc<S>,
    session: &Arc<S::Session>,
    frames: &mpsc::Sender<Outgoing>,
    requests: Arc<Semaphore>,
) -> std::io::Result<()> {
    let room = Arc::new(Semaphore::new(room_of(MAX_REPLY_BYTES_PER_CONNECTION) as usize));
    let under_way = Arc::new(Semaphore::new(MAX_REQUESTS_PER_CONNECTION));
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
        let permit = under_way.clone().acquire_owned().await.map_err(std::io::Error::other)?;
        let replier = Replier::new(id, frames.clone(), room.clone(), callers.clone());
        let (service, session) = (service.clone(), session.clone());
        tokio::spawn(async move {
            service.call(session, request, replier).await;
            drop((permit, taken));
        });
    }
    Ok(())
}
