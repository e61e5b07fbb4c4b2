//! Merging what has gone cold.

use super::board::Board;
use crate::state::{Action, NewDecision, Range};
use evenkeel_protocol::ShardId;
use std::collections::BTreeMap;

/// The most merges under way at one shard.
const MERGES_PER_SHARD: usize = 2;

/// Merges pairs of neighbours on one shard that have both been cold for long, and neither cut nor moved lately: a split or a move is never
/// undone while the reason for it may come back.
pub(super) fn merge(board: &mut Board<'_>) -> Option<NewDecision> {
    let mut per_shard: BTreeMap<ShardId, usize> = BTreeMap::new();
    for operator in board.state.running() {
        if let crate::state::Work::Merge { shard, .. } = operator.work {
            *per_shard.entry(shard).or_default() += 1;
        }
    }
    let mut actions = Vec::new();
    for table in board.state.tables.keys() {
        for pair in board.state.ranges_of(*table).windows(2) {
            let &[left, right] = pair else { continue };
            let shard = left.route.shard;
            let slots = per_shard.entry(shard).or_default();
            if *slots >= MERGES_PER_SHARD || right.route.shard != shard || !board.speaks(shard) {
                continue;
            }
            let bytes =
                |range: &Range| board.picture.ranges.get(&range.route.range).map_or(u64::MAX, |view| view.bytes);
            let small = bytes(left).saturating_add(bytes(right)) <= board.config.merged_max_bytes;
            if small && long_cold(board, left) && long_cold(board, right) {
                *slots += 1;
                board.taken.extend([left.route.range, right.route.range]);
                let id = |range: &Range| (range.route.range, range.route.epoch);
                actions.push(Action::Merge { left: id(left), right: id(right) });
            }
        }
    }
    let imbalance = board.level.imbalance;
    (!actions.is_empty()).then(|| NewDecision {
        why: format!(
            "{} pair(s) of neighbouring ranges have each carried less than {:.0}% of a shard's part for {} s: merging them",
            actions.len(),
            board.config.cold_share * 100.0,
            board.config.merge_after_ms / 1000
        ),
        imbalance_before: imbalance,
        imbalance_expected: imbalance,
        alternatives: vec!["leave them: each range costs the shards and the clients' routing tables a little".into()],
        actions,
    })
}

fn long_cold(board: &Board<'_>, range: &Range) -> bool {
    let long_ago = |at_ms: u64| at_ms + board.config.merge_after_ms <= board.now_ms;
    let cold = board.picture.ranges.get(&range.route.range).and_then(|view| view.cold_since_ms);
    range.operator.is_none()
        && !board.taken.contains(&range.route.range)
        && cold.is_some_and(long_ago)
        && long_ago(range.bounds_since_ms)
        && range.left.iter().all(|(_, at_ms)| long_ago(*at_ms))
}
