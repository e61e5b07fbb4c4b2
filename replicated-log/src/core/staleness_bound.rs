//! Staleness bounds: the age of the data that a `local` read may return (R17).
//!
//! A replica asks the leader and remembers the time of the question. The leader answers with a
//! decided position once it is sure that it led after the question arrived: by its lease, or by the
//! probe of a read barrier (log rule 9). From then on the replica knows that *every write
//! acknowledged before it asked lies at or before that position*. This stays true whatever happens
//! to the leader, the network or this process. A state that has applied the position is at most as
//! old as the question.
//!
//! Only the asker's clock is involved, compared with itself: it is read when the question is taken
//! in, before it is sent. The answer may come late or never, and the leader may be deposed
//! meanwhile; then the replica's last bound gets older.

use crate::ids::LogIndex;
use crate::status::StalenessBound;
use crate::wire::Wire;

use super::config::CoreConfig;
use super::fault::Fault;
use super::outgoing::Outgoing;
use super::peers::Peers;

/// A question for a staleness bound, at the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StalenessQuestion {
    /// The asking peer and the session of the question; `None` is this replica.
    pub(super) from: Option<(u64, u64)>,
    /// The time of the question on the asker's clock.
    pub(super) asked_ms: u64,
}

impl StalenessQuestion {
    /// Answers with a position that is at or after everything acknowledged before the question.
    pub(super) fn answer(self, index: LogIndex, peers: &Peers, out: &mut Outgoing) {
        let asked_ms = self.asked_ms;
        match self.from {
            None => out.staleness_bounds.push(StalenessBound { asked_ms, index }),
            // Only on the session of the question: behind a new session there may be another
            // process.
            Some((peer, session)) if peers.session(peer) == Some(session) => {
                // Acknowledged writes are on a majority's disks, whatever this turn has to sync.
                out.send_before_sync(peers, peer, Wire::StalenessAnswer { asked_ms, index: index.0 });
            }
            Some(_) => {}
        }
    }
}

/// The leader has answered this replica.
pub(super) fn answered(config: &CoreConfig, asked_ms: u64, index: u64, now_ms: u64, out: &mut Outgoing) {
    let asked_ms = if config.fault(Fault::StalenessBoundWhenAnswered) { now_ms } else { asked_ms };
    if asked_ms <= now_ms {
        out.staleness_bounds.push(StalenessBound { asked_ms, index: LogIndex(index) });
    }
}
