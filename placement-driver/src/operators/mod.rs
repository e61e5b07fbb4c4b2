//! Operators: the controller takes each operator from step to step, by requests to shards and the
//! proofs in their answers and reports.
//!
//! [`OperatorController`] is synchronous and deterministic; time comes in with every call. It
//! belongs to one leadership of the placement driver and remembers only what a successor can find
//! out again: which requests are under way, and when to repeat them. Everything else is in the log.
//! A successor therefore continues from the last transition by sending the same request again;
//! every request carries the operator's number and is idempotent.
//!
//! A transition is proposed only after a shard's answer or report has proved it, because the
//! shards' logs are the authority (invariant 6). The exception is the deadline of a move: it asks
//! the source to cancel, whose log decides.
//!
//! | step | request | proof of the next step |
//! |---|---|---|
//! | apply | `CreateTable`, `Split`, `Merge` to the owner | its answer |
//! | prepare | `PrepareSchema` to every shard | all of their answers |
//! | apply (schema change) | `ApplySchema` to every shard | all of their answers and reports |
//! | open | `MoveOpen` to the source | its answer |
//! | copy | `IngestOpen` to the destination, which then drives the move by itself | reports: fenced, adopted, differs |
//! | switch | none (R23) | reports: adopted, declined |
//! | purge | `Purge` to the source (R24) | its answer |
//! | forget | `MoveForget` to the destination | its answer |
//! | cancel | `MoveCancel` to the source, whose log decides (R20) | its answer |
//! | discard | `IngestCancel` to the destination | its answer |
//! | restore | none (R23); `TakeBack` to the source if the destination is lost | the source's report: owned again at a higher epoch |
//!
//! Each kind of operator has one file with its steps, requests, proofs, influence on load and
//! slots, and deadline: [`create_table`], [`split`], [`merge`], [`move_range`], [`schema_change`],
//! [`drain`]. Their scenarios are in `testscripts/`. `leftovers` deletes what ended operators have
//! left at shards, and `orphaned_copies` finds the copies that only an administrator may delete.
//! `reported_routes` and `restoration` take in what shards report and the state lacks.
//!
//! # Not done
//!
//! The controller does no I/O: its caller sends the requests and proposes the commands ([`Todo`]).
//! It does not decide what to split, merge or move; that is [`crate::balancer`].

mod answer;
mod call;
mod controller;
pub mod create_table;
pub mod drain;
mod kinds;
mod leftovers;
pub mod merge;
pub mod move_range;
pub mod orphaned_copies;
mod reported_routes;
mod restoration;
#[cfg(test)]
mod restoration_tests;
pub mod schema_change;
#[cfg(test)]
mod scripts;
pub mod split;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use call::{CallName, Todo};
pub use controller::{OperatorController, STUCK_AFTER_MS};
pub use kinds::destination;
pub use reported_routes::take_members;
pub use restoration::{GRACE_MS, may_number, missing, take_in, unadopted};
