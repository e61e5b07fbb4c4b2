//! The state of the log and of its peers, for display, health checks and placement.
//!
//! All values are snapshots. A status is at most one tick old; a peer's values are those of its
//! last message.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{LogIndex, ReplicaId, Term};

/// The distance from a replica's applied position to its decided position
/// ([`crate::LogHandle::applied`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// Bytes of log that are decided and not applied.
    pub bytes: u64,
    /// Time since the oldest of these entries was decided, in milliseconds.
    pub ms: u64,
}

/// The state of a peer as far as this replica knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// Whether a session with it is open.
    pub connected: bool,
    /// Its decided position.
    pub decided: LogIndex,
    /// The applied position of its application; 0 if unknown.
    pub applied: LogIndex,
    /// The distance between the two.
    pub lag: Lag,
    /// Whether its application cannot serve: it must not lead.
    pub ineligible: bool,
    /// Whether it needs a state transfer.
    pub behind: bool,
    /// Whether it has another disk than it had in this configuration. It is refused until a
    /// membership change names its new disk (log rule 10).
    pub other_disk: bool,
    /// The identity of its current disk, if known.
    pub disk: Option<u64>,
    /// Milliseconds since its last message; `None` if none arrived since this process started.
    pub last_heard_ms: Option<u64>,
}

/// A snapshot of the log, at most one tick old.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogStatus {
    /// Last decided position.
    pub decided: LogIndex,
    /// Last position in this replica's log, decided or not.
    pub accepted: LogIndex,
    /// The applied position of this replica's application; 0 until the application reports one.
    pub applied: LogIndex,
    /// The distance from `applied` to `decided`.
    pub lag: Lag,
    /// Last position that was compacted away.
    pub compacted: LogIndex,
    /// First position still in the log (`compacted + 1`).
    pub first_retained: LogIndex,
    /// Bytes of the log's files.
    pub log_bytes: u64,
    /// The leader that this replica follows, itself included.
    pub leader: Option<ReplicaId>,
    /// The leadership in force at the decided position.
    pub term: Term,
    /// The other members.
    pub peers: BTreeMap<ReplicaId, PeerStatus>,
    /// Replicas that are not members and ask to join, with the identities of their disks.
    pub applicants: BTreeMap<ReplicaId, u64>,
}

/// A bound on the staleness of a state: every write acknowledged to any client before `asked_ms`
/// lies at or before `index` (R17). The statement stays true; it only gets older.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StalenessBound {
    /// The time at which this replica asked, on its own clock ([`crate::LogHandle::now_ms`]), in
    /// milliseconds.
    pub asked_ms: u64,
    /// A decided position.
    pub index: LogIndex,
}
