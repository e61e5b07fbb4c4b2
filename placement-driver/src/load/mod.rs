//! Load model: what the leader of the placement driver believes about the load of each range and
//! shard.
//!
//! Shards report several times a second. [`LoadModel::observe`] validates a report and takes it in;
//! [`LoadModel::update`] brings the model up to date with the placement state. The balancer plans
//! on the model, the operator controller takes the proofs of its transitions from the latest
//! reports in it, and the REST API shows it.
//!
//! The module promises:
//! - Every number in the model is finite and within the limits of `report_validation`, whatever a
//!   shard reports.
//! - The load of a range that was split, merged or moved is *expected* from its parents until it is
//!   measured, so that load that was already assigned is not assigned twice (R29).
//! - The model is deterministic: time comes in with every call.
//!
//! The model belongs to one leadership and begins empty.
//!
//! | file | contents |
//! |---|---|
//! | `load_model` | [`LoadModel`]: all of it |
//! | `range_view` | [`RangeView`]: the load of one range, measured or expected |
//! | `shard_view` | [`ShardView`]: the latest report of one shard |
//! | `move_view` | [`MoveView`]: the progress of one move, and the bandwidth of shards |
//! | `load_profile` | where within a range the load falls, and where to cut |
//! | `clocks` | clocks that differ from the median |
//! | `report_validation`, `report_fault` | impossible figures in reports, and the memory of them |
//!
//! # Not done
//!
//! The model does not judge: imbalance and the decision to rebalance are in [`crate::balancer`]. It
//! counts statements, not their cost in PostgreSQL.

mod clocks;
mod load_model;
pub mod load_profile;
mod move_view;
mod range_view;
mod report_fault;
mod report_validation;
mod shard_view;

pub use load_model::LoadModel;
pub use move_view::MoveView;
pub use range_view::{RangeView, Source};
pub use report_fault::{FaultView, Observed};
pub use report_validation::ReportFault;
pub use shard_view::ShardView;
