//! What the core shows of its log: decided entries, judged, and where the replica stands.

use crate::command::OldEntries;
use crate::item::{Item, Kind};
use crate::types::{Entry, Lag, LogIndex, LogStatus, PeerStatus, ReplicaId, Role};
use crate::wal::{Disk, Wal, WalError, Written};

use super::{Core, Fault};

impl<D: Disk> Core<D> {
    /// Entries decided since the last call, as far as they are in memory, and the decided position. What a replica shows as
    /// decided it also has on disk: before [`Core::sync`] that is what earlier turns have synced, after it everything.
    pub(crate) fn newly_decided(&mut self) -> (Vec<Entry>, LogIndex) {
        let wal = self.wal.borrow();
        let decided = self.shown_decided().min(wal.durable_end());
        if decided <= self.published {
            return (Vec::new(), LogIndex(self.published));
        }
        let (first, items) = wal.recent_decided(self.published);
        // log rule 10: what follows the barrier in this epoch counts for nothing, and is not even shown.
        let end = self.own_end().min(decided).saturating_sub(first) as usize;
        let entries = self.judge(&wal, first, items.take(end));
        drop(wal);
        self.published = decided;
        (entries, LogIndex(decided))
    }

    /// The position up to which entries are shown: what is decided, up to the end of the epoch. A replica that has missed the
    /// beginning of a newer epoch shows that, and has to say that it does not have what comes before it.
    fn shown_decided(&self) -> u64 {
        self.own_end().max(self.awaited_state().unwrap_or(0))
    }

    /// What is decided of this epoch and counts.
    fn own_end(&self) -> u64 {
        self.barrier_decided().unwrap_or_else(|| self.wal.borrow().decided())
    }

    /// Invariant 1: judges items as the fold of the log up to them says.
    fn judge<'a>(&self, wal: &Wal<D>, first: u64, items: impl Iterator<Item = &'a Item>) -> Vec<Entry> {
        let mut fence = wal.fence_at(first);
        let mut index = LogIndex(first);
        items
            .map(|item| {
                index = index.next();
                let mut entry = item.deliver(index, fence);
                entry.effective |= self.fault(Fault::NoFence);
                // Behind a barrier that was passed the fold starts over (see `Wal::begin_epoch`).
                fence = match item.kind {
                    Kind::ConfigChange => wal.fence_at(index.0),
                    _ => fence.after(item),
                };
                entry
            })
            .collect()
    }

    /// Decided entries from `from` on, or where they are.
    ///
    /// # Errors
    /// A failing or damaged disk: fatal.
    pub(crate) fn old_entries(&self, from: LogIndex, max_bytes: usize) -> Result<OldEntries, WalError> {
        let wal = self.wal.borrow();
        let first = from.0.saturating_sub(1);
        let decided = self.own_end().min(wal.durable_end());
        if let Some(trimmed) = self.awaited_state().filter(|at| first >= decided && first < *at) {
            return Ok(OldEntries::Trimmed(LogIndex(trimmed)));
        }
        match wal.plan(first, decided, max_bytes) {
            Ok(Some(plan)) => return Ok(OldEntries::OnDisk(plan)),
            Ok(None) | Err(WalError::Trimmed { .. }) => {}
            Err(fatal) => return Err(fatal),
        }
        match wal.read(first, decided, max_bytes) {
            Ok(items) => Ok(OldEntries::Entries(self.judge(&wal, first, items.iter()))),
            Err(WalError::Trimmed { compacted, .. }) => Ok(OldEntries::Trimmed(LogIndex(compacted))),
            Err(fatal) => Err(fatal),
        }
    }

    /// What the log has written to disk since it was opened.
    pub(crate) fn written(&self) -> Written {
        self.wal.borrow().written()
    }

    /// Where this replica stands, for display.
    pub(crate) fn status(&self) -> LogStatus {
        let wal = self.wal.borrow();
        let peers = self.peers.iter().map(|(id, peer)| {
            let status = PeerStatus {
                connected: peer.session.is_some(),
                decided: LogIndex(peer.standing.map_or(0, |s| s.decided)),
                applied: LogIndex(peer.standing.map_or(0, |s| s.applied)),
                lag: peer.standing.map_or_else(Lag::default, |s| s.lag),
                aside: peer.standing.is_some_and(|s| s.aside),
                behind: peer.needs_state(),
                other_disk: peer.other_disk,
                disk: peer.disk.or_else(|| wal.known_peer_store(*id)),
                last_heard_ms: peer.last_heard_ms.map(|t| self.now_ms.saturating_sub(t)),
            };
            (ReplicaId(*id), status)
        });
        LogStatus {
            decided: LogIndex(wal.decided()),
            accepted: LogIndex(wal.end()),
            applied: LogIndex(self.applied.length),
            lag: self.lag(),
            compacted: LogIndex(wal.compacted()),
            first_retained: LogIndex(wal.compacted() + 1),
            log_bytes: wal.log_bytes(),
            leader: match &self.role {
                Role::Leader { term, .. } => Some(term.replica()),
                Role::Follower { leader } | Role::Behind { leader, .. } => *leader,
            },
            term: wal.fence_at(wal.decided()).term,
            peers: peers.collect(),
            applicants: self.applicants.iter().map(|(id, disk)| (ReplicaId(*id), *disk)).collect(),
        }
    }
}
