//! Synchronisation in pieces of bounded size, for replicas that are far behind.
//!
//! OmniPaxos synchronises two logs with one message that holds everything one of them lacks: a
//! leader's AcceptSync to a follower that was away, and the Promise to a new leader that was. That
//! message cannot be split: it makes the receiver report that it has accepted in the message's
//! round, so the preparer of a later round takes its log for the newest. A part of the chosen
//! entries before that round, accepted in it, would be lost that way.
//!
//! *Decided* entries can come in pieces ([`Wire::Decided`]), because they are the same everywhere
//! and always. They leave the accepted round as it is:
//!
//! - A leader that receives a Promise from a replica that is far behind keeps the Promise from
//!   OmniPaxos and answers with the next piece.
//! - The receiver writes it into its log, starts a new OmniPaxos instance on that, as after a
//!   restart that has lost nothing, and so asks to be prepared again. Its next Promise states its
//!   new position; the leader keeps no state about it.
//! - A candidate that is itself far behind gets no Promise. The replica that would have had to send
//!   it so much stands for election instead, and synchronises it as above. The candidate with the
//!   newest log is refused by no replica. If only a candidate that is behind can be elected (the
//!   hub of a star of cuts), it is promised after [`REFUSING_ELECTIONS`].
//!
//! # Why it is safe
//!
//! Let a replica whose log was accepted in round `a` learn the decided entries up to `p`. Where its
//! accepted entries differ from them it drops the rest of its log, and keeps it otherwise. If round
//! `a`'s leader had all these entries in its log, then the replica has accepted a longer part of
//! that log than before, which it might have at any time. If not, the first entry that is missing
//! there was decided in a round `b > a`, because an entry decided in a round is in the logs of all
//! later ones. Then a majority has accepted in `b` or later, every majority that promises anything
//! later has one of it, and this log is never the newest of those. Nor is anything dropped that was
//! chosen with this replica: in round `a` nothing was chosen at or behind the place where that log
//! differs from the decided entries, and entries chosen before `a` are in that log.
//!
//! A leader compares the rounds in which a follower and its newest predecessor accepted, and would
//! begin a synchronisation where their logs part *in that round*. A follower that has learned more
//! than that has nothing undecided: its Promise is fed without its round, so that the
//! synchronisation begins at its decided position.

use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::messages::sequence_paxos::{AcceptSync, Prepare, Promise};

use crate::item::Item;
use crate::wal::Disk;
use crate::wire::Wire;

use super::config::CoreConfig;
use super::fault::Fault;
use super::outgoing::Outgoing;
use super::paxos::Paxos;
use super::peers::Peers;

/// A replica is far behind if it lacks more than this number of pieces.
const FAR_PIECES: u64 = 2;

/// The number of election timeouts for which a candidate that is far behind is refused in favour of
/// this replica.
const REFUSING_ELECTIONS: u64 = 20;

/// Consecutive refusals of candidates.
#[derive(Clone, Copy, Debug)]
struct Refusals {
    since_ms: u64,
    last_ms: u64,
}

/// The refusal of candidates that are far behind.
#[derive(Debug, Default)]
pub(super) struct CatchUp {
    refusals: Option<Refusals>,
}

impl CatchUp {
    /// Whether the Promise to this candidate would be too large. Then this replica stands for
    /// election itself.
    pub(super) fn refuses<D: Disk>(
        &mut self,
        config: &CoreConfig,
        prepare: Prepare,
        paxos: &mut Paxos<D>,
        now_ms: u64,
        out: &mut Outgoing,
    ) -> bool {
        if prepare.n < paxos.promise() || !lacks_much(config, prepare, paxos) {
            return false;
        }
        let patience_ms = config.timing.election_timeout_ms * REFUSING_ELECTIONS;
        let first = Refusals { since_ms: now_ms, last_ms: now_ms };
        let refusals = self.refusals.filter(|r| now_ms.saturating_sub(r.last_ms) < patience_ms).unwrap_or(first);
        if now_ms.saturating_sub(refusals.since_ms) >= patience_ms {
            tracing::warn!("following a candidate that is far behind: no other replica could be elected");
            self.refusals = None;
            return false;
        }
        self.refusals = Some(Refusals { last_ms: now_ms, ..refusals });
        out.counts.refusals += 1;
        paxos.outbid(prepare.n);
        true
    }
}

fn far_bytes(config: &CoreConfig) -> u64 {
    config.limits.sync_bytes as u64 * FAR_PIECES
}

/// Whether OmniPaxos would begin the candidate's synchronisation far from the end.
fn lacks_much<D: Disk>(config: &CoreConfig, prepare: Prepare, paxos: &Paxos<D>) -> bool {
    let wal = paxos.wal();
    let accepted_in = wal.accepted_round().unwrap_or_default();
    let from = if accepted_in > prepare.n_accepted {
        prepare.decided_idx
    } else if accepted_in == prepare.n_accepted && wal.end() > prepare.accepted_idx as u64 {
        prepare.accepted_idx
    } else {
        return false;
    };
    wal.bytes_between(from as u64, wal.end()) > far_bytes(config)
}

/// Whether the promising replica receives a piece instead. If not, its Promise may have been
/// changed: see the module's page.
pub(super) fn sends_piece<D: Disk>(
    config: &CoreConfig,
    peer: u64,
    promise: &mut Promise<Item>,
    paxos: &Paxos<D>,
    peers: &Peers,
    out: &mut Outgoing,
) -> bool {
    let ours = promise.n == paxos.promise() && promise.n.pid == paxos.my_pid();
    if !ours || promise.log_sync.is_some() {
        return false;
    }
    let from = promise.decided_idx as u64;
    let piece = {
        let wal = paxos.wal();
        let known = (wal.compacted()..wal.decided()).contains(&from);
        let far = known && wal.bytes_between(from, wal.decided()) > far_bytes(config);
        far.then(|| wal.read(from, wal.decided(), config.limits.sync_bytes))
    };
    match piece {
        Some(Ok(items)) => {
            out.send(peers, peer, Wire::Decided { first: from, items });
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

/// Removes the part of a synchronisation that is decided here, which must not change. Returns
/// whether the rest can be used: the log of a leader that lacks decided entries belongs to a
/// deposed leader.
pub(super) fn skip_decided(sync: &mut AcceptSync<Item>, decided: u64) -> bool {
    let log = &mut sync.log_sync;
    let decided = decided as usize;
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

/// Takes in a piece, if this replica waits to be synchronised. Returns whether it did; then the
/// OmniPaxos instance is a new one.
pub(super) fn learn<D: Disk>(
    config: &CoreConfig,
    first: u64,
    items: Vec<Item>,
    paxos: &mut Paxos<D>,
    peers: &mut Peers,
) -> bool {
    // A leader has no use for a piece, nor has a replica that is synchronised.
    if !paxos.awaits_synchronisation() {
        return false;
    }
    let keep = !config.fault(Fault::ForgetAccepted);
    let learned = paxos.wal_mut().learn(first, items, keep);
    match learned {
        Ok(true) => {}
        Ok(false) => return false,
        Err(error) => unreachable!("the log cannot be read: {error}"),
    }
    if config.fault(Fault::AcceptPieces) {
        let promise = paxos.promise();
        paxos.wal_mut().set_accepted_round(promise);
    }
    // The pending messages are still true. After them the instance starts over on the log as it is
    // now.
    paxos.take_outgoing(peers);
    paxos.restart(config);
    true
}
