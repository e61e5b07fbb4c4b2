//! What an effective command did.

use crate::coordination;
use evenkeel_protocol::{OperatorId, TableId};

/// What applying a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The state has changed.
    Applied,
    /// The state was already as the command demands.
    Unchanged,
    /// These operators have begun, at least one.
    Begun(Vec<OperatorId>),
    /// The table exists and is ready.
    TableReady(TableId),
    /// The schema has this version already, by the same change.
    SchemaReady(u64),
    /// The key of the coordination store has changed.
    Kv(coordination::Written),
}
