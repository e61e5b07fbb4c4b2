//! One PostgreSQL server: claimed, started, watched, stopped.

use super::config::PostgresConfig;
use super::connector::{Connector, SessionRole};
use super::error::PostgresError;
use super::find::{self, Binaries};
use super::layout::{self, Layout};
use super::settings::{self, WalCompression};
use super::sizing::{Machine, Sizing};
use super::{damage, leftover};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Child;
use tokio::sync::watch;

/// How long a start may take, crash recovery included.
const START_MS: u64 = 120_000;
/// How often a starting server is looked at.
const START_POLL_MS: u64 = 5;
/// How long an orderly stop may take before it is made a disorderly one. It writes a checkpoint.
const STOP_MS: u64 = 15_000;
/// How long the server may take to read its configuration, in milliseconds; beyond it the plainest
/// is used.
const CONFIG_CHECK_MS: u64 = 5_000;
/// How often a running server's log is looked at.
const LOG_CHECK_MS: u64 = 60_000;
/// How often a running server's data folder is looked at.
pub const DATA_CHECK_MS: u64 = 500;

/// The server, running or not, and the lock on its data directory.
#[derive(Debug)]
pub struct Postgres {
    config: PostgresConfig,
    layout: Layout,
    binaries: Binaries,
    /// `None` before the first start.
    server: Option<Server>,
    /// R2: held for as long as this lives.
    _lock: File,
}

/// One start of the server.
#[derive(Debug)]
struct Server {
    pid: u32,
    /// Refers to this very process, even after its id has been given to another.
    process: OwnedFd,
    down: watch::Receiver<bool>,
}

impl Postgres {
    /// [`Postgres::claim`] and [`Postgres::restart`]: when it returns, sessions are possible.
    ///
    /// # Errors
    /// See [`PostgresError`].
    pub async fn start(config: PostgresConfig) -> Result<Postgres, PostgresError> {
        let mut postgres = Postgres::claim(config).await?;
        postgres.restart().await?;
        Ok(postgres)
    }

    /// Takes the lock and finds the programs; starts nothing. A server of a killed node may still
    /// run.
    ///
    /// # Errors
    /// See [`PostgresError`]: a person has to do something about each.
    pub async fn claim(config: PostgresConfig) -> Result<Postgres, PostgresError> {
        let for_task = config.clone();
        let prepare = move || {
            let lock = layout::lock(&for_task.data_dir)?;
            let layout = Layout::prepare(&for_task.data_dir)?;
            let binaries = find::find(for_task.bin_dir.as_deref(), layout.data_version())?;
            Ok((lock, layout, binaries))
        };
        let prepared = tokio::task::spawn_blocking(prepare).await;
        let (lock, layout, binaries) = prepared.map_err(|e| PostgresError::failed("preparing", e))??;
        Ok(Postgres { config, layout, binaries, server: None, _lock: lock })
    }

    /// Stops the remaining processes of the old server (or of a killed node's, R2) at once, makes
    /// the data if there is none, and starts the server. The caller has ended the leadership (R1).
    ///
    /// # Errors
    /// See [`PostgresError`]. The server is down then; call it again.
    pub async fn restart(&mut self) -> Result<(), PostgresError> {
        self.halt().await?;
        let (layout, binaries) = (self.layout.clone(), self.binaries.clone());
        let made = tokio::task::spawn_blocking(move || layout.initialise(&binaries)).await;
        made.map_err(|e| PostgresError::failed("making the data", e))??;
        let said_before = self.layout.log_length();
        self.server = Some(launch(&self.config, &self.layout, &self.binaries).await?);
        self.make_user().await.map_err(|error| match damage::find(&self.layout.log_tail(said_before)) {
            Some(line) => PostgresError::Damaged { detail: line.to_string() },
            None => error,
        })
    }

    /// Stops the server at once, and every process of it. As after a crash, the next start
    /// recovers.
    ///
    /// # Errors
    /// [`PostgresError::Failed`] if processes stay even when killed.
    pub async fn halt(&mut self) -> Result<(), PostgresError> {
        leftover::stop_all(&self.layout.pgdata).await?;
        if let Some(server) = &mut self.server {
            // The watching task ends leftover processes too, and must not find the next server's.
            // That takes no longer than ending it did; an error would mean that the watch is over.
            let _ = server.down.wait_for(|down| *down).await;
        }
        Ok(())
    }

    /// Bytes free on the disk that the data lies on, for the server's account.
    ///
    /// # Errors
    /// [`PostgresError::Unusable`] if the system cannot tell.
    pub fn free_bytes(&self) -> Result<u64, PostgresError> {
        self.layout.free_bytes()
    }

    /// Puts damaged data out of the way, so that the next start makes it again; what was put there
    /// before goes.
    ///
    /// # Errors
    /// See [`PostgresError`]; the data is where it was.
    pub async fn discard(&mut self) -> Result<(), PostgresError> {
        self.halt().await?;
        self.blocking("moving damaged data away", Layout::discard).await
    }

    /// Deletes what [`Postgres::discard`] has put out of the way, if anything.
    ///
    /// # Errors
    /// See [`PostgresError`]; it can be tried again.
    pub async fn forget_discarded(&self) -> Result<(), PostgresError> {
        self.blocking("deleting damaged data", Layout::forget_discarded).await
    }

    async fn blocking(
        &self,
        what: &'static str,
        work: fn(&Layout) -> Result<(), PostgresError>,
    ) -> Result<(), PostgresError> {
        let layout = self.layout.clone();
        tokio::task::spawn_blocking(move || work(&layout)).await.map_err(|e| PostgresError::failed(what, e))?
    }

    /// Becomes true once the server of the latest start has ended, for whatever reason, with all
    /// its sessions. True if none was started.
    pub fn down(&self) -> watch::Receiver<bool> {
        self.server.as_ref().map_or_else(|| watch::channel(true).1, |server| server.down.clone())
    }

    /// The server's process id; `None` if it is down.
    pub fn pid(&self) -> Option<u32> {
        let server = self.server.as_ref()?;
        (!*server.down.borrow()).then_some(server.pid)
    }

    /// A way to connect, for one start of the server: see [`Connector::end`].
    pub fn connector(&self) -> Connector {
        Connector::new(self.layout.socket_dir.clone())
    }

    /// Stops the server in order: sessions are ended, everything is written. Falls back to ending
    /// it at once.
    ///
    /// # Errors
    /// [`PostgresError::Failed`] if processes stay even when killed.
    pub async fn stop(mut self) -> Result<(), PostgresError> {
        if let Some(server) = &mut self.server {
            // Already gone is as good.
            let _ = pidfd_send_signal(&server.process, Signal::INT);
            let gone = server.down.wait_for(|down| *down);
            if evenkeel_host::timeout(Duration::from_millis(STOP_MS), gone).await.is_err() {
                tracing::warn!("PostgreSQL does not stop in order; ending it");
            }
        }
        leftover::stop_all(&self.layout.pgdata).await?;
        // Only the folder under /tmp would stay behind otherwise; one inside the data directory is
        // made again.
        let _ = std::fs::remove_dir_all(&self.layout.socket_dir);
        Ok(())
    }

    /// Makes the users' accounts if this is the first start that gets this far.
    async fn make_user(&self) -> Result<(), PostgresError> {
        let failed = |e: &dyn std::fmt::Display| PostgresError::failed("making the users' accounts", e);
        let client = self.connector().connect(SessionRole::Admin).await.map_err(|e| failed(&e))?;
        let accounts =
            [(settings::USER, settings::MAKE_USER), (settings::PASS_THROUGH_USER, settings::MAKE_PASS_THROUGH_USER)];
        for (name, make) in accounts {
            let found = client.query_opt("SELECT 1 FROM pg_roles WHERE rolname = $1", &[&name]).await;
            if found.map_err(|e| failed(&e))?.is_none() {
                client.batch_execute(make).await.map_err(|e| failed(&e))?;
            }
        }
        let found = client.query_opt("SELECT 1 FROM pg_roles WHERE rolname = 'evenkeel_owner'", &[]).await;
        if found.map_err(|e| failed(&e))?.is_none() {
            let make = format!("BEGIN; {}; {}; COMMIT", settings::MAKE_OWNER, settings::OWNER_PRIVILEGES);
            client.batch_execute(&make).await.map_err(|e| failed(&e))?;
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            // An immediate shutdown: as after a crash, the next start recovers. Already gone is as
            // good.
            let _ = pidfd_send_signal(&server.process, Signal::QUIT);
        }
    }
}

/// Starts the server, beside which no other runs (R2), and waits until it takes sessions.
async fn launch(config: &PostgresConfig, layout: &Layout, binaries: &Binaries) -> Result<Server, PostgresError> {
    layout.remove_stale_files()?;
    let sizing = Sizing::choose(&config.resources, Machine::here(layout.free_bytes().ok()));
    tracing::info!(?sizing, "PostgreSQL's share of the machine");
    let render = |compression| settings::render(config, &sizing, compression, &layout.socket_dir);
    layout.write_config("postgresql.conf", &render(WalCompression::Lz4))?;
    if !accepts_configuration(layout, binaries).await {
        layout.write_config("postgresql.conf", &render(WalCompression::Pglz))?;
    }
    // What ALTER SYSTEM writes here would override it: `fsync`, for one.
    layout.write_config("postgresql.auto.conf", settings::AUTO)?;
    layout.write_config("pg_hba.conf", settings::HBA)?;
    let unusable = |e: std::io::Error| PostgresError::unusable(&layout.pgdata, e);
    let folder = std::fs::metadata(&layout.pgdata).map_err(unusable)?;

    let log = layout.open_log()?;
    let said_before = layout.log_length();
    let mut command = layout.command(&binaries.program("postgres"));
    let output = log.try_clone().map_err(|e| PostgresError::failed("starting", e))?;
    // A process group of its own: a Ctrl-C in the node's terminal is for the node, which then stops
    // the server in order.
    command.arg("-D").arg(&layout.pgdata).process_group(0).stdout(output).stderr(log);
    let child = tokio::process::Command::from(command).spawn().map_err(|e| PostgresError::failed("starting", e))?;
    let pid = child.id().ok_or_else(|| PostgresError::failed("starting", "it ended at once"))?;
    let process = Pid::from_raw(pid as i32)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        .ok_or_else(|| PostgresError::failed("starting", "it cannot be watched"))?;
    let (down_sender, down) = watch::channel(false);
    tokio::spawn(watch_over(child, layout.clone(), (folder.dev(), folder.ino()), down_sender));
    let server = Server { pid, process, down };
    wait_until_ready(&server, layout, said_before).await?;
    Ok(server)
}

/// Whether the server takes the configuration that has just been written. It says no to a
/// compression that it was built without.
async fn accepts_configuration(layout: &Layout, binaries: &Binaries) -> bool {
    let mut command = layout.command(&binaries.program("postgres"));
    command.args(["-C", "wal_compression", "-D"]).arg(&layout.pgdata);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut command = tokio::process::Command::from(command);
    let asked = command.kill_on_drop(true).status();
    evenkeel_host::timeout(Duration::from_millis(CONFIG_CHECK_MS), asked)
        .await
        .is_ok_and(|status| status.is_ok_and(|s| s.success()))
}

/// Waits until the server says in `postmaster.pid` that it takes sessions. Asking by connecting
/// instead would cost a fork each time and fill the log.
async fn wait_until_ready(server: &Server, layout: &Layout, said_before: u64) -> Result<(), PostgresError> {
    let deadline = evenkeel_host::tokio_now() + Duration::from_millis(START_MS);
    let file = layout.pgdata.join("postmaster.pid");
    loop {
        if *server.down.borrow() {
            return Err(PostgresError::not_started(layout.log_tail(said_before)));
        }
        if std::fs::read_to_string(&file).is_ok_and(|text| says_ready(&text, server.pid)) {
            return Ok(());
        }
        if evenkeel_host::tokio_now() > deadline {
            let _ = pidfd_send_signal(&server.process, Signal::QUIT);
            return Err(PostgresError::failed("starting takes too long", layout.log_tail(said_before)));
        }
        evenkeel_host::sleep(Duration::from_millis(START_POLL_MS)).await;
    }
}

/// Whether the text of `postmaster.pid` is of process `pid` (line 1) and says that it takes
/// sessions (line 8).
fn says_ready(text: &str, pid: u32) -> bool {
    let mut lines = text.lines();
    lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid)
        && lines.nth(6).is_some_and(|line| line.trim() == "ready")
}

/// Waits for the end of the server, keeping its log short meanwhile; ends it if `folder` (device
/// and inode) is no longer there with its data.
async fn watch_over(mut child: Child, layout: Layout, folder: (u64, u64), down: watch::Sender<bool>) {
    let mut check_log = evenkeel_host::interval(Duration::from_millis(LOG_CHECK_MS));
    let mut check_data = evenkeel_host::interval(Duration::from_millis(DATA_CHECK_MS));
    loop {
        tokio::select! {
            status = child.wait() => {
                match status {
                    Ok(status) => tracing::info!(%status, "PostgreSQL has ended"),
                    Err(error) => tracing::error!(%error, "PostgreSQL cannot be waited for"),
                }
                // A backend does not notice at once that the postmaster is gone; its sessions must
                // not outlive the news.
                if let Err(error) = leftover::stop_all(&layout.pgdata).await {
                    tracing::error!(%error, "the end of PostgreSQL is not clean");
                }
                // Nobody listening is fine.
                let _ = down.send(true);
                return;
            }
            _ = check_log.tick() => layout.bound_log(),
            _ = check_data.tick() => if !layout.is_there(folder) {
                tracing::error!(data = %layout.pgdata.display(), "PostgreSQL's data is gone; ending the server");
                if let Err(error) = leftover::stop_all(&layout.pgdata).await {
                    tracing::error!(%error, "PostgreSQL does not end");
                }
            },
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
