//! One reign: what this leader has proposed in its term, who waits for the outcome, and which keys are on their way.
//!
//! An entry's outcome is known only when the log delivers it (log rule 7). A reign that ends leaves its waiters waiting: they are
//! told by the next `LeaderStart` in the log that what has not come by then never will (R3, invariant 4).

use crate::entry::{Change, Entry};
use crate::fold::Refusal;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::{Failure, Key, TableId};
use evenkeel_replicated_log::{LogHandle, ProposeError, Term};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{oneshot, watch};

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

/// See the module.
#[derive(Debug)]
pub struct Reign {
    /// Its term.
    pub term: Term,
    log: LogHandle,
    next_serial: AtomicU64,
    waiters: Mutex<HashMap<u64, oneshot::Sender<Outcome>>>,
    /// Keys written by entries that are proposed and whose COMMIT PostgreSQL has not confirmed yet, each with the entry's serial (R4).
    pending: Mutex<HashMap<(TableId, Key), u64>>,
    pending_changed: watch::Sender<u64>,
    ended: watch::Sender<bool>,
    in_doubt: watch::Sender<usize>,
}

impl Reign {
    /// A reign that begins.
    pub fn new(term: Term, log: LogHandle) -> Reign {
        Reign {
            term,
            log,
            next_serial: AtomicU64::new(1),
            waiters: Mutex::default(),
            pending: Mutex::default(),
            pending_changed: watch::Sender::new(0),
            ended: watch::Sender::new(false),
            in_doubt: watch::Sender::new(0),
        }
    }

    /// Marks the time from before a proposal until its session has committed or rolled back.
    pub fn doubt(&self) -> InDoubt<'_> {
        self.in_doubt.send_modify(|n| *n += 1);
        InDoubt { reign: self }
    }

    /// Waits until no session is between a proposal and its end (R3).
    pub async fn without_doubt(&self) {
        let mut in_doubt = self.in_doubt.subscribe();
        // The sender lives as long as `self`, so this cannot fail.
        let _ = in_doubt.wait_for(|n| *n == 0).await;
    }

    fn waiters(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Outcome>>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<(TableId, Key), u64>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A serial that was not used in this term.
    pub fn next_serial(&self) -> u64 {
        self.next_serial.fetch_add(1, Ordering::Relaxed)
    }

    /// Proposes an entry; the receiver learns its outcome. A receiver that fails means that it will not be known here.
    pub fn propose(&self, entry: &Entry) -> Result<oneshot::Receiver<Outcome>, Failure> {
        Ok(self.propose_held(entry, false)?.0)
    }

    /// The same; if `tell_held`, a second receiver learns when the entry is in a quorum's memory (R28). If that one fails, it will not
    /// be known.
    pub fn propose_held(&self, entry: &Entry, tell_held: bool) -> Result<(oneshot::Receiver<Outcome>, Held), Failure> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiters = self.waiters();
            // Under the lock that `depose` drains: no waiter can slip in behind it.
            if self.has_ended() {
                return Err(Failure::NotLeader { leader: None });
            }
            waiters.insert(entry.serial, sender);
        }
        let proposed = match tell_held {
            true => self.log.propose_held(self.term, entry.encode()).map(Some),
            false => self.log.propose(self.term, entry.encode()).map(|()| None),
        };
        let held = proposed.map_err(|error| {
            self.waiters().remove(&entry.serial);
            match error {
                ProposeError::NotLeader { leader } => Failure::NotLeader { leader: leader.map(|l| l.0) },
                ProposeError::Overloaded => {
                    Failure::Busy { reason: "too much is waiting for the log".into(), retry_after_ms: 20 }
                }
                ProposeError::TooLarge { bytes, .. } => too_large(bytes),
                ProposeError::Stopped => Failure::Busy { reason: "the log has stopped".into(), retry_after_ms: 100 },
            }
        })?;
        Ok((receiver, held))
    }

    /// The log has delivered an entry of this term.
    pub fn settle(&self, serial: u64, outcome: Outcome) {
        let waiter = self.waiters().remove(&serial);
        if let Some(waiter) = waiter {
            // A waiter that has gone was a session that is gone too.
            let _ = waiter.send(outcome);
        }
    }

    /// Whether somebody waits for this entry: then a session of this reign holds its changes and will commit them.
    pub fn is_awaited(&self, serial: u64) -> bool {
        self.waiters().get(&serial).is_some_and(|waiter| !waiter.is_closed())
    }

    /// A later term has begun: nothing of this one comes any more (invariant 4).
    pub fn depose(&self) {
        self.end();
        for (_, waiter) in self.waiters().drain() {
            let _ = waiter.send(Outcome::Deposed);
        }
        self.pending().clear();
        self.pending_changed.send_modify(|n| *n += 1);
    }

    /// The reign's PostgreSQL is given up (R1), and with it the applier that would say what became of its entries: nobody here will ever
    /// know. What the log holds is applied anew from the log; clients learn the outcome by asking again under the same id.
    pub fn abandon(&self) {
        self.end();
        // Dropping the senders tells everyone who waits.
        self.waiters().clear();
        self.pending().clear();
        self.pending_changed.send_modify(|n| *n += 1);
    }

    /// Stops executing, proposing and answering (R1).
    pub fn end(&self) {
        self.ended.send_replace(true);
    }

    /// Turns true at the end of the reign.
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Waits until no other entry that wrote these keys is between its proposal and its COMMIT's confirmation, then marks them
    /// as `serial`'s (R4): whoever got a row lock that such an entry released may have seen a state that is no more.
    pub async fn claim(&self, serial: u64, changes: &[Change]) -> Result<Claim<'_>, Failure> {
        let mut changed = self.pending_changed.subscribe();
        loop {
            {
                let mut pending = self.pending();
                let free = |c: &Change| pending.get(&(c.table, c.key.clone())).is_none_or(|owner| *owner == serial);
                if deliberate(Bug::NoClaim) || changes.iter().all(free) {
                    for change in changes {
                        pending.insert((change.table, change.key.clone()), serial);
                    }
                    let keys = changes.iter().map(|c| (c.table, c.key.clone())).collect();
                    return Ok(Claim { reign: self, keys });
                }
            }
            if self.has_ended() || changed.changed().await.is_err() {
                return Err(Failure::NotLeader { leader: None });
            }
        }
    }

    /// Waits until no entry that wrote these keys is between its proposal and its COMMIT's confirmation (R4).
    pub async fn confirmed(&self, changes: &[Change]) -> Result<(), Failure> {
        drop(self.claim(0, changes).await?);
        Ok(())
    }
}

/// See [`Reign::doubt`].
pub struct InDoubt<'a> {
    reign: &'a Reign,
}

impl Drop for InDoubt<'_> {
    fn drop(&mut self) {
        self.reign.in_doubt.send_modify(|n| *n -= 1);
    }
}

/// The answer to what does not fit into one entry (R12).
pub fn too_large(bytes: usize) -> Failure {
    evenkeel_protocol::SqlError::new(
        evenkeel_protocol::error::codes::PROGRAM_LIMIT,
        format!("the transaction's changes are {bytes} bytes; at most {} are possible", crate::entry::MAX_ENTRY_BYTES),
    )
    .hint("Write fewer rows per transaction.")
    .into()
}

/// Keys marked by [`Reign::claim`], until the COMMIT that wrote them is confirmed or they were rolled back.
pub struct Claim<'a> {
    reign: &'a Reign,
    keys: Vec<(TableId, Key)>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut pending = self.reign.pending();
        for key in &self.keys {
            pending.remove(key);
        }
        drop(pending);
        if self.reign.pending_changed.receiver_count() > 0 {
            self.reign.pending_changed.send_modify(|n| *n += 1);
        }
    }
}
