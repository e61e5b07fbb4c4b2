//! What a replica has observed of moves: chunks that are not stored as they were sent (R24), failed
//! attempts, and the pause of each hand-over.
//!
//! The observations are of this replica and this process: they are lost when it ends. A bounded
//! number is kept.

use crate::clock::now_us;
use crate::storage::Differing;
use evenkeel_protocol::OperatorId;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many adoptions' results are kept.
const KEPT_ADOPTIONS: usize = 256;
/// Attempts with differing checksums after which a move cannot be done.
const MAX_DIFFERING_ATTEMPTS: u32 = 3;

/// The adoption of a range, as this replica observed it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Adoption {
    /// From the source's write block until the rows are stored here, in microseconds by the two
    /// machines' clocks.
    pub pause_us: u64,
    /// Whether PostgreSQL still lacks some rows: then no statement is served yet.
    pub pending: bool,
}

/// A difference between the stored and the sent rows of an attempt.
#[derive(Debug, Clone)]
struct Differs {
    attempt: u64,
    detail: String,
}

#[derive(Debug, Default)]
struct Observed {
    /// By move: the last attempt of which something else is stored here than what was sent.
    differing: BTreeMap<OperatorId, Differs>,
    /// By move: why the last attempt that this replica drove failed.
    troubles: BTreeMap<OperatorId, String>,
    /// By move: how many attempts that this replica drove ended because something else was stored
    /// than was sent, and the last time so.
    differing_attempts: BTreeMap<OperatorId, (u32, String)>,
    adoptions: BTreeMap<OperatorId, Adoption>,
}

/// See the module.
#[derive(Debug)]
pub struct MoveObservations {
    replica: u64,
    inner: Mutex<Observed>,
}

impl MoveObservations {
    /// For this replica of this shard.
    pub fn new(replica: u64) -> MoveObservations {
        MoveObservations { replica, inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Observed> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A range has been adopted; its rows are not in here yet.
    pub fn adopting(&self, operator: OperatorId) {
        self.keep(operator, |adoption| adoption.pending = true);
    }

    /// The rows of an adopted range are in here. The source began to hold statements then, in
    /// microseconds since the Unix epoch.
    pub fn adopted(&self, operator: OperatorId, held_since_us: u64) {
        let pause_us = now_us().saturating_sub(held_since_us);
        self.keep(operator, |adoption| (adoption.pending, adoption.pause_us) = (false, pause_us));
    }

    /// Rows of a copy are not stored here as they were sent.
    pub fn differs(&self, differing: &Differing) {
        let (copied, stored) = (differing.copied, differing.stored);
        let (sent, replica) = (copied.checksum, self.replica);
        let detail = format!(
            "replica {replica} has stored {} rows, sum {:016x}, in {}; {} rows, sum {:016x}, were sent",
            stored.rows, stored.sum, differing.interval, sent.rows, sent.sum
        );
        tracing::error!(operator = %copied.operator, attempt = copied.attempt, detail, "a copy differs");
        metrics::counter!("evenkeel_differing_chunks_total").increment(1);
        let mut inner = self.inner();
        inner.differing.insert(copied.operator, Differs { attempt: copied.attempt, detail });
        while inner.differing.len() > KEPT_ADOPTIONS {
            inner.differing.pop_first();
        }
    }

    /// The difference between the stored and the sent rows of an attempt, in one sentence.
    pub fn differing(&self, operator: OperatorId, attempt: u64) -> Option<String> {
        let inner = self.inner();
        inner
            .differing
            .get(&operator)
            .filter(|differs| differs.attempt == attempt)
            .map(|differs| differs.detail.clone())
    }

    /// An attempt that this replica drove has failed, for this reason.
    pub fn trouble(&self, operator: OperatorId, reason: String) {
        let mut inner = self.inner();
        inner.troubles.insert(operator, reason);
        while inner.troubles.len() > KEPT_ADOPTIONS {
            inner.troubles.pop_first();
        }
    }

    /// An attempt that this replica drove has ended because something else was stored than was
    /// sent.
    pub fn attempt_differed(&self, operator: OperatorId, detail: &str) {
        let mut inner = self.inner();
        let attempts = inner.differing_attempts.entry(operator).or_default();
        *attempts = (attempts.0 + 1, detail.to_string());
        while inner.differing_attempts.len() > KEPT_ADOPTIONS {
            inner.differing_attempts.pop_first();
        }
    }

    /// Why a move cannot be done, in one sentence: too many of its attempts have ended so.
    pub fn cannot_be_copied(&self, operator: OperatorId) -> Option<String> {
        let inner = self.inner();
        let (attempts, detail) = inner.differing_attempts.get(&operator)?;
        (*attempts >= MAX_DIFFERING_ATTEMPTS).then(|| detail.clone())
    }

    /// Why the last attempt that this replica drove failed.
    pub fn trouble_of(&self, operator: OperatorId) -> Option<String> {
        self.inner().troubles.get(&operator).cloned()
    }

    fn keep(&self, operator: OperatorId, change: impl FnOnce(&mut Adoption)) {
        let mut inner = self.inner();
        change(inner.adoptions.entry(operator).or_default());
        while inner.adoptions.len() > KEPT_ADOPTIONS {
            inner.adoptions.pop_first();
        }
    }

    /// An adoption, if it was observed.
    pub fn adoption(&self, operator: OperatorId) -> Option<Adoption> {
        self.inner().adoptions.get(&operator).copied()
    }
}
