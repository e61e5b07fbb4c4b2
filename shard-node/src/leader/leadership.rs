//! A leadership: one term of leading on one server start. It owns the proposals of the term and
//! their outcomes.
//!
//! An entry's outcome is known only when the log delivers the entry (log rule 7). When a leadership
//! ends, its pending proposals stay unresolved. The next `LeaderStart` in the log resolves them:
//! entries that were not delivered before it are rejected (R3, invariant 4).
//!
//! Large entries are proposed in parts (R12), one entry at a time.
//!
//! Not done: the decision when a leadership begins and ends (`crate::apply`).

use super::claims::{Claim, Claims, OwnedClaim};
use super::failures::too_large;
use crate::log_entry::parts::{self, PARTS_UNDER_WAY};
use crate::log_entry::{Change, ShardEntry};
use crate::state_machine::EntryRefusal;
use bytes::Bytes;
use evenkeel_protocol::Failure;
use evenkeel_replicated_log::{LogHandle, ProposeError, Term};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot, watch};

/// The interval at which a part is proposed again when the log has no room, in milliseconds.
const PART_AGAIN_MS: u64 = 5;
/// How long a part is proposed again, in milliseconds. A full log stays full while an entry is
/// unfinished, so the leadership must end then.
const PART_BOUND_MS: u64 = 20_000;

/// The outcome of a proposed entry.
#[derive(Debug, Clone, PartialEq)]
pub enum EntryOutcome {
    /// It is effective, at this position of the log.
    Effective(u64),
    /// The state machine rejected it, on every replica alike. It has no effect.
    Rejected(EntryRefusal),
    /// Another term began before it. It has no effect, and will have none.
    Deposed,
}

/// Completes when a quorum has an entry in memory, if that was asked for.
pub type MemoryAcknowledgement = Option<oneshot::Receiver<()>>;

/// A session that waits for the outcome of its entry.
#[derive(Debug)]
struct Waiter {
    outcome: oneshot::Sender<EntryOutcome>,
    /// For an entry in parts: the parts that may be proposed before earlier ones are decided.
    parts: Option<UnderWay>,
    holder: Holder,
}

/// Who has the changes of a proposed entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// A session, in its open transaction, or the entry changes no rows.
    Session,
    /// Nobody here: the applier stores them, as those of another leadership's entries (R26).
    Nobody,
}

/// Closes the semaphore when the waiter is gone, so that no further part is proposed.
#[derive(Debug)]
struct UnderWay(Arc<Semaphore>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Waiter {
    fn resolve(self, outcome: EntryOutcome) {
        // A waiter that has gone was a session that has gone, too.
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
    /// The largest encoded entry, in bytes.
    max_entry_bytes: usize,
    /// Held while an entry's parts are proposed, so that at most one entry is unfinished.
    alone: tokio::sync::Mutex<()>,
    stuck: watch::Sender<bool>,
    /// Rows of proposed entries whose COMMIT PostgreSQL has not confirmed yet.
    claims: Arc<Claims>,
    ended: watch::Sender<bool>,
    in_doubt: watch::Sender<usize>,
}

impl Leadership {
    /// A new leadership, whose entries take at most `max_entry_bytes` each.
    pub fn new(term: Term, log: LogHandle, max_entry_bytes: usize) -> Leadership {
        Leadership {
            term,
            log,
            max_entry_bytes,
            alone: tokio::sync::Mutex::default(),
            stuck: watch::Sender::new(false),
            next_serial: AtomicU64::new(1),
            waiters: Mutex::default(),
            claims: Arc::default(),
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

    /// The largest entry, in bytes.
    pub fn max_entry_bytes(&self) -> usize {
        self.max_entry_bytes
    }

    /// Becomes true if an entry will never get its last part in this leadership. The leadership
    /// must end: the next one drops the parts that are in the log, so that the log can be
    /// compacted.
    pub fn stuck(&self) -> watch::Receiver<bool> {
        self.stuck.subscribe()
    }

    /// Proposes an entry. The receiver gets the outcome; if it fails, the outcome will not be known
    /// here. Returns at once, except for an entry in parts (R12): then all parts but the last few
    /// have been decided.
    pub async fn propose(&self, entry: &ShardEntry) -> Result<oneshot::Receiver<EntryOutcome>, Failure> {
        Ok(self.propose_observed(entry, false).await?.0)
    }

    /// The same of an entry with changes that no session has.
    pub async fn propose_unheld(&self, entry: &ShardEntry) -> Result<oneshot::Receiver<EntryOutcome>, Failure> {
        let outcome = self.wait_for(entry.serial, None, Holder::Nobody)?;
        match self.propose_payload(entry.encode(), false, false) {
            Ok(_) => Ok(outcome),
            Err(error) => {
                self.waiters().remove(&entry.serial);
                Err(not_proposed(error))
            }
        }
    }

    /// The same. If `observe_memory`, a second receiver completes when a quorum has the entry in
    /// memory (R28). If it fails, that will not be known.
    pub async fn propose_observed(
        &self,
        entry: &ShardEntry,
        observe_memory: bool,
    ) -> Result<(oneshot::Receiver<EntryOutcome>, MemoryAcknowledgement), Failure> {
        let encoded = entry.encode();
        if encoded.len() > self.max_entry_bytes {
            return Err(too_large(encoded.len(), self.max_entry_bytes));
        }
        let mut payloads = parts::cut(entry.serial, encoded);
        if payloads.len() > 1 {
            return self.propose_parts(entry.serial, payloads, observe_memory).await;
        }
        let outcome = self.wait_for(entry.serial, None, Holder::Session)?;
        let proposed = payloads.next().map_or(Ok(None), |payload| self.propose_payload(payload, observe_memory, false));
        let in_memory = proposed.map_err(|error| {
            self.waiters().remove(&entry.serial);
            not_proposed(error)
        })?;
        Ok((outcome, in_memory))
    }

    /// Proposes an entry in parts. At most [`PARTS_UNDER_WAY`] parts are undecided at a time, so
    /// that small entries pass between them and followers are not flooded. The entry takes effect
    /// with its last part. If that is not proposed, the next leadership drops the other parts.
    async fn propose_parts(
        &self,
        serial: u64,
        payloads: impl ExactSizeIterator<Item = Bytes>,
        observe_memory: bool,
    ) -> Result<(oneshot::Receiver<EntryOutcome>, MemoryAcknowledgement), Failure> {
        let _alone = self.alone.lock().await;
        let under_way = Arc::new(Semaphore::new(PARTS_UNDER_WAY));
        let outcome = self.wait_for(serial, Some(under_way.clone()), Holder::Session)?;
        let (last, mut in_memory) = (payloads.len() - 1, None);
        // Applies to every end before the last part is proposed, including a dropped future.
        let mut unsent = Unsent(None);
        for (number, payload) in payloads.enumerate() {
            match under_way.acquire().await {
                Ok(place) => place.forget(),
                // The leadership has ended. The outcome says how.
                Err(_) => {
                    unsent.forget();
                    return Ok((outcome, None));
                }
            }
            let begun = evenkeel_host::now();
            in_memory = loop {
                match self.propose_payload(payload.clone(), observe_memory && number == last, number > 0) {
                    Ok(in_memory) => {
                        unsent.0 = Some(self);
                        break in_memory;
                    }
                    Err(ProposeError::Overloaded)
                        if number > 0 && evenkeel_host::elapsed(begun) < Duration::from_millis(PART_BOUND_MS) =>
                    {
                        evenkeel_host::sleep(Duration::from_millis(PART_AGAIN_MS)).await;
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
        Ok((outcome, in_memory))
    }

    fn wait_for(
        &self,
        serial: u64,
        parts: Option<Arc<Semaphore>>,
        holder: Holder,
    ) -> Result<oneshot::Receiver<EntryOutcome>, Failure> {
        let (outcome, receiver) = oneshot::channel();
        let mut waiters = self.waiters();
        // Under the lock that `depose` takes, so that no waiter is added after it.
        if self.has_ended() {
            return Err(Failure::NotLeader { leader: None });
        }
        waiters.insert(serial, Waiter { outcome, parts: parts.map(UnderWay), holder });
        Ok(receiver)
    }

    /// Proposes one payload. A `further` payload continues an entry whose first part is in the log
    /// already.
    fn propose_payload(
        &self,
        payload: Bytes,
        observe_memory: bool,
        further: bool,
    ) -> Result<MemoryAcknowledgement, ProposeError> {
        match (observe_memory, further) {
            (true, false) => self.log.propose_tracked(self.term, payload).map(Some),
            (false, false) => self.log.propose(self.term, payload).map(|()| None),
            (true, true) => self.log.propose_further_tracked(self.term, payload).map(Some),
            (false, true) => self.log.propose_further(self.term, payload).map(|()| None),
        }
    }

    /// The log has delivered a part of an entry of this term.
    pub fn part_decided(&self, serial: u64) {
        if let Some(Waiter { parts: Some(parts), .. }) = self.waiters().get(&serial) {
            parts.0.add_permits(1);
        }
    }

    /// The log has delivered an entry of this term, with this outcome.
    pub fn resolve(&self, serial: u64, outcome: EntryOutcome) {
        let waiter = self.waiters().remove(&serial);
        if let Some(waiter) = waiter {
            waiter.resolve(outcome);
        }
    }

    /// Who has the changes of this entry.
    pub fn holder(&self, serial: u64) -> Holder {
        self.waiters().get(&serial).map_or(Holder::Session, |waiter| waiter.holder)
    }

    /// Whether a session waits for this entry. It holds the entry's changes in its transaction and
    /// will commit them.
    pub fn is_awaited(&self, serial: u64) -> bool {
        self.waiters().get(&serial).is_some_and(|waiter| !waiter.outcome.is_closed())
    }

    /// A later term has begun: no entry of this term will be delivered any more (invariant 4).
    pub fn depose(&self) {
        self.end();
        for (_, waiter) in self.waiters().drain() {
            waiter.resolve(EntryOutcome::Deposed);
        }
        self.claims.close();
    }

    /// The leadership's PostgreSQL is given up (R1), and with it the applier that would resolve its
    /// entries. Their outcomes will not be known here. Decided entries are applied again from the
    /// log. Clients learn the outcome by asking again under the same id.
    pub fn abandon(&self) {
        self.end();
        // Dropping the senders notifies all waiters.
        self.waiters().clear();
        self.claims.close();
    }

    /// Stops executing, proposing and answering (R1).
    pub fn end(&self) {
        self.ended.send_replace(true);
    }

    /// Becomes true at the end of the leadership.
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Waits until no other entry that wrote these keys is between its proposal and the
    /// confirmation of its COMMIT, then claims the keys for `serial` (R4).
    pub async fn claim<'a>(&'a self, serial: u64, changes: &'a [Change]) -> Result<Claim<'a>, Failure> {
        self.claims.claim(serial, changes).await.map_err(|_| Failure::NotLeader { leader: None })
    }

    /// The same for a transaction that keeps its claim.
    pub async fn claim_owned(&self, serial: u64, changes: Vec<Change>) -> Result<OwnedClaim, Failure> {
        self.claims.claim_owned(serial, changes).await.map_err(|_| Failure::NotLeader { leader: None })
    }

    /// Waits until no entry that wrote these keys is between its proposal and the confirmation of
    /// its COMMIT (R4).
    pub async fn confirmed(&self, changes: &[Change]) -> Result<(), Failure> {
        self.claims.confirmed(changes).await.map_err(|_| Failure::NotLeader { leader: None })
    }
}

/// Some parts of an entry are in the log and the last is not. The log keeps them as long as this
/// leadership lasts.
struct Unsent<'a>(Option<&'a Leadership>);

impl Unsent<'_> {
    /// All parts are in the log, or the leadership has ended.
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
