//! The destination's side of a move: its leader drives copy, catch-up, fence and adoption.
//!
//! One [`drive`] runs per move that is coming in, on the leader, from the moment it is opened (or the leader's leadership begins) until it is
//! settled. It keeps nothing: an attempt that fails is followed by another, which starts the copy afresh (R21). After the fence the source's
//! copy is frozen, and any of its replicas can serve it, so an attempt can still succeed whoever has died (R23).
//!
//! Each replica compares what it stores of a chunk with what the source's PostgreSQL says of it. One difference, on any replica, ends the
//! attempt; the fence is asked for only once a majority has stored the copy and found it right, so that nothing is adopted that was
//! not verified (R24).

use super::{peers, readiness};
use crate::checks::Checks;
use crate::entry::Control;
use crate::fold::{InPhase, MoveIn};
use crate::leader::Leader;
use crate::leader::leadership::Outcome;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::shard::{CopyItem, CopyLeft, CopyRequest, ShardReply, ShardRequest};
use evenkeel_protocol::{Failure, OperatorId};
use evenkeel_rpc::ReplyStream;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// How far the slowest live replica may be behind while a copy comes in (R21): positions, and bytes of this shard's log.
const MAX_REPLICA_LAG: u64 = 2_000;
const MAX_REPLICA_LAG_BYTES: u64 = 16 << 20;
/// What may still be to come, in bytes, for the destination to have caught up (R22). A single item counts as little whatever its size: it
/// may be one row.
const CAUGHT_UP_BYTES: u64 = 256 << 10;
/// Between attempts, in milliseconds: after the first that fails, and at most. Each failure in a row doubles it, unless the range
/// waits for this; a new leader does not know whether it does.
const BETWEEN_ATTEMPTS_MS: u64 = 100;
const MAX_BETWEEN_ATTEMPTS_MS: u64 = 1_000;
/// Between tries to have the fence logged, in milliseconds.
const BETWEEN_FENCES_MS: u64 = 60;
/// How long the source may take to log the fence, in milliseconds.
const FENCE_MS: u64 = 3_000;
/// How long a copy may send nothing although nothing is under way, in milliseconds; its idle tail sends something much more often, but
/// its PostgreSQL may be slow to give a chunk.
const SILENCE_MS: u64 = 10_000;
/// The same once the fence was asked for: then the range may be waiting.
const SILENCE_AT_SWITCH_MS: u64 = 2_000;
/// How long the source may take to hear what is stored, in milliseconds.
const TAKEN_MS: u64 = 5_000;

/// Why an attempt ended.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("no replica of the source answers")]
    NoSource,
    #[error("the copy was lost: {0}")]
    Lost(String),
    #[error("the entry was not taken: {0}")]
    NotTaken(String),
    #[error("what was stored differs from the copy: {0}")]
    Differs(String),
    #[error("this replica no longer leads")]
    Deposed,
    #[error("the source cancelled the move")]
    Cancelled,
}

/// Drives a move in until it is settled or the leadership ends. `report` asks for a report to the placement driver.
pub async fn drive(leader: Arc<Leader>, checks: Arc<Checks>, operator: OperatorId, report: mpsc::Sender<()>) {
    let mut failures = 0;
    loop {
        let Some(movement) = coming_in(&leader, operator) else { return };
        // Whether the range may be served by nobody until an attempt succeeds.
        let mut urgent = false;
        match attempt(&leader, &checks, &movement, failures, &mut urgent).await {
            Ok(()) => {
                let _ = report.try_send(());
                let settled = ShardRequest::Resolved { operator, adopted: true };
                // If this is lost, the source asks (R23).
                peers::ask_leader(&movement.from, &settled, Duration::from_millis(FENCE_MS)).await;
                return;
            }
            Err(AttemptError::Deposed) => return,
            Err(error) => {
                tracing::info!(%operator, attempt = movement.attempt + 1, %error, "an attempt to take a range in failed");
                metrics::counter!("evenkeel_failed_attempts_total").increment(1);
                if let AttemptError::Differs(detail) = &error {
                    checks.attempt_differed(operator, detail);
                    metrics::counter!("evenkeel_differing_attempts_total").increment(1);
                }
                checks.trouble(operator, error.to_string());
                failures += 1;
            }
        }
        tokio::time::sleep(pause(failures, urgent)).await;
    }
}

/// How long to wait after so many failures in a row.
fn pause(failures: usize, urgent: bool) -> Duration {
    let doubled = BETWEEN_ATTEMPTS_MS << failures.saturating_sub(1).min(6);
    Duration::from_millis(if urgent { BETWEEN_ATTEMPTS_MS } else { doubled.min(MAX_BETWEEN_ATTEMPTS_MS) })
}

fn coming_in(leader: &Leader, operator: OperatorId) -> Option<MoveIn> {
    if leader.leadership.has_ended() {
        return None;
    }
    leader.shared().state().move_in(operator).filter(|m| m.phase == InPhase::Copying).cloned()
}

async fn attempt(
    leader: &Arc<Leader>,
    checks: &Arc<Checks>,
    movement: &MoveIn,
    failures: usize,
    urgent: &mut bool,
) -> Result<(), AttemptError> {
    let (operator, attempt) = (movement.operator, movement.attempt + 1);
    let (mut copy, position) = open_copy(movement, attempt, failures).await?;
    let mut entries = Entries::new(leader);
    // Not before the copy is open: an attempt that finds no source leaves no trace in the log.
    entries.log(Control::IngestAttempt { operator, attempt, position }).await?;
    let mut incoming = Incoming {
        leader,
        checks,
        movement,
        attempt,
        fence: None,
        fenced: false,
        asked: false,
        verified: Arc::default(),
        all_chunks: false,
        unlogged: None,
    };
    loop {
        *urgent = incoming.asked;
        let silence_ms = if incoming.asked { SILENCE_AT_SWITCH_MS } else { SILENCE_MS };
        let idle = entries.under_way.is_empty();
        tokio::select! {
            stored = entries.oldest(), if !idle => {
                entries.settle(stored)?;
                copy.taken.send_replace(entries.settled);
                incoming.expect_equal()?;
            }
            item = copy.next(Duration::from_millis(silence_ms), idle) => {
                let more = copy.has_more();
                if incoming.take(item?, more, &mut entries).await? {
                    return Ok(());
                }
                copy.taken.send_replace(entries.settled);
            }
        }
    }
}

/// A copy that is coming in.
struct Incopy {
    stream: ReplyStream<ShardReply>,
    /// An item that has come already.
    held: Option<ShardReply>,
    /// How many items are stored.
    taken: watch::Sender<u64>,
}

/// Opens the copy at a follower of the source if there is one; with every failure at the next replica. Gives the position that it
/// starts from.
async fn open_copy(movement: &MoveIn, attempt: u64, failures: usize) -> Result<(Incopy, u64), AttemptError> {
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
    let (taken, told) = watch::channel(0);
    let mut copy = Incopy { stream, held: None, taken };
    match copy.next(Duration::from_millis(SILENCE_MS), true).await? {
        CopyItem::Opened { copy: number, position } => {
            tokio::spawn(tell_taken(connection, number, told));
            Ok((copy, position))
        }
        CopyItem::Cancelled => Err(AttemptError::Cancelled),
        other => Err(AttemptError::Lost(format!("it begins with {other:?}"))),
    }
}

/// Tells the source what is stored, the latest number each time, until the attempt ends.
async fn tell_taken(connection: peers::PeerConnection, copy: u64, mut taken: watch::Receiver<u64>) {
    while taken.changed().await.is_ok() {
        let items = *taken.borrow_and_update();
        let request = ShardRequest::CopyTaken { copy, items };
        if let Err(error) = connection.call_within(&request, Duration::from_millis(TAKEN_MS)).await {
            tracing::debug!(%error, "the source of a copy does not hear what is stored");
        }
    }
}

impl Incopy {
    /// The next item. That none comes is an error only if `idle`: else the source may be waiting for this side.
    async fn next(&mut self, silence: Duration, idle: bool) -> Result<CopyItem, AttemptError> {
        let lost = |reason: &str| Err(AttemptError::Lost(reason.to_string()));
        let reply = match self.held.take() {
            Some(reply) => Some(reply),
            None if idle => match tokio::time::timeout(silence, self.stream.next()).await {
                Ok(reply) => reply,
                Err(_) => return lost("nothing came"),
            },
            None => self.stream.next().await,
        };
        match reply {
            Some(ShardReply::Copy(item)) => Ok(item),
            Some(ShardReply::Failed(failure)) => lost(&failure.to_string()),
            Some(_) => lost("an answer that is none"),
            None => lost("the connection ended"),
        }
    }

    /// Whether another item is here already.
    fn has_more(&mut self) -> bool {
        if self.held.is_none() {
            self.held = futures::FutureExt::now_or_never(self.stream.next()).flatten();
        }
        self.held.is_some()
    }
}

struct Incoming<'a> {
    leader: &'a Arc<Leader>,
    checks: &'a Arc<Checks>,
    movement: &'a MoveIn,
    attempt: u64,
    /// The last request for the fence; it gives whether the source has logged it.
    fence: Option<tokio::task::JoinHandle<Asked>>,
    /// That was so: it is not asked for any more.
    fenced: bool,
    /// It was asked for at least once.
    asked: bool,
    /// Once a majority has said that the copy is stored as it was sent.
    verified: Arc<AtomicBool>,
    /// All chunks have come.
    all_chunks: bool,
    /// Positions of the source's log, from and to, in which nothing has happened: not worth an entry yet.
    unlogged: Option<(u64, u64)>,
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        if let Some(fence) = self.fence.take() {
            fence.abort();
        }
    }
}

impl Incoming<'_> {
    /// Takes one item in; `true` once the range is adopted. `more` items are here already.
    async fn take(&mut self, item: CopyItem, more: bool, entries: &mut Entries<'_>) -> Result<bool, AttemptError> {
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
                // Looked at again for every try: what held up one may have let the lag grow (R22).
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

    /// Logs changes. That nothing has happened in the range is logged with what happens next, or with the adoption: the position must
    /// reach the fence's.
    async fn changes(
        &mut self,
        (from, to): (u64, u64),
        changes: Vec<bytes::Bytes>,
        entries: &mut Entries<'_>,
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

    async fn log_unlogged(&mut self, entries: &mut Entries<'_>) -> Result<(), AttemptError> {
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

    /// Logs the adoption. An attempt that began after the fence has not heard whether its copy is stored as it was sent: it asks now.
    async fn adopt(&mut self, adopt: Control, entries: &mut Entries<'_>) -> Result<(), AttemptError> {
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
                    readiness::Stored::NotYet => tokio::time::sleep(Duration::from_millis(BETWEEN_FENCES_MS)).await,
                    readiness::Stored::Differs(detail) => return Err(AttemptError::Differs(detail)),
                }
            }
        }
        entries.log(adopt).await?;
        entries.finish().await
    }

    /// What this replica has stored of the attempt is what was sent.
    fn expect_equal(&self) -> Result<(), AttemptError> {
        match self.checks.differing(self.movement.operator, self.attempt) {
            None => Ok(()),
            Some(detail) => Err(AttemptError::Differs(detail)),
        }
    }

    /// Whether the fence is neither logged nor being asked for.
    async fn may_ask(&mut self) -> Result<bool, AttemptError> {
        if self.fence.as_ref().is_some_and(|asking| asking.is_finished())
            && let Some(asked) = self.fence.take()
        {
            match asked.await {
                Ok(Asked::Differs(detail)) => return Err(AttemptError::Differs(detail)),
                Ok(Asked::Logged) => self.fenced = true,
                Ok(Asked::NotYet) | Err(_) => {}
            }
        }
        Ok(self.fence.is_none() && !self.fenced)
    }

    /// Has the source's leader log the fence, once what has come in up to `copied` of this shard's log is applied; it may have to be
    /// asked again.
    fn ask_for_fence(&mut self, copied: u64) {
        let (leader, checks) = (self.leader.clone(), self.checks.clone());
        let (again, verified) = (std::mem::replace(&mut self.asked, true), self.verified.clone());
        let (source, operator, attempt) = (self.movement.from.clone(), self.movement.operator, self.attempt);
        self.fence = Some(tokio::spawn(async move {
            if again {
                tokio::time::sleep(Duration::from_millis(BETWEEN_FENCES_MS)).await;
            }
            match readiness::stored_by_majority(&leader, &checks, (operator, attempt), copied).await {
                readiness::Stored::Ready => verified.store(true, Ordering::Release),
                readiness::Stored::Differs(detail) => return Asked::Differs(detail),
                readiness::Stored::NotYet => {
                    tracing::debug!(%operator, "a majority has not stored what came in");
                    return Asked::NotYet;
                }
            }
            let request = ShardRequest::Fence { operator, attempt };
            let reply = peers::ask_leader(&source, &request, Duration::from_millis(FENCE_MS)).await;
            if matches!(reply, Some(ShardReply::Done)) {
                return Asked::Logged;
            }
            tracing::debug!(%operator, ?reply, "the fence is not logged yet");
            Asked::NotYet
        }));
    }
}

/// What came of asking for the fence.
enum Asked {
    Logged,
    NotYet,
    /// It was not asked for: a replica has stored something else than what was sent.
    Differs(String),
}

/// Whether little is still to come.
fn caught_up(left: CopyLeft) -> bool {
    !left.behind && (left.bytes <= CAUGHT_UP_BYTES || left.items == 0)
}

/// R21: a copy must not run ahead of the destination's slowest live replica.
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
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Items of an attempt on their way through the log, in order.
struct Entries<'a> {
    leader: &'a Leader,
    under_way: VecDeque<UnderWay>,
    /// Items that are stored.
    settled: u64,
    /// The last position of this shard's log at which a chunk came in.
    copied: u64,
}

/// An entry that is not stored yet.
struct UnderWay {
    outcome: oneshot::Receiver<Outcome>,
    is_chunk: bool,
    /// How many items of the copy are stored with it.
    items: u64,
}

impl<'a> Entries<'a> {
    fn new(leader: &'a Leader) -> Entries<'a> {
        Entries { leader, under_way: VecDeque::new(), settled: 0, copied: 0 }
    }

    /// The time of this log's stamps.
    fn now_ms(&self) -> u64 {
        self.leader.shared().log.unix_ms()
    }

    /// Proposes what an item brings. The source's window bounds how many are under way.
    async fn log(&mut self, control: Control) -> Result<(), AttemptError> {
        let is_chunk = matches!(control, Control::IngestChunk { .. });
        self.propose(control, is_chunk, 1).await
    }

    /// Proposes an entry that no item of the copy brought.
    async fn log_own(&mut self, control: Control) -> Result<(), AttemptError> {
        self.propose(control, false, 0).await
    }

    /// An item needs no entry: it is stored once all before it are.
    fn skip(&mut self) {
        match self.under_way.back_mut() {
            Some(last) => last.items += 1,
            None => self.settled += 1,
        }
    }

    async fn propose(&mut self, control: Control, is_chunk: bool, items: u64) -> Result<(), AttemptError> {
        let outcome = self.leader.propose_control(control).await.map_err(|failure| match failure {
            Failure::NotLeader { .. } => AttemptError::Deposed,
            other => AttemptError::NotTaken(other.to_string()),
        })?;
        self.under_way.push_back(UnderWay { outcome, is_chunk, items });
        Ok(())
    }

    /// Waits until the oldest entry is stored; its outcome is to be settled then. Never over if there is none.
    async fn oldest(&mut self) -> Option<Outcome> {
        match self.under_way.front_mut() {
            Some(oldest) => (&mut oldest.outcome).await.ok(),
            None => std::future::pending().await,
        }
    }

    /// Takes in the outcome of the oldest entry.
    fn settle(&mut self, outcome: Option<Outcome>) -> Result<(), AttemptError> {
        let Some(oldest) = self.under_way.pop_front() else { return Ok(()) };
        match outcome {
            Some(Outcome::Effective(position)) => {
                self.settled += oldest.items;
                if oldest.is_chunk {
                    self.copied = position;
                }
                Ok(())
            }
            Some(Outcome::Refused(refusal)) => Err(AttemptError::NotTaken(refusal.to_string())),
            Some(Outcome::Deposed) | None => Err(AttemptError::Deposed),
        }
    }

    async fn finish(&mut self) -> Result<(), AttemptError> {
        while !self.under_way.is_empty() {
            let outcome = self.oldest().await;
            self.settle(outcome)?;
        }
        Ok(())
    }

    fn has_stored_chunks(&self) -> bool {
        self.under_way.iter().all(|entry| !entry.is_chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F1, A10: what counts is what is still to come, in bytes, and neither positions nor how long a row is.
    #[test]
    fn caught_up_is_judged_by_what_is_left() {
        let left = |items, bytes, behind| caught_up(CopyLeft { items, bytes, behind });
        assert!(left(3, 100, false) && left(0, 0, false));
        assert!(left(0, 5 << 20, false), "one image, however long");
        assert!(!left(1, 1 << 20, false));
        assert!(!left(0, 0, true), "more may be to come than the source's replica knows");
    }

    #[test]
    fn failures_in_a_row_back_off_unless_the_range_waits() {
        assert_eq!(pause(1, false), Duration::from_millis(100));
        assert_eq!(pause(3, false), Duration::from_millis(400));
        assert_eq!(pause(50, false), Duration::from_millis(MAX_BETWEEN_ATTEMPTS_MS));
        assert_eq!(pause(50, true), Duration::from_millis(100));
    }
}
