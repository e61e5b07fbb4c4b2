//! Requests to a shard's replicas, over RPC: from clients, from the placement driver, and from
//! other shards while a range moves.

use crate::error::{Failure, SqlError};
use crate::ids::{Epoch, OperatorId, RangeId, ShardId, TableId, TxnId};
use crate::interval::KeyInterval;
use crate::key::Key;
use crate::pass_through::{PassThroughItem, PassThroughRequest};
use crate::report::ShardReport;
use crate::routing::ShardInfo;
use crate::rows::{Column, RowBatch};
use crate::schema::TableSchema;
use crate::schema_change::SchemaDelta;
use crate::scrub::{Comparison, Place, ReplicaSums};
use crate::value::Value;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

pub use crate::levels::{Durability, ReadLevel, TransactionOptions};
pub use crate::scrub::RangeChecksum;

/// One statement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatementRequest {
    /// The client's id; it makes a retried write safe (R14).
    pub id: TxnId,
    /// The SQL with `$n` for parameters. The shard works out itself which keys it touches.
    pub sql: Arc<str>,
    /// The parameters.
    pub params: Vec<Value>,
    /// Only rows with keys in here: a statement over several ranges is sent to each with its part.
    /// Only for `SELECT`.
    pub clip: Option<KeyInterval>,
    /// At most this many rows, in addition to the statement's own `LIMIT`: the rest for later
    /// ranges of a scan.
    pub limit: Option<u64>,
    /// How fresh a read must be.
    pub read: ReadLevel,
    /// A `local` read whose state can be older than this is refused, in milliseconds. `None` takes
    /// any age.
    pub max_staleness_ms: Option<u64>,
    /// How durable a write must be when it is answered. Below `disk` the answer is a stream:
    /// [`ShardReply::Early`], then [`ShardReply::Done`] or [`ShardReply::Failed`] when its COMMIT
    /// has ended; or [`ShardReply::Rows`] alone.
    pub durability: Durability,
}

/// A request to a shard's replica. Each is answered by one [`ShardReply`], a copy by a stream of
/// them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ShardRequest {
    /// One statement in a transaction of its own.
    Statement(StatementRequest),
    /// A piece of a read in the order of the keys: the rows that come next. Answered by a
    /// [`ShardReply::Piece`].
    Piece(PieceRequest),
    /// One statement in a transaction that stays open on this connection; the first also begins it.
    InTransaction {
        /// The transaction's number on this connection, chosen by the client.
        transaction: u64,
        /// Present on the first statement.
        begin: Option<TransactionOptions>,
        /// The statement.
        statement: StatementRequest,
    },
    /// Commits a transaction of this connection under `id`. Sent again on a new connection after an
    /// unknown outcome, it answers from the retry window and commits nothing.
    Commit {
        /// The transaction's number on this connection.
        transaction: u64,
        /// Its id.
        id: TxnId,
        /// A key it has written, by table: where the retry window looks after the range has moved.
        key: Option<(TableId, Key)>,
        /// How durable it must be when it is answered; below `disk` the answer is a stream, as for
        /// a statement.
        durability: Durability,
        /// The other shards of the transaction, each of which has answered
        /// [`ShardRequest::Prepare`]: this commit decides for all of them (R26). Empty for a
        /// transaction of one shard.
        participants: Vec<ShardInfo>,
    },
    /// The first phase of a commit over several shards (R26): makes the changes of this
    /// connection's transaction durable, and commits nothing. From the answer on the shard cannot
    /// roll it back by itself.
    Prepare {
        /// The transaction's number on this connection.
        transaction: u64,
        /// Its id, the same on all of its shards.
        id: TxnId,
        /// The shard whose commit decides.
        decider: ShardInfo,
    },
    /// The second phase: the decision about a prepared transaction. From its client, on any
    /// connection; idempotent.
    Resolve {
        /// The transaction.
        id: TxnId,
        /// Whether it is committed.
        committed: bool,
    },
    /// From a participant's leader to the deciding shard's: whether a prepared transaction is
    /// committed (R26). If it is not, it never will be. Answered by [`ShardReply::Decision`].
    AskDecision {
        /// The transaction.
        id: TxnId,
    },
    /// From the deciding shard's leader to a participant's: which of these transactions are still
    /// prepared there. Answered by [`ShardReply::StillPrepared`].
    AskPrepared {
        /// Committed transactions.
        ids: Vec<TxnId>,
    },
    /// Rolls a transaction of this connection back.
    Rollback {
        /// The transaction's number on this connection.
        transaction: u64,
    },
    /// From the placement driver to the leader.
    Control(ControlRequest),
    /// From a destination's leader to a replica of the source: stream this range. Answered by a
    /// stream of [`CopyItem`]s.
    Copy(CopyRequest),
    /// From a destination's leader to the replica that streams a copy: how many of the copy's items
    /// are stored. No more than a window of items is under way at a time.
    CopyTaken {
        /// The copy's number, as [`CopyItem::Opened`] told it.
        copy: u64,
        /// Items stored so far.
        items: u64,
    },
    /// From a destination's leader to its other replicas: how far they have applied the log, and
    /// whether their stored rows of this attempt equal the sent ones.
    CopyStored {
        /// The move.
        operator: OperatorId,
        /// The attempt.
        attempt: u64,
    },
    /// From a destination's leader to the source's leader: the destination has caught up, log the
    /// fence.
    Fence {
        /// The move.
        operator: OperatorId,
        /// The attempt that has caught up.
        attempt: u64,
    },
    /// From a destination's leader to the source: the outcome of the move after the fence (R23).
    Resolved {
        /// The move.
        operator: OperatorId,
        /// Whether the destination adopted the range; if not, the source takes it back.
        adopted: bool,
    },
    /// From the source's leader to the destination's: asks for the outcome of a move (R23).
    AskResolved {
        /// The move.
        operator: OperatorId,
    },
    /// For a replica that is re-seeded: another one's state machine and retry window. Answered by a
    /// stream of [`StateItem`]s.
    State,
    /// For a replica that is re-seeded: some rows of one table. Answered by a stream of
    /// [`SeedItem`]s.
    SeedRows(SeedRequest),
    /// The state of this replica, for tests and tools.
    Inspect,
    /// Whether this replica leads and serves, and the leader that it knows of. A client asks it of
    /// the others while one replica is silent. Its cost does not depend on the number of ranges.
    WhoLeads,
    /// From a shard's leader to its other replicas: the sums of a checkpoint's pieces (R31), as
    /// soon as they are known.
    Checkpoint {
        /// The checkpoint's number.
        nonce: u64,
    },
    /// A step of a transaction in the user's own text. Answered by a stream of
    /// [`ShardReply::PassThrough`].
    PassThrough(Box<PassThroughRequest>),
}

/// The answer to a [`ShardRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ShardReply {
    /// To a statement.
    Rows(StatementReply),
    /// To [`ShardRequest::Piece`].
    Piece(Piece),
    /// To a write at a durability below `disk`: an early acknowledgement; another reply follows
    /// (R28).
    Early(StatementReply),
    /// To a commit or rollback.
    Done,
    /// To a control request.
    Control(ControlReply),
    /// One item of a copy.
    Copy(CopyItem),
    /// One item of a state transfer's beginning.
    State(StateItem),
    /// To [`ShardRequest::CopyStored`].
    CopyStored {
        /// The position up to which the replica's PostgreSQL holds everything.
        applied: u64,
        /// How its stored rows of the attempt differ from the sent ones, in one sentence.
        differs: Option<String>,
    },
    /// One item of a piece of rows.
    Seed(SeedItem),
    /// To [`ShardRequest::Checkpoint`].
    Sums(Box<ReplicaSums>),
    /// To [`ShardRequest::AskResolved`]: whether the destination adopted the range; `None` while
    /// undecided.
    Resolved(Option<bool>),
    /// To [`ShardRequest::AskDecision`]: whether the transaction is committed; `None` while its
    /// commit is under way.
    Decision(Option<bool>),
    /// To [`ShardRequest::AskPrepared`].
    StillPrepared(Vec<TxnId>),
    /// To [`ShardRequest::Inspect`].
    Inspect(Box<Inspection>),
    /// To [`ShardRequest::WhoLeads`].
    Leads(Leads),
    /// To [`ShardRequest::PassThrough`].
    PassThrough(PassThroughItem),
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
    /// Of a `local` read, in milliseconds: everything acknowledged longer ago than this, when the
    /// answer left the replica, is in it.
    pub staleness_ms: Option<u64>,
}

/// The next rows of a SELECT after a key, in the order of the keys. A shard keeps no state between
/// pieces: each is a statement of its own and sees everything that was acknowledged before it was
/// sent. A range may therefore split or move, and its leader change, between two pieces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PieceRequest {
    /// The SELECT: one that ranges can answer one after the other (`Scan::RangeByRange` of the SQL
    /// crate). Its clip and its limit are those of any statement.
    pub statement: StatementRequest,
    /// The key of the last received row: the piece continues after it in the statement's direction.
    pub after: Option<Key>,
}

/// See [`PieceRequest`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// About [`PIECE_BYTES`] of rows, or one row.
    pub reply: StatementReply,
    /// The last row's key, if more rows of the clip may follow; `None`: these were the last.
    pub more_after: Option<Key>,
}

/// The size at which the rows of a [`Piece`] end, in bytes; a longer row is a piece of its own.
pub const PIECE_BYTES: usize = 256 << 10;

/// A request of the placement driver to a shard's leader. Each is idempotent: it carries the
/// operator's id and the expected epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// Create the table and own all of its keys as one range.
    CreateTable {
        /// The table.
        schema: TableSchema,
        /// Its first range; epoch 1.
        range: RangeId,
    },
    /// Drop a table whose creation was given up and happened all the same: no client knows of it.
    /// Refused if the table has more than its first range at epoch 1.
    DropTable {
        /// The table.
        table: TableId,
    },
    /// Split a range. The piece on the left keeps its id, each further one gets the id beside its
    /// first key; all get the epoch after `epoch`.
    Split {
        /// The operator.
        operator: OperatorId,
        /// The range.
        range: RangeId,
        /// The range's epoch before.
        epoch: Epoch,
        /// Where to split, growing strictly, and the id of the piece that starts there.
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
    /// To the source of a move that is fenced: own the range again, at a higher epoch, because its
    /// destination is lost for good (R23). Refused once the destination has adopted the range.
    TakeBack {
        /// The operator.
        operator: OperatorId,
    },
    /// To the destination: receive the range. From here on the destination drives the move by
    /// itself.
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
    /// To the destination: the move was cancelled at the source; forget it and delete the received
    /// rows.
    IngestCancel {
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
    /// Where a range can be split into pieces of about the same number of bytes. Answered from a
    /// sample, at a cost that does not grow with the range.
    SizeSplitKeys {
        /// The range.
        range: RangeId,
        /// Its epoch.
        epoch: Epoch,
        /// The number of pieces, from 2.
        pieces: u32,
    },
    /// Compare the replicas' rows of the shard's ranges, from a key on: as many as one comparison
    /// takes (R31).
    Compare {
        /// Where to begin; `None` for the first key of the first table.
        from: Option<Place>,
        /// Whether to look for orphaned rows, too.
        left_behind: bool,
    },
    /// Hand leadership to another replica (to `to` if given).
    TransferLeadership {
        /// The replica's number.
        to: Option<u64>,
    },
    /// A report now.
    Report,
    /// Change the shard's replicas: remove one, add one, or both at once. A repeated request finds
    /// the change done.
    ChangeReplicas {
        /// The number of the replica that leaves.
        remove: Option<u64>,
        /// The new replica: its process runs already, with an empty folder, and waits to become a
        /// member.
        add: Option<NewReplica>,
    },
    /// Check the definition of a new table (R6). Answered by [`ControlReply::Table`], or refused;
    /// nothing is created.
    CheckTable {
        /// The table, with any `create_sql`.
        schema: TableSchema,
    },
    /// Try a schema change: PostgreSQL executes it and rolls it back. If it succeeds, the tables
    /// that it changes are held from here on, so that it will succeed again (R34).
    PrepareSchema {
        /// The operator.
        operator: OperatorId,
        /// The change. It makes the version after the shard's.
        delta: SchemaDelta,
    },
    /// The schema change was given up: release the tables that it holds.
    AbortSchema {
        /// The operator.
        operator: OperatorId,
    },
    /// Make a schema change that is decided.
    ApplySchema {
        /// The change. It makes the version after the shard's.
        delta: SchemaDelta,
        /// The new tables and sequences that this shard owns, each with the range that has all of
        /// its keys, at epoch 1.
        ranges: Vec<(TableId, RangeId)>,
    },
    /// The schema changes after a version, for a placement driver that was restored from an old
    /// copy (R30). Answered by [`ControlReply::Schema`].
    SchemaAfter {
        /// The version.
        version: u64,
    },
}

/// A replica to be added.
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
        /// The condition it waits for.
        waiting_for: String,
    },
    /// Never: the state does not allow it (a wrong epoch, an open move, a fence already logged).
    Refused {
        /// A stable code: `wrong-epoch`, `no-such-range`, `move-open`, `already-fenced`,
        /// `no-such-operator`, `bad-split`, …
        code: String,
        /// One sentence.
        reason: String,
    },
    /// To [`ControlRequest::SizeSplitKeys`]: the first keys of the further pieces, growing
    /// strictly, all strictly inside the range. Fewer than asked for, or none, if the sample has
    /// too few different keys.
    SplitKeys(Vec<Key>),
    /// To [`ControlRequest::Compare`].
    Compared(Box<Comparison>),
    /// To [`ControlRequest::Report`].
    Report(Box<ShardReport>),
    /// To [`ControlRequest::CheckTable`]: the table with its canonical `create_sql`, and id 0.
    Table(Box<TableSchema>),
    /// To [`ControlRequest::SchemaAfter`]: the changes, oldest first, without a gap.
    Schema(Vec<SchemaDelta>),
}

/// Start of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRequest {
    /// The move.
    pub operator: OperatorId,
    /// The attempt; a new one starts the copy afresh (R21).
    pub attempt: u64,
}

/// One item of a copy's stream. [`CopyItem::Opened`] comes first. Then chunks come in key order,
/// and between them the changes of the keys of earlier chunks: at every point of the stream the
/// copied keys are as of one position of the source's log, from which the next item continues
/// (R21). The destination says which items it has stored ([`ShardRequest::CopyTaken`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopyItem {
    /// The copy has been opened.
    Opened {
        /// The copy's number at the replica that streams it.
        copy: u64,
        /// The position of the source's log that it starts from.
        position: u64,
    },
    /// All rows in `interval`, as of `position` in the source's log.
    Chunk {
        /// The keys it covers; chunks follow one another without a gap.
        interval: KeyInterval,
        /// The position that the item before reached. Nothing has happened to the keys before this
        /// chunk from there to `position`.
        from: u64,
        /// The last entry of the source's log that the rows surely include.
        position: u64,
        /// Packed row images.
        rows: RowBatch,
        /// The rows' checksum, as the source's PostgreSQL computed it in the snapshot that gave
        /// them.
        checksum: RangeChecksum,
        /// Whether it is the last chunk.
        last: bool,
    },
    /// The changes of the copied keys in the source's log, from after `from` up to and including
    /// `to`; of a key that was changed several times perhaps only the last change.
    Changes {
        /// The position that the item before reached.
        from: u64,
        /// The last position covered.
        to: u64,
        /// Encoded changes with their positions, opaque outside the shard's own code.
        changes: Vec<Bytes>,
        /// The backlog when this was sent.
        left: CopyLeft,
    },
    /// The fence: all changes before it have been sent.
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

/// The backlog of a copy at the moment an item is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyLeft {
    /// Items sent before and not stored at the destination yet.
    pub items: u64,
    /// Bytes of those, and of changes that are not sent yet.
    pub bytes: u64,
    /// Whether the replica that streams lags behind its own log, so that more may be to come than
    /// it knows.
    pub behind: bool,
}

/// One item of the beginning of a state transfer: the state of a replica without its rows, at one
/// position of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StateItem {
    /// First: the position.
    Start {
        /// Position in the log.
        index: u64,
        /// The term in force there.
        term: u64,
    },
    /// A piece of the shard's encoded state machine. The pieces come in order.
    Machine(Bytes),
    /// A piece of the retry window. The pieces come in order, behind those of the state machine.
    Window(Bytes),
    /// Last: all of it has been sent.
    End,
}

/// The leader of a shard, as far as the answering replica knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leads {
    /// Whether the answering replica leads and serves.
    pub itself: bool,
    /// The number of the leader that it knows of.
    pub leader: Option<u64>,
}

/// The rows that a re-seeded replica asks a peer for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedRequest {
    /// The table.
    pub table: TableId,
    /// The keys that are still missing from here on. The answer covers a first part of them.
    pub interval: KeyInterval,
    /// A position of the log: the rows must hold everything up to it, so the peer waits until its
    /// PostgreSQL does.
    pub at_least: u64,
}

/// One item of the answer to a [`SeedRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeedItem {
    /// A piece of the packed rows. The pieces come in order; a row may be cut.
    Piece(Bytes),
    /// Last: the description of the pieces.
    End {
        /// The keys of which these are all rows.
        covered: KeyInterval,
        /// Values per row.
        width: u32,
        /// Rows.
        count: u32,
        /// Whether `covered` is all of the interval that was asked for.
        last: bool,
        /// The rows hold every entry up to this position of the log.
        position: u64,
        /// They hold no entry behind this position.
        holds_to: u64,
        /// The version of the schema that they are of.
        schema: u64,
    },
}

/// The state of a replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// The shard.
    pub shard: ShardId,
    /// The replica's number.
    pub replica: u64,
    /// The shard's replicas by the newest configuration that it knows, and where they listen; a
    /// client with an older list learns from it.
    pub replicas: BTreeMap<u64, SocketAddr>,
    /// Whether it leads and serves.
    pub leads: bool,
    /// The leader it knows of.
    pub leader: Option<u64>,
    /// The last position of the log its PostgreSQL holds; 0 as long as it is being re-seeded.
    pub applied: u64,
    /// Whether it is being re-seeded: it votes, and lacks rows.
    pub seeding: bool,
    /// Bytes of rows that it has taken from other replicas since its process began.
    pub seeded_bytes: u64,
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
