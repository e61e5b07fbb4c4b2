//! The event loop: a thread that owns the core and carries out its output.
//!
//! It blocks until an input or the next tick, takes in every waiting input (up to a bound), lets
//! the core finish the turn, and carries the turn out in the order that [`crate::core`] prescribes:
//! output that does not need the disk, one sync, the rest. It makes no choice of its own. Inputs
//! that arrive while the disk syncs become the next turn, so that one sync serves all of them (log
//! rule 1).
//!
//! When another configuration begins, all sessions end and the transport is started again under its
//! number (log rule 4). The handle, the subscriptions and the positions continue.
//!
//! In a simulation the same loop is a task instead of a thread, on the simulation's disk and
//! connections. If the disk fails the process ends at once ([`crate::fatal`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use crate::clock;
use crate::command::Command;
use crate::config::GroupConfig;
use crate::core::{AfterSync, BarrierAnswer, BeforeSync, Core, Input, Ready, Send};
use crate::error::BarrierError;
use crate::fatal;
use crate::ids::LogIndex;
use crate::log_metrics::LogMetrics;
use crate::old_entries::OldEntries;
use crate::published::Published;
use crate::role::Role;
use crate::transport::{SessionEvent, SessionSender, Transport, TransportFactory};
use crate::wal::{Disk, Written};
use crate::wire::Wire;

type BarrierReply = oneshot::Sender<Result<LogIndex, BarrierError>>;

/// A subscriber's request for entries that are not in the ring.
struct OldRead {
    from: LogIndex,
    max_bytes: usize,
    reply: oneshot::Sender<OldEntries>,
}

/// The event loop of one group. It owns the core and the sessions.
pub(crate) struct EventLoop<D: Disk> {
    config: GroupConfig,
    transports: TransportFactory,
    core: Core<D>,
    published: Arc<Published>,
    metrics: LogMetrics,
    tick: Duration,
    turn_bytes: usize,
    sessions: BTreeMap<u64, (u64, SessionSender)>,
    barriers: BTreeMap<u64, BarrierReply>,
    next_barrier: u64,
    /// Callers that wait for a memory acknowledgement (R28).
    tracked: BTreeMap<u64, oneshot::Sender<()>>,
    next_tracked: u64,
    reads: Vec<OldRead>,
    shutdown: Vec<oneshot::Sender<()>>,
    transport: Transport,
}

impl<D: Disk> EventLoop<D> {
    pub(crate) fn new(
        config: GroupConfig,
        core: Core<D>,
        published: Arc<Published>,
        transports: TransportFactory,
        transport: Transport,
    ) -> EventLoop<D> {
        EventLoop {
            core,
            published,
            metrics: LogMetrics::new(config.group),
            tick: Duration::from_millis(config.timing.tick_ms),
            turn_bytes: config.limits.turn_bytes,
            sessions: BTreeMap::new(),
            barriers: BTreeMap::new(),
            next_barrier: 0,
            tracked: BTreeMap::new(),
            next_tracked: 0,
            reads: Vec::new(),
            shutdown: Vec::new(),
            transport,
            config,
            transports,
        }
    }

    /// Runs on a thread until the log is shut down.
    pub(crate) fn run(mut self, inputs: &mpsc::Receiver<Command>) {
        self.published.set_role(self.core.role().clone());
        self.published.set_status(self.core.status());
        let mut next_tick = evenkeel_host::now() + self.tick;
        while self.shutdown.is_empty() {
            let wait = next_tick.saturating_duration_since(evenkeel_host::now());
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
    pub(crate) async fn run_as_task(mut self, inputs: &mpsc::Receiver<Command>, wake: &Notify) {
        self.published.set_role(self.core.role().clone());
        self.published.set_status(self.core.status());
        let mut next_tick = evenkeel_host::now() + self.tick;
        while self.shutdown.is_empty() {
            let first = match inputs.try_recv() {
                Ok(command) => Some(command),
                Err(TryRecvError::Empty) => {
                    evenkeel_host::timeout_at(next_tick.into(), wake.notified()).await.ok();
                    inputs.try_recv().ok()
                }
                Err(TryRecvError::Disconnected) => break,
            };
            let (ready, ticked) = self.begin_turn(first, inputs, &mut next_tick);
            if let Some(slow_ms) =
                evenkeel_host::simulation().map(|simulation| simulation.disk_ms()).filter(|ms| *ms > 0)
            {
                // A slow disk delays this loop at its sync, and nothing else of the process.
                evenkeel_host::sleep(Duration::from_millis(slow_ms)).await;
            }
            self.end_turn(ready, ticked);
        }
        let (waiting, transport) = self.end();
        drop(transport);
        for reply in waiting {
            reply.send(()).ok();
        }
    }

    /// One turn: the waiting inputs and at most one tick.
    fn turn(&mut self, first: Option<Command>, inputs: &mpsc::Receiver<Command>, next_tick: &mut Instant) {
        let (ready, ticked) = self.begin_turn(first, inputs, next_tick);
        self.end_turn(ready, ticked);
    }

    /// A turn up to its sync. Returns the rest, and whether the turn had a tick.
    fn begin_turn(
        &mut self,
        first: Option<Command>,
        inputs: &mpsc::Receiver<Command>,
        next_tick: &mut Instant,
    ) -> (Ready, bool) {
        self.take_in(first, inputs);
        let ticked = evenkeel_host::now() >= *next_tick;
        if ticked {
            // One tick, however late: a process that was stopped must not rush through elections.
            let now_ms = clock::now_ms();
            self.core.feed(now_ms, Input::Applied(self.published.applied.load(Ordering::Acquire)));
            self.core.feed(now_ms, Input::Tick);
            *next_tick = evenkeel_host::now() + self.tick;
        }
        let mut ready = self.core.finish();
        self.carry_out_before_sync(std::mem::take(&mut ready.before_sync));
        (ready, ticked)
    }

    /// The part of a turn that does not wait for its sync.
    fn carry_out_before_sync(&mut self, ready: BeforeSync) {
        // log rule 9: the end of a lease is visible before any message of the turn is sent.
        self.published.set_lease(ready.lease);
        self.send(ready.sends);
        self.acknowledge(&ready.acknowledged, &ready.unacknowledged);
        // Entries decided and synced by earlier turns do not wait for this sync. A lost leadership
        // shows first.
        self.show_role(ready.role);
        self.answer_barriers(ready.barriers);
        self.publish();
    }

    /// Takes in the waiting inputs, up to the turn's bound (log rule 5).
    fn take_in(&mut self, first: Option<Command>, inputs: &mpsc::Receiver<Command>) {
        let mut bytes = 0;
        let mut next = first;
        while let Some(command) = next {
            // log rule 9: the clock is read after each command has arrived. A question that arrives
            // while this process is frozen must not be answered by an earlier clock value.
            bytes += self.take(clock::now_ms(), command);
            if bytes >= self.turn_bytes || !self.shutdown.is_empty() {
                return;
            }
            next = inputs.try_recv().ok();
        }
    }

    /// Feeds one command. Returns its size in bytes.
    fn take(&mut self, now_ms: u64, command: Command) -> usize {
        let core = &mut self.core;
        match command {
            Command::Propose { kind, term, payload, charged_bytes, acknowledged } => {
                self.published.release_queued(charged_bytes);
                let tracked = acknowledged.map(|acknowledged| {
                    self.next_tracked += 1;
                    self.tracked.insert(self.next_tracked, acknowledged);
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
            Command::AskStalenessBound => core.feed(now_ms, Input::AskStalenessBound),
            Command::Compact(index) => core.feed(now_ms, Input::Compact(index)),
            Command::RetainFrom(index) => core.feed(now_ms, Input::RetainFrom(index)),
            Command::Installed { index, term } => {
                core.feed(now_ms, Input::Installed { index, term });
            }
            Command::TryLead => core.feed(now_ms, Input::TryLead),
            Command::YieldLeadership => core.feed(now_ms, Input::YieldLeadership),
            Command::Seen { replica, store_id } => core.feed(now_ms, Input::Seen { replica, store_id }),
            Command::NewerConfiguration(newer) => core.feed(now_ms, Input::NewerConfiguration(newer)),
            Command::SetIneligible(ineligible) => core.feed(now_ms, Input::SetIneligible(ineligible)),
            Command::Session(event) => return self.take_session(now_ms, event),
            Command::Shutdown(reply) => self.shutdown.push(reply),
        }
        0
    }

    fn take_session(&mut self, now_ms: u64, event: SessionEvent) -> usize {
        match event {
            SessionEvent::Up { peer, session, configuration, store_id, sender } => {
                self.metrics.sessions.increment(1);
                if configuration == self.core.membership().configuration {
                    self.sessions.insert(peer, (session, sender));
                }
                let up = Input::SessionUp { peer, session, configuration, store_id };
                self.core.feed(now_ms, up);
                0
            }
            SessionEvent::Messages { peer, session, messages, frame_bytes, _reservation } => {
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

    /// The sync of a turn, and the part that waits for it.
    fn end_turn(&mut self, ready: Ready, ticked: bool) {
        let begun = evenkeel_host::now();
        let synced = match self.core.sync() {
            Ok(synced) => synced,
            Err(error) => fatal::abort_on(&error),
        };
        if synced.wrote() {
            self.metrics.syncs.record(evenkeel_host::elapsed(begun));
        }
        self.published.majority_log_bytes.store(self.core.majority_log_bytes(), Ordering::Release);
        self.published.clock_correction_ms.store(self.core.clock_correction_ms(), Ordering::Release);
        self.carry_out_after_sync(ready.synced(synced));
        if ticked {
            self.show_status();
        }
    }

    fn carry_out_after_sync(&mut self, ready: AfterSync) {
        self.send(ready.sends);
        for (peer, session) in ready.refused.into_iter().chain(ready.overflowed) {
            if let Some((current, sender)) = self.sessions.get(&peer)
                && *current == session
            {
                sender.close();
            }
        }
        self.show_role(ready.role);
        self.answer_barriers(ready.barriers);
        self.publish();
        if let Some(membership) = ready.membership {
            self.published.membership.send_replace(membership);
        }
        if ready.entered {
            self.sessions.clear();
            self.transport = self.transports.connect(&self.config, self.core.membership());
        }
        // After the decided entries: a reader of the bound finds its position decided.
        if let Some(bound) = ready.staleness_bounds.into_iter().max_by_key(|bound| bound.asked_ms) {
            self.published.set_staleness_bound(bound);
        }
        self.answer_reads();
        self.metrics.turns.increment(1);
        self.metrics.proposals.increment(ready.counts.proposed);
        self.metrics.dropped.increment(ready.counts.dropped);
        self.metrics.leaderships.increment(ready.counts.leaderships);
        self.metrics.probes.increment(ready.counts.probes);
    }

    fn show_status(&mut self) {
        self.published.set_status(self.core.status());
        let Written { payload_bytes, disk_bytes } = self.core.written();
        self.metrics.payload_bytes.absolute(payload_bytes);
        self.metrics.disk_bytes.absolute(disk_bytes);
        self.metrics.clock_off_ms.set(-self.core.clock_correction_ms() as f64);
    }

    fn show_role(&self, role: Option<Role>) {
        if let Some(role) = role {
            tracing::info!(?role, "the role has changed");
            self.published.set_role(role);
        }
    }

    fn answer_barriers(&mut self, answers: Vec<BarrierAnswer>) {
        for (id, answer) in answers {
            if let Some(reply) = self.barriers.remove(&id) {
                self.published.waiting_barriers.fetch_sub(1, Ordering::AcqRel);
                // A caller that was cancelled needs no answer.
                reply.send(answer).ok();
            }
        }
    }

    /// R28: before the sync, for which durability level `memory` does not wait.
    fn acknowledge(&mut self, acknowledged: &[u64], unacknowledged: &[u64]) {
        for id in acknowledged {
            if let Some(waiting) = self.tracked.remove(id) {
                // A caller that was cancelled needs no answer.
                waiting.send(()).ok();
            }
        }
        for id in unacknowledged {
            self.tracked.remove(id);
        }
    }

    /// One batch, hence one frame, per peer.
    fn send(&mut self, sends: Vec<Send>) {
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
            self.metrics.decided.increment(decided.0 - before.0);
            self.published.publish(entries, decided);
        }
    }

    fn answer_reads(&mut self) {
        for read in self.reads.drain(..) {
            match self.core.old_entries(read.from, read.max_bytes) {
                Ok(entries) => drop(read.reply.send(entries)),
                Err(error) => fatal::abort_on(&error),
            }
        }
    }

    /// An orderly end: everything is durable and every waiting call answered. Returns the callers
    /// that wait for the end, and the transport to close first.
    fn end(mut self) -> (Vec<oneshot::Sender<()>>, Transport) {
        if let Err(error) = self.core.sync_all() {
            fatal::abort_on(&error);
        }
        for (_, reply) in std::mem::take(&mut self.barriers) {
            reply.send(Err(BarrierError::Stopped)).ok();
        }
        self.published.stop();
        let waiting = std::mem::take(&mut self.shutdown);
        self.sessions.clear();
        let EventLoop { core, transport, transports, .. } = self;
        drop(core);
        drop(transports);
        (waiting, transport)
    }
}
