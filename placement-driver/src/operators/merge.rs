//! Merge of two neighbouring ranges on one shard.
//!
//! Steps: apply, end. The owner merges the ranges by one entry of its log; no row moves. The merged
//! range is published when it has answered. It keeps the number of the left range and has an epoch
//! above both.
//!
//! Influence: a merge takes one of the shard's merge slots ([`slot_of`]). Deadline: none. The
//! request is repeated until the owner answers, and the owner alone can refuse it.

use crate::state::{Operator, Work};
use evenkeel_protocol::shard::ControlRequest;
use evenkeel_protocol::{Epoch, OperatorId, RangeId, ShardId};

/// The request to the owner.
pub(super) fn request(
    operator: OperatorId,
    left: (RangeId, Epoch),
    right: (RangeId, Epoch),
    shard: ShardId,
) -> (ShardId, ControlRequest) {
    (shard, ControlRequest::Merge { operator, left, right })
}

/// The shard on which a merge takes a slot. `None` for other operators.
pub fn slot_of(operator: &Operator) -> Option<ShardId> {
    match operator.work {
        Work::Merge { shard, .. } => Some(shard),
        _ => None,
    }
}
