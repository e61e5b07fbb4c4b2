//! The event loop: a thread that owns the core and does what it says.
//!
//! It blocks until an input or the next tick, takes in everything that waits (up to a bound), lets the core finish
//! the turn, and carries it out in the order that [`crate::core`] prescribes: early sends, one sync, the other
//! sends, answers, publication. It makes no choice of its own. Whatever piles up while the disk syncs becomes the
//! next turn, so that one sync serves everything that waits (log rule 1).
//!
//! When another epoch begins, all sessions end and the transport is started again under its tag (log rule 4); the handle,
//! the subscriptions and the positions go on.
//!
//! In a simulation the same loop is a task instead of a thread, on the simulation's disk and connections.
//!
//! If the disk fails the process ends at once (log rule 13): what is durable is not known any more, and a replica
//! that went on could break a promise it has made.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use evenkeel_host::Listener;
use tokio::sync::{Notify, oneshot};

use crate::clock;
use crate::command::{Command, Commands, OldEntries};
use crate::core::{Core, CoreConfig, Input, Turn};
use crate::handle::LogHandle;
use crate::membership::{self, Membership};
use crate::published::Published;
use crate::transport::{SessionEvent, SessionSender, Transport, TransportConfig};
use crate::types::{BarrierError, GroupConfig, Limits, LogIndex, Role, StartError};
use crate::wal::{Disk, FsDisk, Identity, Wal, WalError, WalLimits, Written};
use crate::wire::{Tag, Wire};

/// Opens the durable log in `config.dir`, connects to the peers and starts the event loop on a thread of its own.
/// Must be called from within a tokio runtime, which carries the sessions.
///
/// # Errors
/// [`StartError`]: a configuration that contradicts itself, a durable log that cannot be used, a socket or thread
/// that cannot be had.
pub fn start(config: GroupConfig) -> Result<LogHandle, StartError> {
    check(&config)?;
    if let Some(simulation) = evenkeel_host::simulation() {
        return start_simulated(config, simulation);
    }
    let wal = open_wal(&config, open_disk(&config)?)?;
    let (queue, inputs) = mpsc::channel();
    let commands = Commands::new(queue, None);
    let published = Published::new(config.limits.recent_bytes, wal.membership().clone());
    let handle = handle(&config, wal.store_id(), &commands, &published);
    let connecting = Connecting::new(&config, wal.store_id(), commands)?;
    let (built, ready) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name(format!("log-{}-{}", config.group, config.me))
        .spawn(move || {
            let _guard = AbortOnPanic;
            let core = match Core::new(core_config(&config), wal, clock::now_ms()) {
                Ok(core) => core,
                Err(what) => return drop(built.send(Err(StartError::Config(what)))),
            };
            let transport = connecting.connect(&config, core.membership());
            built.send(Ok(())).ok();
            EventLoop::new(config, core, published, connecting, transport).run(&inputs);
        })
        .map_err(|source| StartError::Io { what: "starting the event loop's thread".to_owned(), source })?;
    ready.recv().unwrap_or_else(|_| Err(StartError::Config("the event loop ended at once".to_owned())))?;
    Ok(handle)
}

/// The same in a simulation: on its disk, and with the event loop as a task that it steps.
fn start_simulated(
    config: GroupConfig,
    simulation: &'static dyn evenkeel_host::Simulation,
) -> Result<LogHandle, StartError> {
    let opening = |source| StartError::Io { what: format!("opening the folder {}", config.dir.display()), source };
    let disk = simulation.disk(&config.dir, config.limits.segment_bytes).map_err(opening)?;
    let wal = open_wal(&config, disk)?;
    let wake = Arc::new(Notify::new());
    let (queue, inputs) = mpsc::channel();
    let commands = Commands::new(queue, Some(wake.clone()));
    let published = Published::new(config.limits.recent_bytes, wal.membership().clone());
    let handle = handle(&config, wal.store_id(), &commands, &published);
    let connecting = Connecting::new(&config, wal.store_id(), commands)?;
    let core = Core::new(core_config(&config), wal, clock::now_ms()).map_err(StartError::Config)?;
    let transport = connecting.connect(&config, core.membership());
    let event_loop = EventLoop::new(config, core, published, connecting, transport);
    tokio::task::spawn_local(async move { event_loop.run_as_task(&inputs, &wake).await });
    Ok(handle)
}

fn handle(config: &GroupConfig, store_id: u64, commands: &Commands, published: &Arc<Published>) -> LogHandle {
    LogHandle {
        me: config.me,
        disk: store_id,
        commands: commands.clone(),
        published: published.clone(),
        limits: config.limits.clone(),
        lease_reads: metrics::counter!("evenkeel_log_lease_reads_total", "group" => config.group.to_string()),
    }
}

fn core_config(config: &GroupConfig) -> CoreConfig {
    CoreConfig {
        me: config.me.0,
        unix_at_boot_ms: clock::unix_ms().saturating_sub(clock::now_ms()),
        timing: config.timing.clone(),
        limits: config.limits.clone(),
        #[cfg(test)]
        faults: Vec::new(),
    }
}

/// Log rule 6, and what else must be so before anything is opened.
fn check(config: &GroupConfig) -> Result<(), StartError> {
    let wrong = |what: String| Err(StartError::Config(what));
    if let Err(what) = membership::check(&config.peers) {
        return wrong(what);
    }
    if !config.peers.contains_key(&config.me) {
        return wrong(format!("replica {} is not a member", config.me));
    }
    let timing = &config.timing;
    if timing.tick_ms == 0 || timing.election_timeout_ms < timing.tick_ms {
        return wrong("tick_ms is at least 1 and election_timeout_ms at least one tick".to_owned());
    }
    let limits = &config.limits;
    // Proposals wait two of the largest segments below the cap, and compaction takes whole segments from its half on.
    if limits.log_cap_bytes < 4 * limits.segment_bytes {
        return wrong(format!(
            "a log's cap is at least four segments: {} bytes is less than 4 of {}",
            limits.log_cap_bytes, limits.segment_bytes
        ));
    }
    Ok(())
}

fn open_disk(config: &GroupConfig) -> Result<FsDisk, StartError> {
    FsDisk::open(&config.dir, config.limits.segment_bytes, config.limits.largest_segment_bytes()).map_err(|source| {
        if source.kind() == std::io::ErrorKind::WouldBlock {
            let what = format!("another process uses {}", config.dir.display());
            return StartError::Wal(WalError::WrongOwner(what));
        }
        StartError::Io { what: format!("opening the folder {}", config.dir.display()), source }
    })
}

fn open_wal<D: Disk>(config: &GroupConfig, disk: D) -> Result<Wal<D>, StartError> {
    let identity = Identity { group: config.group, me: config.me.0 };
    // Who joins is in no epoch yet: epoch 0, in which nobody has a session.
    let epoch = u32::from(!config.join);
    let founding = Membership { epoch, members: config.peers.clone(), ..Membership::default() };
    let Limits { segment_bytes, recent_bytes, sync_bytes, .. } = config.limits;
    let limits = WalLimits { segment_bytes, recent_bytes, sync_bytes: sync_bytes as u64 };
    // The standard library seeds every RandomState differently: random enough to tell two disks apart. 0 is none.
    let store_id = RandomState::new().build_hasher().finish().max(1);
    Ok(Wal::open(disk, identity, founding, store_id, limits)?)
}

/// The library panics when its storage fails (log rule 13). A process whose log has died must not linger.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the replicated log has failed; stopping the process");
            std::process::abort();
        }
    }
}

pub(crate) fn die(error: &WalError) -> ! {
    tracing::error!(%error, "the replicated log has failed; stopping the process");
    eprintln!("the replicated log has failed, stopping the process: {error}");
    std::process::abort();
}

struct Meters {
    turns: metrics::Counter,
    syncs: metrics::Histogram,
    proposals: metrics::Counter,
    dropped: metrics::Counter,
    decided: metrics::Counter,
    leaderships: metrics::Counter,
    probes: metrics::Counter,
    sessions: metrics::Counter,
    payload_bytes: metrics::Counter,
    disk_bytes: metrics::Counter,
    clock_off_ms: metrics::Gauge,
}

impl Meters {
    fn new(group: u64) -> Meters {
        let group = group.to_string();
        Meters {
            turns: metrics::counter!("evenkeel_log_turns_total", "group" => group.clone()),
            syncs: metrics::histogram!("evenkeel_log_sync_seconds", "group" => group.clone()),
            proposals: metrics::counter!("evenkeel_log_proposals_total", "group" => group.clone()),
            dropped: metrics::counter!("evenkeel_log_late_proposals_total", "group" => group.clone()),
            decided: metrics::counter!("evenkeel_log_decided_total", "group" => group.clone()),
            probes: metrics::counter!("evenkeel_log_probes_total", "group" => group.clone()),
            leaderships: metrics::counter!("evenkeel_log_leaderships_total", "group" => group.clone()),
            sessions: metrics::counter!("evenkeel_log_sessions_total", "group" => group.clone()),
            payload_bytes: metrics::counter!("evenkeel_log_payload_bytes_total", "group" => group.clone()),
            disk_bytes: metrics::counter!("evenkeel_log_disk_bytes_total", "group" => group.clone()),
            clock_off_ms: metrics::gauge!("evenkeel_log_clock_off_ms", "group" => group),
        }
    }
}

type BarrierReply = oneshot::Sender<Result<LogIndex, BarrierError>>;

/// A subscriber's request for entries that are not in the ring.
struct OldRead {
    from: LogIndex,
    max_bytes: usize,
    reply: oneshot::Sender<OldEntries>,
}

/// What sessions need, whatever the epoch.
struct Connecting {
    listener: Arc<Listener>,
    inputs: Commands,
    tokio: tokio::runtime::Handle,
    store_id: u64,
    next_session: Arc<AtomicU64>,
}

impl Connecting {
    fn new(config: &GroupConfig, store_id: u64, inputs: Commands) -> Result<Connecting, StartError> {
        let tokio = tokio::runtime::Handle::try_current().map_err(|e| StartError::Config(e.to_string()))?;
        let listener = evenkeel_host::bind(config.listen)
            .map_err(|source| StartError::Io { what: format!("listening on {}", config.listen), source })?;
        let next_session = Arc::new(AtomicU64::new(1));
        Ok(Connecting { listener: Arc::new(listener), inputs, tokio, store_id, next_session })
    }

    fn connect(&self, config: &GroupConfig, membership: &Membership) -> Transport {
        let transport = TransportConfig {
            tag: Tag { group: config.group, epoch: membership.epoch },
            me: config.me.0,
            store_id: self.store_id,
            membership: membership.clone(),
            timing: config.timing.clone(),
            limits: config.limits.clone(),
        };
        let _within = self.tokio.enter();
        Transport::start(transport, self.listener.clone(), self.inputs.clone(), self.next_session.clone())
    }
}

struct EventLoop<D: Disk> {
    config: GroupConfig,
    connecting: Connecting,
    core: Core<D>,
    published: Arc<Published>,
    meters: Meters,
    tick: Duration,
    turn_bytes: usize,
    sessions: BTreeMap<u64, (u64, SessionSender)>,
    barriers: BTreeMap<u64, BarrierReply>,
    next_barrier: u64,
    /// Who waits for a proposal to be held in a quorum's memory (R28).
    held: BTreeMap<u64, oneshot::Sender<()>>,
    next_tracked: u64,
    reads: Vec<OldRead>,
    shutdown: Vec<oneshot::Sender<()>>,
    transport: Transport,
}

impl<D: Disk> EventLoop<D> {
    fn new(
        config: GroupConfig,
        core: Core<D>,
        published: Arc<Published>,
        connecting: Connecting,
        transport: Transport,
    ) -> EventLoop<D> {
        EventLoop {
            core,
            published,
            meters: Meters::new(config.group),
            tick: Duration::from_millis(config.timing.tick_ms),
            turn_bytes: config.limits.turn_bytes,
            sessions: BTreeMap::new(),
            barriers: BTreeMap::new(),
            next_barrier: 0,
            held: BTreeMap::new(),
            next_tracked: 0,
            reads: Vec::new(),
            shutdown: Vec::new(),
            transport,
            config,
            connecting,
        }
    }

    fn run(mut self, inputs: &mpsc::Receiver<Command>) {
        self.published.set_role(self.core.role().clone());
        self.published.set_status(self.core.status());
        let mut next_tick = Instant::now() + self.tick;
        while self.shutdown.is_empty() {
            let wait = next_tick.saturating_duration_since(Instant::now());
            let first = match inputs.recv_timeout(wait) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            self.turn(first, inputs, &mut next_tick);
        }
        let (waiting, transport) = self.end();
        // The folder's lock and the port must be free when `shutdown` returns.
        transport.close();
        for reply in waiting {
            reply.send(()).ok();
        }
    }

    /// As [`EventLoop::run`], as a task of a simulation, which steps time.
    async fn run_as_task(mut self, inputs: &mpsc::Receiver<Command>, wake: &Notify) {
        self.published.set_role(self.core.role().clone());
        self.published.set_status(self.core.status());
        let mut next_tick = Instant::now() + self.tick;
        while self.shutdown.is_empty() {
            let first = match inputs.try_recv() {
                Ok(command) => Some(command),
                Err(TryRecvError::Empty) => {
                    tokio::time::timeout_at(next_tick.into(), wake.notified()).await.ok();
                    inputs.try_recv().ok()
                }
                Err(TryRecvError::Disconnected) => break,
            };
            let (turn, ticked) = self.begin_turn(first, inputs, &mut next_tick);
            if let Some(slow_ms) =
                evenkeel_host::simulation().map(|simulation| simulation.disk_ms()).filter(|ms| *ms > 0)
            {
                // A disk that is slow holds up this loop at its sync, and nothing else of the process.
                tokio::time::sleep(Duration::from_millis(slow_ms)).await;
            }
            self.carry_out(turn, ticked);
        }
        let (waiting, transport) = self.end();
        drop(transport);
        for reply in waiting {
            reply.send(()).ok();
        }
    }

    /// One turn: what waits, at most one tick, and what follows from it.
    fn turn(&mut self, first: Option<Command>, inputs: &mpsc::Receiver<Command>, next_tick: &mut Instant) {
        let (turn, ticked) = self.begin_turn(first, inputs, next_tick);
        self.carry_out(turn, ticked);
    }

    /// A turn up to its sync, and whether it had a tick.
    fn begin_turn(
        &mut self,
        first: Option<Command>,
        inputs: &mpsc::Receiver<Command>,
        next_tick: &mut Instant,
    ) -> (Turn, bool) {
        self.take_in(first, inputs);
        let ticked = Instant::now() >= *next_tick;
        if ticked {
            // One tick, however late: a process that was stopped must not rush through elections.
            let now_ms = clock::now_ms();
            self.core.feed(now_ms, Input::Applied(self.published.applied.load(Ordering::Acquire)));
            self.core.feed(now_ms, Input::Tick);
            *next_tick = Instant::now() + self.tick;
        }
        let mut turn = self.core.finish();
        // log rule 9: a lease that has ended is seen to have ended before any message of the turn leaves.
        self.published.set_lease(turn.lease);
        let (early, late): (Vec<_>, Vec<_>) = std::mem::take(&mut turn.sends).into_iter().partition(|s| s.early);
        turn.sends = late;
        self.send(early);
        self.tell_held(&turn.held, &turn.unheld);
        // What is decided and was synced by earlier turns does not wait for this one's sync. A leadership that is lost shows first.
        if turn.role.as_ref().is_some_and(|role| role.leading().is_none()) {
            self.show_role(turn.role.take());
        }
        self.answer_barriers(std::mem::take(&mut turn.early_barriers));
        self.publish();
        (turn, ticked)
    }

    /// Takes in what waits, up to the turn's bound (log rule 5).
    fn take_in(&mut self, first: Option<Command>, inputs: &mpsc::Receiver<Command>) {
        let mut bytes = 0;
        let mut next = first;
        while let Some(command) = next {
            // log rule 9: the clock is read after the command has come, each time: what is asked for while this
            // process is frozen must not be answered by the clock of before.
            bytes += self.take(clock::now_ms(), command);
            if bytes >= self.turn_bytes || !self.shutdown.is_empty() {
                return;
            }
            next = inputs.try_recv().ok();
        }
    }

    /// Feeds one command; says how many bytes of input it was.
    fn take(&mut self, now_ms: u64, command: Command) -> usize {
        let core = &mut self.core;
        match command {
            Command::Propose { kind, term, payload, charged_bytes, held } => {
                self.published.release_queued(charged_bytes);
                let tracked = held.map(|held| {
                    self.next_tracked += 1;
                    self.held.insert(self.next_tracked, held);
                    self.next_tracked
                });
                core.feed(now_ms, Input::Propose { kind, term, payload, tracked });
                return charged_bytes;
            }
            Command::Barrier(reply) => {
                let id = self.next_barrier;
                self.next_barrier += 1;
                self.barriers.insert(id, reply);
                core.feed(now_ms, Input::Barrier { id });
            }
            Command::Read { from, max_bytes, reply } => self.reads.push(OldRead { from, max_bytes, reply }),
            Command::NewLeadership { current } => core.feed(now_ms, Input::NewLeadership { current }),
            Command::AskFresh => core.feed(now_ms, Input::AskFresh),
            Command::Compact(index) => core.feed(now_ms, Input::Compact(index)),
            Command::RetainFrom(index) => core.feed(now_ms, Input::RetainFrom(index)),
            Command::Installed { index, term } => {
                core.feed(now_ms, Input::Installed { index, term });
            }
            Command::TryLead => core.feed(now_ms, Input::TryLead),
            Command::YieldLeadership => core.feed(now_ms, Input::YieldLeadership),
            Command::Seen { replica, store_id } => core.feed(now_ms, Input::Seen { replica, store_id }),
            Command::NewerEpoch(newer) => core.feed(now_ms, Input::NewerEpoch(newer)),
            Command::StandAside(stands) => core.feed(now_ms, Input::StandAside(stands)),
            Command::Session(event) => return self.take_session(now_ms, event),
            Command::Shutdown(reply) => self.shutdown.push(reply),
        }
        0
    }

    fn take_session(&mut self, now_ms: u64, event: SessionEvent) -> usize {
        match event {
            SessionEvent::Up { peer, session, epoch, store_id, sender } => {
                self.meters.sessions.increment(1);
                if epoch == self.core.membership().epoch {
                    self.sessions.insert(peer, (session, sender));
                }
                let up = Input::SessionUp { peer, session, epoch, store_id };
                self.core.feed(now_ms, up);
                0
            }
            SessionEvent::Messages { peer, session, messages, frame_bytes, _room } => {
                for wire in messages {
                    let message = Input::Message { peer, session, wire };
                    self.core.feed(now_ms, message);
                }
                frame_bytes
            }
            SessionEvent::Down { peer, session } => {
                if self.sessions.get(&peer).is_some_and(|(s, _)| *s == session) {
                    self.sessions.remove(&peer);
                }
                self.core.feed(now_ms, Input::SessionDown { peer, session });
                0
            }
        }
    }

    /// The rest of a turn: its sync, and what may be told only then.
    fn carry_out(&mut self, turn: Turn, ticked: bool) {
        let begun = Instant::now();
        match self.core.sync() {
            Ok(true) => self.meters.syncs.record(begun.elapsed()),
            Ok(false) => {}
            Err(error) => die(&error),
        }
        self.published.majority_log_bytes.store(self.core.majority_log_bytes(), Ordering::Release);
        self.published.clock_correction_ms.store(self.core.clock_correction_ms(), Ordering::Release);
        self.send(turn.sends);
        for (peer, session) in turn.refused.into_iter().chain(turn.overflowed) {
            if let Some((current, sender)) = self.sessions.get(&peer)
                && *current == session
            {
                sender.close();
            }
        }
        self.show_role(turn.role);
        self.answer_barriers(turn.barriers);
        self.publish();
        if let Some(membership) = turn.membership {
            self.published.membership.send_replace(membership);
        }
        if turn.entered {
            self.sessions.clear();
            self.transport = self.connecting.connect(&self.config, self.core.membership());
        }
        // After what is decided: who is told of a position finds it decided.
        if let Some(fresh) = turn.fresh.into_iter().max_by_key(|fresh| fresh.asked_ms) {
            self.published.set_fresh(fresh);
        }
        self.answer_reads();
        self.meters.turns.increment(1);
        self.meters.proposals.increment(turn.proposed);
        self.meters.dropped.increment(turn.dropped);
        self.meters.leaderships.increment(turn.leaderships);
        self.meters.probes.increment(turn.probes);
        if ticked {
            self.published.set_status(self.core.status());
            let Written { payload_bytes, disk_bytes } = self.core.written();
            self.meters.payload_bytes.absolute(payload_bytes);
            self.meters.disk_bytes.absolute(disk_bytes);
            self.meters.clock_off_ms.set(-self.core.clock_correction_ms() as f64);
        }
    }

    fn show_role(&self, role: Option<Role>) {
        if let Some(role) = role {
            tracing::info!(?role, "the role has changed");
            self.published.set_role(role);
        }
    }

    fn answer_barriers(&mut self, answers: Vec<(u64, Result<LogIndex, BarrierError>)>) {
        for (id, answer) in answers {
            if let Some(reply) = self.barriers.remove(&id) {
                self.published.waiting_barriers.fetch_sub(1, Ordering::AcqRel);
                // Whoever gave up waiting does not want the answer.
                reply.send(answer).ok();
            }
        }
    }

    /// R28: before the sync, which `memory` does not wait for.
    fn tell_held(&mut self, held: &[u64], unheld: &[u64]) {
        for id in held {
            if let Some(waiting) = self.held.remove(id) {
                // Whoever gave up waiting does not want to know.
                waiting.send(()).ok();
            }
        }
        for id in unheld {
            self.held.remove(id);
        }
    }

    /// One batch, hence one frame, per peer.
    fn send(&mut self, sends: Vec<crate::core::Send>) {
        let mut batches: Vec<(u64, u64, Vec<Wire>)> = Vec::new();
        for send in sends {
            match batches.iter_mut().find(|(peer, ..)| *peer == send.peer) {
                Some((.., batch)) => batch.push(send.wire),
                None => batches.push((send.peer, send.session, vec![send.wire])),
            }
        }
        for (peer, session, batch) in batches {
            if let Some((current, sender)) = self.sessions.get(&peer)
                && *current == session
            {
                sender.send(batch);
            }
        }
    }

    fn publish(&mut self) {
        let before = self.published.decided();
        let (entries, decided) = self.core.newly_decided();
        if decided > before {
            self.meters.decided.increment(decided.0 - before.0);
            self.published.publish(entries, decided);
        }
    }

    fn answer_reads(&mut self) {
        for read in self.reads.drain(..) {
            match self.core.old_entries(read.from, read.max_bytes) {
                Ok(entries) => drop(read.reply.send(entries)),
                Err(error) => die(&error),
            }
        }
    }

    /// An orderly end: everything durable, everybody told. Gives back who waits for it, and the transport to close first.
    fn end(mut self) -> (Vec<oneshot::Sender<()>>, Transport) {
        if let Err(error) = self.core.sync_all() {
            die(&error);
        }
        for (_, reply) in std::mem::take(&mut self.barriers) {
            reply.send(Err(BarrierError::Stopped)).ok();
        }
        self.published.stop();
        let waiting = std::mem::take(&mut self.shutdown);
        self.sessions.clear();
        let EventLoop { core, transport, connecting, .. } = self;
        drop(core);
        drop(connecting);
        (waiting, transport)
    }
}
