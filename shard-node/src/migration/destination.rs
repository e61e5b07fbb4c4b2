//! The destination's side of a move: its leader drives copy, catch-up, fence and adoption.
//!
//! The leader runs one [`drive`] per incoming move, from the opening of the move (or the beginning
//! of the leadership) until the move is adopted or cancelled. It keeps no state between attempts:
//! an attempt that fails is followed by another, which starts the copy again (R21). After the fence
//! the source's copy is frozen, and every replica of the source can serve it, so an attempt can
//! succeed after any failure of a minority (R23).
//!
//! Each replica compares the rows of every chunk that it stores with the checksum of the source's
//! PostgreSQL. A difference on any replica ends the attempt. The fence is requested only when a
//! majority has stored the copy and found it equal, so only verified copies are adopted (R24).
//!
//! Not done: resuming a failed copy where it stopped.

use super::{peers, readiness};
use crate::leader::Leader;
use crate::leader::leadership::EntryOutcome;
use crate::log_entry::Control;
use crate::move_observations::MoveObservations;
use crate::state_machine::{InPhase, MoveIn};
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::shard::{CopyItem, CopyLeft, CopyRequest, ShardReply, ShardRequest};
use evenkeel_protocol::{Failure, OperatorId};
use evenkeel_rpc::ReplyStream;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Positions of this shard's log that the slowest live replica may lag during a copy (R21).
const MAX_REPLICA_LAG: u64 = 2_000;
/// The same in bytes.
const MAX_REPLICA_LAG_BYTES: u64 = 16 << 20;
/// The outstanding bytes at which the destination has caught up (R22). A single item is always
/// small enough: it may be one row.
const CAUGHT_UP_BYTES: u64 = 256 << 10;
/// The pause after the first failed attempt, in milliseconds. Each further failure doubles it,
/// unless no shard serves the range until an attempt succeeds. (A new leader does not know whether
/// that is so.)
const BETWEEN_ATTEMPTS_MS: u64 = 100;
/// The longest pause between attempts, in milliseconds.
const MAX_BETWEEN_ATTEMPTS_MS: u64 = 1_000;
/// The pause between requests for the fence, in milliseconds.
const BETWEEN_FENCES_MS: u64 = 60;
/// How long the source may take to log the fence, in milliseconds.
const FENCE_MS: u64 = 3_000;
/// How long a copy may be silent while nothing is in flight, in milliseconds. Empty items come much
/// more often, but the source's PostgreSQL may take long to read a chunk.
const SILENCE_MS: u64 = 10_000;
/// The same once the fence was requested: then statements may be waiting.
const SILENCE_AT_SWITCH_MS: u64 = 2_000;
/// How long the source may take to confirm a report of stored items, in milliseconds.
const TAKEN_MS: u64 = 5_000;

/// Why an attempt ended.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("no replica of the source answers")]
    NoSource,
    #[error("the copy was lost: {0}")]
    Lost(String),
    #[error("the entry was rejected: {0}")]
    EntryRejected(String),
    #[error("the stored rows differ from the copy: {0}")]
    Differs(String),
    #[error("this replica no longer leads")]
    Deposed,
    #[error("the source cancelled the move")]
    Cancelled,
}

/// Drives an incoming move until it is adopted or cancelled, or the leadership ends. `report`
/// triggers a report to the placement driver.
pub async fn drive(leader: Arc<Leader>, checks: Arc<MoveObservations>, operator: OperatorId, report: mpsc::Sender<()>) {
    let mut failures = 0;
    loop {
        let Some(movement) = incoming_move(&leader, operator) else { return };
        // Whether it is possible that no shard serves the range until an attempt succeeds.
        let mut urgent = false;
        match attempt(&leader, &checks, &movement, failures, &mut urgent).await {
            Ok(()) => {
                let _ = report.try_send(());
                let adopted = ShardRequest::Resolved { operator, adopted: true };
                // If this message is lost, the source asks (R23).
                let bound = Duration::from_millis(FENCE_MS);
                peers::PeerPool::default().ask_leader(&movement.from, &adopted, bound).await;
                return;
            }
            Err(AttemptError::Deposed) => return,
            Err(error) => {
                tracing::info!(%operator, attempt = movement.attempt + 1, %error, "an attempt to copy a range failed");
                metrics::counter!("evenkeel_failed_attempts_total").increment(1);
                if let AttemptError::Differs(detail) = &error {
                    checks.attempt_differed(operator, detail);
                    metrics::counter!("evenkeel_differing_attempts_total").increment(1);
                }
                checks.trouble(operator, error.to_string());
                failures += 1;
            }
        }
        evenkeel_host::sleep(pause(failures, urgent)).await;
    }
}

/// The pause after `failures` failures in a row.
fn pause(failures: usize, urgent: bool) -> Duration {
    let doubled = BETWEEN_ATTEMPTS_MS << failures.saturating_sub(1).min(6);
    Duration::from_millis(if urgent { BETWEEN_ATTEMPTS_MS } else { doubled.min(MAX_BETWEEN_ATTEMPTS_MS) })
}

fn incoming_move(leader: &Leader, operator: OperatorId) -> Option<MoveIn> {
    if leader.leadership.has_ended() {
        return None;
    }
    leader.shared().state().move_in(operator).filter(|m| m.phase == InPhase::Copying).cloned()
}

async fn attempt(
    leader: &Arc<Leader>,
    checks: &Arc<MoveObservations>,
    movement: &MoveIn,
    failures: usize,
    urgent: &mut bool,
) -> Result<(), AttemptError> {
    let (operator, attempt) = (movement.operator, movement.attempt + 1);
    let (mut copy, position) = open_copy(movement, attempt, failures).await?;
    let mut entries = ItemEntries::new(leader);
    // After the copy is open, so that an attempt without a source leaves no trace in the log.
    entries.log(Control::IngestAttempt { operator, attempt, position }).await?;
    let mut current = MoveAttempt {
        leader,
        checks,
        movement,
        attempt,
        source: peers::PeerPool::default(),
        fence: None,
        fenced: false,
        asked: false,
        verified: Arc::default(),
        all_chunks: false,
        unlogged: None,
    };
    loop {
        *urgent = current.asked;
        let silence_ms = if current.asked { SILENCE_AT_SWITCH_MS } else { SILENCE_MS };
        let idle = entries.pending.is_empty();
        tokio::select! {
            stored = entries.oldest(), if !idle => {
                entries.resolve(stored)?;
                copy.taken.send_replace(entries.stored);
                current.expect_equal()?;
            }
            item = copy.next(Duration::from_millis(silence_ms), idle) => {
                let more = copy.has_more();
                if current.take(item?, more, &mut entries).await? {
                    return Ok(());
                }
                copy.taken.send_replace(entries.stored);
            }
        }
    }
}

/// The stream of an incoming copy.
struct IncomingCopy {
    stream: ReplyStream<ShardReply>,
    /// An item that has arrived and has not been taken.
    arrived: Option<ShardReply>,
    /// The number of stored items.
    taken: watch::Sender<u64>,
}

/// Opens the copy at a follower of the source, if there is one; after each failure at the next
/// replica. Returns also the position at which the copy starts.
async fn open_copy(movement: &MoveIn, attempt: u64, failures: usize) -> Result<(IncomingCopy, u64), AttemptError> {
    let mut replicas = peers::inspect(&movement.from).await;
    replicas.sort_by_key(|(_, inspection)| (inspection.leads, inspection.replica));
    if replicas.is_empty() {
        return Err(AttemptError::NoSource);
    }
    let (address, _) = &replicas[failures % replicas.len()];
    let lost = |error: evenkeel_rpc::RpcError| AttemptError::Lost(error.to_string());
    let connection = peers::connect(*address).await.map_err(lost)?;
    let request = ShardRequest::Copy(CopyRequest { operator: movement.operator, attempt });
    let stream = connection.stream(&request).await.map_err(lost)?;
    let (taken, to_report) = watch::channel(0);
    let mut copy = IncomingCopy { stream, arrived: None, taken };
    match copy.next(Duration::from_millis(SILENCE_MS), true).await? {
        CopyItem::Opened { copy: number, position } => {
            tokio::spawn(report_stored(connection, number, to_report));
            Ok((copy, position))
        }
        CopyItem::Cancelled => Err(AttemptError::Cancelled),
        other => Err(AttemptError::Lost(format!("the first item is {other:?}"))),
    }
}

/// Reports the latest number of stored items to the source, until the attempt ends.
async fn report_stored(connection: peers::PeerConnection, copy: u64, mut taken: watch::Receiver<u64>) {
    while taken.changed().await.is_ok() {
        let items = *taken.borrow_and_update();
        let request = ShardRequest::CopyTaken { copy, items };
        if let Err(error) = connection.call_within(&request, Duration::from_millis(TAKEN_MS)).await {
            tracing::debug!(%error, "the source of a copy does not confirm the stored items");
        }
    }
}

impl IncomingCopy {
    /// The next item. Silence is an error only if `idle`; otherwise the source may be waiting for
    /// this side.
    async fn next(&mut self, silence: Duration, idle: bool) -> Result<CopyItem, AttemptError> {
        let lost = |reason: &str| Err(AttemptError::Lost(reason.to_string()));
        let reply = match self.arrived.take() {
            Some(reply) => Some(reply),
            None if idle => match evenkeel_host::timeout(silence, self.stream.next()).await {
                Ok(reply) => reply,
                Err(_) => return lost("the copy is silent"),
            },
            None => self.stream.next().await,
        };
        match reply {
            Some(ShardReply::Copy(item)) => Ok(item),
            Some(ShardReply::Failed(failure)) => lost(&failure.to_string()),
            Some(_) => lost("an unexpected answer"),
            None => lost("the connection ended"),
        }
    }

    /// Whether another item has arrived already.
    fn has_more(&mut self) -> bool {
        if self.arrived.is_none() {
            self.arrived = futures::FutureExt::now_or_never(self.stream.next()).flatten();
        }
        self.arrived.is_some()
    }
}

/// One attempt of an incoming move.
struct MoveAttempt<'a> {
    leader: &'a Arc<Leader>,
    checks: &'a Arc<MoveObservations>,
    movement: &'a MoveIn,
    attempt: u64,
    /// Connections to the source, for requests for the fence.
    source: peers::PeerPool,
    /// The last request for the fence. It returns whether the source has logged the fence.
    fence: Option<tokio::task::JoinHandle<FenceRequest>>,
    /// The source has logged the fence. It is not requested any more.
    fenced: bool,
    /// The fence was requested at least once.
    asked: bool,
    /// A majority has stored the copy as it was sent.
    verified: Arc<AtomicBool>,
    /// All chunks have arrived.
    all_chunks: bool,
    /// Positions of the source's log, from and to, without changes of the range. They have no entry
    /// yet.
    unlogged: Option<(u64, u64)>,
}

impl Drop for MoveAttempt<'_> {
    fn drop(&mut self) {
        if let Some(fence) = self.fence.take() {
            fence.abort();
        }
    }
}

impl MoveAttempt<'_> {
    /// Handles one item; `true` once the range is adopted. `more` items have arrived already.
    async fn take(&mut self, item: CopyItem, more: bool, entries: &mut ItemEntries<'_>) -> Result<bool, AttemptError> {
        let (operator, attempt) = (self.movement.operator, self.attempt);
        match item {
            CopyItem::Chunk { interval, from, position, rows, checksum, last } => {
                wait_for_replicas(self.leader).await;
                let chunk = Control::IngestChunk { operator, attempt, interval, from, position, rows, checksum };
                entries.log(chunk).await?;
                self.all_chunks = last;
            }
            CopyItem::Changes { from, to, changes, left } => {
                self.changes((from, to), changes, entries).await?;
                if deliberate(Bug::AdoptBeforeFence) && self.all_chunks {
                    self.log_unlogged(entries).await?;
                    let epoch = self.movement.epoch.next();
                    entries.log(Control::Adopt { operator, attempt, fence: to, epoch, held_since_us: 0 }).await?;
                    entries.finish().await?;
                    return Ok(true);
                }
                // Checked again for every request: the lag may have grown during the last one
                // (R22).
                let ready = self.all_chunks && entries.has_stored_chunks() && !more && caught_up(left);
                if ready && self.may_ask().await? {
                    self.ask_for_fence(entries.copied);
                }
            }
            CopyItem::Fenced { position, epoch, held_since_us } => {
                self.log_unlogged(entries).await?;
                let adopt = Control::Adopt { operator, attempt, fence: position, epoch, held_since_us };
                self.adopt(adopt, entries).await?;
                return Ok(true);
            }
            CopyItem::Cancelled => {
                entries.finish().await?;
                return Err(AttemptError::Cancelled);
            }
            CopyItem::Opened { .. } => return Err(AttemptError::Lost("it was opened twice".into())),
        }
        Ok(false)
    }

    /// Logs changes. Positions without changes are logged together with the next changes, or with
    /// the adoption: the position must reach that of the fence.
    async fn changes(
        &mut self,
        (from, to): (u64, u64),
        changes: Vec<bytes::Bytes>,
        entries: &mut ItemEntries<'_>,
    ) -> Result<(), AttemptError> {
        if changes.is_empty() {
            let from = self.unlogged.map_or(from, |(from, _)| from);
            self.unlogged = Some((from, to));
            entries.skip();
            return Ok(());
        }
        let from = self.unlogged.take().map_or(from, |(from, _)| from);
        let (operator, attempt) = (self.movement.operator, self.attempt);
        entries
            .log(Control::IngestTail { operator, attempt, from, to, stamp_ms: entries.now_ms(), entries: changes })
            .await
    }

    async fn log_unlogged(&mut self, entries: &mut ItemEntries<'_>) -> Result<(), AttemptError> {
        let Some((from, to)) = self.unlogged.take() else { return Ok(()) };
        let (operator, attempt) = (self.movement.operator, self.attempt);
        entries
            .log_own(Control::IngestTail {
                operator,
                attempt,
                from,
                to,
                stamp_ms: entries.now_ms(),
                entries: Vec::new(),
            })
            .await
    }

    /// Logs the adoption. An attempt that began after the fence has not asked yet whether a
    /// majority has stored its copy as it was sent. It asks now.
    async fn adopt(&mut self, adopt: Control, entries: &mut ItemEntries<'_>) -> Result<(), AttemptError> {
        if !self.verified.load(Ordering::Acquire) {
            entries.finish().await?;
            let copied = entries.copied;
            let attempt = (self.movement.operator, self.attempt);
            loop {
                match readiness::stored_by_majority(self.leader, self.checks, attempt, copied).await {
                    readiness::Stored::Ready => break,
                    readiness::Stored::NotYet if self.leader.leadership.has_ended() => {
                        return Err(AttemptError::Deposed);
                    }
                    readiness::Stored::NotYet => evenkeel_host::sleep(Duration::from_millis(BETWEEN_FENCES_MS)).await,
                    readiness::Stored::Differs(detail) => return Err(AttemptError::Differs(detail)),
                }
            }
        }
        entries.log(adopt).await?;
        entries.finish().await
    }

    /// Fails if the rows that this replica has stored differ from the copy.
    fn expect_equal(&self) -> Result<(), AttemptError> {
        match self.checks.differing(self.movement.operator, self.attempt) {
            None => Ok(()),
            Some(detail) => Err(AttemptError::Differs(detail)),
        }
    }

    /// Whether the fence is neither logged nor requested at the moment.
    async fn may_ask(&mut self) -> Result<bool, AttemptError> {
        if self.fence.as_ref().is_some_and(|asking| asking.is_finished())
            && let Some(asked) = self.fence.take()
        {
            match asked.await {
                Ok(FenceRequest::Differs(detail)) => return Err(AttemptError::Differs(detail)),
                Ok(FenceRequest::Logged) => self.fenced = true,
                Ok(FenceRequest::NotYet) | Err(_) => {}
            }
        }
        Ok(self.fence.is_none() && !self.fenced)
    }

    /// Requests the fence from the source's leader, once a majority has applied this shard's log up
    /// to `copied`. The request may have to be repeated.
    fn ask_for_fence(&mut self, copied: u64) {
        let (leader, checks) = (self.leader.clone(), self.checks.clone());
        let (again, verified) = (std::mem::replace(&mut self.asked, true), self.verified.clone());
        let (source, operator, attempt) = (self.movement.from.clone(), self.movement.operator, self.attempt);
        let pool = self.source.clone();
        self.fence = Some(tokio::spawn(async move {
            if again {
                evenkeel_host::sleep(Duration::from_millis(BETWEEN_FENCES_MS)).await;
            }
            match readiness::stored_by_majority(&leader, &checks, (operator, attempt), copied).await {
                readiness::Stored::Ready => verified.store(true, Ordering::Release),
                readiness::Stored::Differs(detail) => return FenceRequest::Differs(detail),
                readiness::Stored::NotYet => {
                    tracing::debug!(%operator, "a majority has not stored the copy");
                    return FenceRequest::NotYet;
                }
            }
            let request = ShardRequest::Fence { operator, attempt };
            let reply = pool.ask_leader(&source, &request, Duration::from_millis(FENCE_MS)).await;
            if matches!(reply, Some(ShardReply::Done)) {
                return FenceRequest::Logged;
            }
            tracing::debug!(%operator, ?reply, "the fence is not logged yet");
            FenceRequest::NotYet
        }));
    }
}

/// The result of a request for the fence.
enum FenceRequest {
    Logged,
    NotYet,
    /// It was not requested: a replica has stored rows that differ from the copy.
    Differs(String),
}

/// Whether little is outstanding.
fn caught_up(left: CopyLeft) -> bool {
    !left.behind && (left.bytes <= CAUGHT_UP_BYTES || left.items == 0)
}

/// Waits until the destination's slowest live replica keeps up with the copy (R21).
async fn wait_for_replicas(leader: &Leader) {
    loop {
        let status = leader.shared().log.status();
        let progress = &leader.shared().progress;
        let slowest = status.peers.values().filter(|p| p.connected && !p.behind).map(|p| p.decided.0).min();
        let slowest = slowest.unwrap_or(status.decided.0);
        let near = |position: u64| {
            position.saturating_add(MAX_REPLICA_LAG) >= status.decided.0
                && progress.bytes_after(position) <= MAX_REPLICA_LAG_BYTES
        };
        if (near(slowest) && near(progress.watermark())) || leader.leadership.has_ended() {
            return;
        }
        evenkeel_host::sleep(Duration::from_millis(5)).await;
    }
}

/// The items of an attempt that are in the log and not stored yet, in order.
struct ItemEntries<'a> {
    leader: &'a Leader,
    pending: VecDeque<PendingEntry>,
    /// The number of stored items.
    stored: u64,
    /// The position of the last chunk in this shard's log.
    copied: u64,
}

/// An entry that is not stored yet.
struct PendingEntry {
    outcome: oneshot::Receiver<EntryOutcome>,
    is_chunk: bool,
    /// The number of items of the copy that are stored with it.
    items: u64,
}

impl<'a> ItemEntries<'a> {
    fn new(leader: &'a Leader) -> ItemEntries<'a> {
        ItemEntries { leader, pending: VecDeque::new(), stored: 0, copied: 0 }
    }

    /// The clock of the stamps in this log.
    fn now_ms(&self) -> u64 {
        self.leader.shared().log.unix_ms()
    }

    /// Proposes the entry of an item. The source's window bounds the number of pending items.
    async fn log(&mut self, control: Control) -> Result<(), AttemptError> {
        let is_chunk = matches!(control, Control::IngestChunk { .. });
        self.propose(control, is_chunk, 1).await
    }

    /// Proposes an entry that belongs to no item of the copy.
    async fn log_own(&mut self, control: Control) -> Result<(), AttemptError> {
        self.propose(control, false, 0).await
    }

    /// Counts an item without an entry. It is stored once all items before it are.
    fn skip(&mut self) {
        match self.pending.back_mut() {
            Some(last) => last.items += 1,
            None => self.stored += 1,
        }
    }

    async fn propose(&mut self, control: Control, is_chunk: bool, items: u64) -> Result<(), AttemptError> {
        let outcome = self.leader.propose_control(control).await.map_err(|failure| match failure {
            Failure::NotLeader { .. } => AttemptError::Deposed,
            other => AttemptError::EntryRejected(other.to_string()),
        })?;
        self.pending.push_back(PendingEntry { outcome, is_chunk, items });
        Ok(())
    }

    /// Waits until the oldest entry is stored, and returns its outcome. Waits for ever if there is
    /// none.
    async fn oldest(&mut self) -> Option<EntryOutcome> {
        match self.pending.front_mut() {
            Some(oldest) => (&mut oldest.outcome).await.ok(),
            None => std::future::pending().await,
        }
    }

    /// Resolves the oldest entry.
    fn resolve(&mut self, outcome: Option<EntryOutcome>) -> Result<(), AttemptError> {
        let Some(oldest) = self.pending.pop_front() else { return Ok(()) };
        match outcome {
            Some(EntryOutcome::Effective(position)) => {
                self.stored += oldest.items;
                if oldest.is_chunk {
                    self.copied = position;
                }
                Ok(())
            }
            Some(EntryOutcome::Rejected(refusal)) => Err(AttemptError::EntryRejected(refusal.to_string())),
            Some(EntryOutcome::Deposed) | None => Err(AttemptError::Deposed),
        }
    }

    async fn finish(&mut self) -> Result<(), AttemptError> {
        while !self.pending.is_empty() {
            let outcome = self.oldest().await;
            self.resolve(outcome)?;
        }
        Ok(())
    }

    fn has_stored_chunks(&self) -> bool {
        self.pending.iter().all(|entry| !entry.is_chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F1, A10: outstanding bytes count, and neither positions nor the size of a single row.
    #[test]
    fn caught_up_is_judged_by_outstanding_bytes() {
        let left = |items, bytes, behind| caught_up(CopyLeft { items, bytes, behind });
        assert!(left(3, 100, false) && left(0, 0, false));
        assert!(left(0, 5 << 20, false), "one image of any size");
        assert!(!left(1, 1 << 20, false));
        assert!(!left(0, 0, true), "more may be outstanding than the source's replica knows");
    }

    #[test]
    fn failures_in_a_row_back_off_unless_statements_wait() {
        assert_eq!(pause(1, false), Duration::from_millis(100));
        assert_eq!(pause(3, false), Duration::from_millis(400));
        assert_eq!(pause(50, false), Duration::from_millis(MAX_BETWEEN_ATTEMPTS_MS));
        assert_eq!(pause(50, true), Duration::from_millis(100));
    }
}
