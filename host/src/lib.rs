//! The interface to the machine: connections, the log's disk, clocks, timers, randomness, a
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
//! `clippy.toml` at the root refuses clocks, timers and randomness outside of this crate. Only
//! [`boot_ms`] asks the installed simulation. The others ask the C library, and the simulation's
//! process defines the C functions behind them itself: libraries read clocks, too.

mod blocking;
mod bug;
mod clock;
mod disk;
mod duplex;
mod forgetful_disk;
mod net;
pub mod ports;
mod random;
mod simulation;
mod timers;

pub use blocking::blocking;
pub use bug::Bug;
pub use clock::{boot_ms, elapsed, now, tokio_now, wall_ms, wall_time};
pub use disk::{Disk, SegmentReader};
pub use duplex::{Accept, Duplex};
pub use forgetful_disk::ForgetfulDisk;
pub use net::{Listener, ReadHalf, Stream, WriteHalf, bind, connect};
pub use random::{random, rng, unique_number};
pub use simulation::{Connecting, Server, Simulation, deliberate, install, simulation};
pub use timers::{interval, sleep, sleep_thread, sleep_until, timeout, timeout_at};
