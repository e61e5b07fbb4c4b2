//! Report of a run: its figures and targets, as JSON and as text.
//!
//! A pure function, [`assemble`], computes the report from a [`RunRecord`]: the record of the
//! engine, plus facts that only the cluster knows (operators, ranges, checksums, faults). This
//! module measures nothing, so the meaning of each figure is decided in one place and tested on
//! records made by hand.
//!
//! Terms of the fields:
//!
//! - *Imbalance* of a second: the busiest shard's statements over the mean of all shards. Its
//!   *floor* is `max(1, N·p)` with N shards and the hottest single key's share p, because a key
//!   cannot be split.
//! - *Level*: the imbalance is at most 1.25 times its floor, and stays so to the end of the run. A
//!   second in which nothing was answered says nothing about balance and neither starts nor ends it
//!   (failed statements and latency show such seconds).
//! - *Before*, *during*, *after*: up to the first split, until level, and from then on.

mod assemble;
mod error;
mod least_moved;
mod report_data;
mod run_record;
mod targets;
mod text;

pub use assemble::assemble;
pub use error::ReportError;
pub use least_moved::least_moved_bytes;
pub use report_data::{
    FINAL_WINDOW_S, LEVEL_FACTOR, LatencyMs, PauseMs, Quantiles, Report, RunTarget, Statements, Throughput,
};
pub use run_record::{CompletedOperator, FaultRecord, OperatorRecord, RangeRecord, RunRecord};
