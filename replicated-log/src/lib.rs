//! A durable replicated log on OmniPaxos 0.2.4, for one group per process: a shard's replica or a
//! placement-driver's. The log carries bytes and never knows what they mean.
//!
//! # Using it
//!
//! [`start`] opens the durable log, connects to the peers and runs the event loop on a thread of its own. Its owner
//!
//! - watches [`LogHandle::role`]; on [`Role::Leader`] it applies up to `start`, then serves (invariant 4),
//! - calls [`LogHandle::propose`] with the leadership's term and learns each outcome from the log,
//! - pulls decided entries from a [`Subscription`] and applies those that are `effective` (invariant 1),
//! - calls [`LogHandle::read_barrier`] before it answers a linearizable read,
//! - reads at any replica that knows by [`LogHandle::fresh`] how old its state can be,
//! - tells how far it has durably applied ([`LogHandle::compact`]), and fetches a copy of the state from a peer
//!   when it is [`Role::Behind`],
//! - changes the membership with [`LogHandle::change_members`] and follows [`LogHandle::membership`].
//!
//! # Inside
//!
//! ```text
//!  handle --commands--> runtime (one thread: take inputs, step, one fsync, send, publish) --ring--> subscriptions
//!                          |  owns core (OmniPaxos, the term fence, barriers, compaction; no I/O, no clock)
//!                          |  owns wal  (segments, torn-tail recovery) through a Disk
//!  transport (tokio: one ordered session per peer) --events--> runtime
//! ```
//!
//! `core` is a pure state machine: time comes in with the inputs, everything else goes out as outputs. The
//! simulator in `sim` runs thousands of schedules over it with a disk that forgets what was not synced.
//!
//! The fifteen rules that keep OmniPaxos 0.2.4 correct are cited as `log rule N` where they are obeyed.

mod clock;
mod command;
mod core;
mod handle;
pub mod hindrance;
mod item;
mod membership;
mod published;
mod runtime;
#[cfg(test)]
mod sim;
mod transport;
mod types;
mod wal;
mod wire;

pub use clock::{CLOCK_DRIFT_PERCENT, unix_ms};
pub use handle::LogHandle;
pub use membership::{ChangeError, Member, Members, Membership};
pub use published::Subscription;
pub use runtime::start;
pub use types::{
    BarrierError, Body, Delivery, Entry, Fresh, GroupConfig, Lag, Limits, LogIndex, LogStatus, LogStopped, PeerStatus,
    ProposeError, ReplicaId, Role, StartError, Term, Timing,
};
pub use wal::WalError;
