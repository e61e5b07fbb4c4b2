//! The owner's side of a running log: a cheap, cloneable handle. It queues and waits; it decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use crate::command::{Command, Commands};
use crate::item::{ITEM_OVERHEAD_BYTES, Kind};
use crate::membership::{self, ChangeError, Members, Membership};
use crate::published::{Published, Subscription};
use crate::types::{BarrierError, Fresh, Limits, LogIndex, LogStatus, LogStopped, ProposeError, ReplicaId, Role, Term};

/// What a queued proposal costs beyond its payload.
const QUEUED_OVERHEAD_BYTES: usize = ITEM_OVERHEAD_BYTES + std::mem::size_of::<Command>();

/// A running log of one group on this replica. See the crate's page for how its parts are used together.
#[derive(Clone, Debug)]
pub struct LogHandle {
    pub(crate) me: ReplicaId,
    /// The mark of this replica's disk.
    pub(crate) disk: u64,
    pub(crate) commands: Commands,
    pub(crate) published: Arc<Published>,
    pub(crate) limits: Limits,
    pub(crate) lease_reads: metrics::Counter,
}

impl LogHandle {
    /// This replica's id.
    pub fn me(&self) -> ReplicaId {
        self.me
    }

    /// What this replica is, as it changes. A lost leadership shows at once; [`Role::Leader`] shows when the
    /// leadership's `LeaderStart` is in this replica's log, not yet decided.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.published.role.subscribe()
    }

    /// Queues one entry for the leadership `term`, without blocking and in the order of the calls.
    ///
    /// `Ok` means queued, no more: the outcome is known when the entry, or a `LeaderStart` of a later term, comes
    /// out of the log. An entry that comes out void did not take effect and never will.
    ///
    /// # Errors
    /// Nothing is queued then: [`ProposeError`] says whether to redirect, to retry, to refuse or to stop.
    pub fn propose(&self, term: Term, payload: Bytes) -> Result<(), ProposeError> {
        self.queue(Kind::Data, term, payload, None, true)
    }

    /// As [`LogHandle::propose`]; the receiver learns when the entry is in a quorum's memory, so that no single crash can
    /// lose it, which may be long before it is decided (R28). An error from the receiver says that this will not be known: the
    /// leadership has ended. Lost is such an entry only if two replicas crash before a majority has it on disk.
    ///
    /// # Errors
    /// As [`LogHandle::propose`].
    pub fn propose_held(&self, term: Term, payload: Bytes) -> Result<oneshot::Receiver<()>, ProposeError> {
        let (held, told) = oneshot::channel();
        self.queue(Kind::Data, term, payload, Some(held), true)?;
        Ok(told)
    }

    /// As [`LogHandle::propose`], of what continues an earlier entry: until it is in, the application does not let the log forget that one, so
    /// that waiting for room under the log's cap would be waiting for itself. The caller bounds how far it goes over the cap.
    ///
    /// # Errors
    /// As [`LogHandle::propose`].
    pub fn propose_further(&self, term: Term, payload: Bytes) -> Result<(), ProposeError> {
        self.queue(Kind::Data, term, payload, None, false)
    }

    /// As [`LogHandle::propose_further`] and [`LogHandle::propose_held`].
    ///
    /// # Errors
    /// As [`LogHandle::propose`].
    pub fn propose_further_held(&self, term: Term, payload: Bytes) -> Result<oneshot::Receiver<()>, ProposeError> {
        let (held, told) = oneshot::channel();
        self.queue(Kind::Data, term, payload, Some(held), false)?;
        Ok(told)
    }

    /// Queues a change of the group's membership: a barrier that ends this epoch, and with it the leadership. Behind it the next
    /// epoch begins, with `next` as members; [`LogHandle::membership`] shows that. Members that have lost their disk, or come
    /// new, count once they have fetched the state; those that leave may be stopped when the new epoch has a leader.
    ///
    /// # Errors
    /// Nothing is queued then: [`ChangeError::Impossible`] if there can be no such group, [`ChangeError::Refused`] if too few of the
    /// new members would have the state as yet, or one has not been heard of; else as [`LogHandle::propose`].
    pub fn change_members(&self, term: Term, next: &Members) -> Result<(), ChangeError> {
        self.change_members_lacking(term, next, &BTreeSet::new())
    }

    /// As [`LogHandle::change_members`]. `lacking` are members whose application has not all of its state yet: a majority of `next`
    /// must have it without them.
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

    /// The newest membership that this replica knows of. It may be one that it cannot enter yet (then it is
    /// [`Role::Behind`]), or does not belong to.
    pub fn membership(&self) -> watch::Receiver<Membership> {
        self.published.membership.subscribe()
    }

    fn queue(
        &self,
        kind: Kind,
        term: Term,
        payload: Bytes,
        held: Option<oneshot::Sender<()>>,
        waits_for_room: bool,
    ) -> Result<(), ProposeError> {
        let limit_bytes = self.limits.max_entry_bytes;
        if payload.len() > limit_bytes {
            return Err(ProposeError::TooLarge { bytes: payload.len(), limit_bytes });
        }
        self.check_leading(term)?;
        let charged_bytes = payload.len() + QUEUED_OVERHEAD_BYTES;
        let queued = &self.published.queued_bytes;
        // The cap holds even if compaction cannot: what comes in waits for it, here and at a majority. A membership change may be what helps. It is a cap of
        // files: beside the records there are the rest of the current segment and the next one, and footers and records' headers.
        let segment_bytes = self.limits.largest_segment_bytes();
        let room_bytes = self.limits.log_cap_bytes.saturating_sub(2 * segment_bytes + segment_bytes / 4);
        let log_bytes = self.published.majority_log_bytes.load(Ordering::Acquire);
        if waits_for_room && log_bytes + queued.load(Ordering::Acquire) as u64 > room_bytes {
            return Err(ProposeError::Overloaded);
        }
        if queued.fetch_add(charged_bytes, Ordering::AcqRel) + charged_bytes > self.limits.queue_bytes {
            queued.fetch_sub(charged_bytes, Ordering::AcqRel);
            return Err(ProposeError::Overloaded);
        }
        let command = Command::Propose { kind, term, payload, charged_bytes, held };
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

    /// Begins a further leadership of this replica if it still leads in `current` (R1): a new `LeaderStart` is
    /// appended, [`LogHandle::role`] shows the new term, and whatever was proposed in `current` and comes later in
    /// the log is void.
    ///
    /// # Errors
    /// As [`LogHandle::propose`]; `Ok` means queued.
    pub fn new_leadership(&self, current: Term) -> Result<(), ProposeError> {
        self.check_leading(current)?;
        self.commands.send(Command::NewLeadership { current }).map_err(|_| ProposeError::Stopped)
    }

    /// Returns a decided position that is at or after everything that anybody was told before the call. A read that
    /// looks at a state which has applied that position is linearizable (log rule 9).
    ///
    /// While this replica's lease holds ([`crate::Timing::lease_ms`]) that takes no message and wakes nobody. Otherwise
    /// a majority confirms that it still leads, by a probe that starts after the call and serves all calls that wait.
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

    /// Members that came back with another disk than they had in this epoch, and with which. They are not let in; a change to the
    /// same members brings them back ([`LogHandle::change_members`]). One that is connected has its disk: then somebody else uses
    /// its number.
    pub fn lost_disks(&self) -> BTreeMap<ReplicaId, Option<u64>> {
        let peers = self.status().peers.into_iter();
        peers.filter(|(_, peer)| peer.other_disk && !peer.connected).map(|(id, peer)| (id, peer.disk)).collect()
    }

    /// Completes when this replica, which was one, is no longer a member; with the epoch since when. Never for one that waits to be
    /// let in.
    pub async fn removed(&self) -> u32 {
        let mut membership = self.membership();
        let removed = async {
            membership.wait_for(|membership| membership.has(self.me)).await?;
            let without = membership.wait_for(|membership| !membership.has(self.me)).await?;
            Ok::<u32, watch::error::RecvError>(without.epoch)
        };
        match removed.await {
            Ok(epoch) => epoch,
            // The log has stopped, which shows elsewhere.
            Err(_) => std::future::pending().await,
        }
    }

    /// Asks the leader how fresh this replica is. The answer shows in [`LogHandle::fresh`], if one comes: it takes a leader that
    /// can be reached and can prove that it leads.
    pub fn ask_fresh(&self) {
        self.tell(Command::AskFresh);
    }

    /// The latest proof of freshness, as it changes.
    pub fn fresh(&self) -> watch::Receiver<Option<Fresh>> {
        self.published.fresh.subscribe()
    }

    /// The clock of [`Fresh::asked_ms`], in milliseconds: never goes back, and counts suspended time. It is assumed to run
    /// within [`CLOCK_DRIFT_PERCENT`](crate::CLOCK_DRIFT_PERCENT) of real time.
    pub fn now_ms(&self) -> u64 {
        crate::clock::now_ms()
    }

    /// Milliseconds since the Unix epoch, as stamps in the log need it (R14): this process's clock ([`unix_ms`](crate::unix_ms)), or the
    /// time that a majority of the members' clocks have reached if that is more than two seconds from it. May go back when that
    /// becomes known.
    pub fn unix_ms(&self) -> u64 {
        let unix_ms =
            crate::unix_ms().saturating_add_signed(self.published.clock_correction_ms.load(Ordering::Acquire));
        if let Some(simulation) = evenkeel_host::simulation() {
            simulation.report_group_time(unix_ms);
        }
        unix_ms
    }

    /// Delivers decided entries from `from` on, in order. May be called any number of times, also for positions
    /// delivered before.
    pub fn subscribe(&self, from: LogIndex) -> Subscription {
        Subscription::new(from, self.published.clone(), self.commands.clone(), self.limits.read_bytes)
    }

    /// Permits the log to forget entries up to `durably_applied` (R16). It keeps a retention
    /// ([`Limits::retention_bytes`]) and what live peers have not decided (log rule 10).
    pub fn compact(&self, durably_applied: LogIndex) {
        self.tell(Command::Compact(durably_applied));
    }

    /// The application has applied everything up to `index`. Replicas tell each other ([`PeerStatus::lag`](crate::PeerStatus)), and a
    /// leadership that moves goes to who has applied most. Costs next to nothing.
    pub fn applied(&self, index: LogIndex) {
        self.published.applied.fetch_max(index.0, Ordering::AcqRel);
    }

    /// A lease of the application: entries at and after `index` are kept until another call says otherwise.
    /// `None` gives the lease up.
    pub fn retain_from(&self, index: Option<LogIndex>) {
        self.tell(Command::RetainFrom(index));
    }

    /// After a state transfer: the application's state, durable, is the one at `index`, where `term` was in force.
    ///
    /// [`LogHandle::role`] leaves [`Role::Behind`] when `index` covers what was trimmed. Call it again after a
    /// restart that comes up as `Behind` although the state is there (the process died in between).
    ///
    /// # Errors
    /// [`LogStopped`] if the log has shut down.
    pub fn installed(&self, index: LogIndex, term: Term) -> Result<(), LogStopped> {
        if self.published.stopped() {
            return Err(LogStopped);
        }
        self.commands.send(Command::Installed { index, term }).map_err(|_| LogStopped)
    }

    /// Tries to become the leader (log rule 15). The outcome shows in [`LogHandle::role`], if at all.
    pub fn try_lead(&self) {
        self.tell(Command::TryLead);
    }

    /// Asks a live, up-to-date follower to take the leadership over. Best effort: this replica leads until the
    /// other one has won.
    pub fn yield_leadership(&self) {
        self.tell(Command::YieldLeadership);
    }

    /// With `true`: this replica's application cannot serve. A leadership of it ends, another one is asked to lead, and it begins none
    /// until it is told `false`; it votes and accepts as before. Told in the order of the calls.
    pub fn stand_aside(&self, stands: bool) {
        self.tell(Command::StandAside(stands));
    }

    /// Positions, sizes, and what is known of the peers; at most one tick old.
    pub fn status(&self) -> LogStatus {
        self.published.status()
    }

    /// Ends the log: everything accepted is durable and every call waiting has been answered when this returns.
    /// Calling it again is harmless.
    pub async fn shutdown(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Shutdown(reply)).is_ok() {
            // An error means the event loop is gone, which is what was asked for.
            done.await.ok();
        }
    }

    fn tell(&self, command: Command) {
        // Hints to a log that has stopped have no addressee; every caller learns of the stop elsewhere.
        self.commands.send(command).ok();
    }
}
