//! [`Scrub`]: what a replica knows of comparisons.

use super::checkpoint_sums::CheckpointSums;
use super::status::ScrubStatus;
use evenkeel_protocol::ShardId;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a replica knows of comparisons: its own sums, and what it has compared as a leader.
#[derive(Debug)]
pub struct Scrub {
    pub(super) shard: ShardId,
    status: Mutex<ScrubStatus>,
    /// This replica's sums of the latest checkpoints.
    pub sums: Arc<CheckpointSums>,
    /// Held during a comparison: one after the other.
    pub(super) alone: tokio::sync::Mutex<()>,
}

impl Scrub {
    /// For this replica of this shard.
    pub fn new(shard: ShardId, replica: u64) -> Scrub {
        let sums = Arc::new(CheckpointSums::new(replica));
        Scrub { shard, status: Mutex::default(), sums, alone: tokio::sync::Mutex::default() }
    }

    /// The results of comparisons.
    pub fn status(&self) -> MutexGuard<'_, ScrubStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
