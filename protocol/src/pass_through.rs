//! Pass-through statements: a user's text that a shard's PostgreSQL runs unchanged, and what comes
//! back as PostgreSQL sent it.
//!
//! A gateway sends a statement this way when one shard has all rows that the statement can touch.
//! The statement may have any shape. The shard does not parse it. Instead the gateway declares the
//! tables and keys that it can touch (R9), the shard checks that it owns them, and triggers report
//! which rows were written (R7).
//!
//! A pass-through statement always belongs to a transaction that is open on its connection. It can
//! share the transaction with analysed statements ([`crate::shard::ShardRequest::InTransaction`]).

use crate::ids::TableId;
use crate::interval::KeyInterval;
use crate::levels::TransactionOptions;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The size at which a [`PassThroughItem::Messages`] ends, in bytes; a longer row is an item of its
/// own.
pub const ITEM_BYTES: usize = 64 << 10;

/// A request in a transaction that stays open on this connection; the first also begins it.
/// Answered by a stream of [`PassThroughItem`]s, of which [`PassThroughItem::End`] is the last, or
/// by a failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PassThroughRequest {
    /// The transaction's number on this connection, chosen by the client.
    pub transaction: u64,
    /// Present on the first request.
    pub begin: Option<PassThroughBegin>,
    /// The tables that the step can touch, each once.
    pub tables: Vec<TableUse>,
    /// What to do.
    pub step: PassThroughStep,
}

/// How a transaction begins.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PassThroughBegin {
    /// The isolation level and the access mode.
    pub options: TransactionOptions,
    /// Settings of the user's session, in force until the transaction ends: names and values as
    /// `set_config` takes them.
    pub settings: Arc<[(String, String)]>,
    /// The version of the schema that the statement was planned with. A shard that has an earlier
    /// one answers that it is busy; one that has a later one answers [`Failure::SchemaChanged`].
    ///
    /// [`Failure::SchemaChanged`]: crate::Failure::SchemaChanged
    pub schema_version: u64,
}

/// A table that a statement can touch, and the keys (R9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableUse {
    /// The table or sequence.
    pub table: TableId,
    /// The keys; all keys for a statement whose conditions were not understood.
    pub keys: Vec<KeyInterval>,
    /// Whether rows can be written or locked.
    pub writes: bool,
}

/// A step of a pass-through transaction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PassThroughStep {
    /// Describe a statement without executing it: answered by [`PassThroughItem::Parameters`] and
    /// [`PassThroughItem::Messages`] with the RowDescription or NoData message.
    Describe {
        /// One statement.
        sql: Arc<str>,
        /// The parameters' types, as object ids; 0 for "not given".
        parameter_types: Vec<u32>,
    },
    /// Execute a statement.
    Execute(PassThroughStatement),
    /// Fetch the next rows of a portal that was suspended.
    Fetch {
        /// The portal's number.
        portal: u64,
        /// At most this many rows; 0 for all.
        max_rows: u32,
    },
    /// Close a suspended portal.
    ClosePortal {
        /// The portal's number.
        portal: u64,
    },
    /// Cancel the step of this transaction that is being executed, if there is one: it ends with
    /// 57014, and the transaction goes on as after any error. Sent while that step's answer is
    /// awaited; it has no tables. Answered by [`PassThroughEnd::Done`].
    Cancel,
}

/// One statement with its parameters, as PostgreSQL's extended query protocol has it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PassThroughStatement {
    /// The text of one statement, as the user wrote it. `SAVEPOINT`, `ROLLBACK TO`, `RELEASE`,
    /// `SET LOCAL`, `DECLARE`, `FETCH` and other statements of a transaction are among them; BEGIN,
    /// COMMIT and ROLLBACK are not.
    pub sql: Arc<str>,
    /// The parameters' types, as object ids; 0 for "not given".
    pub parameter_types: Vec<u32>,
    /// The formats of the parameters, as Bind has them: none, one for all, or one for each.
    pub parameter_formats: Vec<i16>,
    /// The parameters; `None` for null.
    pub parameters: Vec<Option<Bytes>>,
    /// The formats of the result's columns, as Bind has them.
    pub result_formats: Vec<i16>,
    /// At most this many rows, and then the portal is suspended; 0 for all.
    pub max_rows: u32,
    /// The number under which a suspended portal is fetched from.
    pub portal: u64,
    /// The data of a `COPY … FROM STDIN`: whole rows in the statement's format. Several steps can
    /// carry one copy.
    pub copy_data: Option<Bytes>,
    /// Whether a RowDescription message is to come first.
    pub describe: bool,
    /// Whether the text sets sequences to values of its own (`setval`, `RESTART`), so that their
    /// values may go back.
    pub sets_sequences: bool,
}

/// An item of the answer to a [`PassThroughRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PassThroughItem {
    /// The types of the parameters, as object ids.
    Parameters(Vec<u32>),
    /// Whole messages of PostgreSQL's protocol, as its server sent them: RowDescription, NoData,
    /// DataRow, CopyOutResponse, CopyData, NoticeResponse, NotificationResponse, ParameterStatus.
    Messages(Bytes),
    /// The last item.
    End(PassThroughEnd),
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PassThroughEnd {
    /// With this command tag.
    Complete(String),
    /// The text is empty.
    Empty,
    /// The portal has given as many rows as were asked for, and may have more.
    Suspended,
    /// A Describe or ClosePortal is done.
    Done,
}
