//! The file of the running program, which is also the program of the processes that it starts.

use crate::error::CommandError;
use std::path::PathBuf;

/// The file of the running program.
pub fn own_executable() -> Result<PathBuf, CommandError> {
    std::env::current_exe().map_err(|e| CommandError::Failed(format!("finding this program's own file: {e}")))
}
