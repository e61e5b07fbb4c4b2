//! One leadership: what this leader has proposed in its term, who waits for the outcome, and which keys are on their way.
//!
//! An entry's outcome is known only when the log delivers it (log rule 7). A leadership that ends leaves its waiters waiting: they are
//! told by the next `LeaderStart` in the log that what has not come by then never will (R3, invariant 4).

use super::claims::{Claim, Claims};
use crate::log_entry::parts::{self, PARTS_UNDER_WAY};
use crate::log_entry::{Change, Entry};
use crate::state_machine::Refusal;
use bytes::Bytes;
use evenkeel_protocol::Failure;
use evenkeel_replicated_log::{LogHandle, ProposeError, Term};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot, watch};

/// How often a part that the log has no room for is proposed again, and for how long, in milliseconds. A log that is full stays full
/// as long as an entry is unfinished, so that the leadership must end then.
const PART_AGAIN_MS: u64 = 5;
const PART_BOUND_MS: u64 = 20_000;

/// What became of an entry.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It took effect, at this place in the log.
    Effective(u64),
    /// It came out as nothing, on every replica alike: the state machine refused it.
    Refused(Refusal),
    /// It came out as nothing, or never will come: another term began before it.
    Deposed,
}

/// Learns when an entry is in a quorum's memory, if that was asked for.
pub type Held = Option<oneshot::Receiver<()>>;

/// Who waits for an entry.
#[derive(Debug)]
struct Waiter {
    outcome: oneshot::Sender<Outcome>,
    /// Parts that may be proposed before earlier ones are decided; of an entry that is proposed in parts.
    parts: Option<UnderWay>,
}

/// Whoever proposes parts goes no further once nobody is told of them any more.
#[derive(Debug)]
struct UnderWay(Arc<Semaphore>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Waiter {
    fn tell(self, outcome: Outcome) {
        // A waiter that has gone was a session that is gone too.
        let _ = self.outcome.send(outcome);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Leadership {
    /// Its term.
    pub term: Term,
    log: LogHandle,
    next_serial: AtomicU64,
    waiters: Mutex<HashMap<u64, Waiter>>,
    /// The most that one entry's encoding may take, in bytes.
    max_entry_bytes: usize,
    /// Held while an entry's parts are proposed, so that one is unfinished at a time.
    alone: tokio::sync::Mutex<()>,
    stuck: watch::Sender<bool>,
    /// Rows of entries that are proposed and whose COMMIT PostgreSQL has not confirmed yet.
    claims: Claims,
    ended: watch::Sender<bool>,
    in_doubt: watch::Sender<usize>,
}

impl Leadership {
    /// A leadership that begins, whose entries take at most `max_entry_bytes` each.
    pub fn new(term: Term, log: LogHandle, max_entry_bytes: usize) -> Leadership {
        Leadership {
            term,
            log,
            max_entry_bytes,
            alone: tokio::sync::Mutex::default(),
            stuck: watch::Sender::new(false),
            next_serial: AtomicU64::new(1),
            waiters: Mutex::default(),
            claims: Claims::default(),
            ended: watch::Sender::new(false),
            in_doubt: watch::Sender::new(0),
        }
    }

    /// Marks the time from before a proposal until its session has committed or rolled back.
    pub fn doubt(&self) -> InDoubt<'_> {
        self.in_doubt.send_modify(|n| *n += 1);
        InDoubt { leadership: self }
    }

    /// Waits until no session is between a proposal and its end (R3).
    pub async fn without_doubt(&self) {
        let mut in_doubt = self.in_doubt.subscribe();
        // The sender lives as long as `self`, so this cannot fail.
        let _ = in_doubt.wait_for(|n| *n == 0).await;
    }

    fn waiters(&self) -> MutexGuard<'_, HashMap<u64, Waiter>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A serial that was not used in this term.
    pub fn next_serial(&self) -> u64 {
        self.next_serial.fetch_add(1, Ordering::Relaxed)
    }

    /// The most that an entry may take, in bytes.
    pub fn max_entry_bytes(&self) -> usize {
        self.max_entry_bytes
    }

    /// Turns true if an entry will never get its last part in this leadership. Only a new one helps: it drops those that are there, and lets
    /// the log forget them.
    pub fn stuck(&self) -> watch::Receiver<bool> {
        self.stuck.subscribe()
    }

    /// Proposes an entry; the receiver learns its outcome. A receiver that fails means that it will not be known here. Returns at once
    /// but for an entry of several parts (R12), all but the last few of which are decided then.
    pub async fn propose(&self, entry: &Entry) -> Result<oneshot::Receiver<Outcome>, Failure> {
        Ok(self.propose_held(entry, false).await?.0)
    }

    /// The same; if `tell_held`, a second receiver learns when the entry is in a quorum's memory (R28). If that one fails, it will not
    /// be known.
    pub async fn propose_held(
        &self,
        entry: &Entry,
        tell_held: bool,
    ) -> Result<(oneshot::Receiver<Outcome>, Held), Failure> {
        let encoded = entry.encode();
        if encoded.len() > self.max_entry_bytes {
            return Err(too_large(encoded.len(), self.max_entry_bytes));
        }
        let mut payloads = parts::cut(entry.serial, encoded);
        if payloads.len() > 1 {
            return self.propose_parts(entry.serial, payloads, tell_held).await;
        }
        let outcome = self.wait_for(entry.serial, None)?;
        let proposed = payloads.next().map_or(Ok(None), |payload| self.propose_payload(payload, tell_held, false));
        let held = proposed.map_err(|error| {
            self.waiters().remove(&entry.serial);
            not_proposed(error)
        })?;
        Ok((outcome, held))
    }

    /// Few at a time are on their way, so that small entries pass between them and no follower is flooded. The last part carries the
    /// entry's effect: one that is not proposed leaves nothing behind but parts that the next leadership drops.
    async fn propose_parts(
        &self,
        serial: u64,
        payloads: impl ExactSizeIterator<Item = Bytes>,
        tell_held: bool,
    ) -> Result<(oneshot::Receiver<Outcome>, Held), Failure> {
        let _alone = self.alone.lock().await;
        let under_way = Arc::new(Semaphore::new(PARTS_UNDER_WAY));
        let outcome = self.wait_for(serial, Some(under_way.clone()))?;
        let (last, mut held) = (payloads.len() - 1, None);
        // However this ends before the last part is proposed, by being dropped too.
        let mut unsent = Unsent(None);
        for (number, payload) in payloads.enumerate() {
            match under_way.acquire().await {
                Ok(place) => place.forget(),
                // The leadership is over; the outcome says how.
                Err(_) => {
                    unsent.forget();
                    return Ok((outcome, None));
                }
            }
            let begun = Instant::now();
            held = loop {
                match self.propose_payload(payload.clone(), tell_held && number == last, number > 0) {
                    Ok(held) => {
                        unsent.0 = Some(self);
                        break held;
                    }
                    Err(ProposeError::Overloaded)
                        if number > 0 && begun.elapsed() < Duration::from_millis(PART_BOUND_MS) =>
                    {
                        tokio::time::sleep(Duration::from_millis(PART_AGAIN_MS)).await;
                    }
                    Err(error) => {
                        self.waiters().remove(&serial);
                        if matches!(error, ProposeError::NotLeader { .. }) {
                            unsent.forget();
                        }
                        return Err(not_proposed(error));
                    }
                }
            };
        }
        unsent.forget();
        Ok((outcome, held))
    }

    fn wait_for(&self, serial: u64, parts: Option<Arc<Semaphore>>) -> Result<oneshot::Receiver<Outcome>, Failure> {
        let (outcome, receiver) = oneshot::channel();
        let mut waiters = self.waiters();
        // Under the lock that `depose` drains: no waiter can slip in behind it.
        if self.has_ended() {
            return Err(Failure::NotLeader { leader: None });
        }
        waiters.insert(serial, Waiter { outcome, parts: parts.map(UnderWay) });
        Ok(receiver)
    }

    /// What is `further` continues an entry whose beginning is in the log already.
    fn propose_payload(&self, payload: Bytes, tell_held: bool, further: bool) -> Result<Held, ProposeError> {
        match (tell_held, further) {
            (true, false) => self.log.propose_held(self.term, payload).map(Some),
            (false, false) => self.log.propose(self.term, payload).map(|()| None),
            (true, true) => self.log.propose_further_held(self.term, payload).map(Some),
            (false, true) => self.log.propose_further(self.term, payload).map(|()| None),
        }
    }

    /// The log has delivered a part of an entry of this term.
    pub fn part_decided(&self, serial: u64) {
        if let Some(Waiter { parts: Some(parts), .. }) = self.waiters().get(&serial) {
            parts.0.add_permits(1);
        }
    }

    /// The log has delivered an entry of this term.
    pub fn settle(&self, serial: u64, outcome: Outcome) {
        let waiter = self.waiters().remove(&serial);
        if let Some(waiter) = waiter {
            waiter.tell(outcome);
        }
    }

    /// Whether somebody waits for this entry: then a session of this leadership holds its changes and will commit them.
    pub fn is_awaited(&self, serial: u64) -> bool {
        self.waiters().get(&serial).is_some_and(|waiter| !waiter.outcome.is_closed())
    }

    /// A later term has begun: nothing of this one comes any more (invariant 4).
    pub fn depose(&self) {
        self.end();
        for (_, waiter) in self.waiters().drain() {
            waiter.tell(Outcome::Deposed);
        }
        self.claims.close();
    }

    /// The leadership's PostgreSQL is given up (R1), and with it the applier that would say what became of its entries: nobody here will ever
    /// know. What the log holds is applied again from the log; clients learn the outcome by asking again under the same id.
    pub fn abandon(&self) {
        self.end();
        // Dropping the senders tells everyone who waits.
        self.waiters().clear();
        self.claims.close();
    }

    /// Stops executing, proposing and answering (R1).
    pub fn end(&self) {
        self.ended.send_replace(true);
    }

    /// Turns true at the end of the leadership.
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Waits until no other entry that wrote these keys is between its proposal and its COMMIT's confirmation, then marks them
    /// as `serial`'s (R4).
    pub async fn claim<'a>(&'a self, serial: u64, changes: &'a [Change]) -> Result<Claim<'a>, Failure> {
        self.claims.claim(serial, changes).await.map_err(|_| Failure::NotLeader { leader: None })
    }

    /// Waits until no entry that wrote these keys is between its proposal and its COMMIT's confirmation (R4).
    pub async fn confirmed(&self, changes: &[Change]) -> Result<(), Failure> {
        self.claims.confirmed(changes).await.map_err(|_| Failure::NotLeader { leader: None })
    }
}

/// Parts of an entry are in the log, and the last is not: as long as this leadership lasts, the log keeps them.
struct Unsent<'a>(Option<&'a Leadership>);

impl Unsent<'_> {
    /// All are in the log, or the leadership is over.
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        if let Some(leadership) = self.0 {
            leadership.stuck.send_replace(true);
        }
    }
}

/// See [`Leadership::doubt`].
pub struct InDoubt<'a> {
    leadership: &'a Leadership,
}

impl Drop for InDoubt<'_> {
    fn drop(&mut self) {
        self.leadership.in_doubt.send_modify(|n| *n -= 1);
    }
}

fn not_proposed(error: ProposeError) -> Failure {
    match error {
        ProposeError::NotLeader { leader } => Failure::NotLeader { leader: leader.map(|l| l.0) },
        ProposeError::Overloaded => {
            Failure::Busy { reason: "too much is waiting for the log".into(), retry_after_ms: 20 }
        }
        ProposeError::TooLarge { bytes, limit_bytes } => too_large(bytes, limit_bytes),
        ProposeError::Stopped => Failure::Busy { reason: "the log has stopped".into(), retry_after_ms: 100 },
    }
}

/// The answer to a transaction whose changes are more than `limit` bytes (R12).
pub fn too_large(bytes: usize, limit: usize) -> Failure {
    evenkeel_protocol::SqlError::new(
        evenkeel_protocol::error::codes::PROGRAM_LIMIT,
        format!("the transaction's changes are {bytes} bytes; at most {limit} are possible"),
    )
    .hint("Write fewer rows per transaction.")
    .into()
}
