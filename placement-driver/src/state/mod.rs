//! Placement state: the replicated state machine of the placement driver. It holds shards, tables,
//! ranges, operators, decisions of the balancer, the next numbers, and the coordination store.
//!
//! [`apply()`] is a deterministic function of the state and a [`Proposal`]; time comes with the
//! proposal. Every replica applies the same proposals in the same order, and therefore has the same
//! state, byte for byte when encoded.
//!
//! The module promises, whatever is proposed:
//! - The ranges of a table partition all of its keys at every version: no gap, no overlap.
//! - The epoch of a key's range only grows (invariant 6). Numbers are never given twice, and
//!   operators' numbers only grow (R20).
//! - At most one operator works on a range.
//! - Everything that is remembered is bounded ([`limits`]).
//!
//! A route changes only after a shard's log has recorded the change: with the transition that ends
//! a split, merge or adoption, or with [`Command::TakeRoutes`], [`Command::TakeTables`] or
//! [`Command::Reconciled`], which carry what shards have reported.
//!
//! | file | contents |
//! |---|---|
//! | `placement_state` | [`PlacementState`] and questions about it |
//! | `command`, `effect`, `refusal` | the entries of the log and the verdicts on them |
//! | `apply` | which function carries out which command |
//! | `shard_changes`, `table_changes`, `schema_changes`, `route_changes`, `restoration` | the commands about these |
//! | `operator_begin`, `operator_advance`, `operator_cancel` | the commands about operators |
//! | `operator_status`, `work` | an operator: its steps, the table of transitions, its work |
//! | `shard`, `table`, `schema`, `range`, `decision`, `changes`, `numbers`, `found`, `limits`, `moment` | the parts of the state |
//!
//! # Not done
//!
//! The state decides nothing by itself: the balancer and the operator controller propose, and this
//! module only rejects what would break its promises.

mod apply;
mod changes;
mod command;
mod decision;
mod effect;
mod found;
pub mod limits;
mod moment;
mod numbers;
mod operator_advance;
mod operator_begin;
mod operator_cancel;
mod operator_status;
mod placement_state;
mod range;
mod refusal;
mod restoration;
mod route_changes;
mod schema;
mod schema_changes;
mod shard;
mod shard_changes;
mod table;
mod table_changes;
#[cfg(test)]
mod tests;
mod work;

pub use apply::apply;
pub use changes::{MAX_CHANGES, VersionChange, VersionChanges};
pub use command::{Command, Proposal};
pub use decision::{Action, Decision, NewDecision};
pub use effect::Effect;
pub use found::{Found, SKIPPED_NUMBERS};
pub use limits::{MAX_RANGES, MAX_REPLICAS, MAX_SHARDS};
pub use operator_status::{MAX_HISTORY, Operator, Status, Step, Transition};
pub use placement_state::PlacementState;
pub use range::{Failures, Range};
pub use refusal::Refusal;
pub use schema::{Schema, SchemaPlan};
pub use shard::Shard;
pub use table::Table;
pub(crate) use table::check_schema;
pub use work::Work;
