//! Delivery of reports to the placement driver.

use super::move_driver::LOOK_MS;
use super::report::{build_report, schema_report};
use crate::clock::now_ms;
use crate::config::Config;
use crate::leader::Leader;
use crate::move_observations::MoveObservations;
use crate::scrub::Scrub;
use crate::state_machine::{InPhase, MoveIn, OutPhase};
use evenkeel_protocol::OperatorId;
use evenkeel_protocol::placement::{PlacementReply, PlacementRequest};
use evenkeel_rpc::Pool;
use evenkeel_rpc::group::{Addresses, Group, GroupProtocol, Patience, ReplyMeaning};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often reports go out, in milliseconds.
const REPORT_MS: u64 = 250;
/// How often the members of the placement driver are asked for: with every n-th report.
const MEMBERS_EVERY_REPORTS: u64 = 20;
/// How long a report may take, in milliseconds.
const REPORT_BOUND_MS: u64 = 1_000;
/// A report is offered for at most twice this many times [`REPORT_BOUND_MS`]: the largest number of
/// placement-driver replicas.
const MAX_PLACEMENT_DRIVERS: u32 = 7;

/// Sends reports at their interval, and at once when the placement driver waits for a change. Never
/// returns.
pub(super) async fn send_reports(
    leader: Arc<Leader>,
    config: Arc<Config>,
    (observations, scrub): (Arc<MoveObservations>, Arc<Scrub>),
    mut wanted: mpsc::Receiver<()>,
) {
    let mut sequence = 0;
    let bound = Duration::from_millis(REPORT_BOUND_MS);
    let pool = Arc::new(Pool::new(1, bound));
    let mut placement_driver = Group::<Reporting>::new(config.placement_drivers.clone(), None, pool.clone());
    let mut tick = evenkeel_host::interval(Duration::from_millis(REPORT_MS));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let reportable = || (moves_to_report(&leader, &observations), schema_report(&leader));
    let mut reported = reportable();
    loop {
        // Changes that the placement driver waits for are reported at once; load is reported at its
        // interval.
        loop {
            tokio::select! {
                _ = tick.tick() => break,
                Some(()) = wanted.recv() => break,
                () = evenkeel_host::sleep(Duration::from_millis(LOOK_MS)) => {
                    let now = reportable();
                    if now != reported {
                        reported = now;
                        break;
                    }
                }
            }
        }
        sequence += 1;
        let report = build_report(&leader, &config, (&observations, &scrub), sequence, now_ms());
        let request = PlacementRequest::Report(Box::new(report));
        let patience = Patience { attempt: bound, total: bound.saturating_mul(2 * MAX_PLACEMENT_DRIVERS) };
        let taken = placement_driver.call(&request, patience).await.is_ok();
        // The placement driver's replicas change. If none of the known ones takes a report, they
        // have probably changed.
        if (!taken || sequence.is_multiple_of(MEMBERS_EVERY_REPORTS)) && placement_driver.refresh_members(bound).await {
            let members = placement_driver.members();
            pool.retain(|address| members.values().any(|member| member == address));
        }
    }
}

/// The messages of reports to the placement driver.
struct Reporting;

impl GroupProtocol for Reporting {
    type Request = PlacementRequest;
    type Reply = PlacementReply;

    fn verdict(reply: &PlacementReply) -> ReplyMeaning {
        match reply {
            PlacementReply::Accepted => ReplyMeaning::Answered,
            PlacementReply::NotLeader { leader } => ReplyMeaning::NotLeader { leader: *leader },
            PlacementReply::State { .. } | PlacementReply::Members(_) => ReplyMeaning::NotLeader { leader: None },
        }
    }

    fn members_request() -> PlacementRequest {
        PlacementRequest::Members
    }

    fn members(reply: PlacementReply) -> Option<Addresses> {
        match reply {
            PlacementReply::Members(members) => Some(members),
            _ => None,
        }
    }
}

/// The state of moves whose change is reported at once.
fn moves_to_report(leader: &Leader, checks: &MoveObservations) -> Vec<(OperatorId, bool)> {
    let state = leader.shared().state();
    let served = |m: &MoveIn| m.phase == InPhase::Adopted && !checks.adoption(m.operator).is_some_and(|a| a.pending);
    let moves_in = state.moves_in().map(|m| (m.operator, served(m)));
    let moves_out = state.moves_out().map(|m| (m.operator, m.phase == OutPhase::HandedOver));
    moves_in.chain(moves_out).collect()
}
