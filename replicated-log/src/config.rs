//! Configuration of one replica of a group: identity, addresses, clock settings and limits.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::ids::ReplicaId;
use crate::membership::Members;

/// Clock settings. All values are milliseconds of wall time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The period of the event loop's clock.
    pub tick_ms: u64,
    /// The length of one heartbeat round. A dead leader is replaced after two to three rounds
    /// (log rule 15).
    pub election_timeout_ms: u64,
    /// After this time unanswered Prepare, Promise and PrepareReq messages are sent again. It must
    /// be far above the time that the largest log synchronisation takes (log rule 5).
    pub resend_ms: u64,
    /// The period at which replicas send each other their promise and positions (log rules 10 and
    /// 11).
    pub status_ms: u64,
    /// The period of leader leases (log rule 9); 0 turns them off. While a lease holds, read
    /// barriers cost no message. A leader that dies is replaced no sooner than this time after its
    /// last message. The value is the same on all replicas, and a replica must not be restarted
    /// within the old period after the value was reduced.
    pub lease_ms: u64,
    /// A read barrier not confirmed within this time fails with
    /// [`BarrierError::TimedOut`](crate::BarrierError::TimedOut).
    pub barrier_timeout_ms: u64,
    /// A peer silent for this time no longer delays compaction (log rule 10).
    pub forget_peer_ms: u64,
    /// A session on which nothing arrives for this time is closed and opened again.
    pub session_idle_ms: u64,
    /// The pause between attempts to open a session.
    pub redial_ms: u64,
    /// The time for which a replica whose configuration has ended waits until connected peers know
    /// the end too. A peer that does not learn it in time has to fetch the state.
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
    /// The total of proposals that wait for the event loop; above it `propose` returns
    /// `Overloaded`.
    pub queue_bytes: usize,
    /// The input of one turn of the event loop before it syncs (log rule 5).
    pub turn_bytes: usize,
    /// Entries kept in memory: by the log for its peers, and again (sharing the bytes) for
    /// subscribers.
    pub recent_bytes: usize,
    /// The size of a segment file. Segments grow under heavy writes, see
    /// [`Limits::largest_segment_bytes`]. The next segment is always prepared.
    pub segment_bytes: u64,
    /// Log kept behind the compaction point, so that a short absence needs no state transfer.
    pub retention_bytes: u64,
    /// The cap of the log. Above half of it the log is compacted past replicas that are behind, but
    /// never past the applied position of its own application or a retention that it asked for.
    /// Proposals are refused from two of the largest segments below the cap until compaction has
    /// freed space.
    pub log_cap_bytes: u64,
    /// About the size of one synchronisation message to a replica that is behind, and of the record
    /// that stores it. A replica that lacks more than twice this much receives the decided part in
    /// pieces of this size, one after the other.
    pub sync_bytes: usize,
    /// Messages waiting on one session; above it the whole session is closed (log rule 3).
    pub session_queue_bytes: usize,
    /// Messages received and not yet processed, per session; above it the socket is not read.
    pub inbound_bytes: usize,
    /// The largest frame accepted from a peer. Synchronisation takes more than a few times
    /// [`Limits::sync_bytes`] in one case only: a candidate that is far behind and the only one
    /// that can be elected. Then it takes up to the cap of the log.
    pub max_frame_bytes: usize,
    /// The most that one read of old entries from disk returns to a subscriber.
    pub read_bytes: usize,
    /// The number of waiting read barriers; above it a call fails with
    /// [`BarrierError::TimedOut`](crate::BarrierError::TimedOut).
    pub barrier_waiters: usize,
}

impl Limits {
    /// The size of segments that fill within seconds, in bytes: 32 MiB or a thirty-second of the
    /// log's cap, whichever is smaller, and at least [`Limits::segment_bytes`].
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

/// The configuration of a replica at its start.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// The group; sessions between different groups are refused (log rule 4).
    pub group: u64,
    /// Whether a replica with an empty folder waits until a membership change adds it. If false, it
    /// founds the group together with the other `peers` as configuration 1. A folder that is not
    /// empty overrides both.
    pub join: bool,
    /// This replica.
    pub me: ReplicaId,
    /// The address on which this replica listens for its peers.
    pub listen: SocketAddr,
    /// The founding members, this replica included; for a replica that joins, the replicas to ask.
    /// The members of later configurations are read from the folder.
    pub peers: Members,
    /// The folder of the durable log; created if absent, locked while in use.
    pub dir: PathBuf,
    /// Clock settings.
    pub timing: Timing,
    /// Limits.
    pub limits: Limits,
}
