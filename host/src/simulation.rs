//! The simulation that may replace the machine, and the deliberate bugs that it enables.
//!
//! This module owns the process's only state in this crate: the installed [`Simulation`], if there
//! is one.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use crate::bug::Bug;
use crate::disk::Disk;
use crate::duplex::{Accept, Duplex};

/// A connection being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Duplex>>> + Send>>;

/// The interface of a simulated machine. The simulation knows the calling process, since it steps
/// one process at a time.
pub trait Simulation: Send + Sync {
    /// Opens a connection.
    fn connect(&self, to: SocketAddr) -> Connecting;
    /// Listens at an address; an error if it is taken or not this machine's.
    fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Accept>>;
    /// The disk under a folder, in the state that its last process left.
    fn disk(&self, folder: &Path, segment_bytes: u64) -> io::Result<Box<dyn Disk>>;
    /// The database server under a folder, in the state that its last process left: it may still
    /// run.
    fn server(&self, folder: &Path) -> Arc<dyn Server>;
    /// See [`crate::boot_ms`].
    fn boot_ms(&self) -> u64;
    /// Milliseconds since the Unix epoch: this machine's wall clock at the start of the process,
    /// plus the time since then by [`crate::boot_ms`].
    fn unix_ms(&self) -> u64;
    /// This machine's replica reports its group's time, in milliseconds since the Unix epoch.
    fn report_group_time(&self, unix_ms: u64);
    /// The time that this machine's disk takes for the log's next write, in milliseconds.
    fn disk_ms(&self) -> u64;
    /// Whether this deliberate bug is enabled.
    fn has(&self, bug: Bug) -> bool;
}

/// A database server that speaks PostgreSQL's protocol.
pub trait Server: Send + Sync {
    /// Ends everything that an earlier start left (R2) and starts. It then holds at least its
    /// durable data. Returns the number of this start.
    ///
    /// # Errors
    /// The reason why it does not start.
    fn start(&self) -> Result<u32, String>;
    /// Becomes true when this start of the server has ended, with all its sessions.
    fn down(&self) -> watch::Receiver<bool>;
    /// Opens a session.
    fn connect(&self) -> io::Result<Box<dyn Duplex>>;
    /// Ends it at once, as a crash would.
    fn halt(&self);
    /// Ends it, and deletes its data.
    fn discard(&self);
}

static INSTALLED: OnceLock<Box<dyn Simulation>> = OnceLock::new();

/// Replaces the machine by a simulation for the rest of the process's life. Returns `false` if one
/// is installed already.
pub fn install(simulation: Box<dyn Simulation>) -> bool {
    INSTALLED.set(simulation).is_ok()
}

/// The simulation, if this process is one.
pub fn simulation() -> Option<&'static dyn Simulation> {
    INSTALLED.get().map(|simulation| &**simulation)
}

/// Whether this deliberate bug is enabled. Always false outside of a simulation.
pub fn deliberate(bug: Bug) -> bool {
    simulation().is_some_and(|simulation| simulation.has(bug))
}
