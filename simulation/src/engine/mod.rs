//! A database server in memory that speaks PostgreSQL's protocol, as far as a replica and the simulation's clients use it.
//!
//! It keeps what of PostgreSQL matters to the protocol above: transactions with row locks and a lock timeout, snapshots, commits that are
//! asynchronous (a crash takes the latest ones back, unless a synchronous one came later), sessions that end by themselves or with the
//! server, and COMMITs that are still on their way when their session has gone. What it does not know it refuses loudly: a statement that
//! reaches it by mistake fails the run instead of passing for executed.
//!
//! | module | what it holds |
//! |---|---|
//! | `sql` | the few shapes of statements, parsed (pure) |
//! | `data` | tables and rows (pure) |
//! | `execute` | running a statement in a transaction |
//! | `wire` | PostgreSQL's protocol, from the server's side |

mod data;
mod execute;
mod sql;
mod wire;

pub use data::{Row, Table, Tables};

use crate::process;
use data::{Commit, Undo};
use evenkeel_host::{Bug, Duplex, Server, deliberate};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};

/// How long an asynchronous commit may be lost in a crash, in milliseconds: three times `wal_writer_delay`.
const ASYNCHRONOUS_MS: u64 = 1_500;
/// Bytes between a session and its client.
const PIPE_BYTES: usize = 256 << 10;
/// How long a zombie's COMMIT takes at most, in milliseconds.
const ZOMBIE_MS: u64 = 2_000;

/// A key of a row: its table and its encoded key.
pub(crate) type RowId = (Arc<str>, Vec<u8>);

/// A session, as the server sees it.
struct Session {
    is_user: bool,
    /// Told when it must end.
    end: Arc<Notify>,
}

/// A COMMIT that was received and is not done.
struct Committing {
    due_ms: u64,
    commit: Commit,
}

#[derive(Default)]
struct State {
    running: bool,
    starts: u32,
    down: Option<watch::Sender<bool>>,
    tables: Tables,
    /// Commits that a crash may take back, oldest first, with when they were made.
    volatile: VecDeque<(u64, Vec<Undo>)>,
    locks: BTreeMap<RowId, u64>,
    /// Who waits for a lock, by session.
    waiting: BTreeMap<u64, RowId>,
    sessions: BTreeMap<u64, Session>,
    next_session: u64,
    committing: BTreeMap<u64, Committing>,
    /// COMMITs whose sessions are said to have ended ([`Bug::ZombieBackends`]).
    zombies: Vec<Committing>,
    /// No session gets in, as if all were taken.
    refuses: bool,
    /// How long every statement takes at most, in milliseconds, if the server is slow.
    slow_ms: u64,
    /// The next user's session at whose COMMIT somebody waits for its locks is ended in the middle of it.
    ends_committing: bool,
    /// It cannot be started.
    refuses_start: bool,
    /// Its disk is full: nothing more is written, a COMMIT is the server's end, and so is a start.
    full: bool,
    /// Users' statements are cancelled now and then, COMMITs too.
    cancels: bool,
    commits: u64,
    /// A statement that it does not know.
    unknown: Option<String>,
}

/// The server. Clones are the same one; it outlives the process that uses it.
#[derive(Clone, Default)]
pub struct Engine {
    state: Arc<Mutex<State>>,
    /// A lock was released, or a session has ended.
    released: Arc<Notify>,
}

impl Engine {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server process dies, with all sessions. What was committed and not flushed may be gone.
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

    /// One user's session ends: somebody has terminated its backend. `false` if there is none.
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

    /// The next user's session at whose COMMIT somebody waits for its locks is ended in the middle of it.
    pub fn end_one_committing(&self) {
        self.state().ends_committing = true;
    }

    /// Every statement takes up to so many milliseconds; 0: the server is as fast as ever.
    pub fn slow(&self, ms: u64) {
        self.state().slow_ms = ms;
    }

    /// Cannot be started, or can again.
    pub fn refuse_start(&self, refuses: bool) {
        self.state().refuses_start = refuses;
    }

    /// Its disk is full, or is no longer.
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

    /// Lets a session of this start of the server in; `None` if that is over, or no more are taken.
    fn enter(&self, start: u32, is_user: bool, end: &Arc<Notify>) -> Option<u64> {
        let mut state = self.state();
        if !state.running || state.starts != start {
            return None;
        }
        if state.refuses && is_user {
            return None;
        }
        state.next_session += 1;
        let session = state.next_session;
        state.sessions.insert(session, Session { is_user, end: end.clone() });
        Some(session)
    }

    /// What is committed.
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

impl State {
    /// All sessions are over; of their COMMITs under way some come through.
    fn end_all(&mut self) {
        let sessions: Vec<u64> = self.sessions.keys().copied().collect();
        sessions.into_iter().for_each(|session| self.end(session));
        self.locks.clear();
    }

    fn end(&mut self, session: u64) {
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

    /// Whether somebody waits for a lock that this session holds.
    fn is_waited_for(&self, session: u64) -> bool {
        self.waiting.values().any(|row| self.locks.get(row) == Some(&session))
    }

    fn commit(&mut self, commit: Commit) {
        let sync = commit.sync;
        let undo = self.tables.commit(commit);
        self.commits += 1;
        if sync {
            self.volatile.clear();
        } else {
            self.volatile.push_back((process::now_ms(), undo));
        }
    }

    /// What happens by itself as time passes.
    fn pass(&mut self) {
        let now_ms = process::now_ms();
        while self.volatile.front().is_some_and(|(at_ms, _)| at_ms + ASYNCHRONOUS_MS <= now_ms) {
            self.volatile.pop_front();
        }
        while let Some(due) = self.zombies.iter().position(|zombie| zombie.due_ms <= now_ms) {
            let zombie = self.zombies.swap_remove(due);
            self.commit(zombie.commit);
        }
    }

    fn lose_commits(&mut self) {
        self.pass();
        let lost = process::below(self.volatile.len() as u64 + 1);
        for _ in 0..lost {
            if let Some((_, undo)) = self.volatile.pop_back() {
                self.tables.take_back(undo);
            }
        }
        // What came back is what recovery has written: it is durable.
        self.volatile.clear();
    }
}

impl Server for Engine {
    fn start(&self) -> Result<u32, String> {
        let mut state = self.state();
        if state.refuses_start || state.full {
            return Err("the server does not start".into());
        }
        if state.running {
            // R2: whatever an earlier start has left ends now, and its memory with it.
            state.end_all();
            state.lose_commits();
            if let Some(down) = state.down.take() {
                down.send_replace(true);
            }
        }
        state.starts += 1;
        state.running = true;
        state.down = Some(watch::Sender::new(false));
        let start = state.starts;
        drop(state);
        self.released.notify_waiters();
        Ok(start)
    }

    fn down(&self) -> watch::Receiver<bool> {
        match &self.state().down {
            Some(down) => down.subscribe(),
            None => watch::channel(true).1,
        }
    }

    fn connect(&self) -> io::Result<Box<dyn Duplex>> {
        let start = {
            let state = self.state();
            if !state.running {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            state.starts
        };
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        tokio::spawn(wire::serve(self.clone(), start, ours));
        Ok(Box::new(theirs))
    }

    fn halt(&self) {
        self.crash();
    }

    fn discard(&self) {
        self.crash();
        let mut state = self.state();
        state.tables = Tables::default();
        state.zombies.clear();
    }
}
