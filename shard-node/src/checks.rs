//! Checksums of what this replica's PostgreSQL holds, at places in the log that are the same for every replica (R31).

use crate::fold::ShardState;
use crate::store::{PinnedSnapshot, Snapshots, StoreError};
use evenkeel_protocol::shard::{RangeChecksum, ReplicaChecksums};
use evenkeel_protocol::{KeyInterval, OperatorId, TableSchema};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{oneshot, watch};

/// How many checkpoints' results are kept.
const KEPT_CHECKPOINTS: usize = 8;
/// How many adoptions' results are kept.
const KEPT_ADOPTIONS: usize = 256;
/// For how long an adoption's checksum is asked of replicas that do not answer, in milliseconds.
const ASK_FOR_MS: u64 = 10_000;

/// What is known of an adoption on this replica.
#[derive(Debug, Clone, Copy, Default)]
pub struct Adoption {
    /// From the source's hold to the rows' being in here, in microseconds by the two machines' clocks.
    pub pause_us: u64,
    /// Whether the rows are on their way into PostgreSQL still: then nobody is served yet.
    pub pending: bool,
    /// The range's checksum as it was adopted, once it is known.
    pub checksum: Option<RangeChecksum>,
    /// It is not known on this replica, and never will be.
    pub unknown: bool,
}

#[derive(Debug, Default)]
struct Inner {
    adoptions: BTreeMap<OperatorId, Adoption>,
    /// Since when other replicas are asked for what this one does not know.
    asked_since: BTreeMap<OperatorId, Instant>,
    checkpoints: BTreeMap<u64, ReplicaChecksums>,
}

/// See the module.
#[derive(Debug)]
pub struct Checks {
    replica: u64,
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

/// Microseconds since the Unix epoch.
pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

impl Checks {
    /// For this replica.
    pub fn new(replica: u64) -> Checks {
        Checks { replica, inner: Mutex::default(), changed: watch::Sender::new(0) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A range has been adopted; `snapshot` will hold its rows, on one of `sessions`. With `later`, PostgreSQL holds later entries
    /// already (it was started anew, and this one is folded again), so that the rows as they were adopted cannot be seen any more.
    pub fn adopted(
        self: &Arc<Self>,
        operator: OperatorId,
        held_since_us: u64,
        (table, interval): (Arc<TableSchema>, KeyInterval),
        (snapshot, sessions): (oneshot::Receiver<Result<PinnedSnapshot, StoreError>>, Snapshots),
        later: bool,
    ) {
        let checks = self.clone();
        self.keep(operator, |adoption| (adoption.pending, adoption.unknown) = (true, false));
        tokio::spawn(async move {
            let snapshot = snapshot.await;
            let pause_us = now_us().saturating_sub(held_since_us);
            checks.keep(operator, |adoption| (adoption.pending, adoption.pause_us) = (false, pause_us));
            let checksum = async {
                let snapshot = snapshot.map_err(|_| "the replica opens its PostgreSQL anew".to_string())?;
                let mut snapshot = snapshot.map_err(|error| error.to_string())?;
                let checksum = snapshot.checksum(&table, &interval).await.map_err(|error| error.to_string());
                sessions.give_back(snapshot).await;
                checksum
            };
            let checksum = match later {
                true => Err("later entries are in already".to_string()),
                false => checksum.await,
            };
            match checksum {
                Ok(checksum) => checks.keep(operator, |adoption| adoption.checksum = Some(checksum)),
                Err(reason) => {
                    tracing::info!(%operator, reason, "the checksum of an adopted range is not known here");
                    checks.keep(operator, |adoption| adoption.unknown = true);
                }
            }
        });
    }

    /// Whether it is still worth asking replicas that do not answer for an adoption's checksum: they may come back with it, or never.
    pub fn may_ask(&self, operator: OperatorId) -> bool {
        let mut inner = self.inner();
        let since = *inner.asked_since.entry(operator).or_insert_with(Instant::now);
        while inner.asked_since.len() > KEPT_ADOPTIONS {
            inner.asked_since.pop_first();
        }
        since.elapsed() < Duration::from_millis(ASK_FOR_MS)
    }

    fn keep(&self, operator: OperatorId, change: impl FnOnce(&mut Adoption)) {
        let mut inner = self.inner();
        change(inner.adoptions.entry(operator).or_default());
        while inner.adoptions.len() > KEPT_ADOPTIONS {
            inner.adoptions.pop_first();
        }
        drop(inner);
        self.changed.send_modify(|n| *n += 1);
    }

    /// What is known of an adoption.
    pub fn adoption(&self, operator: OperatorId) -> Option<Adoption> {
        self.inner().adoptions.get(&operator).copied()
    }

    /// The log has reached a checkpoint; `snapshot` holds what PostgreSQL held there, and `later` says that it holds more (R31).
    pub async fn checkpoint(
        self: &Arc<Self>,
        nonce: u64,
        index: u64,
        state: &ShardState,
        snapshot: Result<Result<PinnedSnapshot, StoreError>, oneshot::error::RecvError>,
        later: bool,
    ) {
        let wanted: Vec<_> = state
            .owned()
            .filter_map(|range| Some((range.id, state.table(range.table)?.clone(), range.interval.clone())))
            .collect();
        let checks = self.clone();
        tokio::spawn(async move {
            let sums = async {
                if later {
                    return Err("the replica was opened anew, and holds later entries already".to_string());
                }
                let mut snapshot = snapshot.map_err(|_| "the replica stops".to_string())?.map_err(|e| e.to_string())?;
                let mut sums = Vec::with_capacity(wanted.len());
                for (range, table, interval) in wanted {
                    sums.push((range, snapshot.checksum(&table, &interval).await.map_err(|e| e.to_string())?));
                }
                Ok(sums)
            };
            let ranges = sums.await;
            let mut inner = checks.inner();
            inner.checkpoints.insert(nonce, ReplicaChecksums { replica: checks.replica, index, ranges });
            while inner.checkpoints.len() > KEPT_CHECKPOINTS {
                inner.checkpoints.pop_first();
            }
            drop(inner);
            checks.changed.send_modify(|n| *n += 1);
        });
    }

    /// Waits for a checkpoint's checksums, at most for `bound`.
    pub async fn of_checkpoint(&self, nonce: u64, bound: Duration) -> ReplicaChecksums {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                if let Some(found) = self.inner().checkpoints.get(&nonce) {
                    return found.clone();
                }
                // The sender lives as long as `self`.
                let _ = changed.changed().await;
            }
        };
        tokio::time::timeout(bound, wait).await.unwrap_or_else(|_| ReplicaChecksums {
            replica: self.replica,
            index: 0,
            ranges: Err(format!("no checksums within {} ms", bound.as_millis())),
        })
    }
}
