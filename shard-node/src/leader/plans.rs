//! Statements that have been parsed and bound to their table, by their text.

use crate::fold::ShardState;
use evenkeel_protocol::sql::{self, Command, Plan};
use evenkeel_protocol::{Failure, KeyCodec, SqlError, TableSchema};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// Plans kept; beyond it all are forgotten and made anew as needed.
const MAX_PLANS: usize = 4096;

/// A plan and what goes with it.
#[derive(Debug)]
pub struct BoundPlan {
    /// The plan.
    pub plan: Plan,
    /// What PostgreSQL runs.
    pub sql: Arc<str>,
    /// Its table; absent for a SELECT without FROM.
    pub schema: Option<Arc<TableSchema>>,
    /// The codec of the table's keys.
    pub codec: KeyCodec,
    /// The SQL with a clip, by which of start, end and limit it has.
    clipped: [OnceLock<Arc<str>>; 8],
}

impl BoundPlan {
    /// What PostgreSQL runs with a clip.
    pub fn clipped_sql(&self, start: bool, end: bool, limit: bool) -> Arc<str> {
        let which = usize::from(start) | usize::from(end) << 1 | usize::from(limit) << 2;
        self.clipped[which].get_or_init(|| self.plan.clipped_sql(start, end, limit).into()).clone()
    }
}

/// See the module. Valid for one set of tables: a table's definition never changes under its id.
#[derive(Debug, Default)]
pub struct Plans {
    by_text: RwLock<HashMap<Arc<str>, Arc<BoundPlan>>>,
}

impl Plans {
    /// The plan of a statement.
    pub fn get(&self, text: &Arc<str>, state: &ShardState) -> Result<Arc<BoundPlan>, Failure> {
        if let Some(plan) = self.by_text.read().unwrap_or_else(PoisonError::into_inner).get(text) {
            return Ok(plan.clone());
        }
        let Command::Statement(parsed) = sql::parse(text)? else {
            return Err(SqlError::unsupported(
                "a shard runs single statements",
                "Send BEGIN, COMMIT and CREATE TABLE through the client.",
            )
            .into());
        };
        let schema = match parsed.table_name() {
            None => None,
            Some(name) => {
                let table = state.tables().find(|table| table.name == name).cloned();
                // The client has looked the table up: if it is unknown here, none of its ranges is here.
                Some(table.ok_or(Failure::Moved { to: None, range: None })?)
            }
        };
        let plan = parsed.bind(schema.as_deref())?;
        let codec = schema.as_ref().map(|s| s.codec()).unwrap_or_default();
        let bound = Arc::new(BoundPlan { sql: plan.sql().into(), plan, schema, codec, clipped: Default::default() });
        let mut all = self.by_text.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_PLANS {
            all.clear();
        }
        all.insert(text.clone(), bound.clone());
        Ok(bound)
    }
}
