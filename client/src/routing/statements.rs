//! A cache of analysed statements by their text.
//!
//! The analysis of SQL takes tens of microseconds, a lookup 0.1 µs, and applications send the same
//! texts again and again. The cache is bounded and has two generations. New entries go into the
//! young generation. When that is full, it becomes the old generation, and the previous old
//! generation is dropped. An entry that is found in the old generation becomes young again: entries
//! in use stay, and a hit maintains no list. An entry belongs to the table for which it was
//! analysed and is not found once the table's name means another table.

use evenkeel_protocol::TableSchema;
use evenkeel_protocol::routing::RoutingTable;
use evenkeel_sql::Plan;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Longer texts are not cached, in bytes: they are bulk loads with literals, which do not repeat.
const MAX_CACHED_SQL_BYTES: usize = 8 << 10;

/// An analysed statement.
#[derive(Debug)]
pub(crate) struct Statement {
    /// The text.
    pub sql: Arc<str>,
    /// The execution plan.
    pub plan: Plan,
    /// The table for which it was analysed, as it was then, with its name in the text.
    pub table: Option<(String, Arc<TableSchema>)>,
}

impl Statement {
    /// Whether the table's name still means the same table, and the table is as it was.
    fn is_valid(&self, routes: &RoutingTable) -> bool {
        match &self.table {
            None => true,
            Some((name, known)) => {
                routes.table(name).is_some_and(|schema| Arc::ptr_eq(schema, known) || schema == known)
            }
        }
    }
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Arc<str>, Arc<Statement>>,
    old: HashMap<Arc<str>, Arc<Statement>>,
}

/// A bounded number of analysed statements.
#[derive(Debug)]
pub(crate) struct StatementCache {
    generations: RwLock<Generations>,
    generation_entries: usize,
}

impl StatementCache {
    /// An empty cache for `entries` statements.
    pub(crate) fn new(entries: usize) -> StatementCache {
        StatementCache { generations: RwLock::default(), generation_entries: entries.div_ceil(2) }
    }

    /// The statement with this text, if its table is still the one in `routes`.
    pub(crate) fn get(&self, sql: &str, routes: &RoutingTable) -> Option<Arc<Statement>> {
        let (found, young) = {
            let generations = self.generations.read().unwrap_or_else(PoisonError::into_inner);
            match generations.young.get(sql) {
                Some(found) => (found.clone(), true),
                None => (generations.old.get(sql)?.clone(), false),
            }
        };
        if !found.is_valid(routes) {
            return None;
        }
        if !young {
            self.put(found.clone());
        }
        Some(found)
    }

    /// Adds or replaces a statement.
    pub(crate) fn put(&self, statement: Arc<Statement>) {
        if statement.sql.len() > MAX_CACHED_SQL_BYTES {
            return;
        }
        let mut generations = self.generations.write().unwrap_or_else(PoisonError::into_inner);
        generations.young.insert(statement.sql.clone(), statement);
        if generations.young.len() >= self.generation_entries {
            generations.old = std::mem::take(&mut generations.young);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::routing::router::tests::{schema, table};
    use evenkeel_sql::{self as sql, Command};

    fn statement(sql: &str) -> Arc<Statement> {
        let Command::Statement(parsed) = sql::parse(sql).unwrap() else { panic!("{sql}") };
        let name = parsed.table_name().unwrap().to_string();
        let plan = parsed.bind(Some(&schema())).unwrap();
        Arc::new(Statement { sql: sql.into(), plan, table: Some((name, Arc::new(schema()))) })
    }

    #[test]
    fn entries_in_use_stay_and_the_rest_makes_room() {
        let routes = table(&[(1, 0)]);
        let cache = StatementCache::new(8);
        let text = |n: usize| format!("SELECT v FROM t WHERE id = {n}");
        for n in 0..50 {
            cache.put(statement(&text(n)));
            assert!(cache.get(&text(0), &routes).is_some(), "used after {n} others");
        }
        let kept = (0..50).filter(|n| cache.get(&text(*n), &routes).is_some()).count();
        assert!((2..=8).contains(&kept), "{kept} of 50 kept");
        let long = format!("SELECT v FROM t WHERE v = '{}'", "x".repeat(MAX_CACHED_SQL_BYTES));
        cache.put(statement(&long));
        assert!(cache.get(&long, &routes).is_none());
    }

    /// Breaks if an analysis outlives its table: keys would be read from the wrong columns.
    #[test]
    fn a_name_that_means_another_table_is_analysed_again() {
        let mut routes = table(&[(1, 0)]);
        let cache = StatementCache::new(8);
        let sql = "SELECT v FROM t WHERE id = 1";
        cache.put(statement(sql));
        assert!(cache.get(sql, &routes).is_some());
        routes.put_schema(Arc::new(TableSchema { id: evenkeel_protocol::TableId(2), ..schema() }));
        assert!(cache.get(sql, &routes).is_none());
        assert!(cache.get(sql, &RoutingTable::default()).is_none());
        let mut wider = schema();
        wider.columns.push(evenkeel_protocol::schema::ColumnSchema { name: "w".into(), ..wider.columns[0].clone() });
        routes.put_schema(Arc::new(wider));
        assert!(cache.get(sql, &routes).is_none(), "the table was altered");
    }
}
