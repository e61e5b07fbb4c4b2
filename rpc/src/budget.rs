//! Budgets: how many requests, or how many KiB of frames, may exist at a time.
//!
//! A budget hands out shares and gets them back when they are dropped. A share is taken before the
//! memory that it stands for is used.

use std::io;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A part of a budget; dropped, it returns to the budget.
pub(crate) type Share = OwnedSemaphorePermit;

/// A number of units of which shares are taken. Clones share the same units.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Semaphore>);

impl Budget {
    /// A budget of `units`.
    pub(crate) fn new(units: usize) -> Budget {
        Budget(Arc::new(Semaphore::new(units)))
    }

    /// A budget of memory.
    pub(crate) fn of_bytes(bytes: usize) -> Budget {
        Budget::new(kibibytes(bytes) as usize)
    }

    /// Takes `units` as soon as they are free; first come, first served.
    pub(crate) async fn take(&self, units: u32) -> io::Result<Share> {
        self.0.clone().acquire_many_owned(units).await.map_err(io::Error::other)
    }

    /// Units that are free.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.0.available_permits()
    }
}

/// A number of bytes in KiB, rounded up, at least 1: the unit of budgets of memory, so that a count
/// fits into 32 bits.
pub(crate) fn kibibytes(bytes: usize) -> u32 {
    bytes.div_ceil(1024).max(1) as u32
}
