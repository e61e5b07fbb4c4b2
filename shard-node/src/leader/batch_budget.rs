//! Limits of a batch of a write queue (R10).
//!
//! One statement must not cause the others of its batch to be executed again. A batch therefore
//! ends before it is so large that its entry would have to be divided: at a number of statements,
//! of request bytes, and of row-image bytes as far as the history of the plans tells them.

use super::job::Job;
use super::statement::weight;
use crate::log_entry::MAX_ENTRY_BYTES;

/// Statements in one batch.
const MAX_BATCH: usize = 128;
/// Request bytes in one batch.
const MAX_BATCH_REQUEST_BYTES: usize = 512 << 10;
/// Row-image bytes in one batch, approximately.
const MAX_BATCH_IMAGE_BYTES: usize = 512 << 10;
/// Statements in one batch whose plans have no measured images yet.
const MAX_UNMEASURED: usize = 8;
/// Statements in one batch that need a savepoint. PostgreSQL finds the first 64 subtransactions of
/// a session quickly.
const MAX_DISTRUSTED: usize = 32;

/// What a statement takes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight {
    /// Bytes of its text and parameters.
    pub request_bytes: usize,
    /// Bytes of its row images, if known.
    pub image_bytes: Option<usize>,
    /// Whether it needs a savepoint.
    pub distrusted: bool,
}

impl Weight {
    /// The weight of a waiting statement.
    pub fn of(job: &Job) -> Weight {
        let history = &job.plan.history;
        Weight {
            request_bytes: weight(&job.request),
            image_bytes: history.image_bytes(),
            distrusted: history.is_distrusted(),
        }
    }

    /// Whether its entry will probably be proposed in parts (R12). Storing the parts takes long,
    /// and all statements of its queue would wait. Only the request counts: the plan's history
    /// remembers the largest recent execution, and small statements of the same plan must not run
    /// alone because of it.
    pub fn needs_parts(self) -> bool {
        self.request_bytes > MAX_ENTRY_BYTES
    }
}

/// The room that is left in a batch. Pure.
#[derive(Debug, Default)]
pub struct BatchBudget {
    statements: usize,
    request_bytes: usize,
    image_bytes: usize,
    unmeasured: usize,
    distrusted: usize,
}

impl BatchBudget {
    /// Adds a statement, unless it does not fit. The first statement always fits.
    pub fn take(&mut self, weight: Weight) -> bool {
        let images = weight.image_bytes.unwrap_or(0);
        let fits = self.statements < MAX_BATCH
            && self.request_bytes + weight.request_bytes <= MAX_BATCH_REQUEST_BYTES
            && self.image_bytes + images <= MAX_BATCH_IMAGE_BYTES
            && (weight.image_bytes.is_some() || self.unmeasured < MAX_UNMEASURED)
            && (!weight.distrusted || self.distrusted < MAX_DISTRUSTED);
        if self.statements > 0 && !fits {
            return false;
        }
        self.statements += 1;
        self.request_bytes += weight.request_bytes;
        self.image_bytes += images;
        self.unmeasured += usize::from(weight.image_bytes.is_none());
        self.distrusted += usize::from(weight.distrusted);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(weight: Weight) -> usize {
        let mut budget = BatchBudget::default();
        (0..1_000).take_while(|_| budget.take(weight)).count()
    }

    // E2: a batch is never so large that it has to be executed again in smaller batches.
    #[test]
    fn a_batch_is_limited_by_count_by_bytes_and_by_unknown_sizes() {
        let small = Weight { request_bytes: 100, image_bytes: Some(100), distrusted: false };
        assert_eq!(taken(small), MAX_BATCH);
        assert_eq!(taken(Weight { request_bytes: 64 << 10, ..small }), 8);
        assert_eq!(taken(Weight { image_bytes: Some(64 << 10), ..small }), 8, "an UPDATE of 8 bytes in 64 KiB");
        assert_eq!(taken(Weight { image_bytes: None, ..small }), MAX_UNMEASURED);
        assert_eq!(taken(Weight { distrusted: true, ..small }), MAX_DISTRUSTED);
        assert_eq!(taken(Weight { request_bytes: 10 << 20, ..small }), 1, "the first always fits");
    }

    // R12: storing its parts takes long, and its queue would wait. Other statements of its plan are
    // not affected.
    #[test]
    fn a_request_larger_than_an_entry_runs_alone() {
        let small = Weight { request_bytes: 100, image_bytes: Some(100), distrusted: false };
        assert!(Weight { request_bytes: MAX_ENTRY_BYTES + 1, ..small }.needs_parts());
        assert!(!Weight { image_bytes: Some(8 << 20), ..small }.needs_parts());
        assert!(!small.needs_parts());
    }

    #[test]
    fn a_statement_that_does_not_fit_leaves_its_room() {
        let mut budget = BatchBudget::default();
        let small = Weight { request_bytes: 100, image_bytes: Some(100), distrusted: false };
        assert!(budget.take(small));
        assert!(!budget.take(Weight { image_bytes: Some(1 << 20), ..small }));
        assert!(budget.take(small));
    }
}
