//! Balancer: from the placement state and the load model to decisions.
//!
//! The leader of the placement driver runs a round several times a second. [`Balancer::plan`] is
//! pure and deterministic. In this order a round
//!
//! 1. waits until every shard has reported for a full window (R29), and empties draining shards
//!    (`drain`),
//! 2. splits ranges that have grown beyond a size (`size_split`),
//! 3. while it rebalances ([`Rebalancing`]): splits ranges that are too large to be placed well, at
//!    the quantiles of their load, many ways at once, each hot key alone (`split`); then moves
//!    ranges from shards above the ceiling to the least loaded ones (`moves`),
//! 4. otherwise merges neighbours that have long been cold (`merge`).
//!
//! Which of several candidates it takes is the order of the scores in [`score`].
//!
//! The module promises:
//! - It touches no range on which an operator works.
//! - It moves no range back to a shard that the range left within the cool-down.
//! - It leaves balanced load alone: rebalancing begins above one threshold and ends below another.
//! - Load that is assigned and not yet measured counts at its destination ([`crate::load`]).
//! - For every shard and range that it leaves alone it gives the reason, with a stable code
//!   ([`Rejection`]).
//!
//! # Not done
//!
//! The balancer does not look ahead: a load that alternates faster than a move takes is not
//! followed. It knows the number of statements, not their cost, and it balances neither disk space
//! nor memory.

mod drain;
mod imbalance;
mod merge;
mod moves;
mod plan;
mod planning_context;
mod readiness;
mod rebalance;
mod rebalancing;
mod rejection;
#[cfg(test)]
mod round_scripts;
mod rounds;
pub mod score;
#[cfg(test)]
mod simulation;
mod size_split;
mod size_survey;
mod split;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod traced;

pub use imbalance::Imbalance;
pub use plan::{RoundPlan, explanation};
pub use readiness::NotReady;
pub use rebalancing::Rebalancing;
pub use rejection::{Reason, Rejection, Subject};
pub use rounds::Balancer;
pub use size_survey::{SizeQuestion, SizeSurvey};
