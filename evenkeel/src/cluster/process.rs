//! One child process: its start, its signals, its end.

use super::layout::ProcessSpec;
use super::{ClusterError, ClusterOptions, postgres};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long an orderly end may take before force is used, in milliseconds.
pub const STOP_TIMEOUT_MS: u64 = 10_000;
/// How often, a millisecond apart, it is looked whether a process that was told to stand still does.
const PAUSE_POLLS: usize = 5_000;
/// How often an ending process is looked at, in milliseconds.
const POLL_MS: u64 = 5;
/// The most of a log that is read for its tail, in bytes.
const TAIL_BYTES: u64 = 32 << 10;

/// A process that is, was, or will be running.
#[derive(Debug)]
pub struct Process {
    executable: PathBuf,
    log: String,
    hindrance: bool,
    spec: ProcessSpec,
    child: Option<Child>,
    status: Option<ExitStatus>,
    /// Whether its end was asked for.
    told_to_end: bool,
}

impl Process {
    /// Writes the configuration and makes the folder; starts nothing.
    pub fn new(options: &ClusterOptions, spec: ProcessSpec) -> Result<Process, ClusterError> {
        fs::create_dir_all(&spec.data_dir).map_err(ClusterError::io(format!("making {}", spec.data_dir.display())))?;
        fs::write(&spec.config_file, &spec.config)
            .map_err(ClusterError::io(format!("writing {}", spec.config_file.display())))?;
        let (executable, log) = (options.executable.clone(), options.log.clone());
        Ok(Process { executable, log, hindrance: options.links, spec, child: None, status: None, told_to_end: true })
    }

    /// What it is.
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
        let second = log.try_clone().map_err(ClusterError::io("doubling a log's handle"))?;
        let mut command = Command::new(&self.executable);
        command.arg(self.spec.id.role()).arg("--config").arg(&self.spec.config_file).arg("--end-with-stdin");
        // Everything it needs is in its file; what is meant for this process must not reach it by the environment.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("EVENKEEL_") {
                command.env_remove(name);
            }
        }
        if self.hindrance {
            command.env(evenkeel_replicated_log::fault_hook::FOLDER_VARIABLE, &self.spec.data_dir);
        }
        command.env("RUST_LOG", &self.log).stdin(Stdio::piped()).stdout(second).stderr(log);
        // A group of its own: Ctrl-C is for this process alone, which then ends the others in good order.
        command.process_group(0);
        let started = command.spawn();
        let child = started.map_err(ClusterError::io(format!("starting {}", self.executable.display())))?;
        self.child = Some(child);
        self.status = None;
        self.told_to_end = false;
        Ok(())
    }

    /// Sends a signal; nothing happens if it does not run.
    pub fn signal(&mut self, signal: Signal) -> Result<(), ClusterError> {
        let Some(child) = &self.child else {
            return Ok(());
        };
        // The child is not waited for yet, so its number cannot belong to another process.
        kill_process(Pid::from_child(child), signal)
            .map_err(|e| ClusterError::io(format!("signalling {}", self.spec.id))(e.into()))
    }

    /// Stops it with SIGSTOP and waits until every thread stands: one may still answer a request after the signal was sent.
    pub fn pause(&mut self) -> Result<(), ClusterError> {
        self.signal(Signal::STOP)?;
        let Some(pid) = self.pid() else { return Ok(()) };
        let stands = |task: std::fs::DirEntry| {
            // One that has ended is as good. The state stands behind the name, which is in parentheses.
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['T', 't', 'Z', 'X']))
        };
        for _ in 0..PAUSE_POLLS {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
            let tasks = tasks.map_err(ClusterError::io(format!("looking at {}", self.spec.id)))?;
            if tasks.flatten().all(stands) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let still = std::io::Error::new(std::io::ErrorKind::TimedOut, "it goes on after SIGSTOP");
        Err(ClusterError::io(format!("pausing {}", self.spec.id))(still))
    }

    /// Kills it with SIGKILL and waits until it is gone; nothing happens if it does not run.
    pub fn kill(&mut self) -> Result<(), ClusterError> {
        self.told_to_end = true;
        if let Some(mut child) = self.child.take() {
            let id = self.spec.id;
            child.kill().map_err(ClusterError::io(format!("killing {id}")))?;
            self.status = Some(child.wait().map_err(ClusterError::io(format!("waiting for {id}")))?);
        }
        Ok(())
    }

    /// Whether it ended without having been told to.
    pub fn died(&mut self) -> bool {
        self.reap();
        self.child.is_none() && !self.told_to_end
    }

    /// How it ended.
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

/// Ends all of them in good order, together; by force what has not ended in `timeout_ms`. Also ends PostgreSQL servers that
/// killed shard nodes have left behind.
pub fn stop_all(processes: &mut [&mut Process], timeout_ms: u64) {
    for process in processes.iter_mut() {
        process.told_to_end = true;
        // A paused process would not see the request to end.
        for signal in [Signal::TERM, Signal::CONT] {
            if let Err(error) = process.signal(signal) {
                tracing::debug!(%error, "stopping");
            }
        }
    }
    let deadline = Instant::now() + Duration::from_millis(timeout_ms);
    loop {
        processes.iter_mut().for_each(|p| p.reap());
        if processes.iter().all(|p| p.child.is_none()) || Instant::now() >= deadline {
            break;
        }
        std::thread::sleep(Duration::from_millis(POLL_MS));
    }
    for process in processes.iter_mut() {
        if process.child.is_some() {
            tracing::warn!("{} did not end within {timeout_ms} ms and is killed", process.spec.id);
        }
        if let Err(error) = process.kill() {
            tracing::warn!(%error, "killing {}", process.spec.id);
        }
    }
    postgres::stop_left_behind(&processes.iter().map(|p| p.spec.data_dir.clone()).collect::<Vec<_>>());
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
