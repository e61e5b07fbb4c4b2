//! Stopping what a killed node has left running (R2).
//!
//! When a node is killed, its PostgreSQL lives on as an orphan: open transactions may still commit
//! after the next start of the node has read the applied record. And when the postmaster itself is
//! killed, its backends can live on for as long as their statement takes. So before the server is
//! started, every process of it must be gone.
//!
//! A process belongs to the data directory if it is a `postgres` whose working directory is that
//! directory (the postmaster enters it at start and everything it forks inherits it) or that was
//! started with it as an argument (and has not got that far). That holds whatever `postmaster.pid`
//! says, and a process id that was given to another program meanwhile cannot be mistaken. Signals
//! go through process descriptors, so that none can reach a successor of the process that was
//! looked at.

use super::error::PostgresError;
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// How long the processes have to quit when they are asked to, before they are killed. Quitting is
/// immediate unless they are stopped.
const QUIT_MS: u64 = 3_000;
/// How long they have to disappear once killed.
const KILL_MS: u64 = 10_000;
/// How often they are looked at.
const POLL_MS: u64 = 10;

/// Stops every server process that works in `pgdata` and waits until none is left.
///
/// # Errors
/// [`PostgresError::Failed`] if some process does not go even when killed (it hangs in the kernel).
pub(super) async fn stop_all(pgdata: &Path) -> Result<(), PostgresError> {
    for (signal, wait_ms) in [(Signal::QUIT, QUIT_MS), (Signal::KILL, KILL_MS)] {
        for _ in 0..wait_ms / POLL_MS {
            let left = processes_in(pgdata);
            if left.is_empty() {
                return Ok(());
            }
            // Again in every round: a postmaster that was about to fork may have done so.
            for process in left {
                // It may have ended by itself, which is as good.
                let _ = pidfd_send_signal(&process, signal);
            }
            evenkeel_host::sleep(Duration::from_millis(POLL_MS)).await;
        }
    }
    let count = processes_in(pgdata).len();
    if count == 0 {
        return Ok(());
    }
    Err(PostgresError::failed("stopping a leftover server", format!("{count} of its processes do not end")))
}

/// The server processes that work in `pgdata`.
fn processes_in(pgdata: &Path) -> Vec<OwnedFd> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            let works_here = || {
                let process = entry.path();
                let cwd = std::fs::read_link(process.join("cwd")).ok()?;
                let program = std::fs::read_link(process.join("exe")).ok()?;
                let name = trim_deleted(program.file_name()?.as_bytes());
                // One whose folder has been removed still works in it.
                let cwd = Path::new(OsStr::from_bytes(trim_deleted(cwd.as_os_str().as_bytes())));
                let arguments = std::fs::read(process.join("cmdline")).ok()?;
                let named =
                    arguments.split(|b| *b == 0).any(|argument| argument == pgdata.as_os_str().as_encoded_bytes());
                Some(name == b"postgres" && (cwd == pgdata || named))
            };
            if works_here() != Some(true) {
                return None;
            }
            // The descriptor may be of a successor that got the same id just now: look again
            // through it.
            let descriptor = pidfd_open(pid, PidfdFlags::empty()).ok()?;
            (works_here() == Some(true)).then_some(descriptor)
        })
        .collect()
}

/// A path as the system shows it, without the mark that it no longer leads there.
fn trim_deleted(path: &[u8]) -> &[u8] {
    path.strip_suffix(b" (deleted)").unwrap_or(path)
}
