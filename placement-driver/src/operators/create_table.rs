//! Creation of a table.
//!
//! Steps: apply, end. The owner of the first range creates the table in PostgreSQL and records the
//! range in its log. The table and its range are published when it has answered.
//!
//! Influence: none; the table has no load yet. Deadline: none. An administrator may cancel the
//! creation at a shard that owns nothing; should that shard have made the table all the same, it is
//! asked to drop it (`leftovers`).

use crate::state::PlacementState;
use evenkeel_protocol::shard::ControlRequest;
use evenkeel_protocol::{RangeId, ShardId, TableId};

/// The request to the owner.
pub(super) fn request(
    state: &PlacementState,
    table: TableId,
    range: RangeId,
    shard: ShardId,
) -> Option<(ShardId, ControlRequest)> {
    let table = state.tables.get(&table)?;
    Some((shard, ControlRequest::CreateTable { schema: (*table.schema).clone(), range }))
}
