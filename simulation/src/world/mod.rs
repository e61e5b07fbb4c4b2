//! The world of a run: the cluster, faults, and the passing of time.
//!
//! | module | contents |
//! |---|---|
//! | `run` | a whole run: setting up, faults, healing, recovery |
//! | `options` | options and report of a run |
//! | `cluster` | machines and their processes |
//! | `configs` | configurations of replicas |
//! | `fault_effects` | faults, applied to the cluster |
//! | `restoration` | the placement driver restored from an old copy |
//! | `verdict` | all checkers, and the counts of the report |

mod cluster;
mod configs;
mod fault_effects;
mod options;
mod restoration;
mod run;
mod verdict;

pub use options::{Options, RunReport};
pub use run::World;
