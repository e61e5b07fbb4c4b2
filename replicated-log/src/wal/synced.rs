//! The proof that the durable log has been synced.

/// Proof that every change made before it is durable (log rule 1). Only the sync of
/// [`Wal`](super::Wal) makes one. It is neither `Clone` nor `Copy`: one sync releases the messages
/// and answers of one turn.
#[derive(Debug)]
#[must_use]
pub(crate) struct Synced {
    wrote: bool,
}

impl Synced {
    pub(super) fn new(wrote: bool) -> Synced {
        Synced { wrote }
    }

    /// Whether the disk was needed. If false, nothing had changed that must be durable.
    pub(crate) fn wrote(&self) -> bool {
        self.wrote
    }
}
