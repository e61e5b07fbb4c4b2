//! What every part of the core may use in a turn.

use crate::wal::Disk;

use super::config::CoreConfig;
use super::outgoing::Outgoing;
use super::paxos::Paxos;
use super::peers::Peers;

/// Settings, consensus, peers, output and time. Parts with few needs take single fields instead.
pub(super) struct TurnContext<D: Disk> {
    pub(super) config: CoreConfig,
    pub(super) paxos: Paxos<D>,
    pub(super) peers: Peers,
    pub(super) out: Outgoing,
    pub(super) now_ms: u64,
}
