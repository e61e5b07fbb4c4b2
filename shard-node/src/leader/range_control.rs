//! Range control: requests of the placement driver, and the control entries of moves.
//!
//! Every request is idempotent. After an unknown outcome the placement driver sends it again, and a
//! request whose work is done already is answered so ([`super::control_requests`]).
//!
//! Not done: the steps of a move that are more than one entry (`crate::migration`).

use super::context::LeaderContext;
use super::control_requests::{entry_of, served_before};
use super::failures::{busy, not_executed};
use super::leadership::EntryOutcome;
use crate::log_entry::{Control, EntryBody, ShardEntry};
use crate::storage::{StoreError, size_split_keys, try_table};
use crate::table_definition;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::{Epoch, Failure, RangeId, SqlError, TableSchema};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long to wait for an entry's outcome, in milliseconds. The placement driver asks again.
const OUTCOME_MS: u64 = 5_000;

/// Codes of rejections that pass.
const PASSING: [&str; 4] = ["purge-unfinished", "copy-kept", "schema-prepared", "schema-behind"];

/// See the module.
pub struct RangeControl {
    context: Arc<LeaderContext>,
    /// Held while a table is tried and created.
    creating_table: tokio::sync::Mutex<()>,
}

impl RangeControl {
    /// The control of a leadership.
    pub fn new(context: Arc<LeaderContext>) -> RangeControl {
        RangeControl { context, creating_table: tokio::sync::Mutex::default() }
    }

    /// Proposes a control entry.
    pub async fn propose(&self, control: Control) -> Result<oneshot::Receiver<EntryOutcome>, Failure> {
        let entry = ShardEntry { serial: self.context.leadership.next_serial(), body: EntryBody::Control(control) };
        self.context.leadership.propose(&entry).await
    }

    /// Proposes a control entry and waits until it is applied and stored here.
    pub async fn execute(&self, control: Control) -> Result<EntryOutcome, Failure> {
        let outcome = self.propose(control).await?;
        match evenkeel_host::timeout(Duration::from_millis(OUTCOME_MS), outcome).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => Err(Failure::NotLeader { leader: None }),
            Err(_) => Err(Failure::OutcomeUnknown { reason: "the log takes too long".into() }),
        }
    }

    /// Serves a request that consists of one entry, unless the state machine shows that it was
    /// served before.
    pub async fn serve(&self, request: &ControlRequest) -> Result<ControlReply, Failure> {
        let unknown = |schema: &&TableSchema| self.context.shared.state().table(schema.id).is_none();
        let creates = match request {
            ControlRequest::CreateTable { schema, .. } | ControlRequest::IngestOpen { schema, .. } => Some(schema),
            _ => None,
        };
        // One table at a time, so that a trial does not meet the same table being created.
        let _alone = match creates.filter(unknown) {
            Some(_) => Some(self.creating_table.lock().await),
            None => None,
        };
        let state = self.context.shared.state();
        if let Some(reply) = served_before(&state, request) {
            // A deposed leader may have applied this state: the answer is a read.
            self.context.barrier().await?;
            return Ok(reply);
        }
        let Some(entry) = entry_of(request) else {
            return Ok(ControlReply::Refused { code: "not-an-entry".into(), reason: "not served here".into() });
        };
        if let Some(schema) = creates.filter(unknown).filter(|schema| schema.create_sql.is_empty()) {
            let waiting_for = format!("the schema change that makes table {:?}", schema.name);
            return Ok(ControlReply::Pending { waiting_for });
        }
        if creates.filter(unknown).is_some()
            && let Some(rejected) = table_definition::rejection(request)
        {
            return Ok(rejected);
        }
        if let Some(schema) = creates.filter(unknown)
            && let Some(refused) = self.rejected_table(schema).await?
        {
            return Ok(refused);
        }
        Ok(match self.execute(entry).await? {
            EntryOutcome::Effective(_) => ControlReply::Done,
            // The orphaned copy of an earlier move is being deleted, or will be when the placement
            // driver asks for it.
            // A schema change holds the table, or has yet to make it here.
            EntryOutcome::Rejected(refusal) if PASSING.contains(&refusal.code) => {
                ControlReply::Pending { waiting_for: refusal.reason }
            }
            EntryOutcome::Rejected(refusal) => {
                ControlReply::Refused { code: refusal.code.to_string(), reason: refusal.reason }
            }
            EntryOutcome::Deposed => return Err(Failure::NotLeader { leader: None }),
        })
    }

    /// Tries to create a table in PostgreSQL. Returns the reply if PostgreSQL rejects the
    /// definition. The trial has to precede the entry: once the entry is decided, every replica
    /// creates the table or stops (invariant 5).
    async fn rejected_table(&self, schema: &TableSchema) -> Result<Option<ControlReply>, Failure> {
        self.context.check_open()?;
        let tried = try_table(&self.context.shared.connector, &Arc::new(schema.clone())).await;
        match tried.map_err(|error| self.context.examine(error)) {
            Ok(()) => Ok(None),
            Err(StoreError::Refused(error)) if !is_temporary(&error) => {
                Ok(Some(ControlReply::Refused { code: "bad-definition".into(), reason: error.to_sentence() }))
            }
            Err(error) => Err(busy(&format!("the table cannot be tried: {error}"))),
        }
    }

    /// The keys that divide a range into pieces of about equal bytes, from a sample of its rows.
    pub async fn size_split_keys(&self, range: RangeId, epoch: Epoch, pieces: u32) -> Result<ControlReply, Failure> {
        let state = self.context.shared.state();
        let refused = |code: &str, reason: String| Ok(ControlReply::Refused { code: code.into(), reason });
        let Some(owned) = state.range(range) else {
            return refused("no-such-range", format!("range {range} is not owned here"));
        };
        if owned.epoch != epoch {
            return refused("wrong-epoch", format!("range {range} has epoch {}, not {epoch}", owned.epoch));
        }
        let Some(table) = state.table(owned.table) else {
            return refused("no-such-range", format!("table {} is not here", owned.table));
        };
        let keys = async {
            let snapshot = self.context.shared.snapshots.take().await?;
            let keys = size_split_keys(&snapshot, table, &owned.interval, pieces as usize).await?;
            self.context.shared.snapshots.give_back(snapshot).await;
            Ok(keys)
        };
        let keys = keys.await.map_err(|error: StoreError| not_executed(&error))?;
        Ok(ControlReply::SplitKeys(keys))
    }
}

/// Whether the table may be possible although its trial failed: the error is temporary, or a
/// relation of its name was created at the same moment. That is this very table if an earlier
/// request for it is being applied.
fn is_temporary(error: &SqlError) -> bool {
    StoreError::Refused(error.clone()).passes() || ["23505", codes::DUPLICATE_TABLE].contains(&error.code.as_ref())
}
