//! Tables whose ranges lie where a scenario wants them.

use crate::failure::ScenarioResult;
use crate::world::World;
use evenkeel_protocol::api::{OperatorBody, RangeBody, SplitBody};

/// Cuts a table at these keys, and puts the pieces on shards 1, 2 and 3 in turn.
pub async fn cut(world: &World, table: &str, at: &[serde_json::Value]) -> ScenarioResult {
    let range = world.only_range(table).await?.route.range;
    let at = at.iter().map(|key| key.as_array().cloned().unwrap_or_else(|| vec![key.clone()])).collect();
    let split: OperatorBody = world.admin().post(&format!("/v1/ranges/{range}/split"), &SplitBody { at }).await?;
    world.done(split.id).await?;
    for (piece, to) in world.ranges(table).await?.iter().zip([1, 2, 3].into_iter().cycle()) {
        place(world, piece, to).await?;
    }
    Ok(())
}

/// Puts a range on a shard.
pub async fn place(world: &World, range: &RangeBody, to: u32) -> ScenarioResult {
    if range.route.shard.0 != to {
        world.done(world.move_range(range.route.range, to).await?.id).await?;
    }
    Ok(())
}
