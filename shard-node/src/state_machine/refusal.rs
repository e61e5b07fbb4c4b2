//! The verdict "rejected" on a log entry, and its reason.

/// Why an entry is rejected. A rejected entry changes nothing, on every replica alike.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct EntryRefusal {
    /// For programs. Stable: it reaches the placement driver.
    pub code: &'static str,
    /// For people.
    pub reason: String,
}

pub(super) fn refuse<T>(code: &'static str, reason: impl Into<String>) -> Result<T, EntryRefusal> {
    Err(EntryRefusal { code, reason: reason.into() })
}
