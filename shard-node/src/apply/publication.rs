//! The state machine as the rest of the replica sees it, and which ranges are admitted.

use crate::leader::latches::ChangedKeys;
use crate::log_entry::Change;
use crate::replica::ReplicaHandles;
use crate::state_machine::ShardState;
use evenkeel_protocol::{Key, RangeId, SchemaDelta, TableId, TxnId};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// The tables that schema changes change, by the version after the change.
type ChangingTables = BTreeMap<u64, BTreeSet<TableId>>;

/// The keys of prepared transactions.
type PreparedKeys = BTreeMap<TxnId, Vec<(TableId, Key)>>;

/// See the module.
pub(super) struct Publication {
    handles: ReplicaHandles,
    /// Ranges owned in the log whose rows or table the apply writer has not stored yet.
    hidden: Arc<Mutex<HashSet<RangeId>>>,
    /// Tables that a schema change in the log changes, which the apply writer has not stored yet.
    changing: Arc<Mutex<BTreeMap<u64, BTreeSet<TableId>>>>,
    /// The keys of transactions that were prepared before this leadership (R26).
    prepared: Arc<Mutex<PreparedKeys>>,
}

impl Publication {
    /// Nothing is hidden.
    pub(super) fn new(handles: ReplicaHandles) -> Publication {
        Publication { handles, hidden: Arc::default(), changing: Arc::default(), prepared: Arc::default() }
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

    /// A leadership begins: admits no statement to the keys of prepared transactions. Of tables
    /// that lie whole on one shard, where rows may refer to each other, it admits none at all.
    pub(super) fn hold_prepared(&self) {
        let (state, transactions) = (self.handles.state(), self.handles.transactions());
        let pinned: Vec<TableId> = state.tables().filter(|table| table.pinned).map(|table| table.id).collect();
        let keys = |changes: &[Change]| -> Vec<(TableId, Key)> {
            let all = pinned.iter().map(|table| (*table, Key::MIN));
            let whole = changes.iter().any(|change| pinned.contains(&change.table));
            let each = changes.iter().map(|change| (change.table, change.key.clone()));
            each.chain(all.filter(|_| whole)).collect()
        };
        let held = transactions.all_prepared().map(|prepared| (prepared.id, keys(&prepared.changes.changes))).collect();
        drop(transactions);
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        *prepared = held;
        self.handles.latches.set_prepared(prepared.values().flatten().cloned().collect());
    }

    /// Gives the step that admits statements again once such a transaction is resolved.
    pub(super) fn show_resolved(&self, id: TxnId) -> impl FnOnce() + Send + 'static {
        let (latches, prepared) = (self.handles.latches.clone(), self.prepared.clone());
        move || {
            let mut prepared = prepared.lock().unwrap_or_else(PoisonError::into_inner);
            if prepared.remove(&id).is_some() {
                latches.set_prepared(prepared.values().flatten().cloned().collect());
            }
        }
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
