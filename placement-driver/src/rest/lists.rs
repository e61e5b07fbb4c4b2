//! `GET /v1/ranges` and `GET /v1/shards`: lists that are as long as the cluster is large.
//!
//! The node needs the state and the reports in every turn, so an answer holds them only for as long as it takes to copy what is of bounded size: pointers to
//! the routing view and the shards' reports, which never change, the shards, and the ranges of operators under way. The lists are made of that afterwards.

use super::Failure;
use super::read::with_leader;
use super::view::RoutingView;
use crate::server::Shared;
use crate::state::Shard;
use evenkeel_protocol::api::{DifferenceBody, LoadBody, RangeBody, ScrubBody, ShardBody};
use evenkeel_protocol::report::{RangeReport, ShardReport};
use evenkeel_protocol::scrub::{Difference, ScrubReport};
use evenkeel_protocol::{OperatorId, RangeId, ShardId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What was heard of a shard last.
struct Heard {
    report: Arc<ShardReport>,
    ago_ms: u64,
    clock_off_ms: Option<i64>,
}

/// What lists are made of, as of one moment. What changes in the next has no part in it.
pub(super) struct Taken {
    view: Arc<RoutingView>,
    shards: Vec<Shard>,
    heard: BTreeMap<ShardId, Heard>,
    at_work: HashMap<RangeId, OperatorId>,
}

impl Taken {
    pub(super) fn of(shared: &Shared) -> Result<Taken, Failure> {
        with_leader(shared, |state, leading| {
            let now_ms = leading.now_ms();
            let heard = leading.picture.shards.iter().map(|(id, seen)| {
                let ago_ms = now_ms.saturating_sub(seen.last_ms);
                let clock_off_ms = leading.picture.clock_off_ms(*id);
                (*id, Heard { report: seen.report.clone(), ago_ms, clock_off_ms })
            });
            let holds = |range: &RangeId, id| state.ranges.get(range).is_some_and(|held| held.operator == Some(id));
            let at_work = state.running().flat_map(|o| o.work.ranges().into_iter().map(|range| (range, o.id)));
            Taken {
                view: shared.view(),
                shards: state.shards.values().cloned().collect(),
                heard: heard.collect(),
                at_work: at_work.filter(|(range, id)| holds(range, *id)).collect(),
            }
        })
    }

    /// The ranges by table and key.
    pub(super) fn ranges(&self) -> Vec<RangeBody> {
        let reported: HashMap<(ShardId, RangeId), &RangeReport> = self
            .heard
            .iter()
            .flat_map(|(shard, heard)| heard.report.ranges.iter().map(|range| ((*shard, range.id), range)))
            .collect();
        let body = |served: &Arc<super::view::Served>| {
            let route = &served.route;
            let told = reported.get(&(route.shard, route.range)).filter(|told| told.epoch == route.epoch);
            RangeBody {
                route: served.body.clone(),
                load: told.map(|told| LoadBody::from(&told.load)),
                operator: self.at_work.get(&route.range).copied(),
            }
        };
        self.view.tables().flat_map(|table| table.routes.iter().map(body)).collect()
    }

    /// The shards by number.
    pub(super) fn shards(&self) -> Vec<ShardBody> {
        let counts = self.view.range_counts();
        let body = |shard: &Shard| {
            let id = shard.info.id;
            let seen = self.heard.get(&id);
            let loads = seen.iter().flat_map(|heard| &heard.report.ranges).map(|range| range.load.statements_per_s());
            ShardBody {
                info: shard.info.clone(),
                status: shard_status(shard).to_string(),
                leader: seen.map(|heard| heard.report.leader),
                ranges: counts.get(&id).copied().unwrap_or(0),
                // The sum of nothing is minus zero.
                statements_per_s: loads.sum::<f64>() + 0.0,
                capacity_per_s: seen.and_then(|heard| heard.report.capacity_per_s),
                report_age_ms: seen.map(|heard| heard.ago_ms),
                clock_off_ms: seen.and_then(|heard| heard.clock_off_ms),
                replicas_seen: seen.map(|heard| heard.report.replicas.clone()).unwrap_or_default(),
                scrub: seen.map(|heard| self.scrub(&heard.report.scrub)),
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

/// How a shard stands, in a word.
pub(super) fn shard_status(shard: &crate::state::Shard) -> &'static str {
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
    use crate::state::{Action, Command, State, Step, Transition};
    use evenkeel_protocol::{KeyInterval, TableId};

    fn taken(state: &State, reports: Vec<ShardReport>) -> Taken {
        let heard = reports
            .into_iter()
            .map(|report| (report.shard, Heard { report: Arc::new(report), ago_ms: 7, clock_off_ms: None }));
        Taken {
            view: Arc::new(RoutingView::new(state, None)),
            shards: state.shards.values().cloned().collect(),
            heard: heard.collect(),
            at_work: HashMap::from([(RangeId(1), OperatorId(9))]),
        }
    }

    /// Thousands of ranges, all on one shard: each finds its report.
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
                let mut told = template.clone();
                (told.id, told.epoch) = (range.route.range, range.route.epoch);
                told.load.reads_per_s = 1.0;
                told
            })
            .collect();
        let taken = taken(&state, vec![report]);
        let list = taken.ranges();
        assert_eq!(list.len(), ranges as usize);
        assert!(list.iter().all(|body| body.load.is_some_and(|load| load.reads_per_s == 1.0)));
        assert_eq!(list[0].operator, Some(OperatorId(9)));
        let shards = taken.shards();
        assert_eq!((shards[0].ranges, shards[0].report_age_ms, shards[1].ranges), (ranges as usize, Some(7), 0));
    }
}
