//! Split of a range.
//!
//! Steps: apply, end. The owner splits the range by one entry of its log; no row moves. The pieces
//! are published when it has answered. The left piece keeps the range's number, and every piece has
//! the next epoch.
//!
//! Influence: none; the load of the pieces is expected from the range's load profile until it is
//! measured. Deadline: none. The request is repeated until the owner answers, and the owner alone
//! can refuse it.

use evenkeel_protocol::shard::ControlRequest;
use evenkeel_protocol::{Epoch, Key, OperatorId, RangeId, ShardId};

/// The request to the owner.
pub(super) fn request(
    operator: OperatorId,
    range: RangeId,
    epoch: Epoch,
    shard: ShardId,
    at: &[(Key, RangeId)],
) -> (ShardId, ControlRequest) {
    (shard, ControlRequest::Split { operator, range, epoch, at: at.to_vec() })
}
