//! Ids of statements and transactions: one attempt at a time (invariant 7), and answers from the
//! retry window (R14).

use super::kept_replies::reply_again;
use crate::replica::ReplicaHandles;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::StatementReply;
use evenkeel_protocol::{Failure, SqlError, TxnId};
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// See the module.
pub struct StatementIds {
    shared: ReplicaHandles,
    under_way: Mutex<HashSet<(u64, u64)>>,
}

/// An id whose statement is executing. While it lives, another attempt under the same id is
/// rejected.
pub(super) struct Attempt<'a> {
    ids: &'a StatementIds,
    id: (u64, u64),
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.ids.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl StatementIds {
    /// No id is in use.
    pub fn new(shared: ReplicaHandles) -> StatementIds {
        StatementIds { shared, under_way: Mutex::default() }
    }

    /// Whether an id that was first sent at this time is too old for the retry window to tell
    /// whether it was executed.
    pub(super) fn is_too_old(&self, first_sent_ms: u64) -> bool {
        !self.shared.window().can_tell(first_sent_ms, self.shared.log.unix_ms())
    }

    /// Begins an attempt.
    ///
    /// # Errors
    /// [`Failure::Busy`] if an attempt under the id is executing; 08007 if the id is too old.
    pub(super) fn begin(&self, id: TxnId) -> Result<Attempt<'_>, Failure> {
        if self.is_too_old(id.first_sent_ms) {
            return Err(SqlError::new(
                codes::OUTCOME_UNKNOWN,
                "the statement was first sent too long ago to know whether it has been executed, or the clocks differ too much",
            )
            .hint("Read the rows to find out. The clocks of clients and shards may differ by ten seconds.")
            .into());
        }
        self.begin_question(id)
            .ok_or_else(|| Failure::Busy { reason: "an earlier attempt is still under way".into(), retry_after_ms: 10 })
    }

    /// Keeps attempts under the id from beginning, however old it is. `None` if one is under way.
    pub(super) fn begin_question(&self, id: TxnId) -> Option<Attempt<'_>> {
        let id = (id.client, id.sequence);
        let free = self.under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        // Made only if it is free: an attempt that is dropped frees its id.
        free.then(|| Attempt { ids: self, id })
    }

    /// The answer that was given to this id before, if there was one.
    pub(super) fn answered_before(&self, id: TxnId) -> Result<Option<StatementReply>, Failure> {
        let kept = self.shared.window().get(id).cloned().filter(|_| !deliberate(Bug::NoRetryWindow));
        kept.map(|kept| reply_again(&kept)).transpose()
    }
}
