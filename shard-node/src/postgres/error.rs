//! What can go wrong with a PostgreSQL server, told apart by what must happen next.

use std::path::{Path, PathBuf};

/// Why PostgreSQL does not run. [`PostgresError::Failed`] may pass by itself, and
/// [`PostgresError::Damaged`] is repaired from a peer; the others need a person.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// Its programs are nowhere.
    #[error("PostgreSQL {min} or newer was not found; set postgres_bin to the folder that holds postgres and initdb. Looked in: {}", list(looked), min = super::config::MIN_MAJOR)]
    NotFound {
        /// Each folder, and why it will not do.
        looked: Vec<(PathBuf, String)>,
    },
    /// Another process holds the data directory (R2).
    #[error("{} is in use by another node", path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
    /// The data directory cannot be used as it is.
    #[error("{} cannot be used: {reason}", path.display())]
    Unusable {
        /// The directory at fault.
        path: PathBuf,
        /// One sentence, saying what to do where that is known.
        reason: String,
    },
    /// Its data is not what the server wrote: it has to be made again from a peer's.
    #[error("PostgreSQL's data is damaged: {detail}")]
    Damaged {
        /// What the server said.
        detail: String,
    },
    /// It did not start, or did not do what was asked of it. Trying again may help.
    #[error("PostgreSQL: {what}: {detail}")]
    Failed {
        /// What was being done.
        what: &'static str,
        /// What was said about it: the end of the server's log, or the system's error.
        detail: String,
    },
}

impl PostgresError {
    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, PostgresError::Failed { .. })
    }

    /// It ended before it took sessions, having said this.
    pub(super) fn not_started(said: String) -> PostgresError {
        match super::damage::find(&said) {
            Some(line) => PostgresError::Damaged { detail: line.to_string() },
            None => PostgresError::Failed { what: "starting", detail: said },
        }
    }

    pub(super) fn unusable(path: &Path, reason: impl ToString) -> PostgresError {
        PostgresError::Unusable { path: path.to_path_buf(), reason: reason.to_string() }
    }

    pub(super) fn failed(what: &'static str, detail: impl ToString) -> PostgresError {
        PostgresError::Failed { what, detail: detail.to_string() }
    }
}

fn list(looked: &[(PathBuf, String)]) -> String {
    let each: Vec<String> = looked.iter().map(|(path, reason)| format!("{} ({reason})", path.display())).collect();
    each.join(", ")
}
