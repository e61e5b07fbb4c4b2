//! Freeing stuck replicas (log rule 11).
//!
//! A replica that crashed after it raised its ballot ignores a leader below that ballot, and no
//! other replica has a reason for an election. A leader that a majority follows therefore raises
//! its ballot above the stuck replica's.

use omnipaxos::ballot_leader_election::Ballot;

use super::config::CoreConfig;
use super::peers::{Peer, Peers};

/// The highest promise of a peer that has been above the leader's `ballot` for long enough.
pub(super) fn highest_stuck_promise(
    config: &CoreConfig,
    peers: &mut Peers,
    ballot: Ballot,
    majority: usize,
    now_ms: u64,
) -> Option<Ballot> {
    // Without a connected majority the higher promise is that of another leadership: then this one
    // is deposed.
    let loyal = peers.connected().filter(|p| p.standing.is_some_and(|s| s.promise <= ballot)).count();
    let followed = loyal + 1 >= majority;
    let patience_ms = config.timing.election_timeout_ms * 2;
    let connected = |peer: &Peer| peer.session.is_some();
    let mut highest = None;
    for peer in peers.values_mut() {
        let above = peer.standing.map(|s| s.promise).filter(|p| *p > ballot);
        match above {
            Some(promise) if followed && connected(peer) => {
                let since_ms = *peer.stuck_since_ms.get_or_insert(now_ms);
                // An election under way looks the same for a moment.
                if now_ms.saturating_sub(since_ms) >= patience_ms {
                    highest = highest.max(Some(promise));
                }
            }
            _ => peer.stuck_since_ms = None,
        }
    }
    highest
}

/// The leader has raised its ballot above every stuck promise.
pub(super) fn freed(peers: &mut Peers) {
    peers.values_mut().for_each(|peer| peer.stuck_since_ms = None);
}

/// The peer to ask to lead (log rule 15). It is the eligible, connected one that has applied most,
/// since a leader serves once it has applied everything; among equals the one with the longest log,
/// which has least to catch up.
pub(super) fn best_successor(peers: &Peers) -> Option<u64> {
    let able = peers.iter().filter_map(|(id, peer)| {
        let standing = peer.standing.filter(|s| !s.needs_state && !s.ineligible)?;
        peer.session?;
        Some((standing.applied, standing.accepted, id))
    });
    able.max().map(|(.., peer)| peer)
}
