//! Connections of a replica: listening, dialling, inquiring, and running one session per
//! connection.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use evenkeel_host::{Listener, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

use crate::command::{Command, Commands};
use crate::ids::ReplicaId;
use crate::membership::Membership;

use super::config::TransportConfig;
use super::frames::{read_frames, write_frames};
use super::greeting::{Greeting, MAX_MEMBERSHIP_BYTES, invalid};
use super::session::{SessionEvent, SessionSender};

/// State that the tasks of one transport share.
struct TransportTasks {
    config: TransportConfig,
    events: Commands,
    /// Session numbers are unique across configurations.
    next_session: Arc<AtomicU64>,
    /// The newest session of each peer.
    current: Mutex<BTreeMap<u64, (u64, SessionSender)>>,
    stopped: watch::Receiver<bool>,
    /// Dropped with the last task.
    _running: mpsc::Sender<()>,
}

impl TransportTasks {
    /// Makes the session the peer's current one and closes the previous one. The event loop
    /// receives sessions in the order in which they became current.
    fn begin(&self, peer: Greeting, session: u64, sender: SessionSender) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, old)) = current.insert(peer.from, (session, sender.clone())) {
            old.close();
        }
        let configuration = self.config.tag.configuration;
        self.report(SessionEvent::Up { peer: peer.from, session, configuration, store_id: peer.store_id, sender });
    }

    fn end(&self, peer: u64, session: u64) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.get(&peer).is_some_and(|(s, _)| *s == session) {
            current.remove(&peer);
        }
        self.report(SessionEvent::Down { peer, session });
    }

    fn report(&self, event: SessionEvent) {
        // Without an event loop the process is shutting down.
        self.events.send(Command::Session(event)).ok();
    }
}

/// The running transport of one configuration; dropping it ends every session.
#[derive(Debug)]
pub(crate) struct Transport {
    stop: watch::Sender<bool>,
    /// Closed once no task is left.
    tasks: mpsc::Receiver<()>,
}

impl Transport {
    /// Listens, dials, and sends events. Must be called within a tokio runtime.
    pub(crate) fn start(
        config: TransportConfig,
        listener: Arc<Listener>,
        events: Commands,
        next_session: Arc<AtomicU64>,
    ) -> Transport {
        let (stop, stopped) = watch::channel(false);
        let (running, tasks) = mpsc::channel(1);
        let shared = Arc::new(TransportTasks {
            config,
            events,
            next_session,
            current: Mutex::default(),
            stopped,
            _running: running,
        });
        tokio::spawn(until_stopped(shared.stopped.clone(), listen(shared.clone(), listener)));
        let TransportConfig { me, tag, membership, .. } = &shared.config;
        for (ReplicaId(peer), member) in membership.members.iter().filter(|(id, _)| id.0 != *me) {
            if peer > me && tag.configuration > 0 {
                tokio::spawn(until_stopped(shared.stopped.clone(), dial(shared.clone(), *peer, member.log)));
            } else {
                tokio::spawn(until_stopped(shared.stopped.clone(), inquire(shared.clone(), *peer, member.log)));
            }
        }
        Transport { stop, tasks }
    }

    /// Ends every session and waits until the port is free. Not to be called on a thread of the
    /// tokio runtime.
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
        // No value is ever sent: the awaited change is the end of the sender.
        _ = stopped.changed() => {}
    }
}

async fn listen(shared: Arc<TransportTasks>, listener: Arc<Listener>) {
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
                // The process is probably out of descriptors; others may close some.
                tracing::warn!(%error, "cannot accept a session");
                evenkeel_host::sleep(Duration::from_millis(shared.config.timing.redial_ms)).await;
            }
        }
    }
}

async fn accepted(shared: &TransportTasks, mut stream: Stream) -> io::Result<()> {
    let idle = Duration::from_millis(shared.config.timing.session_idle_ms);
    let hello = evenkeel_host::timeout(idle, Greeting::read(&mut stream)).await??;
    hello.check_group(&shared.config)?;
    Greeting::to(&shared.config, hello.from).write(&mut stream).await?;
    if evenkeel_host::timeout(idle, exchange_newer(shared, &mut stream, &hello)).await?? {
        return Ok(());
    }
    hello.check(&shared.config, None)?;
    run_session(shared, stream, hello).await
}

async fn dial(shared: Arc<TransportTasks>, peer: u64, address: SocketAddr) {
    const SLOWEST_REDIAL_MS: u64 = 1_000;
    let first_ms = shared.config.timing.redial_ms.max(1);
    let mut pause_ms = first_ms;
    loop {
        let started = evenkeel_host::tokio_now();
        if let Err(error) = dialled(&shared, peer, address).await {
            tracing::debug!(peer, %error, "a session has ended or could not be opened");
        }
        // The pause grows while a peer refuses. A peer that had a session is dialled at once.
        let lasted = evenkeel_host::tokio_now().duration_since(started) >= Duration::from_millis(SLOWEST_REDIAL_MS);
        pause_ms = match lasted {
            true => first_ms,
            false => (pause_ms * 2).min(SLOWEST_REDIAL_MS.max(first_ms)),
        };
        evenkeel_host::sleep(Duration::from_millis(pause_ms)).await;
    }
}

async fn dialled(shared: &TransportTasks, peer: u64, address: SocketAddr) -> io::Result<()> {
    let idle = Duration::from_millis(shared.config.timing.session_idle_ms);
    let mut stream = evenkeel_host::timeout(idle, evenkeel_host::connect(address)).await??;
    stream.set_nodelay(true)?;
    Greeting::to(&shared.config, peer).write(&mut stream).await?;
    let hello = evenkeel_host::timeout(idle, Greeting::read(&mut stream)).await??;
    hello.check_group(&shared.config)?;
    if evenkeel_host::timeout(idle, exchange_newer(shared, &mut stream, &hello)).await?? {
        return Ok(());
    }
    hello.check(&shared.config, Some(peer))?;
    run_session(shared, stream, hello).await
}

/// Asks a peer that this replica does not dial for a newer configuration, while there is no session
/// with it.
async fn inquire(shared: Arc<TransportTasks>, peer: u64, address: SocketAddr) {
    const INQUIRE_MS: u64 = 500;
    let idle = Duration::from_millis(shared.config.timing.session_idle_ms);
    loop {
        evenkeel_host::sleep(Duration::from_millis(INQUIRE_MS)).await;
        if shared.current.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&peer) {
            continue;
        }
        let asked = async {
            let mut stream = evenkeel_host::connect(address).await?;
            Greeting::to(&shared.config, peer).write(&mut stream).await?;
            let hello = Greeting::read(&mut stream).await?;
            hello.check_group(&shared.config)?;
            exchange_newer(&shared, &mut stream, &hello).await
        };
        match evenkeel_host::timeout(idle, asked).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(peer, %error, "an inquiry was not answered"),
            Err(_) => tracing::debug!(peer, "an inquiry was not answered in time"),
        }
    }
}

/// Handles two ends in different configurations: the newer end sends its membership, and the
/// connection ends. Returns whether this was the case.
async fn exchange_newer(shared: &TransportTasks, stream: &mut Stream, peer: &Greeting) -> io::Result<bool> {
    let config = &shared.config;
    match config.tag.configuration.cmp(&peer.tag.configuration) {
        std::cmp::Ordering::Equal => return Ok(false),
        std::cmp::Ordering::Greater => {
            // Without an event loop the process is shutting down.
            shared.events.send(Command::Seen { replica: peer.from, store_id: peer.store_id }).ok();
            let newer = postcard::to_stdvec(&config.membership).map_err(io::Error::other)?;
            stream.write_all(&(newer.len() as u32).to_le_bytes()).await?;
            stream.write_all(&newer).await?;
            stream.shutdown().await?;
        }
        std::cmp::Ordering::Less => {
            let length = stream.read_u32_le().await? as usize;
            if length > MAX_MEMBERSHIP_BYTES {
                return Err(invalid("a membership above the limit"));
            }
            let mut encoded = vec![0; length];
            stream.read_exact(&mut encoded).await?;
            let newer: Membership = postcard::from_bytes(&encoded).map_err(io::Error::other)?;
            shared.events.send(Command::NewerConfiguration(newer)).ok();
        }
    }
    Ok(true)
}

async fn run_session(shared: &TransportTasks, stream: Stream, peer: Greeting) -> io::Result<()> {
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
        result = read_frames(&shared.config, &shared.events, read, peer.from, session) => result,
        () = close.notified() => Err(io::Error::other("closed or replaced")),
    };
    shared.end(peer.from, session);
    ended
}
