//! The PostgreSQL server of a shard's replica, seen from outside: by the `postmaster.pid` in its
//! data folder.
//!
//! A shard node that is killed with SIGKILL leaves its PostgreSQL server running; this module finds
//! it and ends it. The process number in the file may be stale and belong to another program. A
//! process is therefore accepted only if its working directory is that data folder: a postmaster
//! changes into its data folder and stays there.

use rustix::process::{Pid, Signal, kill_process};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an immediate shutdown may take before SIGKILL, in milliseconds.
const IMMEDIATE_TIMEOUT_MS: u64 = 3_000;

/// A running PostgreSQL server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Postmaster(Pid);

impl Postmaster {
    /// The server that runs in the data folder of a shard's replica.
    pub fn find(replica_data_dir: &Path) -> Option<Postmaster> {
        let data = replica_data_dir.join("postgres");
        let text = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?)?;
        let works_in = std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok()?;
        (works_in == data.canonicalize().ok()?).then_some(Postmaster(pid))
    }

    /// Its process number.
    pub fn pid(self) -> u32 {
        self.0.as_raw_nonzero().get().unsigned_abs()
    }

    /// Kills it with SIGKILL.
    pub fn kill(self) -> io::Result<()> {
        Ok(kill_process(self.0, Signal::KILL)?)
    }

    /// Whether the server still runs. A zombie has no working directory.
    fn lives(self) -> bool {
        std::fs::read_link(format!("/proc/{}/cwd", self.pid())).is_ok()
    }
}

/// Ends the servers that run in these replicas' data folders: with SIGQUIT, which skips the
/// checkpoint, and after three seconds with SIGKILL.
pub fn stop_left_behind(replica_data_dirs: &[PathBuf]) {
    let found: Vec<Postmaster> = replica_data_dirs.iter().filter_map(|dir| Postmaster::find(dir)).collect();
    for postmaster in &found {
        if let Err(error) = kill_process(postmaster.0, Signal::QUIT) {
            tracing::debug!(%error, "PostgreSQL {}", postmaster.pid());
        }
    }
    let deadline = evenkeel_host::now() + Duration::from_millis(IMMEDIATE_TIMEOUT_MS);
    while found.iter().any(|p| p.lives()) && evenkeel_host::now() < deadline {
        evenkeel_host::sleep_thread(Duration::from_millis(5));
    }
    for postmaster in found.iter().filter(|p| p.lives()) {
        if let Err(error) = postmaster.kill() {
            tracing::warn!(%error, "PostgreSQL {} could not be killed", postmaster.pid());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_elsewhere_with_the_same_number_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("postgres");
        std::fs::create_dir(&data).unwrap();
        let write =
            |pid: u32| std::fs::write(data.join("postmaster.pid"), format!("{pid}\n{}\n", data.display())).unwrap();
        write(std::process::id());
        assert_eq!(Postmaster::find(folder.path()), None);

        let mut child = std::process::Command::new("sleep").arg("60").current_dir(&data).spawn().unwrap();
        write(child.id());
        assert_eq!(Postmaster::find(folder.path()).map(Postmaster::pid), Some(child.id()));
        stop_left_behind(&[folder.path().to_path_buf()]);
        assert!(!child.wait().unwrap().success());
        assert_eq!(Postmaster::find(folder.path()), None);
    }
}
