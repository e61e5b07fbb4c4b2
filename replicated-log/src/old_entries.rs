//! The answer to a subscriber that asks for entries which the ring no longer holds.

use crate::entry::Entry;
use crate::ids::LogIndex;
use crate::wal::ReadPlan;

/// Entries from the requested position on, or where to find them.
#[derive(Debug)]
pub(crate) enum OldEntries {
    /// Consecutive from the requested position; empty only if that is not decided.
    Entries(Vec<Entry>),
    /// Gone; the log begins behind this position.
    Trimmed(LogIndex),
    /// On disk; the subscriber reads them.
    OnDisk(ReadPlan),
}
