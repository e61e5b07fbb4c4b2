//! The other members' wall clocks, and what time a majority says it is.
//!
//! A leader stamps what it writes, and the application's time is the latest stamp (R14): one clock that is an hour ahead would move
//! it by an hour, for whoever leads next too. So replicas tell each other their clocks with their standings. What a message says of its
//! sender's clock gets older on its way, never younger: the latest that was shown counts, less what clocks may drift apart since. It
//! stays known while its replica is away; with a new session comes perhaps a new process, and then what that one says counts.
//!
//! The group's time is the latest that a majority of the members have reached, as far as is known; a member that has not been heard
//! counts as one that has not. While a majority's clocks are right, one of that majority's is, so the group's time is never ahead of all
//! clocks that are right. If all have been heard it is not behind all of them either. A replica whose clock is within [`OFF_MS`] of it keeps
//! to its own, another one goes by the group's time.

use crate::wal::Disk;

use super::{Core, Fault};

/// A clock that is further than this from the group's time is off, in milliseconds.
const OFF_MS: u64 = 2_000;

/// Clocks run within one in so many of real time (log rule 9).
const DRIFT: u64 = 20;

/// A clock beyond this is none, in milliseconds since the Unix epoch: some time in the year 10889.
const MAX_CLOCK_MS: u64 = 1 << 48;

/// What is known of a peer's wall clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerClock {
    /// How far it is ahead of this replica's, at least; in milliseconds.
    ahead_ms: i64,
    known_ms: u64,
    /// Since then a new session has begun.
    outdated: bool,
}

impl PeerClock {
    /// What is known once `ahead_ms` has been seen at `now_ms`.
    fn seen(known: Option<PeerClock>, ahead_ms: i64, now_ms: u64) -> PeerClock {
        let latest_ms = known.filter(|known| !known.outdated).map_or(i64::MIN, |known| known.at_ms(now_ms));
        PeerClock { ahead_ms: latest_ms.max(ahead_ms), known_ms: now_ms, outdated: false }
    }

    /// How far it is ahead by now, at least.
    fn at_ms(&self, now_ms: u64) -> i64 {
        self.ahead_ms.saturating_sub_unsigned(now_ms.saturating_sub(self.known_ms) / DRIFT)
    }
}

/// How far the group's time is ahead of the own clock, given how far those of the others that were heard are; `None` while too few were.
fn group_ahead_ms(others: impl Iterator<Item = i64>, majority: usize) -> Option<i64> {
    let mut ahead: Vec<i64> = others.chain([0]).collect();
    ahead.sort_unstable_by(|a, b| b.cmp(a));
    ahead.get(majority.checked_sub(1)?).copied()
}

impl<D: Disk> Core<D> {
    /// This replica's wall clock, in milliseconds since the Unix epoch.
    pub(super) fn clock_ms(&self) -> u64 {
        self.config.unix_at_boot_ms + self.now_ms
    }

    /// A standing has shown its sender's clock.
    pub(super) fn hear_clock(&mut self, peer: u64, clock_ms: u64) {
        let (own_ms, now_ms) = (self.clock_ms(), self.now_ms);
        let ahead_ms = clock_ms.min(MAX_CLOCK_MS) as i64 - own_ms.min(MAX_CLOCK_MS) as i64;
        if let Some(known) = self.peers.get_mut(&peer) {
            known.clock = Some(PeerClock::seen(known.clock, ahead_ms, now_ms));
        }
        self.judge_clock();
    }

    /// A new session with `peer`: its clock may be another one.
    pub(super) fn doubt_clock(&mut self, peer: u64) {
        if let Some(clock) = self.peers.get_mut(&peer).and_then(|known| known.clock.as_mut()) {
            clock.outdated = true;
        }
    }

    fn judge_clock(&mut self) {
        let others = self.peers.values().filter_map(|peer| peer.clock.map(|clock| clock.at_ms(self.now_ms)));
        let ahead_ms = group_ahead_ms(others, self.majority()).unwrap_or(0);
        let off = ahead_ms.unsigned_abs() > OFF_MS && !self.fault(Fault::OwnClock);
        let correction_ms = if off { ahead_ms } else { 0 };
        if (correction_ms == 0) != (self.clock_correction_ms == 0) {
            tracing::warn!(correction_ms, "this replica's wall clock against its group's: off, unless this is 0");
        }
        self.clock_correction_ms = correction_ms;
    }

    /// What to add to this replica's wall clock, in milliseconds: 0 unless that is off.
    pub(crate) fn clock_correction_ms(&self) -> i64 {
        self.clock_correction_ms
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

    // Who has not been heard may be right: nobody's clock is followed into a future that no majority has reached.
    #[test]
    fn who_has_not_been_heard_counts_as_late() {
        assert_eq!(ahead(&[], 2), None);
        assert_eq!(ahead(&[-HOUR_MS], 2), Some(-HOUR_MS));
        assert_eq!(ahead(&[HOUR_MS], 2), Some(0));
        assert_eq!(ahead(&[0, -HOUR_MS], 3), Some(-HOUR_MS), "two of five were not heard, two are ahead");
        assert_eq!(ahead(&[], 1), Some(0));
    }

    #[test]
    fn a_message_that_was_long_on_its_way_does_not_make_a_clock_slow() {
        let first = PeerClock::seen(None, 10, 1_000);
        let late = PeerClock::seen(Some(first), -5_000, 2_000);
        assert_eq!(late.ahead_ms, 10 - 50, "less what clocks may drift apart");
        let restarted = PeerClock::seen(Some(PeerClock { outdated: true, ..late }), -HOUR_MS, 3_000);
        assert_eq!(restarted.ahead_ms, -HOUR_MS);
    }
}
