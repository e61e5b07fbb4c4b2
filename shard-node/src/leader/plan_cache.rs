//! Plan cache: statements that have been parsed and bound to their table, by their text.
//!
//! The cache keeps recently used plans. Each plan has a [`BatchHistory`] of its executions, by
//! which batches are composed.

use super::recent::{Found, Recent};
use crate::state_machine::ShardState;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::StatementRequest;
use evenkeel_protocol::{Failure, KeyCodec, SqlError, TableSchema};
use evenkeel_sql::{self as sql, Command, Plan};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// Plans in the cache. The least recently used plans are dropped.
const MAX_PLANS: usize = 4096;

/// Executions for which a plan is distrusted after PostgreSQL has rejected it.
const DISTRUSTED_FOR: u32 = 1_000;
/// Smaller executions, approximately, after which the size of a large one is forgotten.
const IMAGE_MEMORY: u64 = 16;

/// A plan with its table and the SQL texts of its variants.
#[derive(Debug)]
pub struct BoundPlan {
    /// The plan.
    pub plan: Plan,
    /// The SQL for PostgreSQL.
    pub sql: Arc<str>,
    /// The SQL inside a batch, if it is not `sql`. It returns no row, and has no effect, where a
    /// unique constraint is violated ([`Plan::insert_if_absent_sql`]).
    pub batch_sql: Option<Arc<str>>,
    /// The history of its executions.
    pub history: BatchHistory,
    /// Its table; `None` for a SELECT without FROM.
    pub schema: Option<Arc<TableSchema>>,
    /// The codec of the table's keys.
    pub codec: KeyCodec,
    /// The version of the schema that it was bound at.
    pub schema_version: u64,
    /// The SQL with a clip, by whether it has a start, an end and a limit.
    clipped: [OnceLock<Arc<str>>; 8],
    /// The SQL of a piece, likewise, and by whether it excludes its start.
    pieces: [OnceLock<Arc<str>>; 16],
}

/// What a plan's executions in batches took, for the composition of the next batch.
#[derive(Debug)]
pub struct BatchHistory {
    /// Bytes of the row images of recent executions; `u64::MAX` before the first execution.
    image_bytes: AtomicU64,
    /// The number of further executions for which the plan is distrusted.
    distrusted: AtomicU32,
}

impl Default for BatchHistory {
    fn default() -> BatchHistory {
        BatchHistory { image_bytes: AtomicU64::new(u64::MAX), distrusted: AtomicU32::new(0) }
    }
}

impl BatchHistory {
    /// Bytes of an execution's row images, if known: the maximum of recent executions.
    pub fn image_bytes(&self) -> Option<usize> {
        let bytes = self.image_bytes.load(Ordering::Relaxed);
        (bytes != u64::MAX).then_some(bytes as usize)
    }

    /// PostgreSQL has executed the plan, and its images take `image_bytes`.
    pub fn executed(&self, image_bytes: usize) {
        let new = image_bytes as u64;
        let lately = match self.image_bytes.load(Ordering::Relaxed) {
            u64::MAX => new,
            // A larger size counts at once and is forgotten slowly: too large a batch costs more
            // than too small a batch.
            old => new.max(old - (old - old.min(new)).div_ceil(IMAGE_MEMORY)),
        };
        self.image_bytes.store(lately, Ordering::Relaxed);
        let distrusted = self.distrusted.load(Ordering::Relaxed);
        if distrusted > 0 {
            self.distrusted.store(distrusted - 1, Ordering::Relaxed);
        }
    }

    /// PostgreSQL has rejected the plan.
    pub fn refused(&self) {
        self.distrusted.store(DISTRUSTED_FOR, Ordering::Relaxed);
    }

    /// Whether PostgreSQL may reject the plan again.
    pub fn is_distrusted(&self) -> bool {
        self.distrusted.load(Ordering::Relaxed) > 0
    }
}

impl BoundPlan {
    /// The SQL with a clip.
    pub fn clipped_sql(&self, start: bool, end: bool, limit: bool) -> Arc<str> {
        let which = usize::from(start) | usize::from(end) << 1 | usize::from(limit) << 2;
        self.clipped[which].get_or_init(|| self.plan.clipped_sql(start, end, limit).into()).clone()
    }

    /// The SQL of a piece.
    pub fn piece_sql(&self, start: bool, behind: bool, end: bool, limit: bool) -> Arc<str> {
        let which = usize::from(start) | usize::from(end) << 1 | usize::from(limit) << 2 | usize::from(behind) << 3;
        self.pieces[which].get_or_init(|| self.plan.piece_sql(start, behind, end, limit).into()).clone()
    }
}

/// See the module. All entries are of one version of the schema: a later one may have changed any
/// table.
#[derive(Debug)]
pub struct PlanCache {
    by_text: RwLock<(u64, Recent<Arc<BoundPlan>>)>,
}

impl Default for PlanCache {
    fn default() -> PlanCache {
        PlanCache { by_text: RwLock::new((0, Recent::new(MAX_PLANS))) }
    }
}

impl PlanCache {
    /// The plan of a request, whose number of parameters is checked. `schema_version` is what
    /// PostgreSQL held before `state` was read.
    pub fn bind(
        &self,
        request: &StatementRequest,
        state: &ShardState,
        schema_version: u64,
    ) -> Result<Arc<BoundPlan>, Failure> {
        let bound = self.get(&request.sql, state, schema_version)?;
        let (expected, given) = (bound.plan.parameters(), request.params.len());
        if expected != given {
            let message = format!("the statement has {expected} parameter(s), {given} given");
            return Err(SqlError::new(codes::UNDEFINED_PARAMETER, message).into());
        }
        Ok(bound)
    }

    /// The plan of a statement.
    fn get(&self, text: &Arc<str>, state: &ShardState, schema_version: u64) -> Result<Arc<BoundPlan>, Failure> {
        let known = {
            let plans = self.by_text.read().unwrap_or_else(PoisonError::into_inner);
            if plans.0 == schema_version { plans.1.get(text) } else { None }
        };
        match known {
            Some(Found::Young(plan)) => return Ok(plan),
            Some(Found::Old(plan)) => {
                self.put(text, &plan);
                return Ok(plan);
            }
            None => {}
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
                // The client has resolved the table's name. If the table is unknown here, this
                // shard has none of its ranges.
                Some(table.ok_or(Failure::Moved { to: None, range: None })?)
            }
        };
        let plan = parsed.bind(schema.as_deref())?;
        let codec = schema.as_ref().map(|s| s.codec()).unwrap_or_default();
        let bound = Arc::new(BoundPlan {
            sql: plan.sql().into(),
            batch_sql: plan.insert_if_absent_sql().map(Into::into),
            history: BatchHistory::default(),
            plan,
            schema,
            codec,
            schema_version,
            clipped: Default::default(),
            pieces: Default::default(),
        });
        self.put(text, &bound);
        Ok(bound)
    }

    fn put(&self, text: &Arc<str>, plan: &Arc<BoundPlan>) {
        let mut plans = self.by_text.write().unwrap_or_else(PoisonError::into_inner);
        if plans.0 < plan.schema_version {
            *plans = (plan.schema_version, Recent::new(MAX_PLANS));
        }
        if plans.0 == plan.schema_version {
            plans.1.put(text.clone(), plan.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_images_count_at_once_and_are_forgotten_slowly() {
        let history = BatchHistory::default();
        assert_eq!(history.image_bytes(), None);
        history.executed(100);
        history.executed(64 << 10);
        assert_eq!(history.image_bytes(), Some(64 << 10));
        history.executed(100);
        assert!(history.image_bytes() > Some(60_000));
        (0..400).for_each(|_| history.executed(100));
        assert_eq!(history.image_bytes(), Some(100));
    }

    #[test]
    fn a_plan_that_was_refused_is_distrusted_for_a_while() {
        let history = BatchHistory::default();
        history.refused();
        (1..DISTRUSTED_FOR).for_each(|_| history.executed(1));
        assert!(history.is_distrusted());
        history.executed(1);
        assert!(!history.is_distrusted());
    }
}
