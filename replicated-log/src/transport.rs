//! Sessions between replicas (log rule 3).
//!
//! Each pair of replicas has at most one session: a TCP connection, dialled by the one with the lower id, on which
//! messages flow both ways in order. A session is lost as a whole or not at all: if a socket fails, if a peer is
//! silent for too long, if what waits to be sent exceeds its bound, or if a frame is damaged, the connection is
//! closed and a new one, with a new number, takes its place. The event loop hears of each new session before any
//! message of it, and drops what still comes from an older one.
//!
//! Both ends begin with a greeting that names version, group, epoch, the two replicas and the sender's disk; a
//! mismatch closes the connection (log rule 4). If one end is in a newer epoch it says first what it knows of it: so a
//! replica that missed a change of the membership, or waits to be let in, hears of it. Since the higher of two does not dial
//! the lower, it *inquires* now and then while there is no session: it greets, and closes.
//!
//! Decoding, and encoding of all that is large, happen here, off the event loop's thread; what is small and finds the socket
//! free is written by the event loop itself, because waking a task for it costs more than the write.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use evenkeel_host::{Listener, ReadHalf, Stream, WriteHalf};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::command::{Command, Commands};
use crate::membership::Membership;
use crate::types::{Limits, ReplicaId, Timing};
use crate::wire::{FRAME_HEADER_BYTES, Tag, Wire, decode_frame, encode_frame};

/// What a session brings to the event loop.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    Up {
        peer: u64,
        session: u64,
        epoch: u32,
        store_id: u64,
        sender: SessionSender,
    },
    Messages {
        peer: u64,
        session: u64,
        messages: Vec<Wire>,
        /// Dropped when the messages have been taken in: lets the socket be read on.
        _room: OwnedSemaphorePermit,
        frame_bytes: usize,
    },
    Down {
        peer: u64,
        session: u64,
    },
}

/// The event loop's end of a session.
#[derive(Clone, Debug)]
pub(crate) struct SessionSender {
    tag: Tag,
    socket: Arc<WriteHalf>,
    queue: mpsc::UnboundedSender<Batch>,
    /// What is queued or being written by the session's task. Zero means that the task does not touch the socket.
    queued_bytes: Arc<AtomicUsize>,
    limit_bytes: usize,
    close: Arc<Notify>,
}

#[derive(Debug)]
struct Batch {
    what: Outgoing,
    charged_bytes: usize,
}

#[derive(Debug)]
enum Outgoing {
    Messages(Vec<Wire>),
    /// The rest of a frame whose beginning is written.
    Rest(Vec<u8>),
}

/// What the event loop encodes and writes itself, in bytes.
const DIRECT_BYTES: usize = 32 << 10;

impl SessionSender {
    /// Queues what one turn has for the peer, without blocking.
    ///
    /// If too much waits already, the session is given up as a whole: a single lost message would go unnoticed
    /// (log rule 3). A batch that finds the queue empty always fits and takes at most half of the room, however
    /// large it is: else the heartbeats behind a log synchronisation above the limit would end the session, the
    /// next session would begin with the same synchronisation, and so on for ever.
    pub(crate) fn send(&self, messages: Vec<Wire>) {
        let bytes: usize = messages.iter().map(Wire::size_bytes).sum();
        let before = self.queued_bytes.load(Ordering::Acquire);
        // Only this thread adds, so what was read can only have shrunk since.
        let charged_bytes = if before == 0 { bytes.min(self.limit_bytes / 2) } else { bytes };
        if before + charged_bytes > self.limit_bytes {
            self.close();
            return;
        }
        let what = if before == 0 && bytes <= DIRECT_BYTES {
            match self.write_now(messages) {
                Ok(None) => return,
                Ok(Some(rest)) => Outgoing::Rest(rest),
                Err(error) => {
                    tracing::debug!(%error, "a session's socket has failed");
                    self.close();
                    return;
                }
            }
        } else {
            Outgoing::Messages(messages)
        };
        self.queued_bytes.fetch_add(charged_bytes.max(1), Ordering::AcqRel);
        // A closed queue means that the session is gone; its end has been or will be told.
        self.queue.send(Batch { what, charged_bytes: charged_bytes.max(1) }).ok();
    }

    /// Writes as much as the socket takes at once; gives what it did not take. Only called while nothing is queued.
    fn write_now(&self, messages: Vec<Wire>) -> io::Result<Option<Vec<u8>>> {
        let mut frame = Vec::new();
        encode_frame(&mut frame, self.tag, messages).map_err(io::Error::other)?;
        let mut written = 0;
        while written < frame.len() {
            match self.socket.try_write(&frame[written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Some(frame.split_off(written))),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    pub(crate) fn close(&self) {
        self.close.notify_one();
    }
}

/// Who this replica is, and what binds its sessions.
#[derive(Clone, Debug)]
pub(crate) struct TransportConfig {
    pub(crate) tag: Tag,
    pub(crate) me: u64,
    pub(crate) store_id: u64,
    pub(crate) membership: Membership,
    pub(crate) timing: Timing,
    pub(crate) limits: Limits,
}

struct Shared {
    config: TransportConfig,
    events: Commands,
    /// Sessions of all epochs have numbers of their own.
    next_session: Arc<AtomicU64>,
    /// The newest session of each peer.
    current: Mutex<BTreeMap<u64, (u64, SessionSender)>>,
    stopped: watch::Receiver<bool>,
    /// Gone when the last task has let go of this.
    _running: mpsc::Sender<()>,
}

/// The running transport; dropping it ends every session.
#[derive(Debug)]
pub(crate) struct Transport {
    stop: watch::Sender<bool>,
    /// Closed once no task is left.
    tasks: mpsc::Receiver<()>,
}

impl Transport {
    /// Listens, dials, and brings events. Must be called within a tokio runtime.
    pub(crate) fn start(
        config: TransportConfig,
        listener: Arc<Listener>,
        events: Commands,
        next_session: Arc<AtomicU64>,
    ) -> Transport {
        let (stop, stopped) = watch::channel(false);
        let (running, tasks) = mpsc::channel(1);
        let shared =
            Arc::new(Shared { config, events, next_session, current: Mutex::default(), stopped, _running: running });
        tokio::spawn(until_stopped(shared.stopped.clone(), listen(shared.clone(), listener)));
        let TransportConfig { me, tag, membership, .. } = &shared.config;
        for (ReplicaId(peer), member) in membership.members.iter().filter(|(id, _)| id.0 != *me) {
            if peer > me && tag.epoch > 0 {
                tokio::spawn(until_stopped(shared.stopped.clone(), dial(shared.clone(), *peer, member.log)));
            } else {
                tokio::spawn(until_stopped(shared.stopped.clone(), inquire(shared.clone(), *peer, member.log)));
            }
        }
        Transport { stop, tasks }
    }

    /// Ends every session and waits until the port is free. Not to be called on a thread of the tokio runtime.
    pub(crate) fn close(self) {
        let Transport { stop, mut tasks } = self;
        drop(stop);
        while tasks.blocking_recv().is_some() {}
    }
}

/// Runs `task` until the transport is dropped.
async fn until_stopped(mut stopped: watch::Receiver<bool>, task: impl Future<Output = ()>) {
    tokio::select! {
        () = task => {}
        // Nothing is ever sent: the change awaited is the sender's end.
        _ = stopped.changed() => {}
    }
}

async fn listen(shared: Arc<Shared>, listener: Arc<Listener>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let stopped = shared.stopped.clone();
                let shared = shared.clone();
                tokio::spawn(until_stopped(stopped, async move {
                    if let Err(error) = accepted(&shared, stream).await {
                        tracing::debug!(%error, "a session that a peer dialled has ended");
                    }
                }));
            }
            Err(error) => {
                // Out of descriptors, most likely; others may give some back.
                tracing::warn!(%error, "cannot accept a session");
                sleep(Duration::from_millis(shared.config.timing.redial_ms)).await;
            }
        }
    }
}

async fn accepted(shared: &Shared, mut stream: Stream) -> io::Result<()> {
    let idle = Duration::from_millis(shared.config.timing.session_idle_ms);
    let hello = timeout(idle, Greeting::read(&mut stream)).await??;
    hello.check_group(&shared.config)?;
    Greeting::to(&shared.config, hello.from).write(&mut stream).await?;
    if timeout(idle, tell_newer(shared, &mut stream, &hello)).await?? {
        return Ok(());
    }
    hello.check(&shared.config, None)?;
    run_session(shared, stream, hello).await
}

async fn dial(shared: Arc<Shared>, peer: u64, address: SocketAddr) {
    const SLOWEST_REDIAL_MS: u64 = 1_000;
    let first_ms = shared.config.timing.redial_ms.max(1);
    let mut pause_ms = first_ms;
    loop {
        let started = tokio::time::Instant::now();
        if let Err(error) = dialled(&shared, peer, address).await {
            tracing::debug!(peer, %error, "a session has ended or could not be opened");
        }
        // A peer that refuses is asked ever less often; one that was there is back soon.
        let lasted = started.elapsed() >= Duration::from_millis(SLOWEST_REDIAL_MS);
        pause_ms = match lasted {
            true => first_ms,
            false => (pause_ms * 2).min(SLOWEST_REDIAL_MS.max(first_ms)),
        };
        sleep(Duration::from_millis(pause_ms)).await;
    }
}

async fn dialled(shared: &Shared, peer: u64, address: SocketAddr) -> io::Result<()> {
    let idle = Duration::from_millis(shared.config.timing.session_idle_ms);
    let mut stream = timeout(idle, evenkeel_host::connect(address)).await??;
    stream.set_nodelay(true)?;
    Greeting::to(&shared.config, peer).write(&mut stream).await?;
    let hello = timeout(idle, Greeting::read(&mut stream)).await??;
    hello.check_group(&shared.config)?;
    if timeout(idle, tell_newer(shared, &mut stream, &hello)).await?? {
        return Ok(());
    }
    hello.check(&shared.config, Some(peer))?;
    run_session(shared, stream, hello).await
}

/// Asks a peer that is not dialled whether there is a newer epoch, as long as there is no session with it.
async fn inquire(shared: Arc<Shared>, peer: u64, address: SocketAddr) {
    const INQUIRE_MS: u64 = 500;
    let idle = Duration::from_millis(shared.config.timing.session_idle_ms);
    loop {
        sleep(Duration::from_millis(INQUIRE_MS)).await;
        if shared.current.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&peer) {
            continue;
        }
        let asked = async {
            let mut stream = evenkeel_host::connect(address).await?;
            Greeting::to(&shared.config, peer).write(&mut stream).await?;
            let hello = Greeting::read(&mut stream).await?;
            hello.check_group(&shared.config)?;
            tell_newer(&shared, &mut stream, &hello).await
        };
        match timeout(idle, asked).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(peer, %error, "an inquiry was not answered"),
            Err(_) => tracing::debug!(peer, "an inquiry was not answered in time"),
        }
    }
}

/// Between two ends in different epochs: the newer one tells what it knows, and the connection has served its purpose.
async fn tell_newer(shared: &Shared, stream: &mut Stream, peer: &Greeting) -> io::Result<bool> {
    let config = &shared.config;
    match config.tag.epoch.cmp(&peer.tag.epoch) {
        std::cmp::Ordering::Equal => return Ok(false),
        std::cmp::Ordering::Greater => {
            // Without an event loop the process is going down, and this with it.
            shared.events.send(Command::Seen { replica: peer.from, store_id: peer.store_id }).ok();
            let told = postcard::to_stdvec(&config.membership).map_err(io::Error::other)?;
            stream.write_all(&(told.len() as u32).to_le_bytes()).await?;
            stream.write_all(&told).await?;
            stream.shutdown().await?;
        }
        std::cmp::Ordering::Less => {
            let length = stream.read_u32_le().await? as usize;
            if length > MAX_MEMBERSHIP_BYTES {
                return Err(invalid("a membership above the limit"));
            }
            let mut told = vec![0; length];
            stream.read_exact(&mut told).await?;
            let newer: Membership = postcard::from_bytes(&told).map_err(io::Error::other)?;
            shared.events.send(Command::NewerEpoch(newer)).ok();
        }
    }
    Ok(true)
}

/// Log rule 4: what both ends say first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Greeting {
    tag: Tag,
    from: u64,
    to: u64,
    store_id: u64,
}

const MAGIC: u64 = u64::from_le_bytes(*b"evenkeel");
/// Grows when the encoding of frames or messages changes.
const VERSION: u32 = 4;
/// What a replica may say of its epoch, in bytes: 255 members with their addresses are far below.
const MAX_MEMBERSHIP_BYTES: usize = 64 << 10;
const GREETING_BYTES: usize = 8 + 4 + 8 + 4 + 8 + 8 + 8;

impl Greeting {
    fn to(config: &TransportConfig, to: u64) -> Greeting {
        Greeting { tag: config.tag, from: config.me, to, store_id: config.store_id }
    }

    async fn write(&self, stream: &mut Stream) -> io::Result<()> {
        let mut out = Vec::with_capacity(GREETING_BYTES);
        out.extend(MAGIC.to_le_bytes());
        out.extend(VERSION.to_le_bytes());
        out.extend(self.tag.group.to_le_bytes());
        out.extend(self.tag.epoch.to_le_bytes());
        out.extend(self.from.to_le_bytes());
        out.extend(self.to.to_le_bytes());
        out.extend(self.store_id.to_le_bytes());
        stream.write_all(&out).await
    }

    async fn read(stream: &mut Stream) -> io::Result<Greeting> {
        let mut raw = [0; GREETING_BYTES];
        stream.read_exact(&mut raw).await?;
        let mut raw = &raw[..];
        if raw.get_u64_le() != MAGIC || raw.get_u32_le() != VERSION {
            return Err(invalid("not a replica of this version"));
        }
        Ok(Greeting {
            tag: Tag { group: raw.get_u64_le(), epoch: raw.get_u32_le() },
            from: raw.get_u64_le(),
            to: raw.get_u64_le(),
            store_id: raw.get_u64_le(),
        })
    }

    fn check_group(&self, config: &TransportConfig) -> io::Result<()> {
        if self.tag.group != config.tag.group || self.to != config.me {
            tracing::warn!(greeting = ?self, "refusing a session: another group or replica");
            return Err(invalid("another group or replica"));
        }
        Ok(())
    }

    /// Whether there may be a session with it, in this epoch, over this connection.
    fn check(&self, config: &TransportConfig, dialled: Option<u64>) -> io::Result<()> {
        let expected_side = match dialled {
            Some(peer) => self.from == peer,
            // The higher of two only inquires.
            None => self.from < config.me,
        };
        // Nobody has a session in epoch 0: it is no membership.
        if self.tag != config.tag || !expected_side || !config.membership.has(ReplicaId(self.from)) {
            return Err(invalid("no session with this one"));
        }
        Ok(())
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

async fn run_session(shared: &Shared, stream: Stream, peer: Greeting) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    let (queue, batches) = mpsc::unbounded_channel();
    let write = Arc::new(write);
    let sender = SessionSender {
        tag: shared.config.tag,
        socket: write.clone(),
        queue,
        queued_bytes: Arc::default(),
        limit_bytes: shared.config.limits.session_queue_bytes,
        close: Arc::default(),
    };
    let queued_bytes = sender.queued_bytes.clone();
    let close = sender.close.clone();
    let session = shared.next_session.fetch_add(1, Ordering::Relaxed);
    shared.begin(peer, session, sender);
    let ended = tokio::select! {
        result = write_frames(&write, batches, &queued_bytes, shared.config.tag) => result,
        result = read_frames(shared, read, peer.from, session) => result,
        () = close.notified() => Err(io::Error::other("given up or replaced")),
    };
    shared.end(peer.from, session);
    ended
}

impl Shared {
    /// Makes the session the peer's current one; the one before is closed. The event loop hears of sessions in
    /// the order in which they became current.
    fn begin(&self, peer: Greeting, session: u64, sender: SessionSender) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, old)) = current.insert(peer.from, (session, sender.clone())) {
            old.close();
        }
        let epoch = self.config.tag.epoch;
        self.tell(SessionEvent::Up { peer: peer.from, session, epoch, store_id: peer.store_id, sender });
    }

    fn end(&self, peer: u64, session: u64) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.get(&peer).is_some_and(|(s, _)| *s == session) {
            current.remove(&peer);
        }
        self.tell(SessionEvent::Down { peer, session });
    }

    fn tell(&self, event: SessionEvent) {
        // Without an event loop the process is going down, and this with it.
        self.events.send(Command::Session(event)).ok();
    }
}

async fn write_frames(
    socket: &WriteHalf,
    mut batches: mpsc::UnboundedReceiver<Batch>,
    queued_bytes: &AtomicUsize,
    tag: Tag,
) -> io::Result<()> {
    /// What is gathered into one write if it waits anyway.
    const WRITE_BYTES: usize = 256 << 10;
    let mut out = Vec::new();
    while let Some(first) = batches.recv().await {
        let mut taken_bytes = 0;
        let mut next = Some(first);
        while let Some(batch) = next {
            taken_bytes += batch.charged_bytes;
            match batch.what {
                Outgoing::Messages(messages) => encode_frame(&mut out, tag, messages).map_err(io::Error::other)?,
                Outgoing::Rest(rest) => out.extend(rest),
            }
            next = match out.len() < WRITE_BYTES {
                true => batches.try_recv().ok(),
                false => None,
            };
        }
        write_all(socket, &out).await?;
        queued_bytes.fetch_sub(taken_bytes, Ordering::AcqRel);
        out.clear();
        out.shrink_to(WRITE_BYTES * 4);
    }
    Ok(())
}

async fn write_all(socket: &WriteHalf, mut out: &[u8]) -> io::Result<()> {
    while !out.is_empty() {
        socket.writable().await?;
        match socket.try_write(out) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => out = &out[bytes..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn read_frames(shared: &Shared, socket: ReadHalf, peer: u64, session: u64) -> io::Result<()> {
    const SOCKET_BUFFER_BYTES: usize = 64 << 10;
    /// Semaphore permits are counted in units, so that large frames fit its range.
    const UNIT_BYTES: usize = 1 << 10;
    let limits = &shared.config.limits;
    let idle = Duration::from_millis(shared.config.timing.session_idle_ms);
    let units = (limits.inbound_bytes / UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS >> 4);
    let room = Arc::new(Semaphore::new(units));
    let mut socket = BufReader::with_capacity(SOCKET_BUFFER_BYTES, socket);
    loop {
        let mut header = [0; FRAME_HEADER_BYTES];
        timeout(idle, socket.read_exact(&mut header)).await??;
        let mut header = &header[..];
        let body_bytes = header.get_u32_le() as usize;
        let crc = header.get_u32_le();
        if body_bytes > limits.max_frame_bytes {
            return Err(invalid("a frame above the limit"));
        }
        // Exactly the frame's size: its items keep this memory alive for as long as they are cached.
        let mut body = vec![0; body_bytes];
        read_body(&mut socket, &mut body, idle).await?;
        let messages = decode_frame(Bytes::from(body), crc, shared.config.tag).map_err(io::Error::other)?;
        let wanted = (body_bytes / UNIT_BYTES + 1).min(units) as u32;
        let permit = room.clone().acquire_many_owned(wanted).await;
        shared.tell(SessionEvent::Messages {
            peer,
            session,
            messages,
            _room: permit.map_err(io::Error::other)?,
            frame_bytes: body_bytes,
        });
    }
}

/// As long as something comes, a large frame may take its time.
async fn read_body(socket: &mut BufReader<ReadHalf>, mut body: &mut [u8], idle: Duration) -> io::Result<()> {
    while !body.is_empty() {
        let read = timeout(idle, socket.read(body)).await??;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        body = &mut body[read..];
    }
    Ok(())
}
