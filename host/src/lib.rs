//! The interface to the machine: connections, the log's disk, a clock that counts suspended time, a
//! database server, and threads for blocking work.
//!
//! Every other crate reaches the machine through this one, so that the whole system can run
//! unchanged in a simulation, in which a seed decides the fate of every message, write and fsync.
//! The crate owns no state but the installed [`Simulation`], and makes no choices. It promises:
//!
//! - Without a simulation each function is the operating system's own, at the cost of one atomic
//!   load per call (a connection costs one branch per read or write).
//! - With a simulation no function touches a socket, a file or another thread.
//!
//! The program `evenkeel` never installs a simulation; the tests in `simulation/` do, once per
//! process.
//!
//! Not done: time other than [`boot_ms`] is not behind this interface. The simulation's process
//! defines the C function behind `Instant::now` and `SystemTime::now` itself.

mod blocking;
mod bug;
mod clock;
mod disk;
mod duplex;
mod forgetful_disk;
mod net;
pub mod ports;
mod simulation;

pub use blocking::blocking;
pub use bug::Bug;
pub use clock::boot_ms;
pub use disk::{Disk, SegmentReader};
pub use duplex::{Accept, Duplex};
pub use forgetful_disk::ForgetfulDisk;
pub use net::{Listener, ReadHalf, Stream, WriteHalf, bind, connect};
pub use simulation::{Connecting, Server, Simulation, deliberate, install, simulation};
