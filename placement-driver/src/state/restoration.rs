//! Coming back from an old copy (R30): what shards hold that the state has never heard of.
//!
//! A copy of the state knows nothing of what was numbered after it was taken. Shards do: numbers, tables and routes come from their reports.
//! Until they are in, nothing is numbered ([`State::restoring`]).

use super::*;
use evenkeel_protocol::report::HighestNumbers;

/// How many numbers of operators and ranges are left out if not every shard could be asked: more than any of them can have seen that the others
/// have not.
pub const SKIPPED_NUMBERS: u64 = 1 << 20;
/// The same of tables.
pub const SKIPPED_TABLES: u32 = 1 << 12;

/// What shards hold and a restored state may not know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The highest numbers that any shard has seen.
    pub highest: HighestNumbers,
    /// Tables that are not known here.
    pub tables: Vec<TableSchema>,
    /// What the shards own, where it is later than what is known here; of `tables` everything.
    pub routes: Vec<Route>,
    /// Shards that have not said what they hold.
    pub silent: Vec<ShardId>,
}

impl State {
    /// Takes the number that tells this cluster from others; one that it has already stays.
    pub(super) fn name_cluster(&mut self, cluster: u32) -> Effect {
        if self.version.cluster() != 0 || cluster == 0 {
            return Effect::Unchanged;
        }
        self.version.incarnation |= u64::from(cluster) << 32;
        self.changes.clear();
        Effect::Applied
    }

    pub(super) fn begin_incarnation(&mut self, generation: u32) -> Effect {
        let ahead = u64::from(generation.saturating_sub(self.version.generation()));
        if ahead == 0 {
            return Effect::Unchanged;
        }
        self.kv.begin_incarnation(ahead);
        self.version.incarnation += ahead;
        self.restoring = true;
        self.changes.clear();
        Effect::Applied
    }

    /// Takes in what was found, and numbers from above it on.
    pub(super) fn reconciled(&mut self, found: &Found, now: Moment, change: &mut Change) -> Result<Effect, Refusal> {
        if !self.restoring {
            return Ok(Effect::Unchanged);
        }
        self.take_tables(&found.tables, &found.routes, now, change)?;
        let (skipped, skipped_tables) =
            if found.silent.is_empty() { (0, 0) } else { (SKIPPED_NUMBERS, SKIPPED_TABLES) };
        let HighestNumbers { operator, range, table } = found.highest;
        let after = |next: u64, highest: u64| next.max(highest.saturating_add(1)).saturating_add(skipped);
        self.restoring = false;
        if deliberate(Bug::NumbersReused) {
            return Ok(Effect::Applied);
        }
        self.next_operator = OperatorId(after(self.next_operator.0, operator.0));
        self.next_range = RangeId(after(self.next_range.0, range.0));
        let next_table = self.next_table.0.max(table.0.saturating_add(1));
        self.next_table = TableId(next_table.saturating_add(skipped_tables));
        Ok(Effect::Applied)
    }

    /// Takes in tables that are not known here, with all of their ranges, and other routes. Refused as a whole.
    pub(super) fn take_tables(
        &mut self,
        tables: &[TableSchema],
        routes: &[Route],
        now: Moment,
        change: &mut Change,
    ) -> Result<Effect, Refusal> {
        let mut names = std::collections::BTreeSet::new();
        for table in tables {
            if self.tables.contains_key(&table.id)
                || self.table_named(&table.name).is_some()
                || !names.insert(&table.name)
            {
                return Err(Refusal::TableExists(table.name.clone()));
            }
            check_schema(table)?;
            if !routes.iter().any(|route| route.table == table.id) {
                return Err(Refusal::BadRoutes(format!("nobody owns table {}", table.id)));
            }
        }
        if self.tables.len() + tables.len() > MAX_TABLES {
            return Err(Refusal::TooMany(format!("there would be more than {MAX_TABLES} tables")));
        }
        for table in tables {
            self.tables.insert(table.id, Table { schema: Arc::new(table.clone()), creating: None });
            change.tables.insert(table.id);
        }
        let replaced = self.replace_by_table(routes, now, change);
        if replaced.is_err() {
            tables.iter().for_each(|table| drop(self.tables.remove(&table.id)));
        }
        replaced.map(|()| Effect::Applied)
    }
}
