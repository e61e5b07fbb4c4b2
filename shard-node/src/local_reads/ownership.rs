//! Whether a replica owns the keys of a read, by its state machine. Pure.

use crate::state_machine::{OutPhase, ShardState};
use evenkeel_protocol::{Failure, Key, TableId};
use evenkeel_sql::Touches;

/// MoveObservations that all keys lie in ranges that are owned here and not fenced (R9).
pub(super) fn check_owned(state: &ShardState, table: TableId, touches: &Touches) -> Result<(), Failure> {
    let missing = match touches {
        Touches::Nothing => None,
        Touches::Keys(keys) => keys.iter().find(|key| state.owner(table, key).is_none()).cloned(),
        Touches::Intervals(intervals) => intervals.iter().find_map(|interval| {
            let mut at = interval.start.clone();
            loop {
                let Some(range) = state.owner(table, &at) else { return Some(at) };
                match &range.interval.end {
                    Some(end) if interval.end.as_ref().is_none_or(|until| end < until) => at = end.clone(),
                    _ => return None,
                }
            }
        }),
    };
    missing.map_or(Ok(()), |key| Err(elsewhere(state, table, &key)))
}

/// Where a key is that is not owned here, as far as this replica has applied the log. It may lag.
fn elsewhere(state: &ShardState, table: TableId, key: &Key) -> Failure {
    if state.moves_in().any(|m| m.table == table && m.interval.contains(key)) {
        let reason = "the range is coming to this replica".to_string();
        return Failure::Busy { reason, retry_after_ms: 20 };
    }
    let gone = state
        .moves_out()
        .filter(|m| m.phase != OutPhase::Open && m.table == table && m.interval.contains(key))
        .max_by_key(|m| m.epoch);
    Failure::Moved { to: gone.map(|m| m.to.id), range: gone.map(|m| (m.range, m.epoch.next())) }
}
