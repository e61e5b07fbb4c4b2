//! Latch manager: which statements may use which keys of this leader now (R9).
//!
//! Each owned range has a latch. Every statement declares the keys that it touches, and acquires a
//! [`RangeHandle`] on their ranges before its snapshot is taken. It keeps the handle until its
//! outcome is final. Before a fence is logged, a [`WriteBlock`] on the range makes new statements
//! wait, and the fence waits for the handles that are out. So no statement runs on a range that has
//! been given away, and no statement fails because of a fence.
//!
//! **Reads.** A fence does not wait for autocommit reads, so a long read does not keep its range
//! here. The read is linearizable all the same. It was admitted before the write block, therefore
//! it began before any write that the destination acknowledges: the destination acknowledges none
//! before the fence, and the block stands until the fence is applied or rejected. The read is
//! answered only if its range had not departed when it ended ([`RangeHandle::is_current`]). The
//! rows of a departed range are deleted later than that (R24), so the read has seen all of them.
//!
//! **Order.** The latches follow the state machine as far as PostgreSQL has followed it: an adopted
//! range is usable once all of its rows are stored.
//!
//! The protocol is shown step by step in `testscripts/latches/*.txt`.
//!
//! Not done: latches on single rows. Rows are locked by PostgreSQL ([`super::row_locks`] knows some
//! of these locks).

use super::latch_table::{LatchDecision, LatchTable};
use super::range_latch::HandleKind;
use crate::load::now_ms;
use crate::log_entry::Change;
use crate::log_entry::image::Image;
use crate::state_machine::{RangeSize, ShardState};
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::{Failure, Key, RangeId, TableId};
use evenkeel_sql::Touches;
use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

pub use super::latch_table::ChangedKeys;
pub use super::range_latch::{RangeHandle, RangeLatch};

/// How long a statement waits for a range that is blocked or about to be adopted, in milliseconds.
const WAIT_MS: u64 = 1_000;

/// See the module.
#[derive(Debug)]
pub struct LatchManager {
    table: Mutex<LatchTable>,
    changed: watch::Sender<u64>,
}

impl Default for LatchManager {
    fn default() -> LatchManager {
        LatchManager { table: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl LatchManager {
    fn table(&self) -> MutexGuard<'_, LatchTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Follows the state machine, of which at most `keys` have changed hands since the last call.
    /// Only these keys are looked at. The log says that the ranges in `not_stored` are owned, but
    /// their rows are not in PostgreSQL yet.
    pub fn follow(&self, state: &ShardState, not_stored: &HashSet<RangeId>, keys: ChangedKeys<'_>) {
        self.table().follow(state, not_stored, keys);
        self.announce();
    }

    /// Begins to follow a stored state machine, with the stored sizes of its ranges.
    pub fn restore(&self, state: &ShardState, sizes: Vec<(RangeId, RangeSize)>) {
        self.table().restore_sizes(sizes);
        self.follow(state, &HashSet::new(), ChangedKeys::All);
    }

    /// The sizes of all ranges, to be stored.
    pub fn sizes(&self) -> Vec<(RangeId, RangeSize)> {
        self.table().sizes()
    }

    /// Counts changes of rows into the sizes of their ranges, on this replica as on all. Returns
    /// the bytes of the changes.
    pub fn count(&self, changes: &[Change]) -> u64 {
        let table = self.table();
        let mut bytes = 0;
        for change in changes {
            bytes += change.image.size_bytes() as u64;
            if change.image == Image::Truncated {
                let of_table = table.latches().filter(|latch| latch.range.table == change.table);
                of_table.for_each(|latch| latch.statistics.resize(|size| size.change(&change.image)));
                continue;
            }
            // A sequence's state is no row.
            let is_state = change.key == Key::MIN && matches!(change.image, Image::Whole(_));
            if is_state {
                continue;
            }
            if let Some(latch) = table.at(change.table, &change.key) {
                latch.statistics.resize(|size| size.change(&change.image));
            }
        }
        bytes
    }

    /// Resets all load meters, at the beginning of a leadership: earlier load was not this
    /// leader's.
    pub fn reset_meters(&self) {
        let now_ms = now_ms();
        self.latches().iter().for_each(|latch| latch.statistics.reset_meter(now_ms));
    }

    /// The number of calls of [`LatchManager::follow`].
    pub fn generation(&self) -> u64 {
        self.table().generation()
    }

    /// All latches.
    pub fn latches(&self) -> Vec<Arc<RangeLatch>> {
        self.table().latches().cloned().collect()
    }

    /// Acquires a handle on the ranges of these keys of `table`, once they are owned and not
    /// blocked. `holding` are the latches that the caller's transaction has handles on: a write
    /// block does not stop it there, because the block waits for it.
    ///
    /// # Errors
    /// [`Failure::Moved`] if a key is not here; [`Failure::Busy`] if a block lasts too long.
    pub async fn acquire(
        &self,
        table: TableId,
        touches: &Touches,
        holding: &[Arc<RangeLatch>],
    ) -> Result<RangeHandle, Failure> {
        self.acquire_as(HandleKind::Use, table, touches, holding).await
    }

    /// The same for an autocommit read, which locks nothing. A fence does not wait for the handle.
    /// The read may be answered only if the handle is current when the read has ended.
    ///
    /// # Errors
    /// As [`LatchManager::acquire`].
    pub async fn acquire_read(&self, table: TableId, touches: &Touches) -> Result<RangeHandle, Failure> {
        self.acquire_as(HandleKind::Read, table, touches, &[]).await
    }

    async fn acquire_as(
        &self,
        kind: HandleKind,
        table: TableId,
        touches: &Touches,
        holding: &[Arc<RangeLatch>],
    ) -> Result<RangeHandle, Failure> {
        let mut changes: Option<watch::Receiver<u64>> = None;
        let deadline = evenkeel_host::now() + Duration::from_millis(WAIT_MS);
        loop {
            // Subscribed before the decision, so that no change between the two is missed.
            let waiting = changes.is_some();
            match self.decide(kind, table, touches, holding) {
                LatchDecision::Granted(latches) => return Ok(RangeHandle::new(latches, kind, self.changed.clone())),
                LatchDecision::Rejected(failure) => return Err(failure),
                LatchDecision::Wait if !waiting => changes = Some(self.changed.subscribe()),
                LatchDecision::Wait => {}
            }
            let left = deadline.saturating_duration_since(evenkeel_host::now());
            if waiting && let Some(changes) = &mut changes {
                match evenkeel_host::timeout(left, changes.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => {
                        let reason = "a move of the range is at its switch, its table is being changed, or a transaction over several shards is in doubt".to_string();
                        return Err(Failure::Busy { reason, retry_after_ms: 20 });
                    }
                }
            }
        }
    }

    fn decide(
        &self,
        kind: HandleKind,
        table: TableId,
        touches: &Touches,
        holding: &[Arc<RangeLatch>],
    ) -> LatchDecision {
        self.table().decide(kind, table, touches, holding)
    }

    /// Sets the tables of schema changes that are made and not stored yet: statements wait.
    pub fn set_changing(&self, tables: BTreeSet<TableId>) {
        self.table().set_changing(tables);
        self.announce();
    }

    /// Sets the keys of transactions that an earlier leadership has prepared: statements wait until
    /// these are resolved (R26).
    pub fn set_prepared(&self, keys: BTreeSet<(TableId, Key)>) {
        self.table().set_prepared(keys);
        self.announce();
    }

    /// Blocks new statements on a range. `None` if the range is blocked already or not usable here.
    pub fn block(self: &Arc<Self>, range: RangeId) -> Option<WriteBlock> {
        let table = self.table();
        let latch = table.by_id(range)?.clone();
        let blocked = latch.block();
        drop(table);
        blocked.then(|| WriteBlock { latches: self.clone(), latch })
    }
}

/// While it lives, new statements on a range wait, reads too. Dropping it lets them continue.
#[derive(Debug)]
pub struct WriteBlock {
    latches: Arc<LatchManager>,
    latch: Arc<RangeLatch>,
}

impl WriteBlock {
    /// Waits until every statement that was admitted before the block has ended, except autocommit
    /// reads. `false` if that takes longer than `bound`.
    pub async fn drained(&self, bound: Duration) -> bool {
        if deliberate(Bug::NoDrain) {
            return true;
        }
        let mut changes = self.latches.changed.subscribe();
        let wait = async {
            while !self.latch.is_drained() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        evenkeel_host::timeout(bound, wait).await.is_ok()
    }

    /// The latch of the blocked range.
    pub fn latch(&self) -> &Arc<RangeLatch> {
        &self.latch
    }
}

impl Drop for WriteBlock {
    fn drop(&mut self) {
        self.latch.unblock();
        self.latches.announce();
    }
}

#[cfg(test)]
#[path = "latches_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "latches_cost_tests.rs"]
mod cost_tests;

#[cfg(test)]
#[path = "latches_script_tests.rs"]
mod script_tests;
