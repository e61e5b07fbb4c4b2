//! The balancer: from the state and the picture of the load to decisions.
//!
//! [`plan`] is pure and deterministic. In this order it
//!
//! 1. waits until every shard has reported (R29), and empties draining shards,
//! 2. splits ranges that have grown beyond a size (`sizes`),
//! 3. once the load has been uneven for long enough ([`Picture::acting`]): splits what is too large to be placed well, at the quantiles of
//!    its load and many ways at once, each key that is too hot alone; then moves ranges from shards above the ceiling to the least loaded,
//!    largest fitting first, and among equal ones those with the fewest bytes;
//! 4. merges neighbours that have long been cold.
//!
//! It never touches a range that an operator works on, never moves a range back to a shard it left within its cool-down, and leaves alone what is
//! level: it begins above one threshold and stops at another. Load that is assigned and not yet seen counts at its
//! destination (see [`picture`]).
//!
//! For every shard and range that it could have acted on it says why it did not ([`Rejection`]).

mod board;
mod clocks;
mod heard;
mod level;
mod merge;
mod moves;
pub mod picture;
mod rebalance;
mod rejection;
#[cfg(test)]
mod simulation;
mod sizes;
pub mod sketch;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod traced;
mod validation;

pub use heard::{Observed, ShardView};
pub use level::{Level, NotReady};
pub use moves::MoveView;
pub use picture::Picture;
pub use rejection::{Reason, Rejection, Subject};
pub use sizes::{SizeQuestion, Sizes};
pub use validation::Fault;

use crate::config::BalancerConfig;
use crate::state::{NewDecision, State};
use board::Board;
use evenkeel_protocol::ShardId;
use std::sync::Arc;

/// What the balancer wants done now, and why it wants no more.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// What to do. Empty most of the time.
    pub decisions: Vec<NewDecision>,
    /// Why each shard and range was left alone.
    pub rejections: Vec<Rejection>,
    /// The load is uneven, nothing is under way, and nothing can be done about it: call [`Picture::rest`].
    pub exhausted: bool,
}

/// Plans. `picture` must be up to date with `state` ([`Picture::update`]); `now_ms` is in milliseconds of the state machine's time.
pub fn plan(state: &State, picture: &Picture, config: &BalancerConfig, now_ms: u64) -> Plan {
    let mut board = Board::new(state, picture, config, now_ms);
    board.reject_faults();
    board.reject_clocks();
    if state.restoring {
        return board.refuse_all(Reason::Restoring);
    }
    if let Some(reason) = level::not_reported(state, picture, config, now_ms) {
        return board.refuse_all(Reason::NotReady(reason));
    }
    let drained = rebalance::drain(&mut board);
    board.decide(drained);
    if !state.balancer_enabled.unwrap_or(config.enabled) {
        return board.refuse_all(Reason::SwitchedOff);
    }
    let cut = sizes::split(&mut board);
    board.decide(cut);
    if let Some(reason) = level::not_ready(state, picture, config, now_ms) {
        return board.refuse_all(Reason::NotReady(reason));
    }
    if picture.level.total < config.min_load_per_s {
        return board.refuse_all(Reason::LittleLoad { total: picture.level.total });
    }
    if picture.acting {
        let rebalanced = rebalance::rebalance(&mut board);
        board.exhausted = rebalanced.is_none() && !board.waits_for_time();
        board.decide(rebalanced);
    } else {
        board.refuse_shards();
        let merged = merge::merge(&mut board);
        board.decide(merged);
    }
    board.into_plan()
}

/// What to tell people after a round: the reasons of the round in which nothing more could be done stand until there is another such round, or the
/// load is level.
pub fn explanation(before: &Arc<Vec<Rejection>>, plan: &Plan) -> Arc<Vec<Rejection>> {
    let waiting = plan.rejections.iter().any(|rejection| matches!(rejection.reason, Reason::NotYet { .. }));
    if waiting && !before.is_empty() { before.clone() } else { Arc::new(plan.rejections.clone()) }
}

/// The shard for a new table's range: of those that speak, and whose clocks are right, the one with the least load, then with the fewest ranges.
/// `None` if none speaks.
pub fn shard_for_new_range(state: &State, picture: &Picture) -> Option<ShardId> {
    let counts = state.range_counts();
    let active = |id: &ShardId| state.shards.get(id).is_some_and(|shard| !shard.draining);
    let speaking: Vec<_> = picture.level.loads.iter().filter(|(id, _)| active(id)).collect();
    let right: Vec<_> = speaking.iter().copied().filter(|(id, _)| !picture.clock_is_off(**id)).collect();
    // Less than a few statements a second apart is equal.
    let order = |(id, load): &(&ShardId, &f64)| ((**load / 10.0) as u64, counts.get(id).copied().unwrap_or(0), **id);
    let of = if right.is_empty() { speaking } else { right };
    of.into_iter().min_by_key(order).map(|(id, _)| *id)
}
