//! The replica as a pure state machine: consensus, leaderships, reads, membership and compaction.
//!
//! [`Core`] runs OmniPaxos on the durable log and adds the rules that OmniPaxos leaves out, named
//! `log rule 1` to `log rule 15` where the code obeys them. It is the only owner of its group (log
//! rule 1). It does no I/O beyond its [`Disk`](crate::wal::Disk), reads no clock and draws no
//! random numbers: time comes in with the inputs. The same inputs give the same outputs.
//!
//! # A turn
//!
//! 1. [`Core::feed`] for every waiting input.
//! 2. [`Core::finish`], which returns a [`Ready`].
//! 3. Its part [`BeforeSync`]: the lease is published to readers before any message is sent; then
//!    the messages and answers that do not depend on this turn's disk write, and the newly decided
//!    entries that earlier turns have synced.
//! 4. [`Core::sync`], once. It returns the proof of the sync.
//! 5. In exchange for the proof the part [`AfterSync`]: the other messages, answers and newly
//!    decided entries.
//!
//! The runtime does this on a thread, the simulator in a loop; neither makes a choice.
//!
//! # Parts
//!
//! Each part is one file with one type and its own state. It gets what it needs as arguments and
//! adds its output to `Outgoing`; only `replica_core` knows all parts.
//!
//! | file | contents | rules |
//! |---|---|---|
//! | `replica_core` | [`Core`]: feeds each input to its part | 1, 3 |
//! | `turn_context` | what every part may use | |
//! | `role_machine` | when this replica leads | 7, 8, 10, 12 |
//! | `paxos` | the OmniPaxos instance and its messages | 1, 2, 5, 6, 10 |
//! | `leadership` | the role, with the state that exists only in it | 8 |
//! | `leader_lease`, `lease_hold` | reads without messages: leader, follower | 9 |
//! | `read_barriers` | reads by probe | 8, 9 |
//! | `staleness_bound` | how old a `local` read may be | R17 |
//! | `memory_acknowledgement` | durability level `memory` | R28 |
//! | `configuration`, `disks` | membership changes, lost disks | 10, 12 |
//! | `compaction`, `peer_log` | how far the log is dropped, how large it is | 10 |
//! | `catch_up` | synchronisation in pieces | 10 |
//! | `eligibility`, `stuck_peers` | who leads | 10, 11, 15 |
//! | `group_clock`, `applied` | wall clocks (R14), lag of the application | |
//! | `log_view`, `log_status` | entries with their verdicts, the status | 8, 10 |
//! | `input`, `lease`, `ready`, `outgoing`, `peers`, `config`, `fault` | leaf types | |
//!
//! Not done: the core does not know what entries mean, and does not transfer the application's
//! state.

mod applied;
mod catch_up;
mod compaction;
mod config;
mod configuration;
mod disks;
mod eligibility;
mod fault;
mod group_clock;
mod input;
mod leader_lease;
mod leadership;
mod lease;
mod lease_hold;
mod log_status;
mod log_view;
mod memory_acknowledgement;
mod outgoing;
mod paxos;
mod peer_log;
mod peers;
mod read_barriers;
mod ready;
mod replica_core;
mod role_machine;
mod staleness_bound;
mod stuck_peers;
mod turn_context;

pub(crate) use config::CoreConfig;
#[cfg(test)]
pub(crate) use fault::Fault;
pub(crate) use input::Input;
pub(crate) use lease::Lease;
pub(crate) use ready::{AfterSync, BarrierAnswer, BeforeSync, Ready, Send};
pub(crate) use replica_core::Core;
