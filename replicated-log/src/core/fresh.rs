//! How fresh a replica is: what `local` reads can prove (R17).
//!
//! A replica asks the leader, and remembers when. The leader answers with a decided position once it is sure that it led
//! after the question came: by its lease, or by a read barrier's probe (log rule 9). From then on the replica knows that
//! *everything acknowledged before it asked lies at or before that position*. Whatever becomes of the leader, the
//! network or this process later, that remains true; a state that has applied the position is at most as old as the
//! question.
//!
//! Only the asker's clock is involved, compared with itself: it is read when the question is taken in, before it is sent. The answer may
//! come late or never, the leader may be deposed meanwhile; then the replica's last proof merely grows old.

use crate::types::{Fresh, LogIndex};
use crate::wal::Disk;
use crate::wire::Wire;

use super::barrier::Who;
use super::{Core, Fault};

/// Questions of one peer that may wait for a probe; more are not answered. One at a time is usual.
const MAX_WAITING_PER_PEER: usize = 16;

/// Who wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    /// A peer and the session that its question came on; `None` is this replica.
    pub(super) from: Option<(u64, u64)>,
    /// On the asker's clock.
    pub(super) asked_ms: u64,
}

impl<D: Disk> Core<D> {
    /// This replica wants to know how fresh it is.
    pub(super) fn ask_fresh(&mut self) {
        let asked_ms = self.now_ms;
        if self.leadership.is_some() {
            self.fresh_asked(Asker { from: None, asked_ms });
            return;
        }
        let leader = self.id(self.omni.get_promise().pid);
        self.early_control(leader, Wire::FreshAsk { asked_ms });
    }

    /// Somebody wants to know. Only a leader can tell; from others no answer comes.
    pub(super) fn fresh_asked(&mut self, asker: Asker) {
        let same = |who: &Who| matches!(who, Who::Fresh(other) if other.from == asker.from);
        let waiting = self.fresh_waiting().filter(|who| same(who)).count();
        if self.leadership.is_some() && waiting < MAX_WAITING_PER_PEER {
            self.wait_for_barrier(Who::Fresh(asker));
        }
    }

    /// At the end of a turn's input: if the lease held when the clock was last read, which was after every question
    /// came, nobody else can have decided anything by then.
    pub(super) fn answer_fresh_by_lease(&mut self) {
        if self.now_ms >= self.lease().until_ms && !self.fault(Fault::FreshWithoutProof) {
            return;
        }
        let index = LogIndex(self.omni.get_decided_idx() as u64);
        for asker in self.take_fresh_waiting() {
            self.tell_fresh(asker, index);
        }
    }

    pub(super) fn tell_fresh(&mut self, asker: Asker, index: LogIndex) {
        let asked_ms = asker.asked_ms;
        match asker.from {
            None => self.turn.fresh.push(Fresh { asked_ms, index }),
            // Only on the session it came on: what is behind a new one may be another process.
            Some((peer, session)) if self.peers.get(&peer).is_some_and(|p| p.session == Some(session)) => {
                // What is acknowledged lies on a majority's disks, whatever this turn has to sync.
                self.early_control(peer, Wire::FreshAnswer { asked_ms, index: index.0 });
            }
            Some(_) => {}
        }
    }

    pub(super) fn fresh_answered(&mut self, asked_ms: u64, index: u64) {
        let asked_ms = if self.fault(Fault::FreshWhenAnswered) { self.now_ms } else { asked_ms };
        if asked_ms <= self.now_ms {
            self.turn.fresh.push(Fresh { asked_ms, index: LogIndex(index) });
        }
    }
}
