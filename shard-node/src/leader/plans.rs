//! Statements that have been parsed and bound to their table, by their text.

use super::recent::{Found, Recent};
use crate::state_machine::ShardState;
use evenkeel_protocol::{Failure, KeyCodec, SqlError, TableSchema};
use evenkeel_sql::{self as sql, Command, Plan};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// Plans kept: those used lately; others are made again as needed.
const MAX_PLANS: usize = 4096;

/// A plan that PostgreSQL has refused is distrusted for so many executions.
const DISTRUSTED_FOR: u32 = 1_000;
/// After about so many smaller executions, the size of a large one is forgotten.
const IMAGE_MEMORY: u64 = 16;

/// A plan and what goes with it.
#[derive(Debug)]
pub struct BoundPlan {
    /// The plan.
    pub plan: Plan,
    /// What PostgreSQL runs.
    pub sql: Arc<str>,
    /// What PostgreSQL runs among other statements, if that is not `sql`: no row comes back where a unique constraint is in the way, and
    /// then nothing has happened ([`Plan::insert_if_absent_sql`]).
    pub batch_sql: Option<Arc<str>>,
    /// What its executions were like.
    pub history: History,
    /// Its table; absent for a SELECT without FROM.
    pub schema: Option<Arc<TableSchema>>,
    /// The codec of the table's keys.
    pub codec: KeyCodec,
    /// The SQL with a clip, by which of start, end and limit it has.
    clipped: [OnceLock<Arc<str>>; 8],
    /// The SQL of a piece, likewise, and by whether it comes behind its start.
    pieces: [OnceLock<Arc<str>>; 16],
}

/// What a plan's executions in batches were like, for the next batch.
#[derive(Debug)]
pub struct History {
    /// The bytes of the row images that it gave lately; `u64::MAX` before the first.
    image_bytes: AtomicU64,
    /// How many executions are to be distrusted from now on.
    distrusted: AtomicU32,
}

impl Default for History {
    fn default() -> History {
        History { image_bytes: AtomicU64::new(u64::MAX), distrusted: AtomicU32::new(0) }
    }
}

impl History {
    /// What an execution's row images take, in bytes, if that is known: the most of lately.
    pub fn image_bytes(&self) -> Option<usize> {
        let bytes = self.image_bytes.load(Ordering::Relaxed);
        (bytes != u64::MAX).then_some(bytes as usize)
    }

    /// PostgreSQL has executed it, and its images took so many bytes.
    pub fn executed(&self, image_bytes: usize) {
        let new = image_bytes as u64;
        let lately = match self.image_bytes.load(Ordering::Relaxed) {
            u64::MAX => new,
            // What is larger counts at once, and is forgotten slowly: a batch too large costs more than one too small.
            old => new.max(old - (old - old.min(new)).div_ceil(IMAGE_MEMORY)),
        };
        self.image_bytes.store(lately, Ordering::Relaxed);
        let distrusted = self.distrusted.load(Ordering::Relaxed);
        if distrusted > 0 {
            self.distrusted.store(distrusted - 1, Ordering::Relaxed);
        }
    }

    /// PostgreSQL has refused it.
    pub fn refused(&self) {
        self.distrusted.store(DISTRUSTED_FOR, Ordering::Relaxed);
    }

    /// Whether PostgreSQL may refuse it again.
    pub fn is_distrusted(&self) -> bool {
        self.distrusted.load(Ordering::Relaxed) > 0
    }
}

impl BoundPlan {
    /// What PostgreSQL runs with a clip.
    pub fn clipped_sql(&self, start: bool, end: bool, limit: bool) -> Arc<str> {
        let which = usize::from(start) | usize::from(end) << 1 | usize::from(limit) << 2;
        self.clipped[which].get_or_init(|| self.plan.clipped_sql(start, end, limit).into()).clone()
    }
}

impl BoundPlan {
    /// What PostgreSQL runs for a piece.
    pub fn piece_sql(&self, start: bool, behind: bool, end: bool, limit: bool) -> Arc<str> {
        let which = usize::from(start) | usize::from(end) << 1 | usize::from(limit) << 2 | usize::from(behind) << 3;
        self.pieces[which].get_or_init(|| self.plan.piece_sql(start, behind, end, limit).into()).clone()
    }
}

/// See the module. Valid for one set of tables: a table's definition never changes under its id.
#[derive(Debug)]
pub struct Plans {
    by_text: RwLock<Recent<Arc<BoundPlan>>>,
}

impl Default for Plans {
    fn default() -> Plans {
        Plans { by_text: RwLock::new(Recent::new(MAX_PLANS)) }
    }
}

impl Plans {
    /// The plan of a statement.
    pub fn get(&self, text: &Arc<str>, state: &ShardState) -> Result<Arc<BoundPlan>, Failure> {
        let known = self.by_text.read().unwrap_or_else(PoisonError::into_inner).get(text);
        match known {
            Some(Found::Young(plan)) => return Ok(plan),
            Some(Found::Old(plan)) => {
                self.by_text.write().unwrap_or_else(PoisonError::into_inner).put(text.clone(), plan.clone());
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
                // The client has looked the table up: if it is unknown here, none of its ranges is here.
                Some(table.ok_or(Failure::Moved { to: None, range: None })?)
            }
        };
        let plan = parsed.bind(schema.as_deref())?;
        let codec = schema.as_ref().map(|s| s.codec()).unwrap_or_default();
        let bound = Arc::new(BoundPlan {
            sql: plan.sql().into(),
            batch_sql: plan.insert_if_absent_sql().map(Into::into),
            history: History::default(),
            plan,
            schema,
            codec,
            clipped: Default::default(),
            pieces: Default::default(),
        });
        self.by_text.write().unwrap_or_else(PoisonError::into_inner).put(text.clone(), bound.clone());
        Ok(bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_images_count_at_once_and_are_forgotten_slowly() {
        let history = History::default();
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
        let history = History::default();
        history.refused();
        (1..DISTRUSTED_FOR).for_each(|_| history.executed(1));
        assert!(history.is_distrusted());
        history.executed(1);
        assert!(!history.is_distrusted());
    }
}
