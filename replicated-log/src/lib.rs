//! A durable replicated log on OmniPaxos 0.2.4, for one group per process: a shard's replica or a
//! placement-driver replica. The log carries bytes and does not interpret them.
//!
//! It owns the folder of the durable log, the sessions with the peers and one thread. It promises
//! that all replicas deliver the same entries in the same order with the same verdicts (invariant
//! 1), that a delivered entry is on a majority's disks, and that reads behind a read barrier are
//! linearizable.
//!
//! # Use
//!
//! [`start`] opens the durable log, connects to the peers and runs the event loop on a thread of
//! its own. Its owner
//!
//! - watches [`LogHandle::role`]; on [`Role::Leader`] it applies up to `start`, then serves
//!   (invariant 4),
//! - calls [`LogHandle::propose`] with the leadership's term and learns each outcome from the log,
//! - pulls decided entries from a [`Subscription`] and applies those that are `effective`
//!   (invariant 1),
//! - calls [`LogHandle::read_barrier`] before it answers a linearizable read,
//! - reads at any replica within the staleness bound of [`LogHandle::staleness_bound`],
//! - reports its durably applied position ([`LogHandle::compact`]), and fetches a copy of the state
//!   from a peer when it is [`Role::Behind`],
//! - changes the membership with [`LogHandle::change_members`] and follows
//!   [`LogHandle::membership`].
//!
//! # Inside
//!
//! ```text
//!  handle --commands--> event_loop (one thread: take inputs, step, one fsync, send, publish)
//!                          |  owns core (OmniPaxos, term fence, barriers, compaction; no clock)
//!                          |  owns wal  (segments, torn-tail recovery) through a Disk
//!                          `--published--> ring --> subscriptions
//!  transport (tokio: one ordered session per peer) --events--> event_loop
//! ```
//!
//! `core` is a pure state machine: time comes in with the inputs, and each turn returns its output
//! in phases. The simulator in `sim` runs thousands of schedules over it with a disk that forgets
//! unsynced writes.
//!
//! Fifteen rules keep OmniPaxos 0.2.4 correct. Comments cite them as `log rule N` at the code that
//! obeys them.
//!
//! Not done: connections are not encrypted, and the log does not transfer the application's state.

mod clock;
mod command;
mod config;
mod core;
mod entry;
mod error;
mod event_loop;
mod fatal;
pub mod fault_hook;
mod handle;
mod ids;
mod item;
mod log_metrics;
mod membership;
mod old_entries;
mod published;
mod ring;
mod role;
#[cfg(test)]
mod sim;
mod start;
mod status;
mod subscription;
mod transport;
mod wal;
mod wire;

pub use clock::{CLOCK_DRIFT_PERCENT, unix_ms};
pub use config::{GroupConfig, Limits, Timing};
pub use entry::{Body, Delivery, Entry};
pub use error::{BarrierError, ChangeError, LogStopped, ProposeError, StartError};
pub use handle::LogHandle;
pub use ids::{LogIndex, ReplicaId, Term};
pub use membership::{Member, Members, Membership};
pub use role::Role;
pub use start::start;
pub use status::{Lag, LogStatus, PeerStatus, StalenessBound};
pub use subscription::Subscription;
pub use wal::WalError;
