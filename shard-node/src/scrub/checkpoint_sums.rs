//! This replica's checksums: of a checkpoint's pieces at the checkpoint's position in the log
//! (R31).

use super::plan::Asked;
use crate::storage::{PinnedSnapshot, Snapshots, StoreError};
use evenkeel_protocol::scrub::{RangeChecksum, ReplicaSums};
use evenkeel_protocol::{Key, TableId};
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How many checkpoints' sums are kept: the leader asks at once.
const KEPT_CHECKPOINTS: usize = 8;
/// How long the snapshot may take to come, and its pieces to be read, in milliseconds: a replica
/// that needs longer is not compared.
pub const SUM_UP_MS: u64 = 10_000;

/// A snapshot that will be there; an error says why not.
pub type AwaitedSnapshot = BoxFuture<'static, Result<PinnedSnapshot, String>>;

/// Where in the log it is.
#[derive(Debug, Clone, Copy)]
pub struct At {
    /// The checkpoint's number.
    pub nonce: u64,
    /// Its place.
    pub index: u64,
    /// Whether PostgreSQL may hold later entries, or lack rows: then this replica cannot be
    /// compared here.
    pub holds_later: bool,
}

/// See the module.
#[derive(Debug)]
pub struct CheckpointSums {
    replica: u64,
    /// The sums of the latest checkpoints, with the checkpoints' numbers, the oldest first.
    kept: Mutex<VecDeque<(u64, ReplicaSums)>>,
    changed: watch::Sender<u64>,
}

impl CheckpointSums {
    /// None yet, of this replica.
    pub fn new(replica: u64) -> CheckpointSums {
        CheckpointSums { replica, kept: Mutex::default(), changed: watch::Sender::new(0) }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<(u64, ReplicaSums)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log has reached a checkpoint: computes the requested checksums in `snapshot`, in a task
    /// of its own.
    pub fn sum_up(self: &Arc<Self>, at: At, asked: Asked, snapshot: AwaitedSnapshot, snapshots: Snapshots) {
        let this = self.clone();
        tokio::spawn(async move {
            let read = async {
                if at.holds_later {
                    return Err("it was opened again or lacks rows, and is not at one place in the log yet".to_string());
                }
                let mut snapshot = snapshot.await?;
                let read = read(&mut snapshot, asked).await.map_err(|error| error.to_string())?;
                snapshots.give_back(snapshot).await;
                Ok(read)
            };
            let read = evenkeel_host::timeout(Duration::from_millis(SUM_UP_MS), read).await;
            let (sums, left_behind) = match read.unwrap_or_else(|_| Err(format!("not summed up in {SUM_UP_MS} ms"))) {
                Ok((sums, left_behind)) => (Ok(sums), left_behind),
                Err(reason) => (Err(reason), Vec::new()),
            };
            this.keep(at.nonce, ReplicaSums { replica: this.replica, index: at.index, sums, left_behind });
        });
    }

    fn keep(&self, nonce: u64, sums: ReplicaSums) {
        let mut kept = self.kept();
        kept.push_back((nonce, sums));
        while kept.len() > KEPT_CHECKPOINTS {
            kept.pop_front();
        }
        drop(kept);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Waits for a checkpoint's sums, at most for `bound`.
    pub async fn sums_of(&self, nonce: u64, bound: Duration) -> ReplicaSums {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                if let Some((_, found)) = self.kept().iter().rev().find(|(known, _)| *known == nonce) {
                    return found.clone();
                }
                // The sender lives as long as `self`.
                let _ = changed.changed().await;
            }
        };
        let late = || silent(self.replica, format!("it did not get there within {} ms", bound.as_millis()));
        evenkeel_host::timeout(bound, wait).await.unwrap_or_else(|_| late())
    }
}

/// The entry for a replica that does not answer.
pub fn silent(replica: u64, reason: String) -> ReplicaSums {
    ReplicaSums { replica, index: 0, sums: Err(reason), left_behind: Vec::new() }
}

type Read = (Vec<Option<RangeChecksum>>, Vec<(TableId, Key)>);

async fn read(snapshot: &mut PinnedSnapshot, asked: Asked) -> Result<Read, StoreError> {
    // A replica that holds much more than the leader has measured does not read more either.
    snapshot.limit_time(SUM_UP_MS).await?;
    let mut sums = Vec::with_capacity(asked.pieces.len());
    for piece in asked.pieces {
        sums.push(match piece {
            Some((table, interval)) => Some(snapshot.checksum(&table, &interval).await?),
            None => None,
        });
    }
    let mut left_behind = Vec::new();
    for (table, interval) in asked.gaps {
        // One look into the index for each.
        if let Some(key) = snapshot.first_key(&table, &interval).await? {
            left_behind.push((table.id, key));
        }
    }
    Ok((sums, left_behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Numbers of a later leadership may be the smaller ones.
    #[tokio::test]
    async fn the_latest_sums_are_there_whatever_their_numbers() {
        let sums = CheckpointSums::new(2);
        for nonce in (0..100).rev() {
            sums.keep(nonce, ReplicaSums { index: nonce, ..silent(2, String::new()) });
            assert_eq!(sums.sums_of(nonce, Duration::from_secs(1)).await.index, nonce);
        }
        assert_eq!(sums.kept().len(), KEPT_CHECKPOINTS);
        assert_eq!(sums.sums_of(99, Duration::ZERO).await.index, 0, "long past");
    }
}
