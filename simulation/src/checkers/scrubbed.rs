//! R31: the comparison of replicas never reports a difference between correct replicas, whatever is
//! written, split, moved, killed or re-seeded meanwhile.

use evenkeel_protocol::ShardId;
use evenkeel_protocol::report::ShardReport;
use std::collections::BTreeMap;

/// The latest comparisons that leaders have reported, by shard and term.
#[derive(Debug, Default)]
pub struct Scrubbed {
    latest: BTreeMap<(ShardId, u64), (u64, u64, u64)>,
}

impl Scrubbed {
    /// Takes a report; returns its violation, in words.
    pub fn look(&mut self, report: &ShardReport) -> Option<String> {
        let scrub = &report.scrub;
        let known = self.latest.entry((report.shard, report.term)).or_default();
        if scrub.found > known.2 {
            let what = &scrub.differences;
            return Some(format!("shard {} finds that its replicas differ: {what:?}", report.shard));
        }
        *known = (scrub.rounds.max(known.0), scrub.pieces.max(known.1), scrub.found);
        None
    }

    /// Reported rounds that have ended, and reported pieces that were compared.
    pub fn done(&self) -> (u64, u64) {
        self.latest.values().fold((0, 0), |sum, known| (sum.0 + known.0, sum.1 + known.1))
    }
}
