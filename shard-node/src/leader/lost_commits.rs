//! Transactions that this leader has declared lost.
//!
//! A client whose connection broke asks what became of its COMMIT. If this leader does not have the
//! transaction, it answers that the COMMIT did not take effect, and the client runs the transaction
//! again. The first COMMIT may still be in a connection that is read late. It must then be
//! rejected: its id is remembered here.

use evenkeel_protocol::TxnId;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The most ids that are remembered.
const MAX_LOST_COMMITS: usize = 10_000;

/// The ids, each with the time at which its client sent it first, in milliseconds since the Unix
/// epoch.
#[derive(Default)]
pub struct LostCommits(Mutex<HashMap<(u64, u64), u64>>);

impl LostCommits {
    /// Remembers an id. Forgets ids that are rejected for their age anyway, by `too_old`. `false`
    /// if there are too many.
    pub(super) fn insert(&self, id: TxnId, too_old: impl Fn(u64) -> bool) -> bool {
        let mut ids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ids.len() >= MAX_LOST_COMMITS {
            ids.retain(|_, first_sent_ms| !too_old(*first_sent_ms));
        }
        let room = ids.len() < MAX_LOST_COMMITS;
        if room {
            ids.insert((id.client, id.sequence), id.first_sent_ms);
        }
        room
    }

    /// Whether the id's COMMIT was declared lost.
    pub(super) fn contains(&self, id: TxnId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&(id.client, id.sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_commits_are_remembered_as_long_as_they_can_arrive() {
        let id = |n| TxnId { client: 1, sequence: n, first_sent_ms: n };
        let lost = LostCommits::default();
        for n in 0..MAX_LOST_COMMITS as u64 {
            assert!(lost.insert(id(n), |_| false));
        }
        assert!(!lost.insert(id(99_999), |_| false), "no id is forgotten whose COMMIT could still arrive");
        assert!(lost.contains(id(0)) && !lost.contains(id(99_999)));
        assert!(lost.insert(id(99_999), |first_sent_ms| first_sent_ms < 5));
        assert!(!lost.contains(id(4)) && lost.contains(id(5)) && lost.contains(id(99_999)));
    }
}
