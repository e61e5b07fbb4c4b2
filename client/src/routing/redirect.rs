//! The information in a redirect: a shard that does not own a range says where it went.

use evenkeel_protocol::{Epoch, RangeId, ShardId};

/// What a redirect adds to the routing table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learning {
    /// The routing table now says where the range is.
    Routed,
    /// The table cannot be corrected because the bounds of the range are unknown, but the
    /// statement's key is there.
    Hint(RedirectHint),
    /// Nothing: only the placement driver knows.
    Nothing,
}

/// Where a shard says that a range went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RedirectHint {
    /// The new owner.
    pub shard: ShardId,
    /// The range's number there.
    pub range: RangeId,
    /// The range's epoch there.
    pub epoch: Epoch,
}
