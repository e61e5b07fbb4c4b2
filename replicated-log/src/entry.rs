//! Decided log entries as subscribers receive them.
//!
//! Payloads are [`Bytes`]: passing an entry on never copies it.

use bytes::Bytes;

use crate::ids::{LogIndex, ReplicaId, Term};

/// One decided entry with the verdict of the term fence (invariant 1): every replica sees the same
/// `effective`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub index: LogIndex,
    /// The leadership in which it was proposed.
    pub term: Term,
    /// Whether it takes effect. A rejected entry was proposed by a leadership that had ended at
    /// this position. It changes nothing, but it is delivered so that its proposer learns the
    /// outcome.
    pub effective: bool,
    /// Its contents.
    pub body: Body,
}

/// The contents of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The application's bytes; the log never looks inside.
    Data(Bytes),
    /// The leadership `Entry::term` of `leader` begins here.
    LeaderStart {
        /// The new leader.
        leader: ReplicaId,
    },
    /// The membership of the group changes here. If the entry is effective, all later entries of
    /// its configuration are rejected (log rule 10); the next entry is the first of the next
    /// configuration. The payload belongs to the log.
    ConfigChange(Bytes),
}

/// The result of [`crate::Subscription::next`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Consecutive decided entries, at least one.
    Entries(Vec<Entry>),
    /// The requested entries are no longer in the log. Fetch a copy of the state at or after
    /// `trimmed`, call [`crate::LogHandle::installed`] and subscribe again after it.
    NeedState {
        /// The last position that is gone.
        trimmed: LogIndex,
        /// The leader, if known.
        leader: Option<ReplicaId>,
    },
}
