//! The state machine as the rest of the replica sees it, and which ranges are admitted.

use crate::leader::latches::ChangedKeys;
use crate::replica::ReplicaHandles;
use crate::state_machine::ShardState;
use evenkeel_protocol::{RangeId, SchemaDelta, TableId};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// The tables that schema changes change, by the version after the change.
type ChangingTables = BTreeMap<u64, BTreeSet<TableId>>;

/// See the module.
pub(super) struct Publication {
    handles: ReplicaHandles,
    /// Ranges owned in the log whose rows or table the apply writer has not stored yet.
    hidden: Arc<Mutex<HashSet<RangeId>>>,
    /// Tables that a schema change in the log changes, which the apply writer has not stored yet.
    changing: Arc<Mutex<BTreeMap<u64, BTreeSet<TableId>>>>,
}

impl Publication {
    /// Nothing is hidden.
    pub(super) fn new(handles: ReplicaHandles) -> Publication {
        Publication { handles, hidden: Arc::default(), changing: Arc::default() }
    }

    /// Publishes the state machine, with the keys that may have changed hands.
    pub(super) fn publish(&self, state: &ShardState, keys: ChangedKeys<'_>) {
        let state = Arc::new(state.clone());
        *self.handles.state.write().unwrap_or_else(PoisonError::into_inner) = state.clone();
        let hidden = self.hidden.lock().unwrap_or_else(PoisonError::into_inner);
        self.handles.latches.follow(&state, &hidden, keys);
    }

    /// Admits no statement to the range until [`Publication::show`].
    pub(super) fn hide(&self, range: RangeId) {
        self.hidden.lock().unwrap_or_else(PoisonError::into_inner).insert(range);
    }

    /// Admits no statement to the tables that a schema change changes. Gives the step that admits
    /// them again, to be run once the change is stored (R34).
    pub(super) fn change(&self, delta: &SchemaDelta) -> impl FnOnce() + Send + 'static {
        let (latches, changing) = (self.handles.latches.clone(), self.changing.clone());
        let (version, tables) = (delta.change.version, delta.relations.iter().map(|table| table.id));
        let tables = tables.chain(delta.dropped.iter().copied()).collect();
        let set = move |change: &dyn Fn(&mut ChangingTables)| {
            let mut changing = changing.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut changing);
            latches.set_changing(changing.values().flatten().copied().collect());
        };
        set(&|changing| _ = changing.insert(version, BTreeSet::clone(&tables)));
        move || set(&|changing| _ = changing.remove(&version))
    }

    /// Hides nothing any more; takes effect with the next [`Publication::publish`].
    pub(super) fn hide_nothing(&self) {
        self.hidden.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Gives the step that admits statements to a hidden range, to be run once the range is stored.
    pub(super) fn show(&self, range: RangeId) -> impl FnOnce() + Send + 'static {
        let (handles, hidden) = (self.handles.clone(), self.hidden.clone());
        move || {
            let mut hidden = hidden.lock().unwrap_or_else(PoisonError::into_inner);
            hidden.remove(&range);
            let state = handles.state();
            let keys = state.range(range).map(|range| (range.table, range.interval.clone()));
            handles.latches.follow(&state, &hidden, ChangedKeys::Only(keys.as_slice()));
        }
    }
}
