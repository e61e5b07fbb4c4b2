//! Size survey: where to split ranges that have grown beyond the size limit.
//!
//! Only the shard knows the keys of a range. It is asked for the keys to split at, which it finds
//! in a sample of bounded cost. [`SizeSurvey`] decides which shard to ask and remembers the
//! answers; `size_split` plans with them.

use super::score::SizeScore;
use crate::config::BalancerConfig;
use crate::load::LoadModel;
use crate::state::{PlacementState, Range};
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::{Epoch, Key, RangeId, ShardId};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Questions under way at once, at most: each reads a sample of a table.
const MAX_ASKED: usize = 2;
/// Pause before a question without a useful answer is asked again, in milliseconds.
const ASK_AGAIN_MS: u64 = 30_000;
/// Pieces of one split by size, at most.
const MAX_PIECES: u64 = 16;
/// A range whose bounds changed less than this ago is not split by size, in milliseconds: its size
/// is only estimated.
const STABLE_BOUNDS_MS: u64 = 10_000;

/// A question to a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeQuestion {
    /// The range.
    pub range: RangeId,
    /// The range's epoch.
    pub epoch: Epoch,
    /// The shard to ask.
    pub shard: ShardId,
    /// The number of pieces.
    pub pieces: u32,
}

impl SizeQuestion {
    /// The request that asks it of the shard.
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

/// Questions about ranges that are too large, and their answers.
#[derive(Debug, Clone, Default)]
pub struct SizeSurvey(BTreeMap<RangeId, Asked>);

impl SizeSurvey {
    /// The questions to ask now.
    pub fn next(
        &mut self,
        state: &PlacementState,
        load: &LoadModel,
        config: &BalancerConfig,
        now_ms: u64,
    ) -> Vec<SizeQuestion> {
        let current = |id: &RangeId, epoch| state.ranges.get(id).is_some_and(|range| range.route.epoch == epoch);
        self.0.retain(|id, asked| asked.under_way || current(id, asked.epoch));
        if state.restoring || !state.balancer_enabled.unwrap_or(config.enabled) {
            return Vec::new();
        }
        let mut large: Vec<(u64, &Range)> =
            splittable(state).filter_map(|range| Some((too_large(range, load, config, now_ms)?, range))).collect();
        large.sort_by_key(|(bytes, range)| SizeScore { bytes: Reverse(*bytes), range: range.route.range });
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

    /// Takes in an answer, or the reason why there is none.
    pub fn answered(&mut self, range: RangeId, epoch: Epoch, answer: Result<ControlReply, String>, now_ms: u64) {
        let Some(asked) = self.0.get_mut(&range).filter(|asked| asked.epoch == epoch) else { return };
        asked.under_way = false;
        asked.again_ms = now_ms + ASK_AGAIN_MS;
        match answer {
            Ok(ControlReply::SplitKeys(keys)) => asked.keys = keys,
            other => tracing::debug!(%range, ?other, "the keys to split by size are not known"),
        }
    }

    /// The keys to split a range at, if its shard has answered and the split is possible.
    pub(super) fn keys(&self, state: &PlacementState, range: &Range) -> Option<&[Key]> {
        let asked = self.0.get(&range.route.range).filter(|asked| asked.epoch == range.route.epoch)?;
        let codec = state.tables.get(&range.route.table)?.schema.codec();
        // The answer comes from a shard and is not trusted.
        let possible = (1..MAX_PIECES as usize).contains(&asked.keys.len())
            && asked.keys.iter().all(|key| codec.decode(key).is_ok())
            && range.route.interval.split(&asked.keys).is_some();
        possible.then_some(asked.keys.as_slice())
    }
}

/// The ranges of tables that split.
fn splittable(state: &PlacementState) -> impl Iterator<Item = &Range> {
    state.ranges.values().filter(|range| !state.is_pinned(range.route.table))
}

/// The bytes of a range, if it is above the size limit and can be split now.
pub(super) fn too_large(range: &Range, load: &LoadModel, config: &BalancerConfig, now_ms: u64) -> Option<u64> {
    let view = load.ranges.get(&range.route.range).filter(|view| view.epoch == range.route.epoch)?;
    let stable = range.bounds_since_ms + STABLE_BOUNDS_MS <= now_ms;
    let rests = range.failures.until_ms(config.cooldown_ms).is_some_and(|until_ms| until_ms > now_ms);
    (view.bytes > config.split_bytes && stable && !rests && range.operator.is_none()).then_some(view.bytes)
}
