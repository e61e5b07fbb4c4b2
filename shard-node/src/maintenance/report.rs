//! What a leader reports to the placement driver: put together from the state machine, the meters
//! and the log's view of its replicas.

use crate::config::Config;
use crate::leader::Leader;
use crate::move_observations::MoveObservations;
use crate::replica::membership;
use crate::scrub::Scrub;
use crate::state_machine::{InPhase, MoveIn, MoveOut, OutPhase, ShardState};
use evenkeel_protocol::report::{
    MoveProgress, OperatorPhase, OperatorReport, RangeLoad, RangeReport, RangeState, ReplicaReport, ShardReport,
};
use evenkeel_protocol::schema_change::SchemaReport;
use evenkeel_protocol::{Epoch, RangeId};
use std::collections::HashMap;

/// Reports between two that carry the tables: they rarely change and may be many.
const TABLES_EVERY: u64 = 20;

/// This leader's report number `sequence`; 0 for a report on request.
pub fn build_report(
    leader: &Leader,
    config: &Config,
    (observations, scrub): (&MoveObservations, &Scrub),
    sequence: u64,
    now_ms: u64,
) -> ShardReport {
    let shared = leader.shared();
    let state = shared.state();
    let status = shared.log.status();
    let with_tables = sequence <= 1 || sequence.is_multiple_of(TABLES_EVERY);
    let mut loads: HashMap<(RangeId, Epoch), RangeLoad> = HashMap::new();
    for latch in shared.latches.latches() {
        loads.insert((latch.range.id, latch.range.epoch), latch.statistics.report(now_ms));
    }
    let mut replicas: Vec<ReplicaReport> = status
        .peers
        .iter()
        .map(|(id, peer)| ReplicaReport { id: id.0, connected: peer.connected, decided: peer.decided.0 })
        .collect();
    if replicas.iter().all(|replica| replica.id != config.replica) {
        replicas.push(ReplicaReport { id: config.replica, connected: true, decided: status.decided.0 });
    }
    replicas.sort_by_key(|replica| replica.id);
    ShardReport {
        shard: config.shard,
        leader: config.replica,
        term: leader.leadership.term.0,
        sequence,
        applied: shared.progress.watermark(),
        clock_ms: shared.log.unix_ms(),
        replicas,
        members: Some(membership::reported(&shared.log)),
        capacity_per_s: config.capacity_per_s,
        ranges: ranges(&state, &mut loads),
        operators: state
            .moves_out()
            .map(source_side)
            .chain(state.moves_in().map(|movement| destination_side(movement, &status, observations)))
            .collect(),
        highest: state.highest(),
        tables: with_tables.then(|| state.tables().map(|table| (**table).clone()).collect()),
        scrub: scrub.status().report.clone(),
        schema: schema_report(leader),
    }
}

/// The version of the schema that PostgreSQL has, and the change that is prepared.
pub(super) fn schema_report(leader: &Leader) -> SchemaReport {
    let shared = leader.shared();
    let prepared = shared.state().prepared_schema().map(|prepared| prepared.operator);
    SchemaReport { version: shared.schema_version(), prepared }
}

fn ranges(state: &ShardState, loads: &mut HashMap<(RangeId, Epoch), RangeLoad>) -> Vec<RangeReport> {
    let open: HashMap<RangeId, &MoveOut> =
        state.moves_out().filter(|m| m.phase == OutPhase::Open).map(|m| (m.range, m)).collect();
    let mut ranges: Vec<RangeReport> = state
        .owned()
        .filter_map(|range| {
            // A range that is owned in the log and not admitted yet is reported later.
            let load = loads.remove(&(range.id, range.epoch))?;
            let state = match open.get(&range.id) {
                Some(m) => RangeState::MovingOut { operator: m.operator, to: m.to.id },
                None => RangeState::Owned,
            };
            let (id, epoch, table, interval) = (range.id, range.epoch, range.table, range.interval.clone());
            Some(RangeReport { id, epoch, table, interval, state, load })
        })
        .collect();
    ranges.extend(state.moves_out().filter(|m| m.phase != OutPhase::Open).map(|m| RangeReport {
        id: m.range,
        epoch: m.epoch,
        table: m.table,
        interval: m.interval.clone(),
        state: RangeState::Fenced { operator: m.operator, to: m.to.id },
        load: RangeLoad::default(),
    }));
    ranges.extend(state.moves_in().filter(|m| m.phase == InPhase::Copying).map(|m| RangeReport {
        id: m.range,
        epoch: m.epoch,
        table: m.table,
        interval: m.interval.clone(),
        state: RangeState::Incoming { operator: m.operator },
        load: RangeLoad { rows: m.rows, bytes: m.bytes, ..RangeLoad::default() },
    }));
    ranges
}

fn source_side(movement: &MoveOut) -> OperatorReport {
    let phase = match movement.phase {
        OutPhase::Open => OperatorPhase::Open,
        OutPhase::Fenced { .. } => OperatorPhase::Fenced,
        OutPhase::HandedOver => OperatorPhase::HandedOver,
        OutPhase::Purging => OperatorPhase::Purging { rows: 0 },
    };
    OperatorReport { operator: movement.operator, range: movement.range, phase, progress: None }
}

fn destination_side(
    movement: &MoveIn,
    status: &evenkeel_replicated_log::LogStatus,
    observations: &MoveObservations,
) -> OperatorReport {
    let attempt = movement.attempt;
    let phase = match movement.phase {
        InPhase::Copying if !movement.is_copied() => {
            OperatorPhase::Copying { attempt, rows: movement.rows, bytes: movement.bytes }
        }
        InPhase::Copying => {
            // The source's newer entries are unknown here; entries on their way through this log
            // are known.
            let lag = status.accepted.0.saturating_sub(status.decided.0);
            OperatorPhase::CatchingUp { attempt, lag, bytes: movement.bytes }
        }
        // Not before its rows are in here: until then no statement is served.
        InPhase::Adopted if observations.adoption(movement.operator).is_some_and(|a| a.pending) => {
            OperatorPhase::CatchingUp { attempt, lag: 0, bytes: movement.bytes }
        }
        InPhase::Adopted => {
            // A replica that was not there, or has been restarted since, knows no pause.
            let adoption = observations.adoption(movement.operator).unwrap_or_default();
            OperatorPhase::Adopted {
                epoch: movement.epoch.next(),
                pause_us: adoption.pause_us,
                rows: movement.rows,
                bytes: movement.bytes,
            }
        }
        InPhase::Discarding => OperatorPhase::Discarding,
    };
    let progress = (movement.phase == InPhase::Copying).then(|| MoveProgress {
        trouble: observations.trouble_of(movement.operator),
        differs: observations.cannot_be_copied(movement.operator),
        ..movement.progress()
    });
    OperatorReport { operator: movement.operator, range: movement.range, phase, progress }
}
