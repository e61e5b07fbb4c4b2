//! The state from which an applier starts, as PostgreSQL recorded it.

use super::seeding::Seeding;
use crate::log_entry::parts::FirstParts;
use crate::state_machine::{RangeSize, ShardState};
use evenkeel_protocol::RangeId;
use evenkeel_replicated_log::Term;
use std::collections::HashSet;

/// What an applier starts from.
pub struct Start {
    /// The state machine at `position`.
    pub state: ShardState,
    /// The sizes of its ranges.
    pub sizes: Vec<(RangeId, RangeSize)>,
    /// What PostgreSQL holds entirely.
    pub position: u64,
    /// PostgreSQL may hold entries up to here; at least `position`.
    pub reached: u64,
    /// The term in force there.
    pub term: Term,
    /// Later entries that PostgreSQL holds too, by (term, serial).
    pub records: HashSet<(u64, u64)>,
    /// A term that this replica led and must not lead again (R1).
    pub spent: Option<Term>,
    /// First parts of unfinished entries that came with the state at `position`.
    pub unfinished: Vec<FirstParts>,
    /// If the replica is being re-seeded.
    pub seeding: Option<Seeding>,
}
