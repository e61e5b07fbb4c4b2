//! What a statement that writes to several shards does at each of them.
//!
//! Each step declares the keys that it writes, all of which one shard owns as far as the routes
//! say; the shard confirms it. Together the steps have every row of the statement once: rows by
//! their keys, and changes by parts of the table that tile what the statement touches. The user's
//! transaction commits at all shards or at none.

use super::computed_rows::{ComputedRows, counted, formats};
use super::declared::only;
use super::planner::Plan;
use super::prepared::Values;
use super::relay::rows_and_others;
use super::returned::Returned;
use super::trouble::Trouble;
use super::write_texts::{Batch, built_in, with_clip};
use crate::front::settings::{Settings, pairs};
use crate::grammar::writes::{ChangeForm, InsertForm};
use crate::remote::clip::within;
use crate::wire::outgoing::Outgoing;
use bytes::Bytes;
use evenkeel_client::{Client, ShardPart, ShardedTransaction, TransactionOptions};
use evenkeel_postgres_session::row;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::pass_through::{
    PassThroughBegin, PassThroughEnd, PassThroughItem, PassThroughStatement, PassThroughStep, TableUse,
};
use evenkeel_protocol::{Key, KeyInterval, ShardId, SqlError, TableSchema};
use std::collections::BTreeMap;

/// The size of the rows that are sent together, in bytes.
const ROUND_BYTES: usize = 1 << 20;
/// The most rows that are sent together.
const ROUND_ROWS: usize = 4_000;
/// The most values that are sent to a shard as parameters.
const MAX_VALUES: usize = 60_000;
/// Rows of one fetch from the gateway's own PostgreSQL.
const FETCH_ROWS: usize = 200;

/// See the module.
pub struct Several<'a> {
    /// The store.
    pub client: &'a Client,
    /// The user's transaction.
    pub transaction: &'a mut ShardedTransaction,
    /// Its modes.
    pub options: TransactionOptions,
    /// The session's settings.
    pub settings: &'a Settings,
    /// The statement.
    pub plan: &'a Plan,
    /// Its parameters.
    pub values: &'a Values,
    /// The rows that it returns.
    pub returned: &'a mut Returned,
    /// The client.
    pub out: &'a mut Outgoing,
}

impl Several<'_> {
    /// Executes an UPDATE or DELETE at each shard that owns some of its keys.
    ///
    /// # Errors
    /// The shards' own; 0A000 if a key would change.
    pub async fn change(&mut self, form: &ChangeForm, tables: &[TableUse]) -> Result<u64, Trouble> {
        let Some(table) = self.plan.shape.touched.first().map(|touched| touched.table.clone()) else {
            return Ok(0);
        };
        if let Some(column) = table.key_columns().find(|column| form.assigned.contains(&column.name)) {
            let message = format!("a change of column \"{}\" of the primary key is not supported", column.name);
            return Err(SqlError::unsupported(message, "Delete the rows, and insert them with their new keys.").into());
        }
        let types = self.types();
        let mut count = 0;
        for (_, part) in self.client.parts_of(tables).await? {
            let Some(used) = part.first() else { continue };
            let clip = within(&table, used, types.len())?;
            let statement = with_clip(form, clip, &types, self.values);
            count += self.step(part, statement).await?;
        }
        Ok(count)
    }

    /// Deletes all rows of these tables.
    ///
    /// # Errors
    /// The shards' own.
    pub async fn empty(&mut self, tables: &[TableUse]) -> Result<(), Trouble> {
        for (_, part) in self.client.parts_of(tables).await? {
            for used in part {
                let touched = &self.plan.shape.touched;
                let Some(touched) = touched.iter().find(|touched| touched.table.id == used.table) else { continue };
                let schema = if touched.table.name.contains('.') { "" } else { "public." };
                let before = format!("DELETE FROM {schema}{} WHERE ", touched.table.relation());
                let form = ChangeForm { before, behind: String::new(), assigned: Vec::new(), tag: "DELETE" };
                let clip = within(&touched.table, &used, 0)?;
                let statement = with_clip(&form, clip, &[], &Values::default());
                self.step(vec![used], statement).await?;
            }
        }
        Ok(())
    }

    /// Inserts computed rows. `form` is that of an INSERT; without it they are a COPY's.
    ///
    /// # Errors
    /// The shards' own.
    pub async fn insert(
        &mut self,
        rows: &mut ComputedRows,
        table: &TableSchema,
        form: Option<&InsertForm>,
    ) -> Result<u64, Trouble> {
        rows.read(table).await?;
        let width = table.columns.len().max(1);
        let formats = formats(table);
        let batch = Batch {
            table,
            formats: &formats,
            form: form.filter(|form| !form.behind.is_empty()),
            types: &self.types(),
            values: self.values,
        };
        let most = if batch.is_copy() { ROUND_ROWS } else { ROUND_ROWS.min(MAX_VALUES / width).max(1) };
        let in_order = form.is_some_and(|form| form.in_order);
        let (mut count, mut round, mut bytes) = (0, Vec::new(), 0);
        loop {
            let fetched = rows.next(FETCH_ROWS.min(most) as u32).await?;
            let ended = fetched.is_empty();
            for row in fetched {
                if round.len() == most || bytes >= ROUND_BYTES {
                    count += self.round(&batch, std::mem::take(&mut round), in_order).await?;
                    bytes = 0;
                }
                bytes += row.len();
                round.push(row);
            }
            if ended {
                if !round.is_empty() {
                    count += self.round(&batch, round, in_order).await?;
                }
                rows.stop_reading().await?;
                return Ok(count);
            }
        }
    }

    /// Sends rows to their shards.
    async fn round(&mut self, batch: &Batch<'_>, rows: Vec<Bytes>, in_order: bool) -> Result<u64, Trouble> {
        let keys = rows.iter().map(|row| key(batch.table, row)).collect::<Result<Vec<Key>, SqlError>>()?;
        let groups = self.groups(batch.table, &keys).await?;
        let (mut count, mut answers) = (0, Vec::new());
        for members in groups.into_values() {
            let mut of_group: Vec<&Key> = members.iter().map(|at| &keys[*at]).collect();
            of_group.sort_unstable();
            of_group.dedup();
            let keys = match batch.table.is_ordered() {
                true => of_group.into_iter().cloned().map(only).collect(),
                false => vec![KeyInterval::ALL],
            };
            let used = TableUse { table: batch.table.id, keys, writes: true };
            let statement = batch.statement(members.iter().map(|at| &rows[*at]))?;
            let first = self.returned.len();
            count += self.step(vec![used], statement).await?;
            answers.push((members, self.returned.len() - first));
        }
        if in_order && answers.iter().all(|(members, given)| members.len() == *given) {
            self.returned.sort_last(answers.into_iter().flat_map(|(members, _)| members).collect());
        }
        self.returned.give(self.out).await?;
        Ok(count)
    }

    /// The positions of the keys by the shards that own them.
    async fn groups(&self, table: &TableSchema, keys: &[Key]) -> Result<BTreeMap<ShardId, Vec<usize>>, Trouble> {
        if !table.is_ordered() {
            let used = TableUse { table: table.id, keys: vec![KeyInterval::ALL], writes: true };
            let parts = self.client.parts_of(&[used]).await?;
            let [(shard, _)]: [ShardPart; 1] = parts
                .try_into()
                .map_err(|_| SqlError::new(codes::INTERNAL, "a table without an order is on several shards"))?;
            return Ok(BTreeMap::from([(shard, (0..keys.len()).collect())]));
        }
        let used = TableUse { table: table.id, keys: keys.iter().cloned().map(only).collect(), writes: true };
        // Waits until all of them have a route.
        let parts = self.client.parts_of(&[used]).await?;
        let mut groups: BTreeMap<ShardId, Vec<usize>> = BTreeMap::new();
        let owned = parts.iter().flat_map(|(shard, tables)| {
            tables.iter().flat_map(|used| &used.keys).map(|interval| (&interval.start, (interval, *shard)))
        });
        let owned: BTreeMap<&Key, (&KeyInterval, ShardId)> = owned.collect();
        for (at, key) in keys.iter().enumerate() {
            match owned.range::<Key, _>(..=key).next_back() {
                Some((_, (interval, shard))) if interval.contains(key) => groups.entry(*shard).or_default().push(at),
                _ => return Err(SqlError::new(codes::INTERNAL, "a key that no shard owns").into()),
            }
        }
        Ok(groups)
    }

    /// Executes a statement at the shard that owns these keys, keeps what it returns, and counts
    /// its rows.
    async fn step(&mut self, tables: Vec<TableUse>, statement: PassThroughStatement) -> Result<u64, Trouble> {
        let begin = || PassThroughBegin {
            options: self.options,
            settings: pairs(self.settings),
            schema_version: self.plan.shape.schema_version,
        };
        let sent = self.transaction.step(tables.clone(), PassThroughStep::Execute(statement), begin).await;
        let mut replies = match sent {
            // The range was split or has moved after its part was cut.
            Err(_) if self.client.is_spread(&tables) => {
                let message = "a range has moved while the statement was executed";
                return Err(Trouble::Ended(SqlError::new(codes::SERIALIZATION_FAILURE, message)));
            }
            sent => sent.map_err(|error| of_statement(error.into()))?,
        };
        while let Some(item) = replies.next().await.map_err(|error| of_statement(error.into()))? {
            match item {
                PassThroughItem::Messages(messages) => {
                    let (rows, others) = rows_and_others(messages);
                    others.into_iter().for_each(|message| self.out.buffer.extend_from_slice(&message));
                    self.returned.add(rows)?;
                }
                PassThroughItem::Parameters(_) => {}
                PassThroughItem::End(PassThroughEnd::Complete(tag)) => return Ok(counted(&tag)),
                PassThroughItem::End(_) => return Ok(0),
            }
        }
        Err(Trouble::Ended(SqlError::new(codes::INTERNAL, "a shard's answer has no end")))
    }

    /// The parameters' types as they mean the same on every server.
    fn types(&self) -> Vec<u32> {
        self.plan.shape.analysis.parameter_types.iter().map(|oid| built_in(*oid)).collect()
    }
}

/// An error without what only shows how rows were sent.
fn of_statement(trouble: Trouble) -> Trouble {
    match trouble {
        Trouble::Sql(mut error) => {
            if let Some(fields) = &mut error.fields {
                fields.context = fields.context.take().filter(|context| !context.starts_with("COPY "));
            }
            Trouble::Sql(error)
        }
        trouble => trouble,
    }
}

/// The key of a computed row.
fn key(table: &TableSchema, row: &Bytes) -> Result<Key, SqlError> {
    let wrong = || SqlError::new(codes::INTERNAL, "a computed row that is none");
    if !table.is_ordered() {
        return Ok(Key::MIN);
    }
    let values = row::values(row).ok_or_else(wrong)?;
    let columns = table.key.iter().map(|at| values.get(*at).copied().flatten());
    table.codec().encode_binary(columns).map_err(|error| SqlError::new(codes::PROGRAM_LIMIT, error.to_string()))
}
