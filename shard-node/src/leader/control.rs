//! What the placement driver asks of a leader. Every request is idempotent: asked again after an unknown outcome, it finds
//! what it wanted done and says so.

use super::Leader;
use super::leadership::Outcome;
use crate::entry::{Body, Control, Entry};
use crate::fold::{InPhase, OutPhase, ShardState, Work};
use crate::store::{StoreError, try_table};
use crate::table_definition;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::{Epoch, Failure, OperatorId, RangeId, SqlError, TableSchema};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long an entry's outcome is waited for, in milliseconds; the asker asks again.
const OUTCOME_MS: u64 = 5_000;

impl Leader {
    /// Proposes a control entry.
    pub async fn propose_control(&self, control: Control) -> Result<oneshot::Receiver<Outcome>, Failure> {
        let entry = Entry { serial: self.leadership.next_serial(), body: Body::Control(control) };
        self.leadership.propose(&entry).await
    }

    /// Proposes a control entry and waits until it has been folded and stored here.
    pub async fn control(&self, control: Control) -> Result<Outcome, Failure> {
        let outcome = self.propose_control(control).await?;
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
        if makes.filter(unknown).is_some()
            && let Some(rejected) = table_definition::rejection(request)
        {
            return Ok(rejected);
        }
        if let Some(schema) = makes.filter(unknown)
            && let Some(refused) = self.refused_table(schema).await?
        {
            return Ok(refused);
        }
        Ok(match self.control(entry).await? {
            Outcome::Effective(_) => ControlReply::Done,
            // What an earlier move left is being deleted, or will be as soon as the placement driver asks for it.
            Outcome::Refused(refusal) if ["purge-unfinished", "copy-kept"].contains(&refusal.code) => {
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

    /// Where a range can be split into pieces of about the same number of bytes, by a sample.
    pub async fn size_split_keys(&self, range: RangeId, epoch: Epoch, pieces: u32) -> Result<ControlReply, Failure> {
        let state = self.shared().state();
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
            let snapshot = self.shared().snapshots.take().await?;
            let keys = snapshot.size_split_keys(table, &owned.interval, pieces as usize).await?;
            self.shared().snapshots.give_back(snapshot).await;
            Ok(keys)
        };
        let keys = keys.await.map_err(|error: StoreError| super::group::lost(&error))?;
        Ok(ControlReply::SplitKeys(keys))
    }
}

/// Whether a table that was tried may be possible all the same: the error passes, or a relation of its name came into being in that
/// moment, which is this very table if an earlier request for it is being applied.
fn of_the_moment(error: &SqlError) -> bool {
    StoreError::Refused(error.clone()).passes() || ["23505", codes::DUPLICATE_TABLE].contains(&error.code.as_ref())
}

/// The answer, if the state machine shows that the request was served before. Numbers alone do not show it: whoever has lost its
/// memory gives them again (R30). A number under which something else was done is refused.
fn served_before(state: &ShardState, request: &ControlRequest) -> Option<ControlReply> {
    let done = Some(ControlReply::Done);
    match request {
        ControlRequest::CreateTable { schema, .. } => match state.table(schema.id)? {
            known if **known == *schema => done,
            other => Some(stale(&format!("table {} is {:?} here", schema.id, other.name))),
        },
        ControlRequest::DropTable { table } => state.table(*table).is_none().then_some(ControlReply::Done),
        ControlRequest::Split { operator, range, epoch, at } => {
            let pieces = at.iter().map(|(_, id)| *id).collect();
            finished(state, *operator, &Work::Split { range: *range, epoch: *epoch, pieces })
        }
        ControlRequest::Merge { operator, left, right } => {
            finished(state, *operator, &Work::Merge { left: *left, right: *right })
        }
        ControlRequest::MoveOpen { operator, range, epoch, to } => match state.move_out(*operator) {
            Some(m) if m.range == *range && m.epoch == *epoch && m.to.id == to.id => done,
            Some(m) => Some(stale(&format!("operator {operator} moves range {} here", m.range))),
            None => finished(state, *operator, &Work::MoveOut { range: *range, epoch: *epoch }),
        },
        ControlRequest::MoveCancel { operator, range } => match state.move_out(*operator) {
            Some(m) if m.range != *range => Some(stale(&format!("operator {operator} moves range {} here", m.range))),
            Some(m) if m.phase != OutPhase::Open => Some(already_fenced(*operator)),
            Some(_) => None,
            // If it was never opened, that must be said in the log: its opening may still be on its way. Whatever has run its course
            // under this number, it is not opened any more.
            None => state.is_finished(*operator).then_some(ControlReply::Done),
        },
        ControlRequest::TakeBack { operator } => match state.move_out(*operator).map(|m| m.phase) {
            Some(OutPhase::Fenced { .. }) => None,
            Some(_) => {
                let reason = format!("operator {operator} is not between its fence and its adoption");
                Some(ControlReply::Refused { code: "not-fenced".into(), reason })
            }
            None => state.is_finished(*operator).then_some(ControlReply::Done),
        },
        ControlRequest::IngestOpen { operator, range, epoch, interval, from, .. } => {
            let m = state.move_in(*operator)?;
            let same = (m.range, m.epoch, &m.interval, m.from.id) == (*range, *epoch, interval, from.id);
            if same { done } else { Some(stale(&format!("operator {operator} moves range {} here", m.range))) }
        }
        ControlRequest::IngestCancel { operator } => {
            let over = match state.move_in(*operator) {
                None => state.is_finished(*operator),
                Some(m) => m.phase == InPhase::Discarding,
            };
            over.then_some(ControlReply::Done)
        }
        ControlRequest::MoveForget { operator } => state.move_in(*operator).is_none().then_some(ControlReply::Done),
        _ => None,
    }
}

fn finished(state: &ShardState, operator: OperatorId, work: &Work) -> Option<ControlReply> {
    let done = state.finished(operator)?;
    Some(if done == work {
        ControlReply::Done
    } else {
        stale(&format!("operator {operator} has done something else here: {done:?}"))
    })
}

fn stale(reason: &str) -> ControlReply {
    ControlReply::Refused { code: "stale-operator".into(), reason: reason.to_string() }
}

fn already_fenced(operator: OperatorId) -> ControlReply {
    ControlReply::Refused { code: "already-fenced".into(), reason: format!("operator {operator} has passed its fence") }
}

fn entry_of(request: &ControlRequest) -> Option<Control> {
    Some(match request.clone() {
        ControlRequest::CreateTable { schema, range } => Control::CreateTable { schema, range },
        ControlRequest::DropTable { table } => Control::DropTable { table },
        ControlRequest::Split { operator, range, epoch, at } => Control::Split { operator, range, epoch, at },
        ControlRequest::Merge { operator, left, right } => Control::Merge { operator, left, right },
        ControlRequest::MoveOpen { operator, range, epoch, to } => Control::MoveOpen { operator, range, epoch, to },
        ControlRequest::MoveCancel { operator, .. } => Control::MoveCancel { operator },
        ControlRequest::TakeBack { operator } => Control::TakeBack { operator },
        ControlRequest::IngestOpen { operator, schema, range, interval, epoch, from } => {
            Control::IngestOpen { operator, schema, range, interval, epoch, from }
        }
        ControlRequest::IngestCancel { operator } => Control::IngestCancel { operator },
        ControlRequest::MoveForget { operator } => Control::Forget { operator },
        ControlRequest::SizeSplitKeys { .. }
        | ControlRequest::Purge { .. }
        | ControlRequest::Compare { .. }
        | ControlRequest::TransferLeadership { .. }
        | ControlRequest::ChangeReplicas { .. }
        | ControlRequest::CheckTable { .. }
        | ControlRequest::Report => return None,
    })
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
