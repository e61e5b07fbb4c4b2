//! Inputs of the core.

use bytes::Bytes;

use crate::ids::{LogIndex, Term};
use crate::item::Kind;
use crate::membership::Membership;
use crate::wire::Wire;

/// One input.
#[derive(Debug)]
pub(crate) enum Input {
    /// A session with `peer`, whose disk is `store_id`, has been opened in `configuration`.
    SessionUp {
        peer: u64,
        session: u64,
        configuration: u32,
        store_id: u64,
    },
    SessionDown {
        peer: u64,
        session: u64,
    },
    Message {
        peer: u64,
        session: u64,
        wire: Wire,
    },
    Propose {
        kind: Kind,
        term: Term,
        payload: Bytes,
        /// The number under which a later turn reports the memory acknowledgement, or that there
        /// will be none.
        tracked: Option<u64>,
    },
    NewLeadership {
        current: Term,
    },
    /// A later turn answers under the same id.
    Barrier {
        id: u64,
    },
    /// A later turn gives a staleness bound, if a leader can be reached.
    AskStalenessBound,
    Compact(LogIndex),
    /// The applied position of the application.
    Applied(u64),
    RetainFrom(Option<LogIndex>),
    Installed {
        index: LogIndex,
        term: Term,
    },
    TryLead,
    YieldLeadership,
    /// A peer is in a newer configuration than this replica.
    NewerConfiguration(Membership),
    /// A replica of an older configuration, or of none, has greeted.
    Seen {
        replica: u64,
        store_id: u64,
    },
    /// Whether the application cannot serve.
    SetIneligible(bool),
    /// The clock has advanced by one tick.
    Tick,
    /// Appends an entry of an ended leadership, as OmniPaxos's forwarding would.
    #[cfg(test)]
    Rogue {
        term: Term,
        payload: Bytes,
    },
}
