//! The group's time: the time that a majority of the members' wall clocks have reached.
//!
//! A leader stamps its entries, and the application's time is the latest stamp (R14). A single
//! clock that is an hour ahead would therefore move the application's time by an hour, for later
//! leaders too. So replicas send their clocks with their standings. A clock value in a message gets
//! older on its way, never younger: the latest value shown counts, less the possible drift since.
//! It stays known while its replica is away. A new session may mean a new process with another
//! clock; then only later values count.
//!
//! The group's time is the latest that a majority of the members have reached, as far as is known;
//! an unknown clock counts as one that has not. While the clocks of a majority are right, the
//! group's time is never ahead of all right clocks. If all clocks are known, it is not behind all
//! of them either. A replica whose clock is within [`OFF_MS`] of the group's time uses its own
//! clock, another one uses the group's time.

use std::collections::BTreeMap;

use super::config::CoreConfig;
use super::fault::Fault;
use super::peers::Peers;

/// A clock further than this from the group's time is off, in milliseconds.
const OFF_MS: u64 = 2_000;

/// Clocks run within one in twenty of real time (log rule 9).
const DRIFT: u64 = 20;

/// Clocks beyond this are ignored, in milliseconds since the Unix epoch: some time in the year
/// 10889.
const MAX_CLOCK_MS: u64 = 1 << 48;

/// A peer's wall clock as far as it is known.
#[derive(Clone, Copy, Debug)]
struct PeerClock {
    /// The least that it is ahead of this replica's clock, in milliseconds.
    ahead_ms: i64,
    known_ms: u64,
    /// Whether a new session has begun since.
    outdated: bool,
}

impl PeerClock {
    /// The knowledge once `ahead_ms` has been seen at `now_ms`.
    fn seen(known: Option<PeerClock>, ahead_ms: i64, now_ms: u64) -> PeerClock {
        let latest_ms = known.filter(|known| !known.outdated).map_or(i64::MIN, |known| known.at_ms(now_ms));
        PeerClock { ahead_ms: latest_ms.max(ahead_ms), known_ms: now_ms, outdated: false }
    }

    /// The least that it is ahead at `now_ms`.
    fn at_ms(&self, now_ms: u64) -> i64 {
        self.ahead_ms.saturating_sub_unsigned(now_ms.saturating_sub(self.known_ms) / DRIFT)
    }
}

/// The difference of the group's time to the own clock, given the differences of the known clocks
/// of others; `None` while too few are known.
fn group_ahead_ms(others: impl Iterator<Item = i64>, majority: usize) -> Option<i64> {
    let mut ahead: Vec<i64> = others.chain([0]).collect();
    ahead.sort_unstable_by(|a, b| b.cmp(a));
    ahead.get(majority.checked_sub(1)?).copied()
}

/// The known wall clocks of the peers, and the correction of this replica's.
#[derive(Debug, Default)]
pub(super) struct GroupClock {
    peers: BTreeMap<u64, PeerClock>,
    correction_ms: i64,
}

impl GroupClock {
    /// A standing of `peer` has shown its clock; `own_ms` is this replica's wall clock.
    pub(super) fn hear(
        &mut self,
        config: &CoreConfig,
        (peer, clock_ms): (u64, u64),
        own_ms: u64,
        now_ms: u64,
        majority: usize,
    ) {
        let ahead_ms = clock_ms.min(MAX_CLOCK_MS) as i64 - own_ms.min(MAX_CLOCK_MS) as i64;
        let seen = PeerClock::seen(self.peers.get(&peer).copied(), ahead_ms, now_ms);
        self.peers.insert(peer, seen);
        self.judge(config, now_ms, majority);
    }

    /// A new session with `peer`: its clock may be another one.
    pub(super) fn doubt(&mut self, peer: u64) {
        if let Some(clock) = self.peers.get_mut(&peer) {
            clock.outdated = true;
        }
    }

    /// Drops the clocks of replicas that are not among `peers`.
    pub(super) fn retain(&mut self, peers: &Peers) {
        self.peers.retain(|id, _| peers.contains(*id));
    }

    fn judge(&mut self, config: &CoreConfig, now_ms: u64, majority: usize) {
        let others = self.peers.values().map(|clock| clock.at_ms(now_ms));
        let ahead_ms = group_ahead_ms(others, majority).unwrap_or(0);
        let off = ahead_ms.unsigned_abs() > OFF_MS && !config.fault(Fault::OwnClock);
        let correction_ms = if off { ahead_ms } else { 0 };
        if (correction_ms == 0) != (self.correction_ms == 0) {
            tracing::warn!(correction_ms, "the correction of this replica's wall clock to its group's has changed");
        }
        self.correction_ms = correction_ms;
    }

    /// The value to add to this replica's wall clock, in milliseconds: 0 unless that is off.
    pub(super) fn correction_ms(&self) -> i64 {
        self.correction_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    fn ahead(others: &[i64], majority: usize) -> Option<i64> {
        group_ahead_ms(others.iter().copied(), majority)
    }

    #[test]
    fn the_groups_time_is_that_of_a_majority() {
        assert_eq!(ahead(&[-30, 40], 2), Some(0));
        assert_eq!(ahead(&[HOUR_MS, 40], 2), Some(40), "another one is ahead");
        assert_eq!(ahead(&[-HOUR_MS, -HOUR_MS - 5], 2), Some(-HOUR_MS), "this one is");
        assert_eq!(ahead(&[HOUR_MS, HOUR_MS - 5], 2), Some(HOUR_MS - 5), "this one is behind");
        // Two of five are ahead, this one among them.
        assert_eq!(ahead(&[0, -HOUR_MS, -HOUR_MS, -HOUR_MS - 5], 3), Some(-HOUR_MS));
    }

    // An unknown clock may be right: no clock is followed into a future that no majority has
    // reached.
    #[test]
    fn an_unknown_clock_counts_as_late() {
        assert_eq!(ahead(&[], 2), None);
        assert_eq!(ahead(&[-HOUR_MS], 2), Some(-HOUR_MS));
        assert_eq!(ahead(&[HOUR_MS], 2), Some(0));
        assert_eq!(ahead(&[0, -HOUR_MS], 3), Some(-HOUR_MS), "two of five are unknown, two are ahead");
        assert_eq!(ahead(&[], 1), Some(0));
    }

    #[test]
    fn a_late_message_does_not_make_a_clock_slow() {
        let first = PeerClock::seen(None, 10, 1_000);
        let late = PeerClock::seen(Some(first), -5_000, 2_000);
        assert_eq!(late.ahead_ms, 10 - 50, "less what clocks may drift apart");
        let restarted = PeerClock::seen(Some(PeerClock { outdated: true, ..late }), -HOUR_MS, 3_000);
        assert_eq!(restarted.ahead_ms, -HOUR_MS);
    }
}
