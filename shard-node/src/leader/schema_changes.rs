//! Schema changes on the leader (R34): the trial before the decision, and the decided change.
//!
//! A trial executes the change in PostgreSQL and rolls it back. What it learns must stay true until
//! the change is made, so no statement may run meanwhile on the tables that the change touches.
//! They are blocked and drained first, like a range before its fence; then the trial is logged, and
//! from that entry on the state machine holds the tables. Which tables those are is found out by
//! PostgreSQL's own locks: the change names those that become different, and may lock others.
//!
//! The entry of the decided change is executed by the apply writer of every replica, like the
//! creation of a table.
//!
//! A trial may take longer than a request waits. It runs in a task of its own, and the request is
//! answered "pending" until the trial has ended.

use super::context::LeaderContext;
use super::latches::WriteBlock;
use super::leadership::EntryOutcome;
use super::transactions::Transactions;
use crate::log_entry::{Control, EntryBody, ShardEntry};
use crate::state_machine::ShardState;
use crate::storage::{StoreError, try_schema_change};
use evenkeel_protocol::schema::RelationKind;
use evenkeel_protocol::shard::ControlReply;
use evenkeel_protocol::{Failure, OperatorId, RangeId, SchemaDelta, TableId};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How long a request waits for its work before it is answered "pending", in milliseconds.
const ANSWER_MS: u64 = 1_500;
/// How long statements in flight may take to end at the first attempt while new ones wait, in
/// milliseconds. It doubles with every attempt in vain, up to [`MAX_BLOCK_MS`].
const BLOCK_MS: u64 = 50;
/// The longest block of an attempt, in milliseconds.
const MAX_BLOCK_MS: u64 = 400;
/// Attempts in vain after which transactions in the way are ended (40001).
const PATIENT_TRIES: u32 = 5;
/// Trials of one attempt: the first may show more tables to be blocked for the second.
const MAX_TRIALS: usize = 4;
/// The most bytes of statements in the answer to a placement driver that lacks changes.
const MAX_ANSWER_BYTES: usize = 256 << 10;

/// The task.
#[derive(Debug, Clone, PartialEq)]
enum Work {
    Prepare { operator: OperatorId, delta: SchemaDelta },
    Apply { delta: SchemaDelta, ranges: Vec<(TableId, RangeId)> },
}

impl Work {
    fn delta(&self) -> &SchemaDelta {
        match self {
            Work::Prepare { delta, .. } | Work::Apply { delta, .. } => delta,
        }
    }

    /// The entry that records it.
    fn entry(&self, tables: BTreeSet<TableId>) -> Control {
        match self.clone() {
            Work::Prepare { operator, delta } => {
                Control::SchemaPrepare { operator, version: delta.change.version, tables }
            }
            Work::Apply { delta, ranges } => Control::SchemaChange { delta, ranges },
        }
    }
}

/// Work under way, and its result.
struct Running {
    work: Work,
    result: watch::Receiver<Option<Result<ControlReply, Failure>>>,
}

/// See the module.
pub struct SchemaChanges {
    context: Arc<LeaderContext>,
    transactions: Arc<Transactions>,
    running: Mutex<Option<Running>>,
    /// Attempts in vain since the last success.
    in_vain: AtomicU32,
}

impl SchemaChanges {
    /// Nothing is under way.
    pub(super) fn new(context: Arc<LeaderContext>, transactions: Arc<Transactions>) -> SchemaChanges {
        SchemaChanges { context, transactions, running: Mutex::default(), in_vain: AtomicU32::new(0) }
    }

    /// Tries a change, and holds its tables.
    pub(super) async fn prepare(
        self: &Arc<Self>,
        operator: OperatorId,
        delta: SchemaDelta,
    ) -> Result<ControlReply, Failure> {
        let state = self.context.shared.state();
        if let Some(reply) = earlier(&state, &delta) {
            self.context.barrier().await?;
            return Ok(reply);
        }
        if state.prepared_schema().is_some_and(|prepared| prepared.operator == operator) {
            self.context.barrier().await?;
            return Ok(ControlReply::Done);
        }
        self.work(Work::Prepare { operator, delta }).await
    }

    /// Makes a decided change.
    pub(super) async fn apply(
        self: &Arc<Self>,
        delta: SchemaDelta,
        ranges: Vec<(TableId, RangeId)>,
    ) -> Result<ControlReply, Failure> {
        if let Some(reply) = earlier(&self.context.shared.state(), &delta) {
            self.context.barrier().await?;
            return Ok(reply);
        }
        self.work(Work::Apply { delta, ranges }).await
    }

    /// Releases the tables of a change that was given up.
    pub(super) async fn abort(&self, operator: OperatorId) -> Result<ControlReply, Failure> {
        let state = self.context.shared.state();
        if state.prepared_schema().is_none_or(|prepared| prepared.operator != operator) {
            self.context.barrier().await?;
            return Ok(ControlReply::Done);
        }
        self.propose(Control::SchemaAbort { operator }).await
    }

    /// The changes after a version, as many as one answer takes.
    pub(super) async fn after(&self, version: u64) -> Result<ControlReply, Failure> {
        let state = self.context.shared.state();
        self.context.barrier().await?;
        let mut left = MAX_ANSWER_BYTES;
        let fits = |delta: &&Arc<SchemaDelta>| {
            let before = left;
            left = left.saturating_sub(delta.change.sql.len());
            before > 0
        };
        let deltas = state.schema_after(version).iter().take_while(fits).map(|delta| (**delta).clone());
        Ok(ControlReply::Schema(deltas.collect()))
    }

    /// Begins work, or finds it under way, and waits a while for its result.
    async fn work(self: &Arc<Self>, work: Work) -> Result<ControlReply, Failure> {
        let mut result = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            match &*running {
                Some(other) if other.work != work && other.result.borrow().is_none() => {
                    return Ok(pending("another schema change is under way"));
                }
                Some(same) if same.work == work => same.result.clone(),
                _ => {
                    let (sender, result) = watch::channel(None);
                    *running = Some(Running { work: work.clone(), result: result.clone() });
                    let (changes, work) = (self.clone(), work.clone());
                    tokio::spawn(async move {
                        let done = changes.attempt(&work).await;
                        sender.send_replace(Some(done));
                    });
                    result
                }
            }
        };
        let wait = evenkeel_host::timeout(Duration::from_millis(ANSWER_MS), result.wait_for(Option::is_some));
        let ended = match wait.await {
            Ok(Ok(ended)) => ended.clone(),
            Ok(Err(_)) => Some(Err(Failure::NotLeader { leader: None })),
            Err(_) => None,
        };
        let Some(ended) = ended else { return Ok(pending("PostgreSQL is executing it")) };
        // Whoever asks again begins another attempt.
        self.running.lock().unwrap_or_else(PoisonError::into_inner).take_if(|running| running.work == work);
        ended
    }

    /// One attempt: blocks the tables, tries the change unless that is done already, and logs it.
    async fn attempt(&self, work: &Work) -> Result<ControlReply, Failure> {
        let state = self.context.shared.state();
        let delta = work.delta();
        if delta.change.version != state.schema_version() + 1 {
            let version = state.schema_version();
            return Ok(pending(&format!("the shard has version {version} of the schema")));
        }
        if let Work::Apply { .. } = work
            && state.prepared_schema().is_some_and(|prepared| prepared.version == delta.change.version)
        {
            // Its tables are held, and nothing has happened to their rows since the trial.
            return self.propose(work.entry(BTreeSet::new())).await;
        }
        let mut tables: BTreeSet<TableId> = touched(&state, delta);
        for _ in 0..MAX_TRIALS {
            let blocks = match self.block(&state, &tables).await {
                Some(blocks) => blocks,
                None => return Ok(pending("statements on its tables are still under way")),
            };
            self.context.check_open()?;
            let tried = try_schema_change(&self.context.shared.connector, delta, &others(&state, delta)).await;
            let locked = match tried.map_err(|error| self.context.examine(error)) {
                Ok(locked) => locked,
                Err(error @ StoreError::Refused(_)) if error.passes() => {
                    return Ok(pending(&format!("it cannot be tried now: {error}")));
                }
                Err(StoreError::Refused(error)) => {
                    return Ok(ControlReply::Refused { code: "sql-refused".into(), reason: error.to_sentence() });
                }
                Err(error) => return Ok(pending(&format!("it cannot be tried now: {error}"))),
            };
            let locked = state.tables().filter(|table| locked.contains(&table.name)).map(|table| table.id);
            let more: BTreeSet<TableId> = locked.filter(|table| !tables.contains(table)).collect();
            if more.is_empty() {
                self.in_vain.store(0, Ordering::Relaxed);
                let reply = self.propose(work.entry(tables)).await;
                // Until the outcome is known the tables may be held, or different.
                drop(blocks);
                return reply;
            }
            drop(blocks);
            tables.extend(more);
        }
        Ok(pending("it touches other tables each time that it is tried"))
    }

    /// Blocks all ranges of these tables, and waits until no statement uses them. `None` if that
    /// takes too long: then nothing is blocked.
    async fn block(&self, state: &ShardState, tables: &BTreeSet<TableId>) -> Option<Vec<WriteBlock>> {
        let latches = &self.context.shared.latches;
        let ranges = state.owned().filter(|range| tables.contains(&range.table));
        let blocks: Option<Vec<WriteBlock>> = ranges.map(|range| latches.block(range.id)).collect();
        let in_vain = self.in_vain.load(Ordering::Relaxed);
        let bound = Duration::from_millis((BLOCK_MS << in_vain.min(10)).min(MAX_BLOCK_MS));
        let drained = async {
            for block in blocks.iter().flatten() {
                if !block.drained(bound).await {
                    return Some(block.latch().clone());
                }
            }
            None
        };
        let in_the_way = match evenkeel_host::timeout(bound, drained).await {
            Ok(None) => return blocks,
            Ok(Some(latch)) => Some(latch),
            Err(_) => None,
        };
        self.in_vain.fetch_add(1, Ordering::Relaxed);
        if in_vain >= PATIENT_TRIES {
            let all = blocks.iter().flatten().map(|block| block.latch().clone()).collect::<Vec<_>>();
            for latch in in_the_way.into_iter().chain(all) {
                self.transactions.doom_on(&latch).await;
            }
        }
        None
    }

    /// Proposes an entry and waits for its outcome, however long that takes: the blocks stand until
    /// it is known.
    async fn propose(&self, control: Control) -> Result<ControlReply, Failure> {
        let entry = ShardEntry { serial: self.context.leadership.next_serial(), body: EntryBody::Control(control) };
        match self.context.leadership.propose(&entry).await?.await {
            Ok(EntryOutcome::Effective(_)) => Ok(ControlReply::Done),
            Ok(EntryOutcome::Rejected(refusal)) => Ok(pending(&refusal.reason)),
            Ok(EntryOutcome::Deposed) | Err(_) => Err(Failure::NotLeader { leader: None }),
        }
    }
}

fn pending(waiting_for: &str) -> ControlReply {
    ControlReply::Pending { waiting_for: waiting_for.to_string() }
}

/// The reply to a change whose version the shard has already.
fn earlier(state: &ShardState, delta: &SchemaDelta) -> Option<ControlReply> {
    let version = delta.change.version;
    if version > state.schema_version() {
        return None;
    }
    let made = version.checked_sub(1).and_then(|before| state.schema_after(before).first());
    Some(match made {
        Some(made) if **made == *delta => ControlReply::Done,
        _ => ControlReply::Refused {
            code: "schema-ahead".into(),
            reason: format!("version {version} of the schema is another change here"),
        },
    })
}

/// The known tables that a change alters or drops.
fn touched(state: &ShardState, delta: &SchemaDelta) -> BTreeSet<TableId> {
    let altered = delta.relations.iter().map(|table| table.id).filter(|id| state.table(*id).is_some());
    altered.chain(delta.dropped.iter().copied()).collect()
}

/// The relations of earlier changes that a change leaves as they are.
fn others(state: &ShardState, delta: &SchemaDelta) -> Vec<(String, RelationKind)> {
    let changed = |id: TableId| delta.dropped.contains(&id) || delta.relations.iter().any(|table| table.id == id);
    let others = state.tables().filter(|table| table.create_sql.is_empty() && !changed(table.id));
    others.map(|table| (table.name.clone(), table.kind)).collect()
}
