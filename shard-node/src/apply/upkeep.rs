//! Recording how far PostgreSQL is, and forgetting what is no longer needed.

use super::{Applier, ApplyError, SavedState, encode};
use crate::fold::RETRY_WINDOW_MS;
use crate::store::{ApplyBatch, StoreOperation};
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::keeper::Command;

/// How often what is recorded is also made durable, and the log allowed to forget, in milliseconds.
const DURABLE_MS: u64 = 2_000;
/// Records that one round deletes at most.
const PRUNE_RECORDS: usize = 10_000;

/// What has been recorded.
pub(super) struct Kept {
    /// The last position recorded.
    position: u64,
    /// The position whose state machine was recorded last.
    state_at: u64,
    /// The last position at which the state machine changed other than by rows.
    pub(super) state_changed_at: u64,
    /// When positions were recorded, oldest first: their answers are needed for the retry window.
    history: VecDeque<(Instant, u64)>,
    durable_at: Instant,
    durable_position: u64,
}

impl Kept {
    pub(super) fn at(position: u64) -> Kept {
        Kept {
            position,
            state_at: position,
            state_changed_at: position,
            history: VecDeque::new(),
            durable_at: Instant::now(),
            durable_position: 0,
        }
    }
}

impl Applier {
    /// A batch that records `position`, and with it the state machine if that has changed, and the answers since the last.
    pub(super) fn positioned(&mut self, position: u64, operations: Vec<StoreOperation>, sync: bool) -> ApplyBatch {
        let position = position.max(self.kept.position);
        let changed = self.kept.state_changed_at > self.kept.state_at && self.kept.state_changed_at <= position;
        let state = if changed { self.encoded_state() } else { None };
        if state.is_some() {
            self.kept.state_at = position;
        }
        let answers = self.shared.window().since(self.kept.position, position);
        self.kept.position = position;
        self.kept.history.push_back((Instant::now(), position));
        ApplyBatch { operations, position, term: self.term.0, state, answers, sync, records: Vec::new() }
    }

    fn encoded_state(&self) -> Option<Bytes> {
        // An error here shows at the next state transfer too; the state stays as recorded and is folded again.
        encode(&SavedState { state: self.state.clone(), window: Bytes::new() }).ok()
    }

    pub(super) async fn upkeep(&mut self) -> Result<(), ApplyError> {
        // A leader gathers nothing; a busy follower always does.
        self.flush(None).await?;
        // What was asked of the keeper before is stored before what is asked of it now.
        let reached = self.shared.progress.watermark().max(self.kept.position);
        // The state machine is ahead of PostgreSQL: what is recorded together must belong together.
        if self.kept.state_changed_at > reached {
            return Ok(());
        }
        // A log that has come far towards its cap must be allowed to forget sooner.
        let large = self.shared.log.status().log_bytes > self.config.log_cap_bytes / 8 * 3;
        let durable_due = large || self.kept.durable_at.elapsed() >= Duration::from_millis(DURABLE_MS);
        let sync = durable_due && reached > self.kept.durable_position;
        if reached > self.kept.position || sync {
            let batch = self.positioned(reached, Vec::new(), sync);
            self.keeper.ask(Command::Apply { batch: Box::new(batch), confirms: Vec::new() }).await?;
        }
        if sync {
            self.kept.durable_at = Instant::now();
            self.kept.durable_position = reached;
            // Not before the batch is in: the keeper does one after the other.
            self.keeper.ask(Command::Compact(reached)).await?;
        }
        self.prune(reached).await
    }

    async fn prune(&mut self, reached: u64) -> Result<(), ApplyError> {
        // Only what a *durable* position covers may lose its record: after a crash PostgreSQL may be back at that position (R16).
        let covered = reached.min(self.kept.durable_position);
        let mut records = Vec::new();
        while records.len() < PRUNE_RECORDS
            && self.own_records.front().is_some_and(|(position, _)| *position <= covered)
        {
            records.extend(self.own_records.pop_front().map(|(_, record)| record));
        }
        let window = Duration::from_millis(RETRY_WINDOW_MS);
        let mut positions_below = 0;
        while self.kept.history.len() > 1 && self.kept.history.front().is_some_and(|(at, _)| at.elapsed() > window) {
            if let Some((_, position)) = self.kept.history.pop_front() {
                positions_below = position;
            }
        }
        if !records.is_empty() || positions_below > 0 {
            self.keeper.ask(Command::Prune { records, positions_below }).await?;
        }
        Ok(())
    }
}
