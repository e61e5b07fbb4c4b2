//! The owner's side of a running log: a cheap, cloneable handle.
//!
//! A [`LogHandle`] checks, queues and waits. Decisions are made by the core.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use crate::command::{Command, Commands};
use crate::config::Limits;
use crate::error::{BarrierError, ChangeError, LogStopped, ProposeError};
use crate::ids::{LogIndex, ReplicaId, Term};
use crate::item::{ITEM_OVERHEAD_BYTES, Kind};
use crate::membership::{self, Members, Membership};
use crate::published::Published;
use crate::role::Role;
use crate::status::{LogStatus, StalenessBound};
use crate::subscription::Subscription;

/// Memory of a queued proposal beyond its payload, in bytes.
const QUEUED_OVERHEAD_BYTES: usize = ITEM_OVERHEAD_BYTES + std::mem::size_of::<Command>();

/// A running log of one group on this replica. The crate's page describes how its parts are used
/// together.
#[derive(Clone, Debug)]
pub struct LogHandle {
    pub(crate) me: ReplicaId,
    /// The identity of this replica's disk.
    pub(crate) disk: u64,
    pub(crate) commands: Commands,
    pub(crate) published: Arc<Published>,
    pub(crate) limits: Limits,
    pub(crate) lease_reads: metrics::Counter,
}

impl LogHandle {
    /// The number of this replica.
    pub fn me(&self) -> ReplicaId {
        self.me
    }

    /// The role of this replica, as it changes. A lost leadership shows at once; [`Role::Leader`]
    /// shows when the leadership's `LeaderStart` is in this replica's log, not yet decided.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.published.role.subscribe()
    }

    /// Queues one entry for the leadership `term`, without blocking and in the order of the calls.
    ///
    /// `Ok` means queued, no more: the outcome is known when the entry, or a `LeaderStart` of a
    /// later term, is delivered. A rejected entry never takes effect.
    ///
    /// # Errors
    /// The entry is not queued. [`ProposeError`] says whether to redirect, to retry, to refuse or
    /// to stop.
    pub fn propose(&self, term: Term, payload: Bytes) -> Result<(), ProposeError> {
        self.queue(Kind::Data, term, payload, None, true)
    }

    /// As [`LogHandle::propose`], with a memory acknowledgement: the receiver is notified when
    /// enough replicas have the entry in memory that no single crash can lose it, which may be long
    /// before it is decided (R28). The entry is lost only if two replicas crash before a majority
    /// has it on disk. An error from the receiver means that there will be no acknowledgement: the
    /// leadership has ended.
    ///
    /// # Errors
    /// As [`LogHandle::propose`].
    pub fn propose_tracked(&self, term: Term, payload: Bytes) -> Result<oneshot::Receiver<()>, ProposeError> {
        let (acknowledged, notified) = oneshot::channel();
        self.queue(Kind::Data, term, payload, Some(acknowledged), true)?;
        Ok(notified)
    }

    /// As [`LogHandle::propose`], for an entry that continues an earlier one. Until it is in the
    /// log, the application does not allow compaction past the earlier entry; waiting for space
    /// under the log's cap would therefore never end. The caller bounds the excess over the cap.
    ///
    /// # Errors
    /// As [`LogHandle::propose`].
    pub fn propose_further(&self, term: Term, payload: Bytes) -> Result<(), ProposeError> {
        self.queue(Kind::Data, term, payload, None, false)
    }

    /// As [`LogHandle::propose_further`] and [`LogHandle::propose_tracked`].
    ///
    /// # Errors
    /// As [`LogHandle::propose`].
    pub fn propose_further_tracked(&self, term: Term, payload: Bytes) -> Result<oneshot::Receiver<()>, ProposeError> {
        let (acknowledged, notified) = oneshot::channel();
        self.queue(Kind::Data, term, payload, Some(acknowledged), false)?;
        Ok(notified)
    }

    /// Queues a change of the group's membership: a barrier that ends this configuration, and with
    /// it the leadership. The next configuration begins behind it, with `next` as members;
    /// [`LogHandle::membership`] shows it. New members, and members that have lost their disk, vote
    /// once they have fetched the state. Removed members may be stopped when the new configuration
    /// has a leader.
    ///
    /// # Errors
    /// The change is not queued: [`ChangeError::Impossible`] if there can be no such group,
    /// [`ChangeError::Refused`] if too few of the new members have the state yet, or one is
    /// unknown; else as [`LogHandle::propose`].
    pub fn change_members(&self, term: Term, next: &Members) -> Result<(), ChangeError> {
        self.change_members_lacking(term, next, &BTreeSet::new())
    }

    /// As [`LogHandle::change_members`]. `lacking` are members whose application does not have all
    /// of its state yet: a majority of `next` must have it without them.
    ///
    /// # Errors
    /// As for [`LogHandle::change_members`].
    pub fn change_members_lacking(
        &self,
        term: Term,
        next: &Members,
        lacking: &BTreeSet<ReplicaId>,
    ) -> Result<(), ChangeError> {
        let now = self.published.membership.borrow().clone();
        let next = membership::complete(&now, (self.me, self.disk), next, lacking, &self.status())?;
        Ok(self.queue(Kind::ConfigChange, term, Membership::barrier(&next), None, false)?)
    }

    /// The newest membership that this replica knows. It may be one that this replica cannot enter
    /// yet (then it is [`Role::Behind`]), or that does not include it.
    pub fn membership(&self) -> watch::Receiver<Membership> {
        self.published.membership.subscribe()
    }

    fn queue(
        &self,
        kind: Kind,
        term: Term,
        payload: Bytes,
        acknowledged: Option<oneshot::Sender<()>>,
        waits_for_space: bool,
    ) -> Result<(), ProposeError> {
        let limit_bytes = self.limits.max_entry_bytes;
        if payload.len() > limit_bytes {
            return Err(ProposeError::TooLarge { bytes: payload.len(), limit_bytes });
        }
        self.check_leading(term)?;
        let charged_bytes = payload.len() + QUEUED_OVERHEAD_BYTES;
        let queued = &self.published.queued_bytes;
        // The cap holds even if compaction is blocked: proposals wait for it, here and at a
        // majority. A membership change does not wait, since it may unblock compaction. The cap is
        // one of files: beside the records there are the rest of the current segment, the next one,
        // footers and headers.
        let segment_bytes = self.limits.largest_segment_bytes();
        let space_bytes = self.limits.log_cap_bytes.saturating_sub(2 * segment_bytes + segment_bytes / 4);
        let log_bytes = self.published.majority_log_bytes.load(Ordering::Acquire);
        if waits_for_space && log_bytes + queued.load(Ordering::Acquire) as u64 > space_bytes {
            return Err(ProposeError::Overloaded);
        }
        if queued.fetch_add(charged_bytes, Ordering::AcqRel) + charged_bytes > self.limits.queue_bytes {
            queued.fetch_sub(charged_bytes, Ordering::AcqRel);
            return Err(ProposeError::Overloaded);
        }
        let command = Command::Propose { kind, term, payload, charged_bytes, acknowledged };
        self.commands.send(command).map_err(|_| ProposeError::Stopped)
    }

    fn check_leading(&self, term: Term) -> Result<(), ProposeError> {
        if self.published.stopped() {
            return Err(ProposeError::Stopped);
        }
        let role = self.published.role.borrow();
        match &*role {
            Role::Leader { term: leading, .. } if *leading == term => Ok(()),
            Role::Leader { term: leading, .. } => Err(ProposeError::NotLeader { leader: Some(leading.replica()) }),
            Role::Follower { leader } | Role::Behind { leader, .. } => Err(ProposeError::NotLeader { leader: *leader }),
        }
    }

    /// Begins a further leadership of this replica if it still leads in `current` (R1): a new
    /// `LeaderStart` is appended, [`LogHandle::role`] shows the new term, and entries proposed in
    /// `current` that come later in the log are rejected.
    ///
    /// # Errors
    /// As [`LogHandle::propose`]; `Ok` means queued.
    pub fn new_leadership(&self, current: Term) -> Result<(), ProposeError> {
        self.check_leading(current)?;
        self.commands.send(Command::NewLeadership { current }).map_err(|_| ProposeError::Stopped)
    }

    /// Returns a decided position at or after every write acknowledged before the call. A read of a
    /// state that has applied that position is linearizable (log rule 9).
    ///
    /// While this replica's lease holds ([`crate::Timing::lease_ms`]) this takes no message and
    /// wakes no task. Otherwise a majority confirms that this replica still leads, by a probe that
    /// starts after the call and serves all waiting calls.
    ///
    /// # Errors
    /// [`BarrierError`] says whether to redirect, to retry or to stop.
    pub async fn read_barrier(&self) -> Result<LogIndex, BarrierError> {
        if let Some(index) = self.published.leased_position() {
            self.lease_reads.increment(1);
            return Ok(index);
        }
        let waiting = &self.published.waiting_barriers;
        if waiting.fetch_add(1, Ordering::AcqRel) >= self.limits.barrier_waiters {
            waiting.fetch_sub(1, Ordering::AcqRel);
            return Err(BarrierError::TimedOut);
        }
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Barrier(reply));
        if sent.is_err() {
            return Err(BarrierError::Stopped);
        }
        answer.await.unwrap_or(Err(BarrierError::Stopped))
    }

    /// Members that came back with another disk than they had in this configuration, with their new
    /// disks. They are refused; a change to the same members readmits them
    /// ([`LogHandle::change_members`]). A connected member has its disk; then another process uses
    /// its number, and the member is left out.
    pub fn lost_disks(&self) -> BTreeMap<ReplicaId, Option<u64>> {
        let peers = self.status().peers.into_iter();
        peers.filter(|(_, peer)| peer.other_disk && !peer.connected).map(|(id, peer)| (id, peer.disk)).collect()
    }

    /// Completes when this replica stops being a member, with the number of the configuration
    /// without it. Never completes for a replica that waits to join.
    pub async fn removed(&self) -> u32 {
        let mut membership = self.membership();
        let removed = async {
            membership.wait_for(|membership| membership.has(self.me)).await?;
            let without = membership.wait_for(|membership| !membership.has(self.me)).await?;
            Ok::<u32, watch::error::RecvError>(without.configuration)
        };
        match removed.await {
            Ok(configuration) => configuration,
            // The log has stopped, which shows elsewhere.
            Err(_) => std::future::pending().await,
        }
    }

    /// Asks the leader for a staleness bound. The answer shows in [`LogHandle::staleness_bound`],
    /// if one comes: it takes a reachable leader that can prove that it leads.
    pub fn ask_staleness_bound(&self) {
        self.notify(Command::AskStalenessBound);
    }

    /// The latest staleness bound of this replica, as it changes (R17).
    pub fn staleness_bound(&self) -> watch::Receiver<Option<StalenessBound>> {
        self.published.staleness_bound.subscribe()
    }

    /// The clock of [`StalenessBound::asked_ms`], in milliseconds. It never goes back, and counts
    /// suspended time. It is assumed to run within
    /// [`CLOCK_DRIFT_PERCENT`](crate::CLOCK_DRIFT_PERCENT) of real time.
    pub fn now_ms(&self) -> u64 {
        crate::clock::now_ms()
    }

    /// Milliseconds since the Unix epoch, for stamps in the log (R14): this process's clock
    /// ([`unix_ms`](crate::unix_ms)), or the time that a majority of the members' clocks have
    /// reached if the two are more than two seconds apart. May go back when that becomes known.
    pub fn unix_ms(&self) -> u64 {
        let unix_ms =
            crate::unix_ms().saturating_add_signed(self.published.clock_correction_ms.load(Ordering::Acquire));
        if let Some(simulation) = evenkeel_host::simulation() {
            simulation.report_group_time(unix_ms);
        }
        unix_ms
    }

    /// Delivers decided entries from `from` on, in order. May be called any number of times, also
    /// for positions delivered before.
    pub fn subscribe(&self, from: LogIndex) -> Subscription {
        Subscription::new(from, self.published.clone(), self.commands.clone(), self.limits.read_bytes)
    }

    /// Allows the log to drop entries up to `durably_applied` (R16). It keeps a retention
    /// ([`Limits::retention_bytes`]) and entries that live peers have not decided (log rule 10).
    pub fn compact(&self, durably_applied: LogIndex) {
        self.notify(Command::Compact(durably_applied));
    }

    /// The application has applied everything up to `index`. Replicas report this to each other
    /// ([`PeerStatus::lag`](crate::PeerStatus)), and a planned move of the leadership goes to the
    /// replica that has applied most. Costs one atomic operation.
    pub fn applied(&self, index: LogIndex) {
        self.published.applied.fetch_max(index.0, Ordering::AcqRel);
    }

    /// A retention of the application: entries at and after `index` are kept until another call.
    /// `None` ends the retention.
    pub fn retain_from(&self, index: Option<LogIndex>) {
        self.notify(Command::RetainFrom(index));
    }

    /// After a state transfer: the application's state, durable, is the one at `index`, where
    /// `term` was in force.
    ///
    /// [`LogHandle::role`] leaves [`Role::Behind`] when `index` covers what was trimmed. Call it
    /// again after a restart that comes up as `Behind` although the state is there (the process
    /// died in between).
    ///
    /// # Errors
    /// [`LogStopped`] if the log has shut down.
    pub fn installed(&self, index: LogIndex, term: Term) -> Result<(), LogStopped> {
        if self.published.stopped() {
            return Err(LogStopped);
        }
        self.commands.send(Command::Installed { index, term }).map_err(|_| LogStopped)
    }

    /// Tries to become the leader (log rule 15). The outcome shows in [`LogHandle::role`], if at
    /// all.
    pub fn try_lead(&self) {
        self.notify(Command::TryLead);
    }

    /// Asks a live, up-to-date follower to take over the leadership. Best effort: this replica
    /// leads until the other one has won.
    pub fn yield_leadership(&self) {
        self.notify(Command::YieldLeadership);
    }

    /// Sets whether this replica is ineligible to lead because its application cannot serve. With
    /// `true` its leadership ends, another replica is asked to lead, and this one begins no
    /// leadership until a call with `false`. It votes and accepts entries as before. Calls take
    /// effect in their order.
    pub fn set_ineligible(&self, ineligible: bool) {
        self.notify(Command::SetIneligible(ineligible));
    }

    /// Positions, sizes and the state of the peers; at most one tick old.
    pub fn status(&self) -> LogStatus {
        self.published.status()
    }

    /// Ends the log. When this returns, everything accepted is durable and every waiting call has
    /// been answered. A second call has no effect.
    pub async fn shutdown(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Shutdown(reply)).is_ok() {
            // An error means that the event loop has already ended.
            done.await.ok();
        }
    }

    fn notify(&self, command: Command) {
        // A stopped log needs no hints; callers notice the stop elsewhere.
        self.commands.send(command).ok();
    }
}
