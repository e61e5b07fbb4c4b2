//! One move of a range, as the source's or the destination's state machine records it.

use super::finished_operators::FinishedWork;
use super::range_size::RangeSize;
use evenkeel_protocol::report::MoveProgress;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::{Epoch, Key, KeyInterval, OperatorId, RangeId, TableId};
use serde::{Deserialize, Serialize};

/// A move of a range out of this shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MoveOut {
    /// The operator.
    pub operator: OperatorId,
    /// The range.
    pub range: RangeId,
    /// Its table.
    pub table: TableId,
    /// Its keys.
    pub interval: KeyInterval,
    /// Its epoch before the move.
    pub epoch: Epoch,
    /// Where it goes.
    pub to: ShardInfo,
    /// How far it is.
    pub phase: OutPhase,
}

/// How far a move out is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutPhase {
    /// Open: the range is still owned here.
    Open,
    /// Fenced: no shard owns it until the destination adopts it.
    Fenced {
        /// The fence's place in this log.
        position: u64,
        /// When statements began to be held, in microseconds since the Unix epoch.
        held_since_us: u64,
    },
    /// The destination owns it; the copy here can go.
    HandedOver,
    /// The copy here is going.
    Purging,
}

/// A move into this shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MoveIn {
    /// The operator.
    pub operator: OperatorId,
    /// The range.
    pub range: RangeId,
    /// Its table.
    pub table: TableId,
    /// Its keys.
    pub interval: KeyInterval,
    /// Its epoch before the move.
    pub epoch: Epoch,
    /// Where it comes from.
    pub from: ShardInfo,
    /// The latest attempt; 0 before the first.
    pub attempt: u64,
    /// How far it is.
    pub phase: InPhase,
    /// Rows copied in the latest attempt.
    pub rows: u64,
    /// Bytes copied in all attempts.
    pub bytes: u64,
    /// What has come in in the latest attempt.
    pub size: RangeSize,
    /// The cursor: where the next chunk must start; `None` once the copy is complete. A change
    /// applies only to a key below it (R21).
    pub(super) next: Option<Key>,
    /// The source's position that all that lies below the cursor is as of.
    pub(super) tail_to: u64,
}

/// How far a move in is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InPhase {
    /// Rows and changes are coming in.
    Copying,
    /// The range is owned here, or was until a later operator.
    Adopted,
    /// It was declined or cancelled; its copy is being deleted.
    Discarding,
}

impl MoveOut {
    pub(super) fn work(&self) -> FinishedWork {
        FinishedWork::MoveOut { range: self.range, epoch: self.epoch }
    }
}

impl MoveIn {
    pub(super) fn work(&self) -> FinishedWork {
        match self.phase {
            InPhase::Adopted => FinishedWork::MoveIn { range: self.range, epoch: self.epoch },
            InPhase::Copying | InPhase::Discarding => FinishedWork::Declined { range: self.range, epoch: self.epoch },
        }
    }

    /// Whether all chunks of the latest attempt are in.
    pub fn is_copied(&self) -> bool {
        self.attempt > 0 && self.next.is_none()
    }

    /// How far it is, for reports.
    pub fn progress(&self) -> MoveProgress {
        MoveProgress {
            attempts: self.attempt,
            rows: self.rows,
            bytes: self.bytes,
            position: self.tail_to,
            cursor: self.next.clone(),
            differs: None,
            trouble: None,
        }
    }

    /// The source's position that has come in.
    pub fn reached(&self) -> u64 {
        self.tail_to
    }

    /// Whether the key lies in the range and has been copied in the latest attempt.
    pub(super) fn has_copied(&self, key: &Key) -> bool {
        self.interval.contains(key) && self.next.as_ref().is_none_or(|next| key < next)
    }

    pub(super) fn begin_attempt(&mut self, attempt: u64, position: u64) {
        self.attempt = attempt;
        self.next = Some(self.interval.start.clone());
        self.tail_to = position;
        self.rows = 0;
        self.size = RangeSize::default();
    }
}
