//! The statements that sessions of the engine database execute now, by the numbers of their
//! processes: a foreign table's connection names the process that opened it.

use super::reads::StatementReads;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What names a process to the endpoint begins with this.
pub const PROCESS_PREFIX: &str = "evenkeel-";

/// See the module.
#[derive(Default)]
pub struct ReadingSessions {
    by_process: Mutex<HashMap<i32, Arc<StatementReads>>>,
}

impl ReadingSessions {
    /// A process executes a statement: the scans that it begins are that statement's, until what
    /// this returns is dropped.
    pub fn executes(self: &Arc<Self>, process: i32, reads: Arc<StatementReads>) -> Executing {
        self.by_process().insert(process, reads);
        Executing { sessions: self.clone(), process }
    }

    /// The statement that a process executes.
    pub fn of(&self, process: i32) -> Option<Arc<StatementReads>> {
        self.by_process().get(&process).cloned()
    }

    fn by_process(&self) -> MutexGuard<'_, HashMap<i32, Arc<StatementReads>>> {
        self.by_process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process executes a statement while this is there.
pub struct Executing {
    sessions: Arc<ReadingSessions>,
    process: i32,
}

impl Drop for Executing {
    fn drop(&mut self) {
        self.sessions.by_process().remove(&self.process);
    }
}
