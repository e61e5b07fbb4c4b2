//! R31: replicas that are right are never found to differ, whatever is written, split, moved, killed or re-seeded meanwhile.

use evenkeel_protocol::ShardId;
use evenkeel_protocol::report::ShardReport;
use std::collections::BTreeMap;

/// What leaders have reported of their comparisons, the latest by shard and term.
#[derive(Debug, Default)]
pub struct Scrubbed {
    latest: BTreeMap<(ShardId, u64), (u64, u64, u64)>,
}

impl Scrubbed {
    /// A report; gives what is wrong with it, in words.
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

    /// Rounds that have ended and pieces that were compared, as far as was reported.
    pub fn done(&self) -> (u64, u64) {
        self.latest.values().fold((0, 0), |sum, known| (sum.0 + known.0, sum.1 + known.1))
    }
}
