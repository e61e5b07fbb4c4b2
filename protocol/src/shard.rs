//! Requests to a shard's replicas, over RPC: from clients, from the placement driver, and from other shards while a range
//! moves.

use crate::error::{Failure, SqlError};
use crate::ids::{Epoch, OperatorId, RangeId, ShardId, TableId, TxnId};
use crate::interval::KeyInterval;
use crate::key::Key;
use crate::report::ShardReport;
use crate::routing::ShardInfo;
use crate::rows::{Column, RowBatch};
use crate::schema::TableSchema;
use crate::value::Value;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

pub use crate::levels::{Durability, ReadLevel};

/// One statement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatementRequest {
    /// The client's id; it makes a retried write safe (R14).
    pub id: TxnId,
    /// The SQL with `$n` for parameters. The shard works out itself which keys it touches.
    pub sql: Arc<str>,
    /// The parameters.
    pub params: Vec<Value>,
    /// Only rows with keys in here: a statement over several ranges is sent to each with its part. Only for `SELECT`.
    pub clip: Option<KeyInterval>,
    /// At most this many rows, on top of the statement's own `LIMIT`: what is left for later ranges of a scan.
    pub limit: Option<u64>,
    /// How fresh a read must be.
    pub read: ReadLevel,
    /// A `local` read whose state can be older than this is refused, in milliseconds. `None` takes any age.
    pub max_staleness_ms: Option<u64>,
    /// What a write must have reached when it is answered. Below `disk` the answer is a stream: [`ShardReply::Early`], then
    /// [`ShardReply::Done`] or [`ShardReply::Failed`] when its COMMIT has ended; or [`ShardReply::Rows`] alone.
    pub durability: Durability,
}

/// How a transaction begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TransactionOptions {
    /// `REPEATABLE READ` instead of `READ COMMITTED`.
    pub repeatable_read: bool,
    /// `READ ONLY`.
    pub read_only: bool,
}

/// A request to a shard's replica. Each is answered by one [`ShardReply`], a copy by a stream of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ShardRequest {
    /// One statement in a transaction of its own.
    Statement(StatementRequest),
    /// One statement in a transaction that stays open on this connection; the first also begins it.
    InTransaction {
        /// The transaction's number on this connection, chosen by the client.
        transaction: u64,
        /// Present on the first statement.
        begin: Option<TransactionOptions>,
        /// The statement.
        statement: StatementRequest,
    },
    /// Commits a transaction of this connection under `id`. Sent again on a new connection after an unknown outcome, it answers from the
    /// retry window and commits nothing.
    Commit {
        /// The transaction's number on this connection.
        transaction: u64,
        /// Its id.
        id: TxnId,
        /// A key it has written, by table: where the retry window looks after the range has moved.
        key: Option<(TableId, Key)>,
        /// What it must have reached when it is answered; below `disk` by a stream, as for a statement.
        durability: Durability,
    },
    /// Rolls a transaction of this connection back.
    Rollback {
        /// The transaction's number on this connection.
        transaction: u64,
    },
    /// From the placement driver to the leader.
    Control(ControlRequest),
    /// From a destination's leader to a replica of the source: stream this range. Answered by a stream of [`CopyItem`]s.
    Copy(CopyRequest),
    /// From a destination's leader to the source's leader: the destination has caught up, log the fence.
    Fence {
        /// The move.
        operator: OperatorId,
        /// The attempt that has caught up.
        attempt: u64,
    },
    /// From a destination's leader to the source: what became of the range after the fence (R23).
    Settled {
        /// The move.
        operator: OperatorId,
        /// Whether the destination adopted the range; if not, the source takes it back.
        adopted: bool,
    },
    /// From the source's leader to the destination's: what is known of this move (R23)?
    AskSettled {
        /// The move.
        operator: OperatorId,
    },
    /// A replica's whole state, for one that fell behind the log. Answered by a stream of [`StateItem`]s.
    State,
    /// What this replica is and knows, for tests and tools.
    Inspect,
    /// From a destination's leader to its other replicas: the checksum of the range as this move brought it, if it is known there.
    AdoptedChecksum {
        /// The move.
        operator: OperatorId,
    },
    /// From a shard's leader to its other replicas: the checksums of a checkpoint (R31), as soon as they are known.
    Checkpoint {
        /// The checkpoint's number.
        nonce: u64,
    },
}

/// The answer to a [`ShardRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ShardReply {
    /// To a statement.
    Rows(StatementReply),
    /// To a write at a durability below `disk`: the session may take it for done, and another reply follows (R28).
    Early(StatementReply),
    /// To a commit or rollback.
    Done,
    /// To a control request.
    Control(ControlReply),
    /// One item of a copy.
    Copy(CopyItem),
    /// One item of a state transfer.
    State(StateItem),
    /// To [`ShardRequest::AskSettled`]: `None` while undecided.
    Settled(Option<bool>),
    /// To [`ShardRequest::Inspect`].
    Inspect(Box<Inspection>),
    /// It was not answered.
    Failed(Failure),
}

/// The answer to a statement.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementReply {
    /// The result's columns; empty if the statement returns none.
    pub columns: Arc<[Column]>,
    /// The result's rows.
    pub rows: RowBatch,
    /// Rows inserted, updated, deleted or returned.
    pub affected: u64,
    /// Of a `local` read, in milliseconds: everything acknowledged longer ago than this, when the answer left the replica, is in it.
    pub staleness_ms: Option<u64>,
}

/// What the placement driver asks of a shard's leader. Each is idempotent: it carries the operator's id and the epoch it expects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// Create the table and own all of its keys as one range.
    CreateTable {
        /// The table.
        schema: TableSchema,
        /// Its first range; epoch 1.
        range: RangeId,
    },
    /// Split a range. The piece on the left keeps its id, each further one gets the id beside its first key; all get the epoch
    /// after `epoch`.
    Split {
        /// The operator.
        operator: OperatorId,
        /// The range.
        range: RangeId,
        /// The range's epoch before.
        epoch: Epoch,
        /// Where to split, growing strictly, and what the piece that starts there is called.
        at: Vec<(Key, RangeId)>,
    },
    /// Merge two neighbours. The left one stays, with the epoch after the larger of both.
    Merge {
        /// The operator.
        operator: OperatorId,
        /// The range on the left and its epoch.
        left: (RangeId, Epoch),
        /// The range on the right and its epoch.
        right: (RangeId, Epoch),
    },
    /// To the source: a move of this range begins (R20).
    MoveOpen {
        /// The operator.
        operator: OperatorId,
        /// The range.
        range: RangeId,
        /// Its epoch before the move.
        epoch: Epoch,
        /// Where it goes.
        to: ShardInfo,
    },
    /// To the source: cancel the move if it is not fenced yet (R20).
    MoveCancel {
        /// The operator.
        operator: OperatorId,
        /// The range.
        range: RangeId,
    },
    /// To the destination: take the range in. From here on the destination drives the move by itself.
    IngestOpen {
        /// The operator.
        operator: OperatorId,
        /// The table, created here if it is not yet.
        schema: TableSchema,
        /// The range.
        range: RangeId,
        /// Its keys.
        interval: KeyInterval,
        /// Its epoch before the move.
        epoch: Epoch,
        /// Where it comes from.
        from: ShardInfo,
    },
    /// To the destination: the move was cancelled at the source; forget it and delete what came in.
    IngestCancel {
        /// The operator.
        operator: OperatorId,
    },
    /// To the source or the destination of a settled move: its checksum of the range at the fence.
    MoveChecksum {
        /// The operator.
        operator: OperatorId,
    },
    /// To the source of a verified move: delete the copy left behind, then forget the move (R24).
    Purge {
        /// The operator.
        operator: OperatorId,
    },
    /// To the destination of a purged move: forget the move.
    MoveForget {
        /// The operator.
        operator: OperatorId,
    },
    /// Checksums of every owned range at one place in the log, from every replica (R31).
    Checksums,
    /// Hand leadership to another replica (to `to` if given).
    TransferLeadership {
        /// The replica's number.
        to: Option<u64>,
    },
    /// A report now.
    Report,
    /// Change who the shard's replicas are: take one out, let one in, or both at once. Asked again it finds that done.
    ChangeReplicas {
        /// The number of the replica that leaves.
        remove: Option<u64>,
        /// The one that comes: its process runs already, with an empty folder, and waits to be let in.
        add: Option<NewReplica>,
    },
}

/// A replica to be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewReplica {
    /// Its number, 1 to 255: one that no other machine has had in this shard.
    pub replica: u64,
    /// Where it listens for clients.
    pub rpc: SocketAddr,
    /// Where it listens for the shard's other replicas.
    pub log: SocketAddr,
}

/// A shard leader's answer to a [`ControlRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ControlReply {
    /// It is in the log and applied, now or before.
    Done,
    /// Under way; ask again.
    Pending {
        /// What it waits for.
        waiting_for: String,
    },
    /// Never: the state does not allow it (a wrong epoch, an open move, a fence already logged).
    Refused {
        /// A stable code: `wrong-epoch`, `no-such-range`, `move-open`, `already-fenced`, `no-such-operator`, `bad-split`, …
        code: String,
        /// One sentence.
        reason: String,
    },
    /// To [`ControlRequest::MoveChecksum`].
    Checksum(RangeChecksum),
    /// To [`ControlRequest::Checksums`]: per replica, per range.
    Checksums(Vec<ReplicaChecksums>),
    /// To [`ControlRequest::Report`].
    Report(Box<ShardReport>),
}

/// A checksum over the rows of a range; equal contents give equal sums whatever order the rows lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeChecksum {
    /// Rows.
    pub rows: u64,
    /// The sum, modulo 2^64, of a 64-bit hash of each row.
    pub sum: u64,
}

/// One replica's checksums at one place in its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaChecksums {
    /// The replica's number.
    pub replica: u64,
    /// The place in the log, the same for all replicas that answered.
    pub index: u64,
    /// Per owned range; `Err` with the reason if this replica did not answer.
    pub ranges: Result<Vec<(RangeId, RangeChecksum)>, String>,
}

/// Start of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRequest {
    /// The move.
    pub operator: OperatorId,
    /// The attempt; a new one starts the copy afresh (R21).
    pub attempt: u64,
}

/// One item of a copy's stream. All chunks come before the end of the copy; changes come from the first chunk's position on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopyItem {
    /// All rows in `interval`, as of `position` in the source's log.
    Chunk {
        /// The keys it covers; chunks follow one another without a gap.
        interval: KeyInterval,
        /// The last entry of the source's log that the rows include.
        position: u64,
        /// Packed row images.
        rows: RowBatch,
        /// Whether it is the last chunk.
        last: bool,
    },
    /// What happened in the range in the source's log, from after `from` up to and including `to`.
    Changes {
        /// The end of the previous item of this kind (or where the tail starts).
        from: u64,
        /// The last position covered.
        to: u64,
        /// Encoded changes with their positions, opaque outside the shard's own code.
        changes: Vec<Bytes>,
    },
    /// The fence: everything before has been sent.
    Fenced {
        /// Its position in the source's log.
        position: u64,
        /// The range's epoch from the fence on.
        epoch: Epoch,
        /// When the source began to hold statements, in microseconds since the Unix epoch.
        held_since_us: u64,
    },
    /// The source cancelled the move.
    Cancelled,
}

/// One item of a state transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StateItem {
    /// First: the position, and the shard's state machine there, encoded.
    Start {
        /// Position in the log.
        index: u64,
        /// The term in force there.
        term: u64,
        /// The encoded state machine.
        state: Bytes,
    },
    /// Rows of one table.
    Rows {
        /// The table.
        table: TableId,
        /// Packed row images.
        rows: RowBatch,
    },
    /// Last: all of it has been sent.
    End,
}

/// What a replica is and knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// The shard.
    pub shard: ShardId,
    /// The replica's number.
    pub replica: u64,
    /// The shard's replicas by the newest membership that it knows, and where they listen: whoever has an older list learns from it.
    pub replicas: BTreeMap<u64, SocketAddr>,
    /// Whether it leads and serves.
    pub leads: bool,
    /// The leader it knows of.
    pub leader: Option<u64>,
    /// The last position of the log its PostgreSQL holds.
    pub applied: u64,
    /// The last position known to be decided.
    pub decided: u64,
    /// The first position the log still holds.
    pub first: u64,
    /// The process id of its PostgreSQL server.
    pub postgres_pid: Option<u32>,
    /// Its ranges: id, epoch, table, interval, and whether it owns them, unfenced.
    pub ranges: Vec<(RangeId, Epoch, TableId, KeyInterval, bool)>,
}

impl From<SqlError> for ShardReply {
    fn from(error: SqlError) -> ShardReply {
        ShardReply::Failed(Failure::Sql(error))
    }
}
