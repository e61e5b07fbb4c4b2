//! The database that executes what reads several shards ("engine database").
//!
//! It has the same schema as the one that clients see. Below each table there is one foreign table
//! for each shard that has ever had rows of it; the table itself stays empty, so that it can keep
//! its primary key, on which the meaning of GROUP BY depends. A foreign table leads to the
//! gateway's own endpoint ([`crate::remote`]), which gives the rows of a shard that the statement
//! at hand reads there, or none. Splits and moves therefore change nothing here.
//!
//! Users' sessions only read. What they use is bounded: temporary files, memory, time.

use super::children::EngineChildren;
use super::database::{ENGINE, ROLES, engine_session};
use super::sessions::sql_error;
use crate::grammar::parents::for_parents;
use crate::remote::clip::{REMOTE_SCHEMA, remote_name};
use crate::remote::endpoint::{PORT, SHARD_PREFIX};
use crate::remote::sessions::PROCESS_PREFIX;
use evenkeel_client::ShardPart;
use evenkeel_postgres_session::Session;
use evenkeel_protocol::routing::RoutingTable;
use evenkeel_protocol::{ShardId, SqlError, TableId, TableSchema};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The schema of the foreign tables, their owner's.
const SCHEMA: &str = "evenkeel";
/// Rows of one fetch of a scan.
const FETCH_ROWS: u32 = 2_000;
/// Temporary files of a session, in MiB.
const TEMP_FILES_MIB: u32 = 1_024;
/// Memory of each sort or hash table of a session, in MiB.
const WORK_MEM_MIB: u32 = 16;
/// How long a statement may take, in seconds.
const STATEMENT_S: u32 = 300;
/// How long a change waits for statements that use a table, in milliseconds. They have ended at the
/// shards by then, which have made the change before; their sessions are ended here.
const LOCK_MS: u32 = 1_000;
/// How often users' sessions are ended for one change.
const MAX_WAITS: u32 = 3;

/// See the module.
pub struct EngineDatabase {
    admin: Session,
    folder: PathBuf,
    servers: BTreeSet<ShardId>,
    children: Arc<EngineChildren>,
}

impl EngineDatabase {
    /// Makes it as a copy of a database that has no users' objects yet. `folder` is that of the
    /// server's sockets.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn create(
        catalog: &mut Session,
        folder: &Path,
        children: Arc<EngineChildren>,
    ) -> Result<EngineDatabase, SqlError> {
        let user = ROLES.1;
        for statement in [
            format!("CREATE DATABASE {ENGINE} TEMPLATE postgres"),
            format!("REVOKE ALL ON DATABASE {ENGINE} FROM PUBLIC"),
            format!("GRANT CONNECT ON DATABASE {ENGINE} TO {user}, evenkeel_owner"),
            format!("GRANT TEMPORARY ON DATABASE {ENGINE} TO {user}"),
            format!("GRANT CREATE ON DATABASE {ENGINE} TO evenkeel_owner"),
            format!("ALTER ROLE {user} IN DATABASE {ENGINE} SET temp_file_limit = '{TEMP_FILES_MIB}MB'"),
            format!("ALTER ROLE {user} IN DATABASE {ENGINE} SET work_mem = '{WORK_MEM_MIB}MB'"),
            format!("ALTER ROLE {user} IN DATABASE {ENGINE} SET statement_timeout = '{STATEMENT_S}s'"),
        ] {
            catalog.simple(&statement).await.map_err(sql_error)?;
        }
        let mut admin = engine_session(folder, ROLES.0, "").await?;
        for statement in [
            "CREATE EXTENSION postgres_fdw".to_string(),
            format!("CREATE SCHEMA IF NOT EXISTS {SCHEMA}"),
            format!("GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO evenkeel_owner"),
            format!("SET lock_timeout = {LOCK_MS}"),
        ] {
            admin.simple(&statement).await.map_err(sql_error)?;
        }
        Ok(EngineDatabase { admin, folder: folder.into(), servers: BTreeSet::new(), children })
    }

    /// Executes a change of the schema, without committing it. `settings` makes the user's settings
    /// in the transaction.
    ///
    /// # Errors
    /// PostgreSQL's own; nothing is changed then.
    pub async fn prepare(&mut self, sql: &str, settings: &str) -> Result<(), SqlError> {
        let sql = for_parents(sql);
        let mut attempt = Attempt::AsItIs;
        let mut waited = 0;
        loop {
            let tried = self.try_change(&sql, settings, &attempt).await;
            let Err(error) = tried else { return Ok(()) };
            _ = self.admin.simple("ROLLBACK").await;
            attempt = match (error.code.as_ref(), attempt) {
                ("55P03", attempt) if waited < MAX_WAITS => {
                    waited += 1;
                    self.end_users().await?;
                    attempt
                }
                ("2BP01", Attempt::AsItIs) => Attempt::Without(children_in(error.detail.as_deref())),
                // Some changes are not possible for a table with others below it.
                (_, Attempt::AsItIs | Attempt::Without(_)) => Attempt::Alone,
                (_, Attempt::Alone) => return Err(error),
            };
        }
    }

    async fn try_change(&mut self, sql: &str, settings: &str, attempt: &Attempt) -> Result<(), SqlError> {
        self.admin.simple("BEGIN").await.map_err(sql_error)?;
        let dropped: Vec<(ShardId, TableId, String)> = match attempt {
            Attempt::AsItIs => Vec::new(),
            Attempt::Without(these) => self
                .parents()
                .await?
                .into_iter()
                .filter(|(shard, table, _)| these.contains(&(*shard, *table)))
                .collect(),
            Attempt::Alone => self.parents().await?,
        };
        for (shard, table, _) in &dropped {
            let drop = format!("DROP FOREIGN TABLE {}", child_name(*shard, *table));
            self.admin.simple(&drop).await.map_err(sql_error)?;
        }
        self.admin.simple("SET LOCAL ROLE evenkeel_owner").await.map_err(sql_error)?;
        self.admin.simple(settings).await.map_err(sql_error)?;
        self.admin.simple(sql).await.map_err(sql_error)?;
        self.admin.simple("SET LOCAL search_path = pg_catalog").await.map_err(sql_error)?;
        // In the same transaction: nobody may find a table that looks empty.
        for (shard, table, parent) in &dropped {
            let now = format!("SELECT oid::regclass FROM pg_class WHERE oid = {parent}");
            let rows = self.admin.query_text(&now).await.map_err(sql_error)?;
            if let Some(parent) = rows.into_iter().flatten().next().flatten() {
                self.admin.simple(&definition(*shard, *table, &parent)).await.map_err(sql_error)?;
            }
        }
        self.admin.simple("RESET ROLE").await.map_err(sql_error)?;
        Ok(())
    }

    /// The foreign tables with the object ids of the tables above them.
    async fn parents(&mut self) -> Result<Vec<(ShardId, TableId, String)>, SqlError> {
        let sql = format!(
            "SELECT c.relname, i.inhparent FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
             WHERE c.relkind = 'f' AND c.relnamespace = '{SCHEMA}'::regnamespace"
        );
        let rows = self.admin.query_text(&sql).await.map_err(sql_error)?;
        let each = rows.into_iter().filter_map(|row| {
            let mut values = row.into_iter();
            let (shard, table) = child(&values.next()??)?;
            Some((shard, table, values.next()??))
        });
        Ok(each.collect())
    }

    /// Ends users' sessions here, so that a change gets its locks.
    async fn end_users(&mut self) -> Result<(), SqlError> {
        let user = ROLES.1;
        let end = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{ENGINE}' AND usename = '{user}'"
        );
        self.admin.query_text(&end).await.map_err(sql_error).map(drop)
    }

    /// Commits what was prepared, or takes it back.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn end(&mut self, commit: bool) -> Result<(), SqlError> {
        self.children.changing();
        let end = if commit { "COMMIT" } else { "ROLLBACK" };
        self.admin.simple(end).await.map_err(sql_error)?;
        // A dropped table has taken its foreign tables along.
        let there = self.parents().await?;
        self.children.are(there.into_iter().map(|(shard, table, _)| (shard, table)).collect());
        Ok(())
    }

    /// Makes the foreign tables that these parts need.
    ///
    /// # Errors
    /// PostgreSQL's own. 57P03: a table is not known here yet.
    pub async fn make(&mut self, parts: &[ShardPart], routes: &RoutingTable) -> Result<(), SqlError> {
        for (shard, tables) in parts {
            if !self.servers.contains(shard) {
                self.admin.simple(&self.server(*shard)).await.map_err(sql_error)?;
                self.servers.insert(*shard);
            }
            for used in tables {
                let Some(table) = routes.schema(used.table) else { continue };
                if self.children.has(*shard, used.table) {
                    continue;
                }
                let definition = definition(*shard, used.table, &relation(table));
                let sql = format!("BEGIN; SET LOCAL ROLE evenkeel_owner; {definition}; COMMIT");
                let made = self.admin.simple(&sql).await.map_err(sql_error);
                if let Err(error) = made {
                    _ = self.admin.simple("ROLLBACK").await;
                    return Err(error);
                }
                self.children.made(*shard, used.table);
            }
        }
        Ok(())
    }

    /// The statements that make a shard's server.
    fn server(&self, shard: ShardId) -> String {
        let host = self.folder.display().to_string().replace('\'', "''");
        let (user, server) = (ROLES.0, format!("{SHARD_PREFIX}{shard}"));
        format!(
            "BEGIN; CREATE SERVER {server} FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{host}', port '{PORT}',
               dbname '{server}', application_name '{PROCESS_PREFIX}%p', fetch_size '{FETCH_ROWS}',
               async_capable 'true', use_remote_estimate 'false');
             CREATE USER MAPPING FOR PUBLIC SERVER {server} OPTIONS (user '{user}', password_required 'false');
             GRANT USAGE ON FOREIGN SERVER {server} TO evenkeel_owner; COMMIT"
        )
    }
}

/// How a change is tried.
enum Attempt {
    AsItIs,
    /// Without these foreign tables, which depend on something that it drops.
    Without(Vec<(ShardId, TableId)>),
    /// Without any foreign table.
    Alone,
}

/// The statement that makes a foreign table below a table.
fn definition(shard: ShardId, table: TableId, parent: &str) -> String {
    let (name, remote) = (child_name(shard, table), remote_name(table));
    format!(
        "CREATE FOREIGN TABLE IF NOT EXISTS {name} () INHERITS ({parent}) SERVER {SHARD_PREFIX}{shard}
           OPTIONS (schema_name '{REMOTE_SCHEMA}', table_name '{remote}')"
    )
}

fn child_name(shard: ShardId, table: TableId) -> String {
    format!("{SCHEMA}.s{}_t{}", shard.0, table.0)
}

fn child(name: &str) -> Option<(ShardId, TableId)> {
    let (shard, table) = name.strip_prefix('s')?.split_once("_t")?;
    Some((ShardId(shard.parse().ok()?), TableId(table.parse().ok()?)))
}

/// The foreign tables that an error's detail names.
fn children_in(detail: Option<&str>) -> Vec<(ShardId, TableId)> {
    let words = detail.unwrap_or_default().split_whitespace();
    words.filter_map(|word| word.strip_prefix(SCHEMA)?.strip_prefix('.')).filter_map(child).collect()
}

fn relation(table: &TableSchema) -> String {
    if table.name.contains('.') { table.relation() } else { format!("public.{}", table.relation()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_which_foreign_tables_depend() {
        let detail = "foreign table evenkeel.s1_t7 depends on table t\nforeign table evenkeel.s2_t7 depends on table t";
        assert_eq!(children_in(Some(detail)), [(ShardId(1), TableId(7)), (ShardId(2), TableId(7))]);
        assert!(children_in(Some("view v depends on table t")).is_empty() && children_in(None).is_empty());
    }
}
