//! Schema changes in PostgreSQL: their execution, and their trial before they are decided (R34).
//!
//! The statements of a change are users' text. They are executed by the role `evenkeel_owner`,
//! which owns what they make and is no superuser (R6), inside a block of code: there PostgreSQL
//! refuses COMMIT and all else that would leave the transaction. Whatever this replica adds, such
//! as the triggers that capture changes, it adds as superuser in the same transaction.
//!
//! A change must do the same on every replica. So the trial refuses what could differ (R19): rows
//! that the change itself writes, and values that it computes for rows that are there by functions
//! that are not immutable. It also refuses what the change makes and does not declare.

use super::StoreError;
use super::capture_triggers::capture_triggers;
use super::schema::SET_UP_SESSION;
use crate::postgres::{Connector, SessionRole};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::schema::RelationKind;
use evenkeel_protocol::schema_change::{CHANGE_SETTINGS, SchemaChange};
use evenkeel_protocol::{SchemaDelta, SqlError, TableSchema};
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::Client;
use tokio_postgres::types::Oid;

/// What a trial may take: it waits only briefly for statements that serve, and they for it.
const TRIAL_LIMITS: &str = "SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '90s'";
/// What the decided change may take: as long as it needs, and a while for locks. Another attempt
/// follows.
const APPLY_LIMITS: &str = "SET LOCAL lock_timeout = '10s'; SET LOCAL statement_timeout = 0";
/// The settings of the apply session are made for rows, not for definitions.
const ORDINARY: &str = "
SET LOCAL session_replication_role = origin;
SET LOCAL enable_seqscan = on;
SET LOCAL enable_hashjoin = on;
SET LOCAL enable_mergejoin = on";
/// A reading session on a follower must not keep a decided change waiting (R17).
const END_READERS: &str =
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename ^@ 'evenkeel_user' AND state <> 'idle'";

/// The name of a relation as schemas have it, of `pg_class AS c` and `pg_namespace AS n`.
const NAME: &str = "CASE WHEN n.nspname = 'public' THEN c.relname ELSE n.nspname || '.' || c.relname END";

/// Executes a decided change in the transaction that the apply session has open. With
/// `ends_readers`, users' sessions are ended first: on a replica that leads they are its own.
pub(super) async fn execute(client: &Client, delta: &SchemaDelta, ends_readers: bool) -> Result<(), StoreError> {
    if ends_readers {
        client.batch_execute(END_READERS).await?;
    }
    client.batch_execute(APPLY_LIMITS).await?;
    run(client, delta, APPLY_LIMITS).await
}

async fn run(client: &Client, delta: &SchemaDelta, limits: &str) -> Result<(), StoreError> {
    client.batch_execute(ORDINARY).await?;
    for (name, value) in &delta.change.settings {
        if !CHANGE_SETTINGS.contains(&name.to_ascii_lowercase().as_str()) {
            let message = format!("a schema change cannot depend on the setting {name:?}");
            return Err(StoreError::Refused(SqlError::new(codes::FEATURE_NOT_SUPPORTED, message)));
        }
        client.execute("SELECT set_config($1, $2, true)", &[name, value]).await?;
    }
    client.batch_execute("SET LOCAL ROLE evenkeel_owner").await?;
    let executed = client.batch_execute(&in_block(&delta.change)).await;
    executed.map_err(|error| at_place(StoreError::from(error), &delta.change.sql))?;
    let user: String = client.query_one("SELECT current_user::text", &[]).await?.try_get(0)?;
    if user != "evenkeel_owner" {
        let message = "a schema change cannot change its role";
        return Err(StoreError::Refused(SqlError::new(codes::FEATURE_NOT_SUPPORTED, message)));
    }
    // What users wrote must not decide what the names in our own statements mean.
    client.batch_execute("RESET ROLE; SET LOCAL search_path = 'public'").await?;
    client.batch_execute(limits).await?;
    for table in delta.relations.iter().filter(|table| table.kind == RelationKind::Table) {
        client.batch_execute(&capture_triggers(table)).await?;
    }
    Ok(())
}

/// The statements as a block of code, which cannot end the transaction.
fn in_block(change: &SchemaChange) -> String {
    let quoted = |text: &str| {
        // The text must not contain the tag without its end either: its own end would complete it.
        let open = (0..).map(|n| format!("$evk{n}")).find(|open| !text.contains(open.as_str())).unwrap_or_default();
        format!("{open}${text}{open}$")
    };
    format!("DO {}", quoted(&format!("BEGIN EXECUTE {}; END", quoted(&change.sql))))
}

/// The error with its place in the change's own text. PostgreSQL tells it as a place in a text that
/// a block of code executes.
fn at_place(error: StoreError, sql: &str) -> StoreError {
    match error {
        StoreError::Refused(mut error) => {
            if let Some(fields) = &mut error.fields
                && fields.internal_query.as_deref() == Some(sql)
            {
                fields.position = fields.internal_position.take();
                (fields.internal_query, fields.context) = (None, None);
            }
            StoreError::Refused(error)
        }
        other => other,
    }
}

/// Tries whether a change can be made here, and rolls it back. `others` are the relations of
/// earlier changes that this one leaves as they are. Gives the names of the relations that it
/// locks, so that no statement may run on them while it is made.
///
/// # Errors
/// [`StoreError::Refused`] with what PostgreSQL has against it, unless the error is one of the
/// moment (`StoreError::passes`).
pub async fn try_schema_change(
    connector: &Connector,
    delta: &SchemaDelta,
    others: &[(String, RelationKind)],
) -> Result<BTreeSet<String>, StoreError> {
    let client = connector.connect(SessionRole::Admin).await?;
    client.batch_execute(SET_UP_SESSION).await?;
    client.batch_execute("BEGIN READ WRITE").await?;
    client.batch_execute(TRIAL_LIMITS).await?;
    let tried = trial(&client, delta, others).await;
    client.batch_execute("ROLLBACK").await?;
    tried
}

async fn trial(
    client: &Client,
    delta: &SchemaDelta,
    others: &[(String, RelationKind)],
) -> Result<BTreeSet<String>, StoreError> {
    let widths = client.query("SELECT oid, relnatts FROM pg_class WHERE relowner = 'evenkeel_owner'::regrole", &[]);
    let widths: Vec<(Oid, i16)> =
        widths.await?.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, StoreError>>()?;
    run(client, delta, TRIAL_LIMITS).await?;
    refuse_written_rows(client).await?;
    refuse_differing_values(client, &widths).await?;
    refuse_definers(client).await?;
    check_relations(client, delta, others).await?;
    let locked = format!(
        "SELECT DISTINCT {NAME} FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
         JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND c.relowner = 'evenkeel_owner'::regrole
         AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')"
    );
    let rows = client.query(&locked, &[]).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
}

/// R19: rows that the change itself writes would come past the log, and could differ.
async fn refuse_written_rows(client: &Client) -> Result<(), StoreError> {
    let sql = "SELECT relid::regclass::text FROM pg_stat_xact_user_tables
        WHERE schemaname <> 'evenkeel' AND n_tup_ins + n_tup_upd + n_tup_del > 0";
    match client.query(sql, &[]).await?.first() {
        Some(row) => refused(&format!("a schema change cannot write rows of {}", row.try_get::<_, &str>(0)?)),
        None => Ok(()),
    }
}

/// R19: a new column's value in rows that are there must be the same on every replica.
async fn refuse_differing_values(client: &Client, widths: &[(Oid, i16)]) -> Result<(), StoreError> {
    let (oids, widths): (Vec<Oid>, Vec<i16>) = widths.iter().copied().unzip();
    let sql =
        "SELECT a.attrelid::regclass::text, a.attname::text FROM unnest($1::oid[], $2::int2[]) AS known(rel, width)
        JOIN pg_attribute AS a ON a.attrelid = known.rel AND a.attnum > known.width AND NOT a.attisdropped
        JOIN pg_class AS c ON c.oid = a.attrelid AND c.relkind = 'r'
        LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attidentity <> '' OR d.adbin::text LIKE '%{SQLVALUEFUNCTION%' OR EXISTS (
            SELECT 1 FROM regexp_matches(d.adbin::text, ':(?:funcid|opfuncid) (\\d+)', 'g') AS found
            JOIN pg_proc AS p ON p.oid = found[1]::oid WHERE p.provolatile <> 'i')";
    for row in client.query(sql, &[&oids, &widths]).await? {
        let (table, column): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        let rows = client.query_one(&format!("SELECT EXISTS (SELECT 1 FROM {table})"), &[]).await?;
        if rows.try_get::<_, bool>(0)? {
            let message = format!("the value of the new column {column} of {table} could differ between replicas");
            let hint = "Add the column without a default, set its values by UPDATE, and set the default then.";
            return Err(StoreError::Refused(SqlError::unsupported(message, hint)));
        }
    }
    Ok(())
}

/// R6: a function that acts for the owner of all tables could change their definitions.
async fn refuse_definers(client: &Client) -> Result<(), StoreError> {
    let sql = "SELECT oid::regprocedure::text FROM pg_proc WHERE prosecdef AND proowner = 'evenkeel_owner'::regrole";
    match client.query(sql, &[]).await?.first() {
        Some(row) => refused(&format!("function {} cannot be SECURITY DEFINER", row.try_get::<_, &str>(0)?)),
        None => Ok(()),
    }
}

/// Every table and sequence is declared, with the columns that it has.
async fn check_relations(
    client: &Client,
    delta: &SchemaDelta,
    others: &[(String, RelationKind)],
) -> Result<(), StoreError> {
    let sql = format!(
        "SELECT {NAME}, c.relkind::text, c.relpersistence::text FROM pg_class AS c
         JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.relowner = 'evenkeel_owner'::regrole AND c.relkind IN ('r', 'S', 'p', 'm', 'f') AND n.nspname <> 'pg_toast'"
    );
    let mut there = BTreeMap::new();
    for row in client.query(&sql, &[]).await? {
        let (name, kind, persistence): (String, &str, &str) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let kind = match (kind, persistence) {
            ("r", "p") => RelationKind::Table,
            ("S", "p") => RelationKind::Sequence,
            _ => return refused(&format!("{name} is of a kind that is not possible here")),
        };
        there.insert(name, kind);
    }
    let changed = delta.relations.iter().map(|table| (table.name.clone(), table.kind));
    let declared: BTreeMap<String, RelationKind> = others.iter().cloned().chain(changed).collect();
    let undeclared = there.iter().find(|(name, kind)| declared.get(*name) != Some(*kind));
    let missing = declared.iter().find(|(name, kind)| there.get(*name) != Some(*kind));
    if let Some((name, kind)) = undeclared {
        return wrong(&format!("the change leaves {kind:?} {name:?}, which it does not declare"));
    }
    if let Some((name, kind)) = missing {
        return wrong(&format!("the change declares {kind:?} {name:?}, which is not there afterwards"));
    }
    for table in delta.relations.iter().filter(|table| table.kind == RelationKind::Table) {
        check_columns(client, table).await?;
    }
    Ok(())
}

async fn check_columns(client: &Client, table: &TableSchema) -> Result<(), StoreError> {
    let sql = "SELECT attname::text, atttypid FROM pg_attribute
        WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum";
    let rows = client.query(sql, &[&table.relation()]).await?;
    let found = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    let found = found.collect::<Result<Vec<(String, Oid)>, StoreError>>()?;
    let same = |(column, (name, oid)): (&evenkeel_protocol::schema::ColumnSchema, &(String, Oid))| {
        column.name == *name && (column.type_oid == 0 || column.type_oid == *oid)
    };
    match found.len() == table.columns.len() && table.columns.iter().zip(&found).all(same) {
        true => Ok(()),
        false => wrong(&format!("table {:?} has other columns afterwards than are declared: {found:?}", table.name)),
    }
}

fn refused<T>(message: &str) -> Result<T, StoreError> {
    let hint = "See the limits in the manual.";
    Err(StoreError::Refused(SqlError::unsupported(message, hint)))
}

fn wrong<T>(message: &str) -> Result<T, StoreError> {
    Err(StoreError::Refused(SqlError::new(codes::INVALID_TABLE, message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_stay_one_literal_whatever_is_in_them() {
        let change = |sql: &str| SchemaChange { sql: sql.into(), ..SchemaChange::default() };
        assert_eq!(in_block(&change("SELECT 1")), "DO $evk1$BEGIN EXECUTE $evk0$SELECT 1$evk0$; END$evk1$");
        let hostile = in_block(&change("$evk0$; RESET ROLE; $evk1$"));
        assert_eq!(hostile, "DO $evk3$BEGIN EXECUTE $evk2$$evk0$; RESET ROLE; $evk1$$evk2$; END$evk3$");
    }
}
