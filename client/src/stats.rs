//! The counters of a client since it started. They only grow; reading them takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of a client, read at about the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientStats {
    /// Statements, with commits.
    pub statements: u64,
    /// Statements with more than one attempt, with any result.
    pub retried: u64,
    /// Attempts after the first of each statement.
    pub retries: u64,
    /// Answers that a range has moved.
    pub redirects: u64,
    /// Statements that ended in an error.
    pub failures: u64,
    /// Times the whole routing table was fetched.
    pub refreshes: u64,
    /// Changes of routes that arrived by the watch.
    pub watched: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub statements: AtomicU64,
    pub retried: AtomicU64,
    pub retries: AtomicU64,
    pub redirects: AtomicU64,
    pub failures: AtomicU64,
    pub refreshes: AtomicU64,
    pub watched: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn read(&self) -> ClientStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ClientStats {
            statements: get(&self.statements),
            retried: get(&self.retried),
            retries: get(&self.retries),
            redirects: get(&self.redirects),
            failures: get(&self.failures),
            refreshes: get(&self.refreshes),
            watched: get(&self.watched),
        }
    }
}
