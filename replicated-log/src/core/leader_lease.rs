//! Leader leases, the leader's side: linearizable reads that cost no message (log rule 9).
//!
//! A follower that answers a leader's [`Wire::LeaseRequest`] *holds*: for `lease_ms` of its own
//! clock it promises nothing to any other candidate ([`super::lease_hold`]). The leader's lease is
//! valid while enough followers hold.
//!
//! # Why a leader with a lease may answer alone
//!
//! Say it leads with ballot `b` among `n` replicas, and `a` followers hold. For a write to be
//! acknowledged elsewhere, a candidate `c` needs promises of a ballot above `b` from a majority:
//!
//! - not from the leader: when it promises, the end of its lease is published before any message of
//!   that turn is sent;
//! - not from a follower that holds, unless that is `c`: before its hold it had promised `b` and
//!   nothing above, and during the hold it promises only to the leader. A holder may stand for
//!   election itself;
//! - so at most from the `n - 1 - a` others and from `c`, which is less than a majority if
//!   `a > n - majority`.
//!
//! With three replicas both followers must hold, with five three of the four. With one of three
//! down there is no lease, and the probes of [`super::read_barriers`] serve. Writes acknowledged by
//! earlier leaders lie before this leadership's `LeaderStart`, which must be decided before the
//! lease is valid (log rule 8).
//!
//! # Clocks
//!
//! Clocks are compared with themselves only. The leader counts from the moment before it asked, a
//! follower from a moment after it was asked. The leader counts nine tenths of the period, which
//! allows for 5 % of drift either way (0.9 / 0.95 < 1 / 1.05), less a margin for whole
//! milliseconds. A process that was frozen detects that its lease is over: readers read the clock
//! after the lease.
//!
//! When a leadership ends, its leader says so ([`Wire::LeaseRelease`]). It never leads with that
//! ballot again, so followers need not wait for the rest of the period. Planned moves of the
//! leadership (log rule 15) are therefore fast.

use std::collections::BTreeMap;

use omnipaxos::ballot_leader_election::Ballot;

use crate::wire::Wire;

use super::config::CoreConfig;
use super::fault::Fault;
use super::lease::Lease;
use super::outgoing::Outgoing;
use super::peers::Peers;

/// Both ends round their clocks down to whole milliseconds.
const MARGIN_MS: u64 = 2;

/// Requests per period: two may be lost or late before reads need probes.
const REQUESTS_PER_PERIOD: u64 = 3;

/// The followers' acknowledgements in one leadership.
#[derive(Debug, Default)]
pub(super) struct LeaderLease {
    /// By peer, the time of the latest request that it has acknowledged.
    acked_ms: BTreeMap<u64, u64>,
    next_request_ms: u64,
}

impl LeaderLease {
    /// On each tick: asks the followers if it is time.
    pub(super) fn request(
        &mut self,
        config: &CoreConfig,
        ballot: Ballot,
        now_ms: u64,
        peers: &Peers,
        out: &mut Outgoing,
    ) {
        let lease_ms = config.timing.lease_ms;
        if lease_ms == 0 || now_ms < self.next_request_ms {
            return;
        }
        self.next_request_ms = now_ms + lease_ms / REQUESTS_PER_PERIOD;
        // A majority, this replica included, has promised the ballot in an earlier turn.
        out.send_to_all_before_sync(peers, &Wire::LeaseRequest { ballot, sent_ms: now_ms });
    }

    /// A follower holds since a moment after `sent_ms`.
    pub(super) fn acknowledged(&mut self, peer: u64, sent_ms: u64, now_ms: u64) {
        if sent_ms <= now_ms {
            let acked_ms = self.acked_ms.entry(peer).or_default();
            *acked_ms = sent_ms.max(*acked_ms);
        }
    }

    /// The lease among `members` replicas, with `decided` as its floor. See the module's page for
    /// the number of holders.
    pub(super) fn lease(&self, config: &CoreConfig, members: usize, majority: usize, decided: u64) -> Lease {
        let needed = match config.fault(Fault::LeaseOfMajority) {
            true => majority - 1,
            false => members - majority + 1,
        };
        let mut acked_ms: Vec<u64> = self.acked_ms.values().copied().collect();
        acked_ms.sort_unstable_by(|a, b| b.cmp(a));
        let Some(asked_ms) = acked_ms.get(needed - 1) else {
            return Lease::default();
        };
        let lasts_ms = (config.timing.lease_ms * 9 / 10).saturating_sub(MARGIN_MS);
        Lease { until_ms: asked_ms + lasts_ms, floor: decided }
    }
}
