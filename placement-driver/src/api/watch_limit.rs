//! The limit of watches that are open at one replica.

use super::problem::{self, ApiProblem};
use metrics::gauge;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The maximum number of watches that are open at one replica.
const MAX_WATCHES: usize = 10_000;
/// The interval of comments in a watch without events, in milliseconds. They let both ends notice a
/// dead connection.
pub(super) const KEEP_ALIVE_MS: u64 = 5_000;

/// Counts the watches that are open.
#[derive(Debug, Default, Clone)]
pub(super) struct WatchLimit(Arc<AtomicUsize>);

impl WatchLimit {
    /// Counts a watch that opens, unless too many are open.
    pub(super) fn enter(&self) -> Result<OpenWatch, ApiProblem> {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        let open = OpenWatch(self.clone());
        gauge!("evenkeel_placement_watchers").set(count as f64);
        if count <= MAX_WATCHES {
            return Ok(open);
        }
        Err(problem::TOO_MANY_WATCHERS.because(format!("{MAX_WATCHES} watches are open")))
    }
}

/// An open watch. Dropping it closes the watch.
pub(super) struct OpenWatch(WatchLimit);

impl Drop for OpenWatch {
    fn drop(&mut self) {
        let count = self.0.0.fetch_sub(1, Ordering::Relaxed) - 1;
        gauge!("evenkeel_placement_watchers").set(count as f64);
    }
}
