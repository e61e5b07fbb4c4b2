//! One user's transaction of pass-through statements, at each shard where it is open.
//!
//! A step goes to the shard that owns the keys it declares, and the transaction joins that shard if
//! it is not open there. Savepoints are made wherever it is open, and made later where it joins
//! later. At the end it is committed at all of them or at none (`two_phase`).
//!
//! It promises that it is open at most once at each shard, so that every step sees what earlier
//! ones wrote there; that nothing of it lasts before the commit; and that no step misses what an
//! earlier one wrote, or at REPEATABLE READ reads in another snapshot, because a range has moved:
//! it ends with 40001 then.

use super::open::several_shards;
use super::pass_through::{PassThroughReplies, PassThroughTransaction};
use super::two_phase::commit_everywhere;
use crate::core::ClientCore;
use crate::deliver::{Detour, no_route};
use crate::error::ClientError;
use crate::retry::{Attempts, Repeat};
use crate::routing::{ShardPart, cut, shard_of_tables};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::interval::KeyInterval;
use evenkeel_protocol::pass_through::{PassThroughBegin, PassThroughStatement, PassThroughStep, TableUse};
use evenkeel_protocol::shard::Durability;
use evenkeel_protocol::{ShardId, TableId, TxnId};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::Mutex;

/// How often a step looks for the owner of its keys again when the one that it found is not.
const MAX_MOVES_FOLLOWED: u32 = 16;

/// A transaction at one shard, which takes one step at a time. Locked while a step is sent and its
/// first item awaited.
pub type SharedTransaction = Arc<Mutex<PassThroughTransaction>>;

/// See the module. Dropped before its end, it is rolled back.
pub struct ShardedTransaction {
    core: Arc<ClientCore>,
    id: TxnId,
    shards: BTreeMap<ShardId, SharedTransaction>,
    savepoints: Vec<String>,
    /// The shards that it may have written to.
    writers: BTreeSet<ShardId>,
    /// The shard of the last step.
    last: Option<ShardId>,
    /// The ranges that its steps may have written to, at REPEATABLE READ all that they have used,
    /// and where.
    seen: Vec<(ShardId, TableId, KeyInterval)>,
    /// Whether it is at REPEATABLE READ.
    keeps_snapshots: bool,
}

impl ShardedTransaction {
    pub(crate) fn new(core: Arc<ClientCore>) -> ShardedTransaction {
        let id = core.new_id();
        ShardedTransaction {
            core,
            id,
            shards: BTreeMap::new(),
            savepoints: Vec::new(),
            writers: BTreeSet::new(),
            last: None,
            seen: Vec::new(),
            keeps_snapshots: false,
        }
    }

    /// Whether it is open at any shard.
    pub fn is_open(&self) -> bool {
        !self.shards.is_empty()
    }

    /// Rolls it back at all shards, without waiting. It can begin again, with its savepoints.
    pub fn abandon(&mut self) {
        self.shards.clear();
        self.seen.clear();
        self.writers.clear();
        self.last = None;
    }

    /// The shard of the last step.
    pub fn last_shard(&self) -> Option<ShardId> {
        self.last
    }

    /// Whether it may have written to this shard.
    pub fn wrote_at(&self, shard: ShardId) -> bool {
        self.writers.contains(&shard)
    }

    /// Itself at a shard, if it is open there.
    pub fn at(&self, shard: ShardId) -> Option<SharedTransaction> {
        self.shards.get(&shard).cloned()
    }

    /// Sends a step to the shard that owns its keys; without any, to the shard of the last one.
    /// `begin` says how the transaction begins at a shard that it joins.
    ///
    /// # Errors
    /// As [`PassThroughTransaction::step`]. 0A000 if the keys lie on several shards. After any
    /// error but [`ClientError::Sql`] it has ended at all shards.
    pub async fn step(
        &mut self,
        tables: Vec<TableUse>,
        step: PassThroughStep,
        begin: impl Fn() -> PassThroughBegin,
    ) -> Result<PassThroughReplies, ClientError> {
        let writes = tables.iter().any(|table| table.writes);
        let result = match self.owner(&tables).await {
            Err(error) => Err(error),
            Ok(Some(shard)) if self.shards.contains_key(&shard) => match self.see(shard, &tables) {
                Ok(()) => self.step_at(shard, tables, step).await,
                Err(moved) => Err(moved),
            },
            Ok(_) if self.shards.is_empty() => self.join(None, begin(), tables, step).await,
            Ok(_) => self.join_owner(tables, step, begin).await,
        };
        if writes {
            self.writers.extend(self.last);
        }
        self.ended_unless_sql(&result);
        result
    }

    /// Sends a step that belongs to a shard where the transaction is open, such as a FETCH.
    ///
    /// # Errors
    /// As [`ShardedTransaction::step`].
    pub async fn step_at(
        &mut self,
        shard: ShardId,
        tables: Vec<TableUse>,
        step: PassThroughStep,
    ) -> Result<PassThroughReplies, ClientError> {
        let Some(transaction) = self.shards.get(&shard).cloned() else {
            return Err(ClientError::rerun(format!("the transaction is not open at shard {shard} any more")));
        };
        self.last = Some(shard);
        let result = transaction.lock().await.step(tables, step).await;
        self.ended_unless_sql(&result);
        result
    }

    /// Joins shards, so that the transaction's snapshots there, if it keeps any, are of now.
    ///
    /// # Errors
    /// As [`ShardedTransaction::step`]. [`ClientError::Rerun`] also if a shard does not own its
    /// part.
    pub async fn open(&mut self, parts: &[ShardPart], begin: impl Fn() -> PassThroughBegin) -> Result<(), ClientError> {
        for (shard, tables) in parts {
            let look = PassThroughStep::Execute(command("SELECT 1"));
            let opened = match (self.see(*shard, tables), self.shards.contains_key(shard)) {
                (Err(moved), _) => Err(moved),
                (Ok(()), true) => self.step_at(*shard, tables.clone(), look).await,
                (Ok(()), false) => self.join(Some(*shard), begin(), tables.clone(), look).await,
            };
            let ended = match opened {
                Ok(replies) => replies.end().await.map(drop),
                Err(error) => Err(error),
            };
            self.ended_unless_sql(&ended);
            ended?;
        }
        Ok(())
    }

    /// The shard that owns these keys; that of the last step without any. `None` if it is not
    /// known.
    async fn owner(&self, tables: &[TableUse]) -> Result<Option<ShardId>, ClientError> {
        if tables.iter().all(|used| used.keys.is_empty()) {
            return Ok(self.last);
        }
        match shard_of_tables(tables, &self.core.routes()) {
            Ok(Some(shard)) => Ok(Some(shard)),
            // The shard knows, if there is only one.
            Ok(None) => Ok(self.shards.keys().next().copied().filter(|_| self.shards.len() == 1)),
            // A refusal must not be based on a table that is out of date.
            Err(_) => {
                self.core.refresh_until(self.core.now_ms() + self.core.config.statement_timeout_ms).await;
                shard_of_tables(tables, &self.core.routes()).map_err(ClientError::Sql)
            }
        }
    }

    /// Joins the shard that owns a step's keys, behind others.
    async fn join_owner(
        &mut self,
        tables: Vec<TableUse>,
        step: PassThroughStep,
        begin: impl Fn() -> PassThroughBegin,
    ) -> Result<PassThroughReplies, ClientError> {
        let mut moves = 0;
        loop {
            let parts = parts_of(&self.core, &tables).await?;
            let [(shard, _)] = parts[..] else { return Err(several_shards()) };
            self.see(shard, &tables)?;
            if self.shards.contains_key(&shard) {
                return self.step_at(shard, tables, step).await;
            }
            match self.join(Some(shard), begin(), tables.clone(), step.clone()).await {
                // Nothing has been done there.
                Err(ClientError::Rerun(error))
                    if error.code != codes::SCHEMA_CHANGED
                        && moves < MAX_MOVES_FOLLOWED
                        && !self.shards.contains_key(&shard) =>
                {
                    moves += 1;
                    self.core.refresh_until(self.core.now_ms() + self.core.config.statement_timeout_ms).await;
                }
                other => return other,
            }
        }
    }

    /// Notes that a step uses these keys at a shard.
    ///
    /// # Errors
    /// 40001: an earlier step has used some of them at another, from where they have moved.
    fn see(&mut self, shard: ShardId, tables: &[TableUse]) -> Result<(), ClientError> {
        let notes = |used: &TableUse| self.keeps_snapshots || used.writes;
        if self.seen.is_empty() && !tables.iter().any(notes) {
            return Ok(());
        }
        // By ranges, since these move as a whole and are few.
        let routes = self.core.routes();
        let known = cut(tables, &routes).unwrap_or_default();
        let tables =
            if known.is_empty() { tables } else { &known.into_iter().flat_map(|(_, part)| part).collect::<Vec<_>>() };
        for used in tables {
            for keys in &used.keys {
                let mut there = false;
                for (at, table, seen) in self.seen.iter().filter(|(_, table, _)| *table == used.table) {
                    if *at != shard && seen.overlaps(keys) {
                        let message = format!("a range of table {table} has moved while the transaction was open");
                        return Err(ClientError::rerun(message));
                    }
                    there |= *at == shard && seen.covers(keys);
                }
                if !there && (self.keeps_snapshots || used.writes) {
                    self.seen.push((shard, used.table, keys.clone()));
                }
            }
        }
        Ok(())
    }

    /// Begins at a shard, or at the one that owns the keys: the savepoints, then the step.
    async fn join(
        &mut self,
        shard: Option<ShardId>,
        begin: PassThroughBegin,
        tables: Vec<TableUse>,
        step: PassThroughStep,
    ) -> Result<PassThroughReplies, ClientError> {
        self.keeps_snapshots = begin.options.repeatable_read;
        let core = self.core.clone();
        let mut joining = match shard {
            Some(shard) => PassThroughTransaction::at(core, begin, shard),
            None => PassThroughTransaction::new(core, begin),
        };
        let notes = self.keeps_snapshots || tables.iter().any(|used| used.writes);
        let seen = if shard.is_none() && notes { tables.clone() } else { Vec::new() };
        for name in &self.savepoints {
            let savepoint = PassThroughStep::Execute(command(&format!("SAVEPOINT {}", quote(name))));
            joining.step(tables.clone(), savepoint).await?.end().await?;
        }
        let replies = joining.step(tables, step).await;
        // It is open even if the statement has failed.
        if let Some(shard) = joining.shard() {
            self.shards.insert(shard, Arc::new(Mutex::new(joining)));
            self.last = Some(shard);
            self.see(shard, &seen)?;
        }
        replies
    }

    /// Makes a savepoint.
    ///
    /// # Errors
    /// As [`ShardedTransaction::step`].
    pub async fn savepoint(&mut self, name: &str) -> Result<(), ClientError> {
        self.everywhere(&format!("SAVEPOINT {}", quote(name))).await?;
        self.savepoints.push(name.to_string());
        Ok(())
    }

    /// Releases a savepoint, if it is known, and those behind it.
    ///
    /// # Errors
    /// As [`ShardedTransaction::step`].
    pub async fn release(&mut self, name: &str) -> Result<(), ClientError> {
        self.everywhere(&format!("RELEASE SAVEPOINT {}", quote(name))).await?;
        let at = self.savepoints.iter().rposition(|other| other == name);
        self.savepoints.truncate(at.unwrap_or(self.savepoints.len()));
        Ok(())
    }

    /// Goes back to a savepoint, if it is known.
    ///
    /// # Errors
    /// As [`ShardedTransaction::step`].
    pub async fn roll_back_to(&mut self, name: &str) -> Result<(), ClientError> {
        self.everywhere(&format!("ROLLBACK TO SAVEPOINT {}", quote(name))).await?;
        let at = self.savepoints.iter().rposition(|other| other == name);
        self.savepoints.truncate(at.map_or(self.savepoints.len(), |at| at + 1));
        Ok(())
    }

    /// Executes a command on savepoints wherever the transaction is open.
    async fn everywhere(&mut self, sql: &str) -> Result<(), ClientError> {
        let each = self.shards.values().map(|transaction| async {
            let step = PassThroughStep::Execute(command(sql));
            let replies = transaction.lock().await.step(Vec::new(), step).await?;
            replies.end().await.map(drop)
        });
        let ended: Result<Vec<()>, ClientError> = join_all(each).await.into_iter().collect();
        self.ended_unless_sql(&ended);
        ended.map(drop)
    }

    /// Without its part at one shard the transaction is of no use.
    fn ended_unless_sql<T>(&mut self, result: &Result<T, ClientError>) {
        if !matches!(result, Ok(_) | Err(ClientError::Sql(_))) {
            self.abandon();
        }
    }

    /// Commits. An error of [`ClientError::OutcomeUnknown`] leaves open whether the changes last;
    /// after any other error nothing of the transaction has taken effect.
    ///
    /// # Errors
    /// As [`PassThroughTransaction::commit`].
    pub async fn commit(mut self) -> Result<(), ClientError> {
        let mut open = Vec::new();
        for transaction in std::mem::take(&mut self.shards).into_values() {
            open.extend(transaction.lock().await.take_open());
        }
        commit_everywhere(&self.core, open, self.id, Durability::Disk).await.map(drop)
    }

    /// Rolls back. Nothing of the transaction takes effect, even if shards cannot be reached.
    pub async fn rollback(mut self) {
        let shards = std::mem::take(&mut self.shards);
        let deadline_ms = self.core.now_ms() + self.core.config.statement_timeout_ms;
        let each = shards.values().map(|transaction| async {
            if let Some(open) = transaction.lock().await.take_open() {
                open.roll_back(&self.core, deadline_ms).await;
            }
        });
        join_all(each).await;
    }
}

/// Whether these keys lie on several shards, as far as the routing table says.
pub(crate) fn spread(core: &ClientCore, tables: &[TableUse]) -> bool {
    shard_of_tables(tables, &core.routes()).is_err()
}

/// These keys by the shards that own them, once all of them have a route.
pub(crate) async fn parts_of(core: &ClientCore, tables: &[TableUse]) -> Result<Vec<ShardPart>, ClientError> {
    let mut attempts = Attempts::new(Repeat::Free, core.now_ms(), core.config.statement_timeout_ms);
    loop {
        if let Some(parts) = cut(tables, &core.routes()) {
            return Ok(parts);
        }
        if let Detour::GiveUp(error) = no_route(core, &mut attempts).await {
            return Err(error);
        }
    }
}

fn command(sql: &str) -> PassThroughStatement {
    PassThroughStatement { sql: sql.into(), ..PassThroughStatement::default() }
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
