//! The destination's side of a move: its leader drives copy, catch-up, fence and adoption.
//!
//! One [`drive`] runs per move that is coming in, on the leader, from the moment it is opened (or the leader's reign begins) until it is
//! settled. It keeps nothing: an attempt that fails is followed by another, which starts the copy afresh (R21). After the fence the source's
//! copy is frozen, and any of its replicas can serve it, so an attempt can still succeed whoever has died (R23).

use super::{peers, readiness};
use crate::entry::Control;
use crate::fold::{InPhase, MoveIn};
use crate::leader::Leader;
use crate::leader::reign::Outcome;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::shard::{CopyItem, CopyRequest, ShardReply, ShardRequest};
use evenkeel_protocol::{Failure, OperatorId};
use evenkeel_rpc::ReplyStream;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Entries of a copy that may be on their way through the log at once.
const ENTRIES_UNDER_WAY: usize = 4;
/// Positions that the slowest live replica may be behind while a copy comes in (R21).
const MAX_REPLICA_LAG: u64 = 2_000;
/// Positions of the source's log between two tail items at which the destination has caught up (R22).
const CAUGHT_UP_POSITIONS: u64 = 100;
/// Between attempts, in milliseconds.
const BETWEEN_ATTEMPTS_MS: u64 = 100;
/// Between tries to have the fence logged, in milliseconds.
const BETWEEN_FENCES_MS: u64 = 60;
/// How long the source may take to log the fence, in milliseconds.
const FENCE_MS: u64 = 3_000;
/// How long a copy may send nothing, in milliseconds; its idle tail sends something much more often.
const SILENCE_MS: u64 = 3_000;

/// Why an attempt ended.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("no replica of the source answers")]
    NoSource,
    #[error("the copy was lost: {0}")]
    Lost(String),
    #[error("the entry was not taken: {0}")]
    NotTaken(String),
    #[error("this replica no longer leads")]
    Deposed,
    #[error("the source cancelled the move")]
    Cancelled,
}

/// Drives a move in until it is settled or the reign ends. `report` asks for a report to the placement driver.
pub async fn drive(leader: Arc<Leader>, operator: OperatorId, report: mpsc::Sender<()>) {
    let mut failures = 0;
    loop {
        let Some(movement) = coming_in(&leader, operator) else { return };
        match attempt(&leader, &movement, failures).await {
            Ok(()) => {
                let _ = report.try_send(());
                let settled = ShardRequest::Settled { operator, adopted: true };
                // If this is lost, the source asks (R23).
                peers::ask_leader(&movement.from, &settled, Duration::from_millis(FENCE_MS)).await;
                return;
            }
            Err(AttemptError::Deposed) => return,
            Err(error) => {
                tracing::info!(%operator, attempt = movement.attempt + 1, %error, "an attempt to take a range in failed");
                metrics::counter!("evenkeel_failed_attempts_total").increment(1);
                failures += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(BETWEEN_ATTEMPTS_MS)).await;
    }
}

fn coming_in(leader: &Leader, operator: OperatorId) -> Option<MoveIn> {
    if leader.reign.has_ended() {
        return None;
    }
    leader.shared().state().move_in(operator).filter(|m| m.phase == InPhase::Copying).cloned()
}

async fn attempt(leader: &Arc<Leader>, movement: &MoveIn, failures: usize) -> Result<(), AttemptError> {
    let operator = movement.operator;
    let attempt = movement.attempt + 1;
    let mut entries = Entries::new(leader);
    entries.log(Control::IngestAttempt { operator, attempt }).await?;
    let mut stream = open_copy(movement, attempt, failures).await?;
    let mut incoming = Incoming { leader, movement, attempt, fence: None, fenced: false, asked: false };
    loop {
        let item = next_item(&mut stream).await?;
        if incoming.take(item, &mut entries).await? {
            return Ok(());
        }
    }
}

/// Opens the copy at a follower of the source if there is one; with every failure at the next replica.
async fn open_copy(movement: &MoveIn, attempt: u64, failures: usize) -> Result<ReplyStream<ShardReply>, AttemptError> {
    let mut replicas = peers::inspect(&movement.from).await;
    replicas.sort_by_key(|(_, inspection)| (inspection.leads, inspection.replica));
    if replicas.is_empty() {
        return Err(AttemptError::NoSource);
    }
    let (address, _) = &replicas[failures % replicas.len()];
    let connection = peers::connect(*address).await.map_err(|error| AttemptError::Lost(error.to_string()))?;
    let request = ShardRequest::Copy(CopyRequest { operator: movement.operator, attempt });
    connection.stream(&request).await.map_err(|error| AttemptError::Lost(error.to_string()))
}

async fn next_item(stream: &mut ReplyStream<ShardReply>) -> Result<CopyItem, AttemptError> {
    let lost = |reason: &str| Err(AttemptError::Lost(reason.to_string()));
    match tokio::time::timeout(Duration::from_millis(SILENCE_MS), stream.next()).await {
        Ok(Some(ShardReply::Copy(item))) => Ok(item),
        Ok(Some(ShardReply::Failed(failure))) => lost(&failure.to_string()),
        Ok(Some(_)) => lost("an answer that is none"),
        Ok(None) => lost("the connection ended"),
        Err(_) => lost("nothing came"),
    }
}

struct Incoming<'a> {
    leader: &'a Arc<Leader>,
    movement: &'a MoveIn,
    attempt: u64,
    /// The last request for the fence; it gives whether the source has logged it.
    fence: Option<tokio::task::JoinHandle<bool>>,
    /// That was so: it is not asked for any more.
    fenced: bool,
    /// It was asked for at least once.
    asked: bool,
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        if let Some(fence) = self.fence.take() {
            fence.abort();
        }
    }
}

impl Incoming<'_> {
    /// Takes one item in; `true` once the range is adopted.
    async fn take(&mut self, item: CopyItem, entries: &mut Entries<'_>) -> Result<bool, AttemptError> {
        let (operator, attempt) = (self.movement.operator, self.attempt);
        match item {
            CopyItem::Chunk { interval, position, rows, .. } => {
                wait_for_replicas(self.leader).await;
                entries.log(Control::IngestChunk { operator, attempt, interval, position, rows }).await?;
            }
            CopyItem::Changes { from, to, changes } => {
                let caught_up = to - from.min(to) <= CAUGHT_UP_POSITIONS;
                // Empty tails are logged too, but only when they matter: the position must reach the fence's.
                if !changes.is_empty() || self.asked || to > from {
                    let tail = Control::IngestTail { operator, attempt, from, to, entries: changes };
                    entries.log_tail(tail, from).await?;
                }
                if deliberate(Bug::AdoptBeforeFence) && caught_up {
                    let epoch = self.movement.epoch.next();
                    entries.log(Control::Adopt { operator, attempt, fence: to, epoch, held_since_us: 0 }).await?;
                    entries.finish().await?;
                    return Ok(true);
                }
                // Looked at anew for every try: what held up one may have let the lag grow (R22).
                if caught_up && self.may_ask().await && entries.lag(to).await?.is_some_and(|l| l <= CAUGHT_UP_POSITIONS)
                {
                    self.ask_for_fence(entries.copied);
                }
            }
            CopyItem::Fenced { position, epoch, held_since_us } => {
                let adopt = Control::Adopt { operator, attempt, fence: position, epoch, held_since_us };
                entries.log(adopt).await?;
                entries.finish().await?;
                return Ok(true);
            }
            CopyItem::Cancelled => {
                entries.finish().await?;
                return Err(AttemptError::Cancelled);
            }
        }
        Ok(false)
    }

    /// Whether the fence is neither logged nor being asked for.
    async fn may_ask(&mut self) -> bool {
        if self.fence.as_ref().is_some_and(|asking| asking.is_finished())
            && let Some(asked) = self.fence.take()
        {
            self.fenced = matches!(asked.await, Ok(true));
        }
        self.fence.is_none() && !self.fenced
    }

    /// Has the source's leader log the fence, once what has come in up to `copied` of this shard's log is applied; it may have to be
    /// asked again.
    fn ask_for_fence(&mut self, copied: u64) {
        let (leader, again) = (self.leader.clone(), std::mem::replace(&mut self.asked, true));
        let (source, operator, attempt) = (self.movement.from.clone(), self.movement.operator, self.attempt);
        self.fence = Some(tokio::spawn(async move {
            if again {
                tokio::time::sleep(Duration::from_millis(BETWEEN_FENCES_MS)).await;
            }
            if !readiness::applied_by_majority(&leader, copied).await {
                tracing::debug!(%operator, "a majority has not applied what came in");
                return false;
            }
            let request = ShardRequest::Fence { operator, attempt };
            let reply = peers::ask_leader(&source, &request, Duration::from_millis(FENCE_MS)).await;
            let logged = matches!(reply, Some(ShardReply::Done));
            if !logged {
                tracing::debug!(%operator, ?reply, "the fence is not logged yet");
            }
            logged
        }));
    }
}

/// R21: a copy must not run ahead of the destination's slowest live replica.
async fn wait_for_replicas(leader: &Leader) {
    loop {
        let status = leader.shared().log.status();
        let slowest = status.peers.values().filter(|p| p.connected && !p.behind).map(|p| p.decided.0).min();
        let lag = status.decided.0.saturating_sub(slowest.unwrap_or(status.decided.0));
        let stored = leader.shared().progress.watermark() + MAX_REPLICA_LAG >= status.decided.0;
        if (lag <= MAX_REPLICA_LAG && stored) || leader.reign.has_ended() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Entries of an attempt on their way through the log, in order.
struct Entries<'a> {
    leader: &'a Leader,
    /// Each with the position of the source's log that it goes on from, if it is a piece of the tail.
    under_way: VecDeque<(Option<u64>, oneshot::Receiver<Outcome>)>,
    /// The last position of this shard's log at which a chunk came in.
    copied: u64,
}

impl<'a> Entries<'a> {
    fn new(leader: &'a Leader) -> Entries<'a> {
        Entries { leader, under_way: VecDeque::new(), copied: 0 }
    }

    /// Proposes an entry; waits for the oldest while too many are under way.
    async fn log(&mut self, control: Control) -> Result<(), AttemptError> {
        self.push(control, None).await
    }

    /// The same for a piece of the tail that goes on from position `from` of the source's log.
    async fn log_tail(&mut self, control: Control, from: u64) -> Result<(), AttemptError> {
        self.push(control, Some(from)).await
    }

    async fn push(&mut self, control: Control, from: Option<u64>) -> Result<(), AttemptError> {
        while self.under_way.len() >= ENTRIES_UNDER_WAY {
            self.settle_oldest().await?;
        }
        let outcome = self.leader.propose_control(control).map_err(|failure| match failure {
            Failure::NotLeader { .. } => AttemptError::Deposed,
            other => AttemptError::NotTaken(other.to_string()),
        })?;
        self.under_way.push_back((from, outcome));
        Ok(())
    }

    async fn settle_oldest(&mut self) -> Result<(), AttemptError> {
        let Some((from, outcome)) = self.under_way.pop_front() else { return Ok(()) };
        match outcome.await {
            Ok(Outcome::Effective(position)) => {
                if from.is_none() {
                    self.copied = position;
                }
                Ok(())
            }
            Ok(Outcome::Refused(refusal)) => Err(AttemptError::NotTaken(refusal.to_string())),
            Ok(Outcome::Deposed) | Err(_) => Err(AttemptError::Deposed),
        }
    }

    async fn finish(&mut self) -> Result<(), AttemptError> {
        while !self.under_way.is_empty() {
            self.settle_oldest().await?;
        }
        Ok(())
    }

    /// How many positions of the source's log, up to `to`, are not stored here yet; `None` while a chunk is not. Counted in
    /// positions and not in entries: under steady writes some small entry is always on its way, and waiting for a moment without
    /// one would be waiting for luck.
    async fn lag(&mut self, to: u64) -> Result<Option<u64>, AttemptError> {
        while self.under_way.front().is_some_and(|(_, oldest)| !oldest.is_empty()) {
            self.settle_oldest().await?;
        }
        if self.under_way.iter().any(|(from, _)| from.is_none()) {
            return Ok(None);
        }
        let stored = self.under_way.front().and_then(|(from, _)| *from).unwrap_or(to);
        Ok(Some(to.saturating_sub(stored)))
    }
}
