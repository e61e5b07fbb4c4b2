//! The lists of ranges and shards, which are as long as the cluster is large.
//!
//! The event loop needs the state and the reports in every turn. So an answer locks them only while
//! it copies objects of bounded size: pointers to the routing view and the shards' reports, which
//! are immutable, the shards, and the ranges of operators under way. The lists are made from these
//! copies afterwards.
//!
//! Not done: pages.

use super::failure::ApiFailure;
use super::leader_access::with_leader;
use crate::replica::ReplicaHandles;
use crate::routing_view::{RoutingView, ServedRoute};
use crate::state::Shard;
use evenkeel_protocol::api::{DifferenceBody, LoadBody, RangeBody, ScrubBody, ShardBody};
use evenkeel_protocol::report::{RangeReport, ShardReport};
use evenkeel_protocol::scrub::{Difference, ScrubReport};
use evenkeel_protocol::{OperatorId, RangeId, ShardId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The last report of a shard.
struct LastReport {
    report: Arc<ShardReport>,
    ago_ms: u64,
    clock_off_ms: Option<i64>,
}

/// The objects from which the lists are made, as of one moment.
pub(super) struct ClusterLists {
    view: Arc<RoutingView>,
    shards: Vec<Shard>,
    reports: BTreeMap<ShardId, LastReport>,
    busy: HashMap<RangeId, OperatorId>,
}

impl ClusterLists {
    /// Copies the objects. Only the leader has them.
    pub(super) fn of(handles: &ReplicaHandles) -> Result<ClusterLists, ApiFailure> {
        with_leader(handles, |state, leading| {
            let now_ms = leading.now_ms();
            let reports = leading.balancer.load.shards.iter().map(|(id, seen)| {
                let ago_ms = now_ms.saturating_sub(seen.last_ms);
                let clock_off_ms = leading.balancer.load.clock_off_ms(*id);
                (*id, LastReport { report: seen.report.clone(), ago_ms, clock_off_ms })
            });
            let is_of = |range: &RangeId, id| state.ranges.get(range).is_some_and(|range| range.operator == Some(id));
            let busy = state.running().flat_map(|o| o.work.ranges().into_iter().map(|range| (range, o.id)));
            ClusterLists {
                view: handles.view(),
                shards: state.shards.values().cloned().collect(),
                reports: reports.collect(),
                busy: busy.filter(|(range, id)| is_of(range, *id)).collect(),
            }
        })
    }

    /// The ranges by table and key.
    pub(super) fn ranges(&self) -> Vec<RangeBody> {
        let reported: HashMap<(ShardId, RangeId), &RangeReport> = self
            .reports
            .iter()
            .flat_map(|(shard, last)| last.report.ranges.iter().map(|range| ((*shard, range.id), range)))
            .collect();
        let body = |served: &Arc<ServedRoute>| {
            let route = &served.route;
            let report = reported.get(&(route.shard, route.range)).filter(|report| report.epoch == route.epoch);
            RangeBody {
                route: served.body.clone(),
                load: report.map(|report| LoadBody::from(&report.load)),
                operator: self.busy.get(&route.range).copied(),
            }
        };
        self.view.tables().flat_map(|table| table.routes.iter().map(body)).collect()
    }

    /// The shards by number.
    pub(super) fn shards(&self) -> Vec<ShardBody> {
        let counts = self.view.range_counts();
        let body = |shard: &Shard| {
            let id = shard.info.id;
            let last = self.reports.get(&id);
            let loads = last.iter().flat_map(|last| &last.report.ranges).map(|range| range.load.statements_per_s());
            ShardBody {
                info: shard.info.clone(),
                status: shard_status(shard).to_string(),
                leader: last.map(|last| last.report.leader),
                ranges: counts.get(&id).copied().unwrap_or(0),
                // The sum of an empty list is minus zero.
                statements_per_s: loads.sum::<f64>() + 0.0,
                capacity_per_s: last.and_then(|last| last.report.capacity_per_s),
                report_age_ms: last.map(|last| last.ago_ms),
                clock_off_ms: last.and_then(|last| last.clock_off_ms),
                replicas_seen: last.map(|last| last.report.replicas.clone()).unwrap_or_default(),
                scrub: last.map(|last| self.scrub(&last.report.scrub)),
            }
        };
        self.shards.iter().map(body).collect()
    }

    fn scrub(&self, report: &ScrubReport) -> ScrubBody {
        let body = |difference: &Difference| {
            let table = self.view.tables().find(|table| table.schema.id == difference.table);
            DifferenceBody::new(difference, table.map(|table| &*table.schema))
        };
        ScrubBody {
            rounds: report.rounds,
            pieces: report.pieces,
            bytes: report.bytes,
            found: report.found,
            differences: report.differences.iter().map(body).collect(),
        }
    }
}

/// The status of a shard, in one word.
pub(super) fn shard_status(shard: &Shard) -> &'static str {
    match (shard.lost, shard.draining) {
        (true, _) => "lost",
        (_, true) => "draining",
        _ => "active",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::balancer::testing::{key, must, state_with_table};
    use crate::operators::testing::owned_report;
    use crate::state::{Action, Command, PlacementState, Step, Transition};
    use evenkeel_protocol::{KeyInterval, TableId};

    fn lists(state: &PlacementState, reports: Vec<ShardReport>) -> ClusterLists {
        let reports = reports
            .into_iter()
            .map(|report| (report.shard, LastReport { report: Arc::new(report), ago_ms: 7, clock_off_ms: None }));
        ClusterLists {
            view: Arc::new(RoutingView::new(state, None)),
            shards: state.shards.values().cloned().collect(),
            reports: reports.collect(),
            busy: HashMap::from([(RangeId(1), OperatorId(9))]),
        }
    }

    /// Thousands of ranges are all on one shard: each finds its report.
    #[test]
    fn lists_are_made_of_what_was_taken_and_show_everything() {
        let mut state = state_with_table(2);
        let ranges = 2000;
        let mut next = 1;
        while next < ranges {
            let at: Vec<_> = (next..(next + 60).min(ranges)).map(key).collect();
            next += at.len() as i64;
            let last = *state.ranges.keys().next_back().unwrap();
            let range = state.ranges_of(TableId(1)).last().map_or(last, |range| range.route.range);
            let operator = state.next_operator();
            must(&mut state, 1, Command::Begin(Action::Split { range, epoch: None, at }));
            must(&mut state, 1, Command::Advance { operator, from: Step::Apply, transition: Transition::Applied });
        }
        let mut report = owned_report(1, 1, RangeId(1), 1, KeyInterval::ALL);
        let template = report.ranges[0].clone();
        report.ranges = state
            .ranges
            .values()
            .map(|range| {
                let mut report = template.clone();
                (report.id, report.epoch) = (range.route.range, range.route.epoch);
                report.load.reads_per_s = 1.0;
                report
            })
            .collect();
        let lists = lists(&state, vec![report]);
        let list = lists.ranges();
        assert_eq!(list.len(), ranges as usize);
        assert!(list.iter().all(|body| body.load.is_some_and(|load| load.reads_per_s == 1.0)));
        assert_eq!(list[0].operator, Some(OperatorId(9)));
        let shards = lists.shards();
        assert_eq!((shards[0].ranges, shards[0].report_age_ms, shards[1].ranges), (ranges as usize, Some(7), 0));
    }
}
