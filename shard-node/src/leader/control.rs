//! What the placement driver asks of a leader. Every request is idempotent: asked again after an unknown outcome, it finds
//! what it wanted done and says so.

use super::Leader;
use super::reign::Outcome;
use crate::entry::{Body, Control, Entry};
use crate::fold::{OutPhase, ShardState};
use crate::store::{StoreError, try_table};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{ControlReply, ControlRequest, RangeChecksum};
use evenkeel_protocol::{Epoch, Failure, OperatorId, RangeId, SqlError, TableSchema};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long an entry's outcome is waited for, in milliseconds; the asker asks again.
const OUTCOME_MS: u64 = 5_000;

impl Leader {
    /// Proposes a control entry.
    pub fn propose_control(&self, control: Control) -> Result<oneshot::Receiver<Outcome>, Failure> {
        self.reign.propose(&Entry { serial: self.reign.next_serial(), body: Body::Control(control) })
    }

    /// Proposes a control entry and waits until it has been folded and stored here.
    pub async fn control(&self, control: Control) -> Result<Outcome, Failure> {
        let outcome = self.propose_control(control)?;
        match tokio::time::timeout(Duration::from_millis(OUTCOME_MS), outcome).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => Err(Failure::NotLeader { leader: None }),
            Err(_) => Err(Failure::OutcomeUnknown { reason: "the log takes too long".into() }),
        }
    }

    /// Serves a request that is one entry, unless the state machine shows that it was served before.
    pub async fn serve_control(&self, request: &ControlRequest) -> Result<ControlReply, Failure> {
        let unknown = |schema: &&TableSchema| self.shared().state().table(schema.id).is_none();
        let makes = match request {
            ControlRequest::CreateTable { schema, .. } | ControlRequest::IngestOpen { schema, .. } => Some(schema),
            _ => None,
        };
        // One table after the other: a trial does not run into the same table being made.
        let _alone = match makes.filter(unknown) {
            Some(_) => Some(self.making_tables.lock().await),
            None => None,
        };
        let state = self.shared().state();
        if let Some(reply) = served_before(&state, request) {
            // What this state machine shows may have been folded by a deposed leader: it is a read.
            self.barrier().await?;
            return Ok(reply);
        }
        let Some(entry) = entry_of(request) else {
            return Ok(ControlReply::Refused { code: "not-an-entry".into(), reason: "not served here".into() });
        };
        if let Some(schema) = makes.filter(unknown)
            && let Some(refused) = self.refused_table(schema).await?
        {
            return Ok(refused);
        }
        Ok(match self.control(entry).await? {
            Outcome::Effective(_) => ControlReply::Done,
            Outcome::Refused(refusal) if refusal.code == "purge-unfinished" => {
                ControlReply::Pending { waiting_for: refusal.reason }
            }
            Outcome::Refused(refusal) => {
                ControlReply::Refused { code: refusal.code.to_string(), reason: refusal.reason }
            }
            Outcome::Deposed => return Err(Failure::NotLeader { leader: None }),
        })
    }

    /// What is to be said of a table that PostgreSQL would refuse to make. Only here can it be said: once the entry is decided every
    /// replica makes the table, or stops (invariant 5).
    async fn refused_table(&self, schema: &TableSchema) -> Result<Option<ControlReply>, Failure> {
        self.check_open()?;
        let tried = try_table(&self.shared.connector, &Arc::new(schema.clone())).await;
        match tried.map_err(|error| self.examine(error)) {
            Ok(()) => Ok(None),
            Err(StoreError::Refused(error)) if !of_the_moment(&error) => {
                Ok(Some(ControlReply::Refused { code: "bad-definition".into(), reason: error.to_sentence() }))
            }
            Err(error) => Err(super::group::busy(&format!("the table cannot be tried: {error}"))),
        }
    }

    /// The checksum of a range that has been fenced here and is not purged yet.
    pub async fn checksum_at_fence(&self, operator: OperatorId) -> Result<Option<RangeChecksum>, Failure> {
        let state = self.shared().state();
        let Some(movement) = state.move_out(operator).filter(|m| m.phase != OutPhase::Open) else { return Ok(None) };
        let Some(table) = state.table(movement.table) else { return Ok(None) };
        // Since the fence nothing has written here: any snapshot that holds the fence holds the rows as they were then.
        if let OutPhase::Fenced { position, .. } = movement.phase {
            self.shared().progress.reached(position).await;
        }
        let checksum = async {
            let mut snapshot = self.shared().snapshots.take().await?;
            let checksum = snapshot.checksum(table, &movement.interval).await?;
            self.shared().snapshots.give_back(snapshot).await;
            Ok(checksum)
        };
        checksum.await.map(Some).map_err(|error: StoreError| super::group::lost(&error))
    }
}

/// Whether a table that was tried may be possible all the same: the error passes, or a relation of its name came into being in that
/// moment, which is this very table if an earlier request for it is being applied.
fn of_the_moment(error: &SqlError) -> bool {
    StoreError::Refused(error.clone()).passes() || ["23505", codes::DUPLICATE_TABLE].contains(&error.code.as_ref())
}

/// The answer, if the state machine shows that the request was served before.
fn served_before(state: &ShardState, request: &ControlRequest) -> Option<ControlReply> {
    let by = |range: RangeId, operator: OperatorId, epoch: Epoch| {
        let later = state.range(range).is_some_and(|r| r.epoch > epoch);
        later && state.last_operator(range) == Some(operator)
    };
    let served = match request {
        ControlRequest::CreateTable { schema, .. } => state.table(schema.id).is_some(),
        ControlRequest::Split { operator, range, epoch, .. } => {
            by(*range, *operator, *epoch) || state.is_finished(*operator)
        }
        ControlRequest::Merge { operator, left, .. } => by(left.0, *operator, left.1) || state.is_finished(*operator),
        ControlRequest::MoveOpen { operator, .. } => {
            state.move_out(*operator).is_some() || state.is_finished(*operator)
        }
        ControlRequest::MoveCancel { operator, .. } => match state.move_out(*operator) {
            Some(m) if m.phase != OutPhase::Open => return Some(already_fenced(*operator)),
            Some(_) => false,
            // If it was never opened, that must be said in the log: its opening may still be on its way.
            None => state.is_finished(*operator),
        },
        ControlRequest::IngestOpen { operator, .. } => state.move_in(*operator).is_some(),
        ControlRequest::IngestCancel { operator } => match state.move_in(*operator) {
            None => state.is_finished(*operator),
            Some(m) => m.phase == crate::fold::InPhase::Discarding,
        },
        ControlRequest::MoveForget { operator } => state.move_in(*operator).is_none(),
        _ => false,
    };
    served.then_some(ControlReply::Done)
}

fn already_fenced(operator: OperatorId) -> ControlReply {
    ControlReply::Refused { code: "already-fenced".into(), reason: format!("operator {operator} has passed its fence") }
}

fn entry_of(request: &ControlRequest) -> Option<Control> {
    Some(match request.clone() {
        ControlRequest::CreateTable { schema, range } => Control::CreateTable { schema, range },
        ControlRequest::Split { operator, range, epoch, at } => Control::Split { operator, range, epoch, at },
        ControlRequest::Merge { operator, left, right } => Control::Merge { operator, left, right },
        ControlRequest::MoveOpen { operator, range, epoch, to } => Control::MoveOpen { operator, range, epoch, to },
        ControlRequest::MoveCancel { operator, .. } => Control::MoveCancel { operator },
        ControlRequest::IngestOpen { operator, schema, range, interval, epoch, from } => {
            Control::IngestOpen { operator, schema, range, interval, epoch, from }
        }
        ControlRequest::IngestCancel { operator } => Control::IngestCancel { operator },
        ControlRequest::MoveForget { operator } => Control::Forget { operator },
        ControlRequest::MoveChecksum { .. }
        | ControlRequest::Purge { .. }
        | ControlRequest::Checksums
        | ControlRequest::TransferLeadership { .. }
        | ControlRequest::ChangeReplicas { .. }
        | ControlRequest::Report => return None,
    })
}
