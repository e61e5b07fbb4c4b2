//! Synchronisations of bounded size: who is far behind is brought near first, with decided entries in pieces.
//!
//! OmniPaxos synchronises two logs with one message that holds all that one of them lacks: a leader's AcceptSync to a follower that was
//! away, and the Promise to a new leader that was. It cannot be cut: it makes the receiver say that it has accepted in the message's
//! round, so whoever prepares a later round takes its log for the newest. A part of what was chosen before that round, accepted in
//! it, would be lost that way.
//!
//! *Decided* entries can come in pieces ([`Wire::Decided`]), for they are the same everywhere and always. They leave the accepted
//! round as it is:
//!
//! - A leader that is promised by somebody far behind keeps the Promise from OmniPaxos and answers with the next piece.
//! - The receiver writes it into its log, starts a fresh OmniPaxos instance on that, as after a restart that has lost nothing, and so asks
//!   to be prepared again. Its next Promise says how far it is now; the leader keeps no state of this.
//! - A candidate that is itself far behind gets no Promise. The replica that would have had to send it so much stands for election
//!   instead, and brings it near as above. Of all that can be elected the one with the newest log is refused by nobody. Where only
//!   one that is behind can be (the hub of a star of cuts), it is promised all the same after [`REFUSING_ELECTIONS`].
//!
//! Why it is safe. Let a replica whose log was accepted in round `a` learn the decided entries up to `p`; where its accepted
//! entries differ from them it gives up the rest of its log, and keeps it otherwise. If round `a`'s leader had all these entries in its
//! log then the replica has accepted a longer part of that log than before, which it might have at any time. If not, the first
//! entry that is missing there was decided in a round `b > a`, for what is decided in a round is in the logs of all later
//! ones. Then a majority has accepted in `b` or later, every majority that promises anything later has one of it, and this log is
//! never the newest of those. Nor is anything given up that was chosen with this replica: in round `a` nothing was at or behind the
//! place where that log differs from what is decided, and what was chosen before `a` is in that log.
//!
//! A leader compares the rounds in which a follower and its newest predecessor accepted, and would begin a synchronisation where
//! their logs part *in that round*. A follower that has learned more than that has nothing undecided: its Promise is fed without its
//! round, so that the synchronisation begins at what it has decided.

use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::messages::Message;
use omnipaxos::messages::sequence_paxos::{AcceptSync, PaxosMsg, Prepare, Promise};

use crate::item::Item;
use crate::wal::Disk;
use crate::wire::Wire;

use super::{Core, Fault, epoch};

/// A replica is far behind if it lacks more than so many pieces.
const FAR_PIECES: u64 = 2;

/// For how many election timeouts a candidate that is far behind is refused in favour of this replica.
const REFUSING_ELECTIONS: u64 = 20;

/// Steps towards a ballot above a candidate's, at most, each time.
const MAX_BALLOT_STEPS: u32 = 1000;

/// Refusals of candidates, in a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusing {
    since_ms: u64,
    last_ms: u64,
}

impl<D: Disk> Core<D> {
    /// The message as OmniPaxos may have it, if it may.
    pub(super) fn within_bounds(&mut self, peer: u64, mut message: Message<Item>) -> Option<Message<Item>> {
        let Message::SequencePaxos(paxos) = &mut message else {
            return Some(message);
        };
        let feed = match &mut paxos.msg {
            PaxosMsg::Prepare(prepare) => !self.refuses(*prepare),
            PaxosMsg::Promise(promise) => !self.sends_piece(peer, promise),
            PaxosMsg::AcceptSync(sync) => self.skip_decided(sync),
            _ => true,
        };
        feed.then_some(message)
    }

    fn far_bytes(&self) -> u64 {
        self.config.limits.sync_bytes as u64 * FAR_PIECES
    }

    /// Whether a Promise to this candidate would have to carry too much; then this replica stands itself.
    fn refuses(&mut self, prepare: Prepare) -> bool {
        if prepare.n < self.omni.get_promise() || !self.lacks_much(prepare) {
            return false;
        }
        let now_ms = self.now_ms;
        let patience_ms = self.config.timing.election_timeout_ms * REFUSING_ELECTIONS;
        let fresh = Refusing { since_ms: now_ms, last_ms: now_ms };
        let refusing = self.refusing.filter(|r| now_ms.saturating_sub(r.last_ms) < patience_ms).unwrap_or(fresh);
        if now_ms.saturating_sub(refusing.since_ms) >= patience_ms {
            tracing::warn!("a candidate that is far behind is followed: nobody else could be elected");
            self.refusing = None;
            return false;
        }
        self.refusing = Some(Refusing { last_ms: now_ms, ..refusing });
        self.turn.refusals += 1;
        for _ in 0..MAX_BALLOT_STEPS {
            if self.omni.get_promise() > prepare.n {
                break;
            }
            self.omni.try_become_leader();
        }
        self.observe();
        true
    }

    /// Where OmniPaxos would begin the candidate's synchronisation, and whether that is far from the end.
    fn lacks_much(&self, prepare: Prepare) -> bool {
        let wal = self.wal.borrow();
        let accepted_in = wal.accepted_round().unwrap_or_default();
        let from = if accepted_in > prepare.n_accepted {
            prepare.decided_idx
        } else if accepted_in == prepare.n_accepted && wal.end() > prepare.accepted_idx as u64 {
            prepare.accepted_idx
        } else {
            return false;
        };
        wal.bytes_between(from as u64, wal.end()) > self.far_bytes()
    }

    /// Whether the promising replica is brought near first. If not, its Promise may have been changed: see the module's page.
    fn sends_piece(&mut self, peer: u64, promise: &mut Promise<Item>) -> bool {
        let ours = promise.n == self.omni.get_promise() && promise.n.pid == self.pid(self.config.me);
        if !ours || promise.log_sync.is_some() {
            return false;
        }
        let from = promise.decided_idx as u64;
        let piece = {
            let wal = self.wal.borrow();
            let some = (wal.compacted()..wal.decided()).contains(&from);
            let far = some && wal.bytes_between(from, wal.decided()) > self.far_bytes();
            far.then(|| wal.read(from, wal.decided(), self.config.limits.sync_bytes))
        };
        match piece {
            Some(Ok(items)) => {
                self.control(peer, Wire::Decided { first: from, items });
                true
            }
            // log rule 13: as the library does when its storage fails.
            Some(Err(error)) => unreachable!("the log cannot be read: {error}"),
            None => {
                if promise.accepted_idx == promise.decided_idx {
                    promise.n_accepted = Ballot::default();
                }
                false
            }
        }
    }

    /// A synchronisation must not touch what is decided here. Whether anything is left of it that can be used: the log of
    /// a leader that lacks decided entries belongs to one that has been deposed.
    fn skip_decided(&self, sync: &mut AcceptSync<Item>) -> bool {
        let log = &mut sync.log_sync;
        let decided = self.omni.get_decided_idx();
        if log.decided_snapshot.is_some() || log.sync_idx >= decided {
            return true;
        }
        let known = decided - log.sync_idx;
        if known > log.suffix.len() {
            return false;
        }
        log.suffix.drain(..known);
        log.sync_idx = decided;
        true
    }

    /// Takes in a piece, if this replica waits to be synchronised.
    pub(super) fn learn(&mut self, first: u64, items: Vec<Item>) {
        let me = self.pid(self.config.me);
        // A leader has no use for it, nor has who is synchronised.
        if !matches!(self.omni.get_current_leader(), Some((leader, false)) if leader != me) {
            return;
        }
        let keep = !self.fault(Fault::ForgetAccepted);
        let learned = self.wal.borrow_mut().learn(first, items, keep);
        match learned {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => unreachable!("the log cannot be read: {error}"),
        }
        if self.fault(Fault::AcceptPieces) {
            self.wal.borrow_mut().set_accepted_round(self.omni.get_promise());
        }
        self.turn.learned += 1;
        // What it has to send is still true; after that it starts over, on what the log is now.
        self.take_outgoing();
        match epoch::build(&self.config, &self.membership, &self.wal) {
            Ok(omni) => self.omni = omni,
            Err(what) => unreachable!("a checked membership: {what}"),
        }
        self.observe();
    }
}
