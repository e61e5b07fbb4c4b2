//! Drives moves from the state machine: copies that come in, outcomes of fenced moves, deletions.

use crate::leader::Leader;
use crate::log_entry::Control;
use crate::migration::cleanup::{DoomedRows, clean_up};
use crate::migration::{destination, peers};
use crate::move_observations::MoveObservations;
use crate::state_machine::{InPhase, OutPhase};
use evenkeel_protocol::OperatorId;
use evenkeel_protocol::shard::{ShardReply, ShardRequest};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How often the state machine is read for work to do, in milliseconds.
pub(super) const LOOK_MS: u64 = 25;
/// How long after a fence the destination is asked for the outcome, and how often, in milliseconds.
/// Normally the destination sends it unasked.
const ASK_OUTCOME_MS: u64 = 500;

/// Tasks under way, so that none is started twice.
#[derive(Default, Clone)]
struct Running(Arc<Mutex<HashSet<(OperatorId, &'static str)>>>);

impl Running {
    fn start(&self, operator: OperatorId, kind: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        if !self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((operator, kind)) {
            return;
        }
        let running = self.clone();
        tokio::spawn(async move {
            task.await;
            running.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(operator, kind));
        });
    }
}

/// Looks at the state machine again and again, and starts a task for each thing to do. Never
/// returns.
pub(super) async fn drive_moves(leader: Arc<Leader>, checks: Arc<MoveObservations>, report: mpsc::Sender<()>) {
    let running = Running::default();
    let mut asked: HashMap<OperatorId, Instant> = HashMap::new();
    let destinations = peers::PeerPool::default();
    loop {
        let state = leader.shared().state();
        for movement in state.moves_in() {
            let operator = movement.operator;
            match movement.phase {
                InPhase::Copying => {
                    let drive = destination::drive(leader.clone(), checks.clone(), operator, report.clone());
                    running.start(operator, "drive", drive);
                }
                InPhase::Discarding => start_clean_up(&running, &leader, operator, DoomedRows::Discarded),
                InPhase::Adopted => {}
            }
        }
        asked.retain(|operator, _| state.move_out(*operator).is_some());
        for movement in state.moves_out() {
            let operator = movement.operator;
            match movement.phase {
                OutPhase::Fenced { .. } => {
                    let since = asked.entry(operator).or_insert_with(evenkeel_host::now);
                    if evenkeel_host::elapsed(*since) >= Duration::from_millis(ASK_OUTCOME_MS) {
                        *since = evenkeel_host::now();
                        running.start(operator, "ask", ask_outcome(leader.clone(), destinations.clone(), operator));
                    }
                }
                // A purge that an earlier leadership began.
                OutPhase::Purging => start_clean_up(&running, &leader, operator, DoomedRows::SourceCopy),
                OutPhase::Open | OutPhase::HandedOver => {}
            }
        }
        evenkeel_host::sleep(Duration::from_millis(LOOK_MS)).await;
    }
}

fn start_clean_up(running: &Running, leader: &Arc<Leader>, operator: OperatorId, rows: DoomedRows) {
    let leader = leader.clone();
    running.start(operator, "clean", async move { clean_up(&leader, operator, rows).await });
}

/// Asks the destination for the outcome of a fenced move (R23).
async fn ask_outcome(leader: Arc<Leader>, destinations: peers::PeerPool, operator: OperatorId) {
    let Some(movement) = leader.shared().state().move_out(operator).cloned() else { return };
    let request = ShardRequest::AskResolved { operator };
    let bound = Duration::from_millis(ASK_OUTCOME_MS * 4);
    if let Some(ShardReply::Resolved(Some(adopted))) = destinations.ask_leader(&movement.to, &request, bound).await {
        resolve_move(&leader, operator, adopted).await;
    }
}

/// Logs the outcome of a fenced move. Idempotent: the state machine rejects an entry that comes too
/// late.
pub async fn resolve_move(leader: &Leader, operator: OperatorId, adopted: bool) {
    let open = |m: &crate::state_machine::MoveOut| matches!(m.phase, OutPhase::Fenced { .. });
    if !leader.shared().state().move_out(operator).is_some_and(open) {
        return;
    }
    let entry = if adopted { Control::HandedOver { operator } } else { Control::TakeBack { operator } };
    if let Err(failure) = leader.control(entry).await {
        tracing::info!(%operator, %failure, "the end of a move is not logged yet");
    }
}
