//! Splitting by size: a range that has grown beyond a limit is cut into pieces of about half of it, whatever its load.
//!
//! What a range holds is known to its shard alone, so it is asked for the keys, which it finds in a sample of bounded cost. Asking is apart from
//! planning: [`Sizes`] says whom to ask and remembers the answers, and the balancer splits at what is known. The pieces are half as large as
//! may be, and [`super::merge`] joins only what stays far below that, so that neither undoes what the other has done.

use super::Reason;
use super::board::Board;
use super::picture::Picture;
use crate::config::BalancerConfig;
use crate::state::{Action, NewDecision, Range, State};
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::{Epoch, Key, RangeId, ShardId};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// The most questions under way at once: each reads a sample of a table.
const MAX_ASKED: usize = 2;
/// A question without a useful answer is asked again after this long, in milliseconds.
const ASK_AGAIN_MS: u64 = 30_000;
/// The most ranges split by size in one round.
const SPLITS_PER_ROUND: usize = 4;
/// The most pieces of one such split.
const MAX_PIECES: u64 = 16;
/// A range whose bounds changed less than this ago is not split by size, in milliseconds: how large it is has only been estimated.
const SETTLED_MS: u64 = 10_000;

/// A question to a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeQuestion {
    /// Which range it is about.
    pub range: RangeId,
    /// The range's epoch.
    pub epoch: Epoch,
    /// Whom to ask.
    pub shard: ShardId,
    /// How many pieces there are to be.
    pub pieces: u32,
}

impl SizeQuestion {
    /// The request that asks it.
    pub fn request(&self) -> ControlRequest {
        ControlRequest::SizeSplitKeys { range: self.range, epoch: self.epoch, pieces: self.pieces }
    }
}

#[derive(Debug, Clone)]
struct Asked {
    epoch: Epoch,
    under_way: bool,
    again_ms: u64,
    keys: Vec<Key>,
}

/// What has been asked about ranges that are too large, and what was answered.
#[derive(Debug, Clone, Default)]
pub struct Sizes(BTreeMap<RangeId, Asked>);

impl Sizes {
    /// Whom to ask now.
    pub fn next(
        &mut self,
        state: &State,
        picture: &Picture,
        config: &BalancerConfig,
        now_ms: u64,
    ) -> Vec<SizeQuestion> {
        let current = |id: &RangeId, epoch| state.ranges.get(id).is_some_and(|range| range.route.epoch == epoch);
        self.0.retain(|id, asked| asked.under_way || current(id, asked.epoch));
        if state.restoring || !state.balancer_enabled.unwrap_or(config.enabled) {
            return Vec::new();
        }
        let mut large: Vec<(u64, &Range)> = state
            .ranges
            .values()
            .filter_map(|range| Some((too_large(range, picture, config, now_ms)?, range)))
            .collect();
        large.sort_by_key(|(bytes, range)| (Reverse(*bytes), range.route.range));
        let mut room = MAX_ASKED.saturating_sub(self.0.values().filter(|asked| asked.under_way).count());
        let mut questions = Vec::new();
        for (bytes, range) in large {
            let route = &range.route;
            let known = self.0.get(&route.range);
            let waits = known.is_some_and(|asked| {
                asked.under_way || (asked.epoch == route.epoch && (!asked.keys.is_empty() || asked.again_ms > now_ms))
            });
            if room == 0 || waits {
                continue;
            }
            room -= 1;
            let asked = Asked { epoch: route.epoch, under_way: true, again_ms: now_ms, keys: Vec::new() };
            self.0.insert(route.range, asked);
            let pieces = (2 * bytes).div_ceil(config.split_bytes.max(1)).clamp(2, MAX_PIECES) as u32;
            questions.push(SizeQuestion { range: route.range, epoch: route.epoch, shard: route.shard, pieces });
        }
        questions
    }

    /// An answer has come, or there is none.
    pub fn answered(&mut self, range: RangeId, epoch: Epoch, answer: Result<ControlReply, String>, now_ms: u64) {
        let Some(asked) = self.0.get_mut(&range).filter(|asked| asked.epoch == epoch) else { return };
        asked.under_way = false;
        asked.again_ms = now_ms + ASK_AGAIN_MS;
        match answer {
            Ok(ControlReply::SplitKeys(keys)) => asked.keys = keys,
            other => tracing::debug!(%range, ?other, "where to split by size is not known"),
        }
    }

    fn keys(&self, state: &State, range: &Range) -> Option<&[Key]> {
        let asked = self.0.get(&range.route.range).filter(|asked| asked.epoch == range.route.epoch)?;
        let codec = state.tables.get(&range.route.table)?.schema.codec();
        // It comes from a shard: whether it can be done is judged here.
        let possible = (1..MAX_PIECES as usize).contains(&asked.keys.len())
            && asked.keys.iter().all(|key| codec.decode(key).is_ok())
            && range.route.interval.split(&asked.keys).is_some();
        possible.then_some(asked.keys.as_slice())
    }
}

/// The bytes of a range that is larger than it may be, and free.
fn too_large(range: &Range, picture: &Picture, config: &BalancerConfig, now_ms: u64) -> Option<u64> {
    let view = picture.ranges.get(&range.route.range).filter(|view| view.epoch == range.route.epoch)?;
    let settled = range.bounds_since_ms + SETTLED_MS <= now_ms;
    let rests = range.failures.until_ms(config.cooldown_ms).is_some_and(|until_ms| until_ms > now_ms);
    (view.bytes > config.split_bytes && settled && !rests && range.operator.is_none()).then_some(view.bytes)
}

/// Splits what is too large and of which it is known where.
pub(super) fn split(board: &mut Board<'_>) -> Option<NewDecision> {
    let mut actions = Vec::new();
    let mut parts = Vec::new();
    let mut ranges = board.state.ranges.len();
    for range in board.state.ranges.values() {
        let Some(bytes) = too_large(range, board.picture, board.config, board.now_ms) else { continue };
        let route = &range.route;
        let Some(at) = board.picture.sizes.keys(board.state, range).filter(|_| board.speaks(route.shard)) else {
            continue;
        };
        if actions.len() >= SPLITS_PER_ROUND || board.taken.contains(&route.range) {
            continue;
        }
        if ranges + at.len() > board.config.max_ranges {
            board.reject_range(range, Reason::TooManyRanges);
            continue;
        }
        ranges += at.len();
        board.taken.insert(route.range);
        parts.push(format!(
            "range {} ({} MiB) on shard {} into {}",
            route.range,
            bytes >> 20,
            route.shard,
            at.len() + 1
        ));
        actions.push(Action::Split { range: route.range, epoch: Some(route.epoch), at: at.to_vec() });
    }
    let imbalance = board.level.imbalance;
    (!actions.is_empty()).then(|| NewDecision {
        why: format!(
            "larger than {} MiB: splitting {} at the quantiles of their bytes",
            board.config.split_bytes >> 20,
            parts.join(", ")
        ),
        imbalance_before: imbalance,
        imbalance_expected: imbalance,
        alternatives: vec!["leave them: a large range takes long to move, and moves all or nothing".into()],
        actions,
    })
}
