//! Why a command has no effect.

use crate::coordination;
use evenkeel_protocol::{Epoch, OperatorId, RangeId, ShardId, TableId};

/// Why a command is rejected. Nothing is retried unchanged, except where a variant says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such table.
    #[error("there is no table {0}")]
    UnknownTable(TableId),
    /// No such range.
    #[error("there is no range {0}")]
    UnknownRange(RangeId),
    /// No such shard.
    #[error("there is no shard {0}")]
    UnknownShard(ShardId),
    /// No such operator, or it ended long ago.
    #[error("there is no operator {0}")]
    UnknownOperator(OperatorId),
    /// The name is taken.
    #[error("a table named {0:?} exists")]
    TableExists(String),
    /// The table's schema is invalid.
    #[error("{0}")]
    InvalidTable(String),
    /// Retry later: an operator works on the range.
    #[error("operator {operator} is working on range {range}")]
    RangeBusy {
        /// The range.
        range: RangeId,
        /// The operator.
        operator: OperatorId,
    },
    /// The range has changed since the command was made.
    #[error("range {range} has epoch {found}, not {expected}")]
    WrongEpoch {
        /// The range.
        range: RangeId,
        /// The epoch it has.
        found: Epoch,
        /// The epoch the command was made for.
        expected: Epoch,
    },
    /// The keys to split at are none, not strictly growing, or not strictly inside the range.
    #[error("{0}")]
    BadSplit(String),
    /// The range is on that shard already.
    #[error("range {range} is on shard {shard} already")]
    SameShard {
        /// The range.
        range: RangeId,
        /// The shard.
        shard: ShardId,
    },
    /// The shard is being emptied.
    #[error("shard {0} is draining")]
    Draining(ShardId),
    /// The shard was declared lost for good.
    #[error("shard {0} was declared lost for good; its disks must not come back, use another number")]
    Lost(ShardId),
    /// The shard is not being emptied.
    #[error("shard {0} is not draining")]
    NotDraining(ShardId),
    /// No other shard could take the ranges.
    #[error("shard {0} is the last active one")]
    LastShard(ShardId),
    /// The shard still has ranges or operators.
    #[error("shard {0} is not empty yet")]
    NotEmpty(ShardId),
    /// The two ranges are not neighbours on one shard.
    #[error("ranges {0} and {1} are not neighbours on one shard")]
    NotNeighbours(RangeId, RangeId),
    /// The operator is past the step up to which it can be cancelled (R20), or is of a kind that
    /// cannot be.
    #[error("operator {operator} is at step {step} and can no longer be cancelled")]
    NotCancellable {
        /// The operator.
        operator: OperatorId,
        /// Its step.
        step: &'static str,
    },
    /// The operator is no move, or not between its fence and its adoption.
    #[error("operator {operator} is at step {step}: nothing of it can be taken back")]
    NotFenced {
        /// The operator.
        operator: OperatorId,
        /// Its step.
        step: &'static str,
    },
    /// The operator has ended.
    #[error("operator {operator} is over already: {status}")]
    AlreadyOver {
        /// The operator.
        operator: OperatorId,
        /// How it ended.
        status: &'static str,
    },
    /// The operator is at another step by now.
    #[error("operator {operator} is at step {found}")]
    OtherStep {
        /// The operator.
        operator: OperatorId,
        /// Its step.
        found: &'static str,
    },
    /// A limit is reached.
    #[error("{0}")]
    TooMany(String),
    /// No action of a decision is possible any more.
    #[error("nothing of this decision is possible any more: {0}")]
    NothingLeft(String),
    /// The routes are not later than the known ones, or would leave a gap.
    #[error("{0}")]
    BadRoutes(String),
    /// Retry later: the state was restored from a backup and not all shards have reported (R30).
    #[error("the state was restored from a backup and not all shards have told yet what they have")]
    Restoring,
    /// Retry later: another schema change is under way.
    #[error("operator {0} is changing the schema")]
    SchemaBusy(OperatorId),
    /// The change was planned on another version of the schema.
    #[error("the schema has version {found}, not {expected}")]
    SchemaVersion {
        /// The version it has.
        found: u64,
        /// The version that the change was planned on.
        expected: u64,
    },
    /// No such table or sequence.
    #[error("there is no table or sequence {0:?}")]
    UnknownRelation(String),
    /// A table that has to be one range on the home shard is not.
    #[error(
        "table {table:?} has {ranges} range(s) and would have to be one range on shard {home}: merge them and move it \
         there first"
    )]
    NotAtHome {
        /// Its name.
        table: String,
        /// Its ranges.
        ranges: usize,
        /// The shard of pinned tables.
        home: ShardId,
    },
    /// The range belongs to a table that neither splits nor moves.
    #[error("range {0} is pinned: its table neither splits nor moves")]
    Pinned(RangeId),
    /// Pinned tables are on the shard, and cannot be moved away.
    #[error("shard {shard} has tables that cannot move to another shard: {tables}")]
    HasPinned {
        /// The shard.
        shard: ShardId,
        /// Their names.
        tables: String,
    },
    /// The coordination store rejects the request.
    #[error(transparent)]
    Kv(coordination::RequestRefusal),
}
