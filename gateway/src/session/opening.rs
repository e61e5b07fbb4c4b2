//! The beginning of a statement that reads several shards: at each of them a transaction acquires
//! the part that it owns.
//!
//! At READ COMMITTED the statement has transactions of its own, each with one snapshot, that end
//! with it; but where the user's transaction has written, it reads there, to see its own writes. At
//! REPEATABLE READ it always reads in the user's transaction. The parts are of one routing table,
//! and each shard confirms its own: together they have each row once. Nothing has been shown before
//! all of them have, so that the routes can be looked up again as often as ranges move.

use super::trouble::Trouble;
use crate::front::server::FrontPostgres;
use crate::front::settings::{Settings, pairs};
use crate::remote::reads::{ReadPart, StatementReads};
use evenkeel_client::{Client, ClientError, ShardPart, ShardedTransaction, SharedTransaction, TransactionOptions};
use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::pass_through::{PassThroughBegin, PassThroughStatement, PassThroughStep};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// How often the routes are looked up again because ranges have moved.
const MAX_MOVES_FOLLOWED: u32 = 16;
/// The settings that postgres_fdw expects of a scan: values in the forms that every session reads
/// alike.
const SCAN_SETTINGS: [(&str, &str); 5] = [
    ("search_path", "pg_catalog"),
    ("timezone", "GMT"),
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
];
/// The user's settings that hold for scans, too.
const LIMITS: [&str; 2] = ["statement_timeout", "lock_timeout"];

/// What a statement begins with.
pub struct Opening<'a> {
    /// The store.
    pub client: &'a Client,
    /// The user's transaction.
    pub transaction: &'a mut ShardedTransaction,
    /// Its modes.
    pub options: TransactionOptions,
    /// The session's settings.
    pub settings: &'a Settings,
    /// The version of the schema that the statement was planned with.
    pub schema_version: u64,
}

impl Opening<'_> {
    /// Opens what a statement reads, and makes the tables through which it is read. `began_with`: a
    /// setting of the transaction that scans do not understand.
    ///
    /// # Errors
    /// As [`Opening::open`]. 0A000: the user's own transaction cannot be read in.
    pub async fn reach(
        self,
        tables: &[evenkeel_protocol::pass_through::TableUse],
        front: &FrontPostgres,
        began_with: Option<&'static str>,
    ) -> Result<Arc<StatementReads>, Trouble> {
        let unreadable = began_with.or_else(|| unreadable(self.settings));
        let (reads, parts) = self.open(tables).await?;
        if let (false, Some(setting)) = (reads.is_repeatable(), unreadable) {
            let message = format!("a read of several shards with this {setting} in this transaction is not supported");
            return Err(SqlError::unsupported(message, "Set it to its default before the transaction begins.").into());
        }
        front.reach(&parts).await?;
        Ok(reads)
    }

    /// Opens what a statement reads.
    ///
    /// # Errors
    /// Those of the shards. 40001 if ranges move on and on.
    pub async fn open(
        mut self,
        tables: &[evenkeel_protocol::pass_through::TableUse],
    ) -> Result<(Arc<StatementReads>, Vec<ShardPart>), Trouble> {
        let mut moves = 0;
        loop {
            let parts = self.client.parts_of(tables).await?;
            let had_begun = self.transaction.is_open();
            match self.open_parts(&parts).await {
                Ok(opened) => {
                    let reads = StatementReads::new(self.client.routes(), opened);
                    return Ok((Arc::new(reads), parts));
                }
                Err((ClientError::Rerun(error), _)) if error.code == codes::SCHEMA_CHANGED => {
                    return Err(Trouble::Ended(error));
                }
                // What the user's transaction had before is lost.
                Err((error @ ClientError::Rerun(_), true)) if had_begun => return Err(error.into()),
                Err((error @ ClientError::Rerun(_), _)) if moves == MAX_MOVES_FOLLOWED => return Err(error.into()),
                Err((ClientError::Rerun(_), _)) => {
                    moves += 1;
                    // If the placement driver cannot be reached, the next attempt says so.
                    _ = self.client.refresh().await;
                }
                Err((error, true)) => return Err(error.into()),
                Err((error, false)) => return Err(only_this_statement(error)),
            }
        }
    }

    /// Opens these parts. An error says whether it was the user's own transaction that failed.
    async fn open_parts(
        &mut self,
        parts: &[ShardPart],
    ) -> Result<BTreeMap<evenkeel_protocol::ShardId, ReadPart>, (ClientError, bool)> {
        let of_user = |shard| self.options.repeatable_read || self.transaction.wrote_at(shard);
        let (users, own): (Vec<ShardPart>, Vec<ShardPart>) =
            parts.iter().cloned().partition(|(shard, _)| of_user(*shard));
        let mut opened = BTreeMap::new();
        let mut opening = JoinSet::new();
        for part in own {
            opening.spawn(open_own(self.client.clone(), self.own_begin(), part));
        }
        let begin = || PassThroughBegin {
            options: self.options,
            settings: pairs(self.settings),
            schema_version: self.schema_version,
        };
        self.transaction.open(&users, begin).await.map_err(|error| (error, true))?;
        for (shard, tables) in users {
            if let Some(transaction) = self.transaction.at(shard) {
                opened.insert(shard, ReadPart { transaction, tables, of_user: true });
            }
        }
        while let Some(joined) = opening.join_next().await {
            let own = joined.unwrap_or_else(|error| {
                Err(ClientError::Sql(SqlError::new(codes::INTERNAL, format!("a part was not opened: {error}"))))
            });
            let ((shard, tables), transaction) = own.map_err(|error| (error, false))?;
            opened.insert(shard, ReadPart { transaction, tables, of_user: false });
        }
        Ok(opened)
    }

    /// How a transaction of the statement's own begins.
    fn own_begin(&self) -> PassThroughBegin {
        let fixed = SCAN_SETTINGS.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string()));
        let limits = LIMITS.iter().filter_map(|name| Some(((*name).to_string(), self.settings.get(*name)?.clone())));
        PassThroughBegin {
            options: TransactionOptions { repeatable_read: true, read_only: true },
            settings: fixed.chain(limits).collect(),
            schema_version: self.schema_version,
        }
    }
}

/// Opens one part in a transaction of its own, whose snapshot is taken now.
async fn open_own(
    client: Client,
    begin: PassThroughBegin,
    part: ShardPart,
) -> Result<(ShardPart, SharedTransaction), ClientError> {
    let mut transaction = client.pass_through_at(begin, part.0);
    let look = PassThroughStatement { sql: "SELECT 1".into(), ..PassThroughStatement::default() };
    transaction.step(part.1.clone(), PassThroughStep::Execute(look)).await?.end().await?;
    Ok((part, Arc::new(Mutex::new(transaction))))
}

/// An error that leaves the user's transaction as any failed statement does.
fn only_this_statement(error: ClientError) -> Trouble {
    match error.sql() {
        Some(sql) => Trouble::Sql(sql.clone()),
        None => error.into(),
    }
}

/// The setting with which values of the user's transaction would not be understood by a scan.
pub fn unreadable(settings: &Settings) -> Option<&'static str> {
    let is = |name: &str, readable: &dyn Fn(&str) -> bool| settings.get(name).is_none_or(|value| readable(value));
    if !is("datestyle", &|value| value.to_ascii_lowercase().starts_with("iso")) {
        return Some("datestyle");
    }
    if !is("intervalstyle", &|value| value.eq_ignore_ascii_case("postgres")) {
        return Some("intervalstyle");
    }
    let exact = |value: &str| value.parse().is_ok_and(|digits: i32| digits > 0);
    if !is("extra_float_digits", &exact) { Some("extra_float_digits") } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_in_one_form_only() {
        let with = |name: &str, value: &str| unreadable(&Settings::from([(name.into(), value.into())]));
        assert_eq!(with("datestyle", "German"), Some("datestyle"));
        assert_eq!(with("datestyle", "ISO, DMY"), None);
        assert_eq!(with("intervalstyle", "iso_8601"), Some("intervalstyle"));
        assert_eq!(with("extra_float_digits", "0"), Some("extra_float_digits"));
        assert_eq!(with("extra_float_digits", "3"), None);
    }
}
