//! The state of a server that all of its sessions share: tables, row locks, commits under way, and
//! faults.

use super::data::{Commit, Tables, Undo};
use crate::process;
use evenkeel_host::{Bug, deliberate};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};

/// How long an asynchronous commit may be lost in a crash, in milliseconds: three times
/// `wal_writer_delay`.
const ASYNCHRONOUS_MS: u64 = 1_500;
/// How long a zombie's COMMIT takes at most, in milliseconds.
const ZOMBIE_MS: u64 = 2_000;

/// A key of a row: its table and its encoded key.
pub(super) type RowId = (Arc<str>, Vec<u8>);

/// A session, as the server sees it.
pub(super) struct BackendSession {
    pub(super) is_user: bool,
    /// Notified when it must end.
    end: Arc<Notify>,
}

/// A COMMIT that was received and is not done.
pub(super) struct Committing {
    pub(super) due_ms: u64,
    pub(super) commit: Commit,
}

#[derive(Default)]
pub(super) struct ServerState {
    pub(super) running: bool,
    pub(super) starts: u32,
    pub(super) down: Option<watch::Sender<bool>>,
    pub(super) tables: Tables,
    /// Commits that a crash may take back, oldest first, with when they were made.
    pub(super) volatile: VecDeque<(u64, Vec<Undo>)>,
    pub(super) locks: BTreeMap<RowId, u64>,
    /// The lock that each session waits for.
    pub(super) waiting: BTreeMap<u64, RowId>,
    pub(super) sessions: BTreeMap<u64, BackendSession>,
    pub(super) next_session: u64,
    pub(super) committing: BTreeMap<u64, Committing>,
    /// COMMITs whose sessions are said to have ended ([`Bug::ZombieBackends`]).
    pub(super) zombies: Vec<Committing>,
    /// Users' sessions are refused, as if all were taken.
    pub(super) refuses: bool,
    /// How long every statement takes at most, in milliseconds, if the server is slow.
    pub(super) slow_ms: u64,
    /// The next user's session at whose COMMIT another session waits for its locks is ended in the
    /// middle of it.
    pub(super) ends_committing: bool,
    /// It cannot be started.
    pub(super) refuses_start: bool,
    /// Its disk is full: nothing more is written, a COMMIT is the server's end, and so is a start.
    pub(super) full: bool,
    /// Users' statements are cancelled now and then, COMMITs too.
    pub(super) cancels: bool,
    pub(super) commits: u64,
    /// A statement that it does not know.
    pub(super) unknown: Option<String>,
}

/// The server. Clones are the same one; it outlives the process that uses it.
#[derive(Clone, Default)]
pub struct SimulatedPostgres {
    pub(super) state: Arc<Mutex<ServerState>>,
    /// A lock was released, or a session has ended.
    pub(super) released: Arc<Notify>,
}

impl SimulatedPostgres {
    pub(super) fn state(&self) -> MutexGuard<'_, ServerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server process dies, with all sessions. Commits that were not flushed may be lost.
    pub fn crash(&self) {
        let mut state = self.state();
        if !state.running {
            return;
        }
        state.end_all();
        state.lose_commits();
        state.running = false;
        if let Some(down) = state.down.take() {
            down.send_replace(true);
        }
        drop(state);
        self.released.notify_waiters();
    }

    /// The machine loses its power, and the server with it.
    pub fn power_cut(&self) {
        let mut state = self.state();
        state.end_all();
        state.lose_commits();
        state.running = false;
        state.down = None;
    }

    /// One user's session ends, as if its backend had been terminated. `false` if there is none.
    pub fn end_one_session(&self, which: u64) -> bool {
        let mut state = self.state();
        let users: Vec<u64> = state.sessions.iter().filter(|(_, s)| s.is_user).map(|(id, _)| *id).collect();
        if users.is_empty() {
            return false;
        }
        state.end(users[which as usize % users.len()]);
        drop(state);
        self.released.notify_waiters();
        true
    }

    /// The next user's session at whose COMMIT another session waits for its locks is ended in the
    /// middle of it.
    pub fn end_one_committing(&self) {
        self.state().ends_committing = true;
    }

    /// Every statement takes up to `ms` milliseconds; 0 is full speed.
    pub fn slow(&self, ms: u64) {
        self.state().slow_ms = ms;
    }

    /// The server cannot be started, or can again.
    pub fn refuse_start(&self, refuses: bool) {
        self.state().refuses_start = refuses;
    }

    /// Its disk is full, or not any longer.
    pub fn fill(&self, full: bool) {
        self.state().full = full;
    }

    /// Users' statements are cancelled now and then, or no longer.
    pub fn cancel(&self, cancels: bool) {
        self.state().cancels = cancels;
    }

    /// Takes no more sessions (53300), or takes them again.
    pub fn refuse(&self, refuses: bool) {
        self.state().refuses = refuses;
    }

    /// Admits a session of this server start; `None` if that start is over, or sessions are
    /// refused.
    pub(super) fn enter(&self, start: u32, is_user: bool, end: &Arc<Notify>) -> Option<u64> {
        let mut state = self.state();
        if !state.running || state.starts != start {
            return None;
        }
        if state.refuses && is_user {
            return None;
        }
        state.next_session += 1;
        let session = state.next_session;
        state.sessions.insert(session, BackendSession { is_user, end: end.clone() });
        Some(session)
    }

    /// The committed tables.
    pub fn tables(&self) -> Tables {
        self.state().tables.clone()
    }

    /// Commits so far.
    pub fn commits(&self) -> u64 {
        self.state().commits
    }

    /// A statement that it did not know, if there was one.
    pub fn unknown(&self) -> Option<String> {
        self.state().unknown.clone()
    }
}

impl ServerState {
    /// Ends all sessions; some of their COMMITs under way happen all the same.
    pub(super) fn end_all(&mut self) {
        let sessions: Vec<u64> = self.sessions.keys().copied().collect();
        sessions.into_iter().for_each(|session| self.end(session));
        self.locks.clear();
    }

    pub(super) fn end(&mut self, session: u64) {
        if let Some(session) = self.sessions.remove(&session) {
            session.end.notify_one();
        }
        if let Some(mut committing) = self.committing.remove(&session) {
            if deliberate(Bug::ZombieBackends) {
                committing.due_ms = process::now_ms() + process::below(ZOMBIE_MS);
                self.zombies.push(committing);
            } else if process::once_in(2) {
                self.commit(committing.commit);
            }
        }
        self.locks.retain(|_, holder| *holder != session);
        self.waiting.remove(&session);
    }

    /// Whether another session waits for a lock that this session holds.
    pub(super) fn is_waited_for(&self, session: u64) -> bool {
        self.waiting.values().any(|row| self.locks.get(row) == Some(&session))
    }

    pub(super) fn commit(&mut self, commit: Commit) {
        let sync = commit.sync;
        let undo = self.tables.commit(commit);
        self.commits += 1;
        if sync {
            self.volatile.clear();
        } else {
            self.volatile.push_back((process::now_ms(), undo));
        }
    }

    /// Commits become durable, and commits of ended sessions happen, as time passes.
    pub(super) fn pass(&mut self) {
        let now_ms = process::now_ms();
        while self.volatile.front().is_some_and(|(at_ms, _)| at_ms + ASYNCHRONOUS_MS <= now_ms) {
            self.volatile.pop_front();
        }
        while let Some(due) = self.zombies.iter().position(|zombie| zombie.due_ms <= now_ms) {
            let zombie = self.zombies.swap_remove(due);
            self.commit(zombie.commit);
        }
    }

    pub(super) fn lose_commits(&mut self) {
        self.pass();
        let lost = process::below(self.volatile.len() as u64 + 1);
        for _ in 0..lost {
            if let Some((_, undo)) = self.volatile.pop_back() {
                self.tables.take_back(undo);
            }
        }
        // Recovery has written the commits that are left: they are durable.
        self.volatile.clear();
    }
}
