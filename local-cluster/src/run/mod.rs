//! One run of a workload against a cluster, with verification and a report. `evenkeel demo` and
//! `evenkeel replay` differ only in the owner of the cluster.
//!
//! A run has these steps:
//!
//! 1. create a table and load its rows with the balancer off, so that all rows are in one range on
//!    one shard;
//! 2. restore the balancer and start the load;
//! 3. observe the placement driver, and inject faults if asked to;
//! 4. switch the balancer off and wait until no operator runs;
//! 5. read all rows back, compare all replicas, and check that every key has one owner;
//! 6. restore the balancer and assemble the report.
//!
//! | module | what it holds |
//! |---|---|
//! | [`checked_run`] | the steps above |
//! | [`options`], [`table`] | the parameters of a run |
//! | [`workload`] | a workload or a trace, with its initial rows |
//! | [`progress`] | the trait by which a run shows its progress |
//! | [`balancer`] | the balancer's switch, and its restoration |
//! | [`observation`], [`watch`] | shards, ranges and operators, observed while the load runs |
//! | [`fault_plan`], [`chaos`] | the choice of processes to kill, and the killing |
//! | [`owners`], [`verification`] | replicas compared, owners checked |
//! | [`error`] | errors of a run |
//!
//! Not done: a run does not resume after this process ends.

pub mod balancer;
pub mod chaos;
pub mod checked_run;
pub mod error;
pub mod fault_plan;
pub mod observation;
pub mod options;
pub mod owners;
pub mod progress;
pub mod table;
pub mod verification;
pub mod watch;
pub mod workload;

pub use checked_run::{FinishedRun, RunEnvironment, capacity, run};
pub use error::RunError;
pub use options::RunOptions;
pub use progress::{ProgressListener, Silent, TaskProgress};
