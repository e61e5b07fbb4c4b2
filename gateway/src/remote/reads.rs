//! What the statement of a session of the engine database may read, and how much it has read.
//!
//! A statement reads at shards that it has been opened at before: each part is a transaction that
//! has acquired the part's keys there. Everything that it reads of a part is of one snapshot,
//! unless the part belongs to a transaction of the user's that has written there at READ COMMITTED:
//! then each scan is of its own moment, as different statements of that transaction would be.

use evenkeel_client::{ClientError, SharedTransaction};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::pass_through::TableUse;
use evenkeel_protocol::routing::RoutingTable;
use evenkeel_protocol::{ShardId, SqlError, TableId, TableSchema};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The most bytes of rows that a statement fetches from shards.
const MAX_FETCHED_BYTES: u64 = 1 << 30;

/// What a statement reads at one shard.
pub struct ReadPart {
    /// The transaction that reads.
    pub transaction: SharedTransaction,
    /// The tables, with the keys that the shard was asked for.
    pub tables: Vec<TableUse>,
    /// Whether the transaction is the user's, and not one of the statement's own.
    pub of_user: bool,
}

/// See the module.
pub struct StatementReads {
    routes: Arc<RoutingTable>,
    parts: BTreeMap<ShardId, ReadPart>,
    fetched_bytes: AtomicU64,
    failure: Mutex<Option<ReadFailure>>,
}

impl fmt::Debug for StatementReads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatementReads").field("shards", &self.parts.keys()).finish_non_exhaustive()
    }
}

/// Why a scan failed.
#[derive(Debug)]
pub struct ReadFailure {
    /// As the shard or the way to it failed.
    pub error: ClientError,
    /// Whether the user's transaction is over with it.
    pub ended_user: bool,
}

impl StatementReads {
    /// A statement that has read nothing yet.
    pub fn new(routes: Arc<RoutingTable>, parts: BTreeMap<ShardId, ReadPart>) -> StatementReads {
        StatementReads { routes, parts, fetched_bytes: AtomicU64::new(0), failure: Mutex::default() }
    }

    /// What it reads at a shard.
    pub fn part(&self, shard: ShardId) -> Option<&ReadPart> {
        self.parts.get(&shard)
    }

    /// A table by its id.
    pub fn table(&self, id: TableId) -> Option<&TableSchema> {
        self.routes.schema(id).map(|schema| &**schema)
    }

    /// Whether it reads a table, at whatever shard.
    pub fn has(&self, table: TableId) -> bool {
        self.parts.values().any(|part| part.tables.iter().any(|used| used.table == table))
    }

    /// Whether all that it reads is of snapshots of its own, so that it can be executed again.
    pub fn is_repeatable(&self) -> bool {
        self.parts.values().all(|part| !part.of_user)
    }

    /// Counts fetched rows.
    ///
    /// # Errors
    /// 53200: they are too many.
    pub fn count(&self, bytes: usize) -> Result<(), SqlError> {
        let fetched = self.fetched_bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        if fetched <= MAX_FETCHED_BYTES {
            return Ok(());
        }
        let message = format!("the statement needs more than {} MiB of rows of other shards", MAX_FETCHED_BYTES >> 20);
        Err(SqlError::new(OUT_OF_MEMORY, message).hint("Restrict it by conditions on single tables."))
    }

    /// Remembers why a scan failed, if it is the first, and gives the error for postgres_fdw.
    pub fn failed(&self, shard: ShardId, error: ClientError) -> SqlError {
        let sql = error.sql().cloned().unwrap_or_else(|| SqlError::new(codes::INTERNAL, error.to_string()));
        let of_user = self.part(shard).is_some_and(|part| part.of_user);
        let ended_user = of_user && !matches!(error, ClientError::Sql(_));
        self.failure().get_or_insert(ReadFailure { error, ended_user });
        sql
    }

    /// Why it failed, if a scan did.
    pub fn take_failure(&self) -> Option<ReadFailure> {
        self.failure().take()
    }

    fn failure(&self) -> std::sync::MutexGuard<'_, Option<ReadFailure>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// PostgreSQL's out_of_memory.
const OUT_OF_MEMORY: &str = "53200";
