//! The event loop: the one task that changes the state and the leadership of a replica.
//!
//! A turn takes the input that has arrived (decided entries, reports, answers, proposals), lets the
//! deciding modules decide, and carries out their decisions. It never waits for a shard or a disk:
//! requests and snapshots run in tasks of their own and end with a message to the loop.

use super::apply::apply_entries;
use super::disk_repair::DiskRepair;
use super::handles::ReplicaHandles;
use super::leadership::Leadership;
use super::message::LoopMessage;
use super::planning_round::run_round;
use super::proposals::Proposer;
use super::run_error::RunError;
use super::snapshots::Snapshots;
use super::state_transfer::StateTransfer;
use crate::metrics;
use crate::snapshot::Snapshot;
use crate::state::Command;
use evenkeel_protocol::report::ShardReport;
use evenkeel_protocol::shard::ControlReply;
use evenkeel_replicated_log::{Delivery, Entry, Subscription};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// The maximum size of the entries applied in one turn, in bytes.
const TURN_BYTES: usize = 1 << 20;
/// The maximum number of messages taken in one turn.
const TURN_MESSAGES: usize = 256;
/// The maximum time between two turns of a leader, in milliseconds: changes that depend on time
/// alone are noticed after at most this.
const TICK_MS: u64 = 100;

/// The event loop of a replica.
pub(super) struct EventLoop {
    handles: Arc<ReplicaHandles>,
    inbox: mpsc::Receiver<LoopMessage>,
    entries: Subscription,
    proposer: Proposer,
    leadership: Leadership,
    snapshots: Snapshots,
    transfer: StateTransfer,
    repair: DiskRepair,
    /// The instant of the leader's last round.
    last_round: Instant,
}

impl EventLoop {
    pub(super) fn new(handles: Arc<ReplicaHandles>, inbox: mpsc::Receiver<LoopMessage>) -> EventLoop {
        let index = handles.applied().index;
        EventLoop {
            entries: handles.log.subscribe(index.next()),
            proposer: Proposer::new(handles.clone()),
            leadership: Leadership::new(handles.clone()),
            snapshots: Snapshots::new(handles.clone(), index),
            transfer: StateTransfer::new(handles.clone()),
            repair: DiskRepair::default(),
            last_round: evenkeel_host::now(),
            handles,
            inbox,
        }
    }

    /// Runs until the replica shuts down.
    ///
    /// # Errors
    /// [`RunError::Stopped`].
    pub(super) async fn run(mut self) -> Result<(), RunError> {
        let log_stopped = || RunError::Stopped("the replicated log has stopped".into());
        loop {
            let pause = Duration::from_millis(self.pause_ms());
            // Whether this turn concerned only keys of the coordination store, which no round
            // reads.
            let mut coordination_only = false;
            tokio::select! {
                delivery = self.entries.next(TURN_BYTES), if !self.transfer.is_under_way() => match delivery {
                    Ok(Delivery::Entries(entries)) => coordination_only = self.apply(entries)?,
                    Ok(Delivery::NeedState { trimmed, leader }) => {
                        self.transfer.begin(trimmed, leader.map(|id| id.0));
                    }
                    Err(_) => return Err(log_stopped()),
                },
                changed = self.leadership.role_changed() => changed.map_err(|_| log_stopped())?,
                message = self.inbox.recv() => {
                    let Some(message) = message else { return Ok(()) };
                    coordination_only = self.take_messages(message)?;
                }
                () = evenkeel_host::sleep(pause) => {}
            }
            if let Some((trimmed, leader)) = self.leadership.follow_role(&mut self.proposer)
                && !self.transfer.is_under_way()
            {
                self.transfer.begin(trimmed, leader);
            }
            self.proposer.propose_deferred();
            // A round after each batch of the coordination store's writes would cost more than the
            // writes.
            if !coordination_only || evenkeel_host::elapsed(self.last_round) >= pause {
                self.last_round = evenkeel_host::now();
                run_round(&self.handles, &mut self.proposer, &mut self.repair);
            }
        }
    }

    /// The time until the next turn without input, in milliseconds.
    fn pause_ms(&self) -> u64 {
        let leading = self.handles.leading();
        let Some(leading) = leading.as_ref() else { return 10 * TICK_MS };
        let wake = leading.controller.wake_ms().map(|at| at.saturating_sub(self.proposer.time_ms()).max(1));
        wake.unwrap_or(TICK_MS).min(TICK_MS)
    }

    /// Takes this message and those that wait behind it. The result says whether they concerned
    /// only keys of the coordination store.
    fn take_messages(&mut self, first: LoopMessage) -> Result<bool, RunError> {
        let mut coordination_only = first.is_coordination();
        self.take(first)?;
        for _ in 1..TURN_MESSAGES {
            let Ok(message) = self.inbox.try_recv() else { break };
            coordination_only &= message.is_coordination();
            self.take(message)?;
        }
        Ok(coordination_only)
    }

    fn take(&mut self, message: LoopMessage) -> Result<(), RunError> {
        match message {
            LoopMessage::Report(report, reply) => {
                let accepted = self.take_report(*report);
                metrics::report(accepted);
                // An error means that the reporter has given up.
                reply.send(accepted).ok();
            }
            LoopMessage::Propose(command, waiter) => self.proposer.submit(command, waiter),
            LoopMessage::Answered(name, answer) => {
                let now_ms = self.proposer.time_ms();
                if let Some(leading) = self.handles.leading().as_mut() {
                    let applied = self.handles.applied();
                    leading.controller.answered(name, answer, &applied.state, now_ms);
                }
            }
            LoopMessage::SplitKeys(range, epoch, answer) => {
                let now_ms = self.proposer.time_ms();
                if let Some(leading) = self.handles.leading().as_mut() {
                    leading.balancer.sizes.answered(range, epoch, answer, now_ms);
                }
            }
            LoopMessage::SchemaFound(Ok(ControlReply::Schema(deltas))) if !deltas.is_empty() => {
                // The state takes in only what it lacks. If this is not proposed, the shard is
                // asked again.
                self.proposer.propose(Command::TakeSchema(deltas), None).ok();
            }
            LoopMessage::SchemaFound(answer) => tracing::debug!(?answer, "no schema changes were found"),
            LoopMessage::SnapshotWritten(result) => self.snapshots.written(result)?,
            LoopMessage::Confirmed(term, confirmed) => self.leadership.confirmation(term, confirmed),
            LoopMessage::StateFetched(result) => self.install(result),
        }
        Ok(())
    }

    /// Passes a report to the load model. The result says whether this replica leads.
    fn take_report(&mut self, report: ShardReport) -> bool {
        let now_ms = self.proposer.time_ms();
        let mut leading = self.handles.leading();
        let Some(leading) = leading.as_mut() else { return false };
        let (shard, leader) = (report.shard, report.leader);
        let observed = {
            let applied = self.handles.applied();
            leading.balancer.load.observe(report, &applied.state, &self.handles.config.balancer, now_ms)
        };
        if observed.taken {
            self.handles.view().leaders.set(shard, leader);
        }
        metrics::fault(shard, &observed);
        true
    }

    /// Applies entries. The result says whether they concerned only keys of the coordination store.
    fn apply(&mut self, entries: Vec<Entry>) -> Result<bool, RunError> {
        let own_term = self.proposer.own_term();
        let applied = apply_entries(&mut self.handles.applied_mut(), entries, own_term)?;
        self.proposer.entries_applied(&applied);
        self.handles.publish();
        if let Some(leading) = self.handles.leading().as_mut() {
            for (nonce, result) in &applied.results {
                leading.applied(*nonce, result.is_ok());
            }
        }
        let (bytes, coordination_only) = (applied.bytes, applied.coordination_only);
        self.proposer.answer(applied);
        self.snapshots.applied(bytes);
        Ok(coordination_only)
    }

    /// Continues from a fetched state, unless this replica is as far already.
    fn install(&mut self, fetched: Result<Box<Snapshot>, String>) {
        if let Some((index, term)) = self.transfer.ended(fetched) {
            self.proposer.state_replaced();
            self.snapshots.restart(index);
            self.handles.log.installed(index, term).ok();
            self.handles.publish();
        }
        let index = self.handles.applied().index;
        self.entries = self.handles.log.subscribe(index.next());
    }
}
