//! The history of a run: its phase, the operations of clients, crashes and counts.
//!
//! One history is shared by the world, which advances the phase, and the clients, which record
//! their operations. The checkers judge it in the end.

use super::coordination::CoordinationHistory;
use super::events::{Denial, Event, Last, Loss};
use super::large_values::Filled;
use super::load_spike::Overload;
use crate::topology::Part;
use evenkeel_protocol::{KeyInterval, ShardId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// One history, shared by the world and the clients.
pub type SharedHistory = Rc<RefCell<RunHistory>>;

/// See the module.
#[derive(Debug, Default)]
pub struct RunHistory {
    /// The cluster can be used.
    pub set_up: bool,
    /// Since when everything is healed.
    pub healed_ms: Option<u64>,
    /// Everything works again.
    pub recovered: bool,
    /// The clients must end.
    pub stop: bool,
    /// The last look.
    pub last: Option<Last>,
    /// The ranges that each shard's leader owned, at the last look.
    pub owners: Vec<(ShardId, KeyInterval)>,
    /// Operations on counters.
    pub events: Vec<Event>,
    /// Writes that were answered before their COMMIT and lost.
    pub losses: Vec<Loss>,
    /// Who has said that it does not lead.
    pub denials: Vec<Denial>,
    /// Which processes died when, and with them what was in their memory.
    pub crashes: Vec<(u64, Part)>,
    /// How often what the simulation is for has happened, by kind.
    pub counts: BTreeMap<&'static str, u64>,
    /// Operations of the coordination store.
    pub coordination: CoordinationHistory,
    /// The statements whose large values may be in a row, by key.
    pub filled: BTreeMap<i64, Filled>,
    /// The overload when all was well, if there was one.
    pub overload: Option<Overload>,
    /// The first violation that a client saw itself.
    pub trouble: Option<String>,
    /// The reason for waiting, for the message of a run that exceeds its bound.
    pub waiting_for: String,
}

impl RunHistory {
    /// Something happened that the simulation is for.
    pub fn count(&mut self, kind: &'static str) {
        self.add(kind, 1);
    }

    /// It happened `times` times.
    pub fn add(&mut self, kind: &'static str, times: u64) {
        *self.counts.entry(kind).or_default() += times;
    }

    /// Something that must not happen; the first is kept.
    pub fn wrong(&mut self, sentence: String) {
        self.trouble.get_or_insert(sentence);
    }
}
