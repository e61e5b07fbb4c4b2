//! One child process: its start, its signals, its end.
//!
//! A [`Process`] owns its configuration file, its log file and its operating-system process. It
//! remembers whether its end was requested, so that a crash is distinguished from an ordered end.

use crate::error::ClusterError;
use crate::layout::ProcessSpec;
use crate::options::ClusterOptions;
use crate::postmaster;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// How long an ordered end may take before SIGKILL, in milliseconds.
pub const STOP_TIMEOUT_MS: u64 = 10_000;
/// How many times, one millisecond apart, a process is checked for having stopped after SIGSTOP.
const PAUSE_POLLS: usize = 5_000;
/// The interval between two checks of an ending process, in milliseconds.
const POLL_MS: u64 = 5;
/// The bytes of a log that are read for its tail.
const TAIL_BYTES: u64 = 32 << 10;

/// A process, running or not.
#[derive(Debug)]
pub struct Process {
    executable: PathBuf,
    log: String,
    /// Whether it reads fault hooks from its data folder.
    fault_hooks: bool,
    spec: ProcessSpec,
    child: Option<Child>,
    status: Option<ExitStatus>,
    /// Whether its end was requested.
    end_requested: bool,
}

impl Process {
    /// Writes the configuration and creates the data folder. Starts nothing.
    pub fn new(options: &ClusterOptions, spec: ProcessSpec) -> Result<Process, ClusterError> {
        fs::create_dir_all(&spec.data_dir).map_err(ClusterError::io(format!("making {}", spec.data_dir.display())))?;
        fs::write(&spec.config_file, &spec.config)
            .map_err(ClusterError::io(format!("writing {}", spec.config_file.display())))?;
        let (executable, log) = (options.executable.clone(), options.log.clone());
        Ok(Process {
            executable,
            log,
            fault_hooks: options.links,
            spec,
            child: None,
            status: None,
            end_requested: true,
        })
    }

    /// Its name, files and configuration.
    pub fn spec(&self) -> &ProcessSpec {
        &self.spec
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it.
    pub fn start(&mut self) -> Result<(), ClusterError> {
        let log = File::options().create(true).append(true).open(&self.spec.log_file);
        let log = log.map_err(ClusterError::io(format!("opening {}", self.spec.log_file.display())))?;
        let second = log.try_clone().map_err(ClusterError::io("duplicating a log's handle"))?;
        let mut command = Command::new(&self.executable);
        command.arg(self.spec.id.role()).arg("--config").arg(&self.spec.config_file).arg("--end-with-stdin");
        // All its settings are in its file. Variables meant for this process must not reach it.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("EVENKEEL_") {
                command.env_remove(name);
            }
        }
        if self.fault_hooks {
            command.env(evenkeel_replicated_log::fault_hook::FOLDER_VARIABLE, &self.spec.data_dir);
        }
        command.env("RUST_LOG", &self.log).stdin(Stdio::piped()).stdout(second).stderr(log);
        // A process group of its own: Ctrl-C reaches this process alone, which then ends the others
        // in order.
        command.process_group(0);
        let started = command.spawn();
        let child = started.map_err(ClusterError::io(format!("starting {}", self.executable.display())))?;
        self.child = Some(child);
        self.status = None;
        self.end_requested = false;
        Ok(())
    }

    /// Sends a signal. Does nothing if the process does not run.
    pub fn signal(&mut self, signal: Signal) -> Result<(), ClusterError> {
        let Some(child) = &self.child else {
            return Ok(());
        };
        // The child has not been waited for, so its number cannot belong to another process.
        kill_process(Pid::from_child(child), signal)
            .map_err(|e| ClusterError::io(format!("signalling {}", self.spec.id))(e.into()))
    }

    /// Stops it with SIGSTOP and returns once every thread has stopped. A thread may answer a
    /// request after the signal is sent.
    pub fn pause(&mut self) -> Result<(), ClusterError> {
        self.signal(Signal::STOP)?;
        let Some(pid) = self.pid() else { return Ok(()) };
        let stopped = |task: std::fs::DirEntry| {
            // A thread that has ended counts as stopped. The state follows the name, which is in
            // parentheses.
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['T', 't', 'Z', 'X']))
        };
        for _ in 0..PAUSE_POLLS {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
            let tasks = tasks.map_err(ClusterError::io(format!("checking {}", self.spec.id)))?;
            if tasks.flatten().all(stopped) {
                return Ok(());
            }
            evenkeel_host::sleep_thread(Duration::from_millis(1));
        }
        let still = std::io::Error::new(std::io::ErrorKind::TimedOut, "it still runs after SIGSTOP");
        Err(ClusterError::io(format!("pausing {}", self.spec.id))(still))
    }

    /// Kills it with SIGKILL and waits until it has ended. Does nothing if the process does not
    /// run.
    pub fn kill(&mut self) -> Result<(), ClusterError> {
        self.end_requested = true;
        if let Some(mut child) = self.child.take() {
            let id = self.spec.id;
            child.kill().map_err(ClusterError::io(format!("killing {id}")))?;
            self.status = Some(child.wait().map_err(ClusterError::io(format!("waiting for {id}")))?);
        }
        Ok(())
    }

    /// Whether it ended although its end was not requested.
    pub fn died(&mut self) -> bool {
        self.reap();
        self.child.is_none() && !self.end_requested
    }

    /// Its exit status in words.
    pub fn status_text(&self) -> String {
        self.status.map_or_else(|| "still running".into(), |status| status.to_string())
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.spec.log_file, lines).unwrap_or_else(|e| format!("({}: {e})", self.spec.log_file.display()))
    }

    fn reap(&mut self) {
        if let Some(child) = &mut self.child
            && let Ok(Some(status)) = child.try_wait()
        {
            self.status = Some(status);
            self.child = None;
        }
    }
}

/// Ends all of these processes together with SIGTERM, and after `timeout_ms` with SIGKILL. Also
/// ends the PostgreSQL servers of killed shard nodes.
pub fn stop_all(processes: &mut [&mut Process], timeout_ms: u64) {
    for process in processes.iter_mut() {
        process.end_requested = true;
        // A stopped process receives SIGTERM only after SIGCONT.
        for signal in [Signal::TERM, Signal::CONT] {
            if let Err(error) = process.signal(signal) {
                tracing::debug!(%error, "stopping");
            }
        }
    }
    let deadline = evenkeel_host::now() + Duration::from_millis(timeout_ms);
    loop {
        processes.iter_mut().for_each(|p| p.reap());
        if processes.iter().all(|p| p.child.is_none()) || evenkeel_host::now() >= deadline {
            break;
        }
        evenkeel_host::sleep_thread(Duration::from_millis(POLL_MS));
    }
    for process in processes.iter_mut() {
        if process.child.is_some() {
            tracing::warn!("{} did not end within {timeout_ms} ms and is killed", process.spec.id);
        }
        if let Err(error) = process.kill() {
            tracing::warn!(%error, "killing {}", process.spec.id);
        }
    }
    postmaster::stop_left_behind(&processes.iter().map(|p| p.spec.data_dir.clone()).collect::<Vec<_>>());
}

/// The last `lines` lines of a file.
fn tail(path: &Path, lines: usize) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].join("\n"))
}
