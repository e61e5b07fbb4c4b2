//! Workloads: generators and traces of operations, their replay against a target, and the report of
//! a run.
//!
//! Evenkeel promises that skewed load becomes level and that no acknowledged write is lost. This
//! crate tests the promise: it generates the load, records every answer, and judges them. It knows
//! nothing about clusters. It sees a [`replay::Target`] that answers statements; facts that only
//! the cluster knows (operators, pauses, checksums) are passed in for the [`report`].
//!
//! | module | holds | pure? |
//! |---|---|---|
//! | [`seed`] | random numbers by a fixed algorithm, so that a seed gives the same run in every version | yes |
//! | [`operation`] | one operation, and a source of them | yes |
//! | [`generators`] | the published workloads | yes |
//! | [`trace`] | readers of recorded workloads | reads files |
//! | [`scenario`] | a workload by its name | yes |
//! | [`replay`] | the engine: pace, order per key, ledger of acknowledged writes, latency, read-back | core yes, shell no |
//! | [`target_sql`] | the one real target: SQL through the routing client | no |
//! | [`report`] | from a run's record to the JSON report and its text | yes |
//!
//! It promises: the same workload, rows and seed give the same sequence of operations on every
//! machine; a write is counted as lost exactly if it was acknowledged and cannot be read back;
//! nothing grows without a limit.

pub mod generators;
pub mod operation;
pub mod replay;
pub mod report;
pub mod scenario;
pub mod seed;
pub mod target_sql;
pub mod trace;

pub use operation::{Operation, OperationKind, OperationSource, SourceError, TimedOperation};
pub use scenario::{Scenario, ScenarioError};
