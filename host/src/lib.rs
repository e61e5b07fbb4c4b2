//! What a process has from the machine it runs on: connections, a disk for its log, a clock that counts suspended time, a database
//! server, threads for what blocks.
//!
//! Everything else in Evenkeel goes through here, so that all of it can run as it is in a simulation, where a seed decides what every
//! message, write and fsync does. It owns no state but the [`Simulation`], if one is installed, and makes no choices. It promises:
//!
//! - without a simulation, each function is the operating system's own, for the price of one atomic load per call (a connection costs
//!   one branch per read or write);
//! - with one, nothing here touches a socket, a file or another thread.
//!
//! The program `evenkeel` never installs one; the tests in `simulation/` do, once per process.
//!
//! Time needs no function of its own here but [`boot_ms`]: the simulation's process defines the C function behind `Instant::now` and
//! `SystemTime::now` itself.

mod bug;
mod disk;
mod forgetful;
mod net;
pub mod ports;

pub use bug::{Bug, deliberate};
pub use disk::{Disk, SegmentReader};
pub use forgetful::ForgetfulDisk;
pub use net::{Accept, Duplex, Listener, ReadHalf, Stream, WriteHalf, bind, connect};

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// A connection being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Duplex>>> + Send>>;

/// A machine that is not there: who runs on it is known from which process is being stepped.
pub trait Simulation: Send + Sync {
    /// Opens a connection.
    fn connect(&self, to: SocketAddr) -> Connecting;
    /// Takes connections; an error if the address is taken or not this machine's.
    fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Accept>>;
    /// The disk under a folder, as the last process that used it left it.
    fn disk(&self, folder: &Path, segment_bytes: u64) -> io::Result<Box<dyn Disk>>;
    /// The database server under a folder, as the last process that used it left it: perhaps still running.
    fn server(&self, folder: &Path) -> Arc<dyn Server>;
    /// See [`boot_ms`].
    fn boot_ms(&self) -> u64;
    /// Milliseconds since the Unix epoch: this machine's wall clock as it was when the process started, moved on with [`boot_ms`].
    fn unix_ms(&self) -> u64;
    /// This machine's replica says that it is `unix_ms` by its group's clocks, in milliseconds since the Unix epoch.
    fn told_time(&self, unix_ms: u64);
    /// How long this machine's disk takes for the log's next write, in milliseconds.
    fn disk_ms(&self) -> u64;
    /// Whether this bug is in the program under test.
    fn has(&self, bug: Bug) -> bool;
}

/// A database server that speaks PostgreSQL's protocol.
pub trait Server: Send + Sync {
    /// Ends whatever an earlier start has left (R2) and starts: what it holds then is what was durable, and perhaps more. Gives the
    /// number of this start, or why it does not start.
    fn start(&self) -> Result<u32, String>;
    /// Becomes true when this start of the server has ended, with all of its sessions.
    fn down(&self) -> watch::Receiver<bool>;
    /// Opens a session.
    fn connect(&self) -> io::Result<Box<dyn Duplex>>;
    /// Ends it at once, as a crash would.
    fn halt(&self);
    /// Ends it, and forgets what it holds.
    fn discard(&self);
}

static INSTALLED: OnceLock<Box<dyn Simulation>> = OnceLock::new();

/// Puts a simulation in the machine's place for the rest of the process's life. `false` if there is one already.
pub fn install(simulation: Box<dyn Simulation>) -> bool {
    INSTALLED.set(simulation).is_ok()
}

/// The simulation, if this process is one.
pub fn simulation() -> Option<&'static dyn Simulation> {
    INSTALLED.get().map(|simulation| &**simulation)
}

/// Linux stops `CLOCK_MONOTONIC` in suspend and not this one.
#[cfg(target_os = "linux")]
const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
/// Elsewhere the monotonic clock is the nearest there is.
#[cfg(not(target_os = "linux"))]
const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;

/// Milliseconds since boot with suspended time counted, rounded down. Never goes back.
pub fn boot_ms() -> u64 {
    if let Some(simulation) = simulation() {
        return simulation.boot_ms();
    }
    let now = rustix::time::clock_gettime(CLOCK);
    // Neither part is ever negative for these clocks.
    (now.tv_sec as u64) * 1_000 + (now.tv_nsec as u64) / 1_000_000
}

/// Runs what blocks (files, mostly) beside the asynchronous tasks. An error means that it panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    if simulation().is_some() {
        // Another thread would run at a moment of its own choosing.
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}
