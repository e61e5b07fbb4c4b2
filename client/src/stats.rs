//! What a client has counted since it started. Counters only grow; reading them takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// A client's counters, read at about one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientStats {
    /// Statements, commits included, that were asked for.
    pub statements: u64,
    /// Statements that needed more than one attempt, however they ended.
    pub retried: u64,
    /// Attempts after a statement's first.
    pub retries: u64,
    /// Answers that said that a range has moved.
    pub redirects: u64,
    /// Statements that ended in an error.
    pub failures: u64,
    /// Times the whole routing table was fetched.
    pub refreshes: u64,
    /// Changes of routes that came by the watch.
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
