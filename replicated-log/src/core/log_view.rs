//! The log as subscribers see it: decided entries with their verdicts.

use crate::entry::Entry;
use crate::ids::LogIndex;
use crate::item::{Item, Kind};
use crate::old_entries::OldEntries;
use crate::wal::{Disk, Wal, WalError};

use super::config::CoreConfig;
use super::fault::Fault;

/// The positions up to which entries may be shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    /// The decided position of this configuration: entries behind its barrier are rejected, and are
    /// not even shown (log rule 10).
    pub(super) decided: u64,
    /// The beginning of a newer configuration that this replica has missed. It is shown as decided,
    /// and the entries before it are missing.
    pub(super) awaited_state: Option<u64>,
}

/// The position up to which entries have been published.
#[derive(Debug)]
pub(super) struct LogView {
    published: u64,
}

impl LogView {
    /// A view of a log that begins at `compacted`.
    pub(super) fn new(compacted: u64) -> LogView {
        LogView { published: compacted }
    }

    /// Entries decided since the last call, as far as they are in memory, and the decided position.
    /// An entry is shown only once it is durable here: before the sync of a turn these are the
    /// entries that earlier turns have synced, after it all.
    pub(super) fn newly_decided<D: Disk>(
        &mut self,
        config: &CoreConfig,
        wal: &Wal<D>,
        shown: Shown,
    ) -> (Vec<Entry>, LogIndex) {
        let decided = shown.decided.max(shown.awaited_state.unwrap_or(0)).min(wal.durable_end());
        if decided <= self.published {
            return (Vec::new(), LogIndex(self.published));
        }
        let (first, items) = wal.recent_decided(self.published);
        let end = shown.decided.min(decided).saturating_sub(first) as usize;
        let entries = judge(config, wal, first, items.take(end));
        self.published = decided;
        (entries, LogIndex(decided))
    }
}

/// Decided entries from `from` on, or where they are.
///
/// # Errors
/// A failing or damaged disk: fatal.
pub(super) fn old_entries<D: Disk>(
    config: &CoreConfig,
    wal: &Wal<D>,
    shown: Shown,
    from: LogIndex,
    max_bytes: usize,
) -> Result<OldEntries, WalError> {
    let first = from.0.saturating_sub(1);
    let decided = shown.decided.min(wal.durable_end());
    if let Some(trimmed) = shown.awaited_state.filter(|at| first >= decided && first < *at) {
        return Ok(OldEntries::Trimmed(LogIndex(trimmed)));
    }
    match wal.plan(first, decided, max_bytes) {
        Ok(Some(plan)) => return Ok(OldEntries::OnDisk(plan)),
        Ok(None) | Err(WalError::Trimmed { .. }) => {}
        Err(fatal) => return Err(fatal),
    }
    match wal.read(first, decided, max_bytes) {
        Ok(items) => Ok(OldEntries::Entries(judge(config, wal, first, items.iter()))),
        Err(WalError::Trimmed { compacted, .. }) => Ok(OldEntries::Trimmed(LogIndex(compacted))),
        Err(fatal) => Err(fatal),
    }
}

/// Invariant 1: judges items by the log before them.
fn judge<'a, D: Disk>(
    config: &CoreConfig,
    wal: &Wal<D>,
    first: u64,
    items: impl Iterator<Item = &'a Item>,
) -> Vec<Entry> {
    let mut fence = wal.fence_at(first);
    let mut index = LogIndex(first);
    items
        .map(|item| {
            index = index.next();
            let mut entry = item.deliver(index, fence);
            entry.effective |= config.fault(Fault::NoFence);
            // Behind a barrier that was passed the fence starts over (see
            // `Wal::begin_configuration`).
            fence = match item.kind {
                Kind::ConfigChange => wal.fence_at(index.0),
                _ => fence.after(item),
            };
            entry
        })
        .collect()
}
