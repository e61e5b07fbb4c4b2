//! Drain of a shard: removing it once it is empty.
//!
//! A drain is no operator of its own. The balancer moves the shard's ranges away, one move each;
//! this file removes the shard afterwards. Proof: the shard owns nothing by the placement state and
//! by its own report. A shard that has never reported in this leadership is removed after
//! [`UNHEARD_MS`]: its addresses may be mistyped. The state alone proves then that it owns nothing,
//! unless the state was restored from an old copy (R30).

use super::reported_routes::owned;
use crate::load::LoadModel;
use crate::state::{Command, PlacementState};
use evenkeel_host::{Bug, deliberate};

/// A shard that has not reported for this long since the beginning of a leadership counts as
/// absent, in milliseconds. Shards report several times a second.
pub const UNHEARD_MS: u64 = 10_000;

/// The removal of every draining shard that is empty. `since_ms` is the beginning of this
/// leadership.
pub(super) fn removals(state: &PlacementState, load: &LoadModel, since_ms: u64, now_ms: u64) -> Vec<Command> {
    let waited = since_ms + UNHEARD_MS <= now_ms;
    let mut removals = Vec::new();
    for (id, shard) in state.shards.iter().filter(|(_, shard)| shard.draining) {
        let reports_empty = match load.shards.get(id) {
            Some(view) => owned(&view.report).next().is_none(),
            None => waited && !state.restoring,
        };
        if state.is_empty(*id) && (reports_empty || deliberate(Bug::RemovedTooSoon)) {
            tracing::info!(shard = %shard.info.id, "drained: removing the shard");
            removals.push(Command::RemoveShard(*id));
        }
    }
    removals
}
