//! The words the log shares with its owners: positions, terms, roles, deliveries, configuration, errors.
//!
//! Nothing here decides anything. Types are small and `Copy` where they can be; everything that carries rows
//! does so in [`Bytes`], so that handing an entry on never copies it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::membership::Members;

/// A replica of a group: a number from 1 to 255 that is its own for life. A new machine gets a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplicaId(pub u64);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The position of an entry in the group's log. The first entry is 1; `LogIndex(0)` means "nothing yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogIndex(pub u64);

impl LogIndex {
    /// The position after this one.
    pub fn next(self) -> LogIndex {
        LogIndex(self.0.saturating_add(1))
    }
}

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One leadership of a leader. The order of terms is the order of leaderships.
///
/// Packed so that one integer comparison suffices: the ballot's number in the high 32 bits, the leader's id in
/// the next 8, and in the low 24 the counter of leaderships under that ballot (R1: a leader that has to start over
/// keeps its ballot and counts up). `Term(0)` is "no leadership yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

impl Term {
    /// No leadership: what is in force before the first `LeaderStart`.
    pub const NONE: Term = Term(0);
    const COUNTER_BITS: u32 = 24;
    const COUNTER_MASK: u64 = (1 << Self::COUNTER_BITS) - 1;

    /// The first leadership of replica `pid` under ballot number `ballot`.
    pub(crate) fn first_of(ballot: u32, pid: u64) -> Term {
        debug_assert!(pid <= 0xff, "replica ids fit in eight bits");
        Term((u64::from(ballot) << 32) | ((pid & 0xff) << Self::COUNTER_BITS))
    }

    /// The leadership after this one under the same ballot, or `None` once the 24-bit counter is used up.
    pub(crate) fn next_leadership(self) -> Option<Term> {
        (self.counter() < Self::COUNTER_MASK).then_some(Term(self.0 + 1))
    }

    /// The replica whose leadership this is (`ReplicaId(0)` for [`Term::NONE`]).
    pub fn replica(&self) -> ReplicaId {
        ReplicaId((self.0 >> Self::COUNTER_BITS) & 0xff)
    }

    /// The number of the OmniPaxos ballot under which the leader leaderships.
    pub fn ballot(&self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Which leadership under that ballot this is, counted from 0.
    pub fn counter(&self) -> u64 {
        self.0 & Self::COUNTER_MASK
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.ballot(), self.replica(), self.counter())
    }
}

/// What this replica is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Won the ballot and appended its `LeaderStart`. The owner serves only once it has itself applied the entry
    /// at `start` (log rule 8, invariant 4).
    Leader {
        /// The leadership; every proposal carries it.
        term: Term,
        /// Where this leadership's `LeaderStart` is in the log.
        start: LogIndex,
    },
    /// Follows `leader`, if one is known.
    Follower {
        /// The replica this one has promised itself to.
        leader: Option<ReplicaId>,
    },
    /// The group has trimmed its log past what this replica's application has applied: a copy of the state at or
    /// after `trimmed` is needed. Such a replica neither serves nor leads (log rule 10).
    Behind {
        /// The state to fetch must cover at least this position.
        trimmed: LogIndex,
        /// The replica this one has promised itself to; ask it, or any other, for the state.
        leader: Option<ReplicaId>,
    },
}

impl Role {
    /// The leadership if this replica leads.
    pub fn leading(&self) -> Option<Term> {
        match self {
            Role::Leader { term, .. } => Some(*term),
            _ => None,
        }
    }
}

/// One decided entry, judged by the term fence (invariant 1): every replica sees the same `effective`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub index: LogIndex,
    /// The leadership in which it was proposed.
    pub term: Term,
    /// Whether it counts. A void entry (proposed by a leadership that had ended at this place of the log) changes
    /// nothing but is delivered, so that its proposer learns its fate.
    pub effective: bool,
    /// What it says.
    pub body: Body,
}

/// The contents of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The application's bytes; the log never looks inside.
    Data(Bytes),
    /// The leadership `Entry::term` of `leader` begins here.
    LeaderStart {
        /// The new leader.
        leader: ReplicaId,
    },
    /// The membership of the group changes here. When effective, nothing after it in its epoch counts (log rule 10);
    /// the next entry is the first one of the next epoch. The payload is the log's own.
    ConfigChange(Bytes),
}

/// What [`crate::Subscription::next`] hands over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Consecutive decided entries, at least one.
    Entries(Vec<Entry>),
    /// The entries asked for are no longer in the log: fetch a copy of the state at or after `trimmed`, call
    /// [`crate::LogHandle::installed`] and subscribe again after it.
    NeedState {
        /// The last position that is gone.
        trimmed: LogIndex,
        /// Who leads, if known.
        leader: Option<ReplicaId>,
    },
}

/// Clock settings. All values are milliseconds of wall time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The period of the event loop's clock.
    pub tick_ms: u64,
    /// One heartbeat round. A dead leader is replaced after two to three of them (log rule 15).
    pub election_timeout_ms: u64,
    /// After this, unanswered Prepare, Promise and PrepareReq messages are sent again. Far above the time that
    /// the largest log synchronisation takes (log rule 5).
    pub resend_ms: u64,
    /// How often replicas tell each other their promise and positions (log rules 10 and 11).
    pub status_ms: u64,
    /// The period of leader leases (log rule 9); 0 turns them off. While one holds, read barriers cost no message; a
    /// leader that dies is replaced no sooner than this after its last word. The same on all replicas, and a replica
    /// must not be restarted within this time after it was made shorter.
    pub lease_ms: u64,
    /// A read barrier not confirmed within this fails with [`BarrierError::TimedOut`].
    pub barrier_timeout_ms: u64,
    /// A peer silent for this long no longer holds up compaction (log rule 10).
    pub forget_peer_ms: u64,
    /// A session on which nothing arrives for this long is closed and opened again.
    pub session_idle_ms: u64,
    /// The pause between attempts to open a session.
    pub redial_ms: u64,
    /// How long a replica whose epoch has ended waits for connected peers to know it too. Who does not learn it in time has to
    /// fetch the state.
    pub linger_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            tick_ms: 10,
            election_timeout_ms: 150,
            resend_ms: 20_000,
            status_ms: 100,
            lease_ms: 300,
            barrier_timeout_ms: 2_000,
            forget_peer_ms: 30_000,
            session_idle_ms: 5_000,
            redial_ms: 50,
            linger_ms: 500,
        }
    }
}

/// Bounds on memory, disk and messages. All values are bytes unless the name says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest payload of one entry.
    pub max_entry_bytes: usize,
    /// Proposals waiting for the event loop, all together; above it `propose` answers `Overloaded`.
    pub queue_bytes: usize,
    /// How much input one turn of the event loop takes in before it syncs (log rule 5).
    pub turn_bytes: usize,
    /// Entries kept in memory: by the log for its peers, and again (sharing the bytes) for subscribers.
    pub recent_bytes: usize,
    /// The size of a segment file; while much is written they grow, see [`Limits::largest_segment_bytes`]. The next one is always
    /// kept ready.
    pub segment_bytes: u64,
    /// Log kept behind the permitted compaction point, so that a short absence needs no state transfer.
    pub retention_bytes: u64,
    /// What the log may take. Above half of it the log is compacted past replicas that are behind (never past what the own
    /// application has applied or holds a lease on). Two of the largest segments below it proposals are refused until compaction has made room.
    pub log_cap_bytes: u64,
    /// About how much log one message brings to a replica that is behind, and one record there holds of it. Of what it lacks more than
    /// twice that it gets the decided part in pieces of this size, one after the other.
    pub sync_bytes: usize,
    /// Messages waiting on one session; above it the session is given up as a whole (log rule 3).
    pub session_queue_bytes: usize,
    /// Received and not yet processed, per session; above it the socket is not read.
    pub inbound_bytes: usize,
    /// The largest frame accepted from a peer. Only a candidate that is far behind, and the only one that can be elected, is
    /// synchronised with more than a few times [`Limits::sync_bytes`]: with up to the log's cap.
    pub max_frame_bytes: usize,
    /// The most that one read of old entries from disk brings, per request of a subscriber.
    pub read_bytes: usize,
    /// Read barriers waiting at one time; above it a call fails with [`BarrierError::TimedOut`].
    pub barrier_waiters: usize,
}

impl Limits {
    /// How large segments become while they fill within seconds, in bytes: 32 MiB, or a thirty-second of the log's cap.
    pub fn largest_segment_bytes(&self) -> u64 {
        (self.log_cap_bytes / 32).clamp(self.segment_bytes, self.segment_bytes.max(32 << 20))
    }
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: usize = 1 << 20;
        Limits {
            max_entry_bytes: 2 * MIB,
            queue_bytes: 32 * MIB,
            turn_bytes: 4 * MIB,
            recent_bytes: 16 * MIB,
            segment_bytes: 8 << 20,
            retention_bytes: 32 << 20,
            log_cap_bytes: 512 << 20,
            sync_bytes: 4 * MIB,
            session_queue_bytes: 64 * MIB,
            inbound_bytes: 16 * MIB,
            max_frame_bytes: 1024 * MIB,
            read_bytes: 512 << 10,
            barrier_waiters: 65_536,
        }
    }
}

/// Everything a replica needs to know to start.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// The group; sessions between different groups are refused (log rule 4).
    pub group: u64,
    /// Whether a replica whose folder is empty waits to be let in by a membership change. Otherwise it founds the group
    /// together with the other `peers`, as epoch 1. A folder that is not empty knows better than both.
    pub join: bool,
    /// This replica.
    pub me: ReplicaId,
    /// Where this replica listens for its peers.
    pub listen: SocketAddr,
    /// The members that found the group, this replica included; for one that joins, whom to ask. A later epoch's members are in
    /// the folder.
    pub peers: Members,
    /// The folder of the durable log; created if absent, locked while in use.
    pub dir: PathBuf,
    /// Clock settings.
    pub timing: Timing,
    /// Bounds.
    pub limits: Limits,
}

/// How far a replica's application is behind what its log has decided ([`crate::LogHandle::applied`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// Bytes of log, decided and not applied.
    pub bytes: u64,
    /// For how long the oldest of it has been decided, in milliseconds.
    pub ms: u64,
}

/// What the log knows about a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// Whether a session with it is open.
    pub connected: bool,
    /// Its decided position as it last said.
    pub decided: LogIndex,
    /// What its application has applied, as it last said; 0 if it never did.
    pub applied: LogIndex,
    /// How far that is behind, as it last said.
    pub lag: Lag,
    /// Whether it said that its application cannot serve.
    pub aside: bool,
    /// Whether it said that it needs a state transfer.
    pub behind: bool,
    /// Whether it came with another disk than it had in this epoch: it is not let in, and only a membership change can bring it
    /// back (log rule 10).
    pub other_disk: bool,
    /// The mark of the disk that it has now, as far as is known.
    pub disk: Option<u64>,
    /// Milliseconds since its last message; `None` if none came since the start.
    pub last_heard_ms: Option<u64>,
}

/// A snapshot of the log's state, for display, health checks and placement. At most one tick old.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogStatus {
    /// Last decided position.
    pub decided: LogIndex,
    /// Last position in this replica's log, decided or not.
    pub accepted: LogIndex,
    /// What this replica's application has applied, as far as it has said.
    pub applied: LogIndex,
    /// How far that is behind.
    pub lag: Lag,
    /// Last position that was compacted away.
    pub compacted: LogIndex,
    /// First position still in the log (`compacted + 1`).
    pub first_retained: LogIndex,
    /// Bytes of the log's files.
    pub log_bytes: u64,
    /// The leader this replica follows, itself included.
    pub leader: Option<ReplicaId>,
    /// The leadership in force at the decided position.
    pub term: Term,
    /// The other members.
    pub peers: BTreeMap<ReplicaId, PeerStatus>,
    /// Replicas that are no members and wait to be let in, with the marks of their disks.
    pub applicants: BTreeMap<ReplicaId, u64>,
}

/// A proof of how fresh a state is: whatever had been acknowledged to anybody before `asked_ms` lies at or before
/// `index`. Once true it stays true; it merely grows old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// When this replica asked, on its own clock ([`crate::LogHandle::now_ms`]), in milliseconds.
    pub asked_ms: u64,
    /// A decided position.
    pub index: LogIndex,
}

/// Why a proposal was not queued. Nothing of it will ever appear in the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Redirect: this replica does not lead in the given term.
    #[error("not the leader in that term (leader: {leader:?})")]
    NotLeader {
        /// Who leads, if known.
        leader: Option<ReplicaId>,
    },
    /// Retry later: the queue is full, or the log is at its cap.
    #[error("too many proposals are waiting")]
    Overloaded,
    /// Answer with an error: the entry can never be proposed.
    #[error("the entry has {bytes} bytes, the limit is {limit_bytes}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// [`Limits::max_entry_bytes`].
        limit_bytes: usize,
    },
    /// Stop: the log has shut down or its membership epoch has ended.
    #[error("the log has stopped")]
    Stopped,
}

/// Why a read barrier gave no index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    /// Redirect: this replica does not lead, or stopped leading meanwhile.
    #[error("not the leader (leader: {leader:?})")]
    NotLeader {
        /// Who leads, if known.
        leader: Option<ReplicaId>,
    },
    /// Retry: no majority confirmed in time, or too many calls wait already.
    #[error("no majority confirmed the leadership in time")]
    TimedOut,
    /// Stop: the log has shut down.
    #[error("the log has stopped")]
    Stopped,
}

/// The log has shut down; nothing more will come from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log has stopped")]
pub struct LogStopped;

/// Why a log could not start. All are for the operator: nothing gets better by trying again unchanged.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error("configuration of the replicated log: {0}")]
    Config(String),
    /// The durable log cannot be opened, belongs to another replica, or is damaged.
    #[error(transparent)]
    Wal(#[from] crate::wal::WalError),
    /// The listening socket or the thread could not be had.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
}
