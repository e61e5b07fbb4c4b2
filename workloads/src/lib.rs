//! Workloads: what is asked of the store, how it is replayed, and what the run has shown.
//!
//! Evenkeel claims that skewed load ends up level and that nothing is lost on the way. This crate is the other side of
//! that claim: it makes the load, remembers every answer, and judges. It knows nothing about clusters; it sees a
//! [`replay::Target`] that answers statements, and gets what only the cluster can know (operators, pauses, checksums)
//! handed in for the [`report`].
//!
//! | module | holds | pure? |
//! |---|---|---|
//! | [`seed`] | the random numbers: an algorithm of our own, so that a seed means the same run for ever | yes |
//! | [`operation`] | one operation, and a source of them | yes |
//! | [`generators`] | the published workloads | yes |
//! | [`trace`] | readers of recorded workloads | reads files |
//! | [`scenario`] | a workload by its name | yes |
//! | [`replay`] | the engine: pace, order per key, ledger of acknowledged writes, latency, read-back | core yes, shell no |
//! | [`target_sql`] | the one real target: SQL through the routing client | no |
//! | [`report`] | from a run's record to the JSON report and its text | yes |
//!
//! What it promises: the same workload, rows and seed give the same sequence of operations on every machine; a write
//! is counted as lost exactly if it was acknowledged and cannot be read back; nothing grows without a limit.

pub mod generators;
pub mod operation;
pub mod replay;
pub mod report;
pub mod scenario;
pub mod seed;
pub mod target_sql;
pub mod trace;

pub use operation::{Operation, OperationKind, Source, SourceError, TimedOperation};
pub use scenario::{Scenario, ScenarioError};
