//! Delivery of reports to the placement driver.

use super::move_driver::LOOK_MS;
use super::report::build_report;
use crate::clock::now_ms;
use crate::config::Config;
use crate::leader::Leader;
use crate::move_observations::MoveObservations;
use crate::scrub::Scrub;
use crate::state_machine::{InPhase, MoveIn, OutPhase};
use evenkeel_protocol::OperatorId;
use evenkeel_protocol::placement::{PlacementReply, PlacementRequest};
use evenkeel_rpc::Connection;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often reports go out, in milliseconds.
const REPORT_MS: u64 = 250;
/// How often the members of the placement driver are asked for: with every n-th report.
const MEMBERS_EVERY_REPORTS: u64 = 20;
/// How long a report may take, in milliseconds.
const REPORT_BOUND_MS: u64 = 1_000;

/// Sends reports at their interval, and at once when the placement driver waits for a change. Never
/// returns.
pub(super) async fn send_reports(
    leader: Arc<Leader>,
    config: Arc<Config>,
    (observations, scrub): (Arc<MoveObservations>, Arc<Scrub>),
    mut wanted: mpsc::Receiver<()>,
) {
    let mut sequence = 0;
    let mut hint = None;
    let mut placement_drivers = config.placement_drivers.clone();
    let mut connections: HashMap<u64, Connection<PlacementRequest, PlacementReply>> = HashMap::new();
    let mut tick = tokio::time::interval(Duration::from_millis(REPORT_MS));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reported = moves_to_report(&leader, &observations);
    loop {
        // Changes that the placement driver waits for are reported at once; load is reported at its
        // interval.
        loop {
            tokio::select! {
                _ = tick.tick() => break,
                Some(()) = wanted.recv() => break,
                () = tokio::time::sleep(Duration::from_millis(LOOK_MS)) => {
                    let now = moves_to_report(&leader, &observations);
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
        hint = deliver(&placement_drivers, &mut connections, hint, &request).await;
        // The placement driver's replicas may be others by now than they were when this one was
        // configured; and if none of those that are known takes a report, they probably are.
        if (hint.is_none() || sequence.is_multiple_of(MEMBERS_EVERY_REPORTS))
            && let Some(members) = ask_members(&connections, hint).await
        {
            connections.retain(|replica, _| members.get(replica) == placement_drivers.get(replica));
            placement_drivers = members;
        }
    }
}

/// The members of the placement driver, from the first replica that answers; `first` is asked
/// first.
async fn ask_members(
    connections: &HashMap<u64, Connection<PlacementRequest, PlacementReply>>,
    first: Option<u64>,
) -> Option<BTreeMap<u64, SocketAddr>> {
    let mut asked: Vec<_> = connections.iter().collect();
    asked.sort_by_key(|(replica, _)| (Some(**replica) != first, **replica));
    for (_, connection) in asked {
        let bound = Duration::from_millis(REPORT_BOUND_MS);
        if let Ok(PlacementReply::Members(members)) = connection.call_within(&PlacementRequest::Members, bound).await
            && !members.is_empty()
        {
            return Some(members);
        }
    }
    None
}

/// The state of moves whose change is reported at once.
fn moves_to_report(leader: &Leader, checks: &MoveObservations) -> Vec<(OperatorId, bool)> {
    let state = leader.shared().state();
    let served = |m: &MoveIn| m.phase == InPhase::Adopted && !checks.adoption(m.operator).is_some_and(|a| a.pending);
    let moves_in = state.moves_in().map(|m| (m.operator, served(m)));
    let moves_out = state.moves_out().map(|m| (m.operator, m.phase == OutPhase::HandedOver));
    moves_in.chain(moves_out).collect()
}

/// Delivers a report to the leader of the placement driver; returns the replica to try first next
/// time.
async fn deliver(
    placement_drivers: &BTreeMap<u64, SocketAddr>,
    connections: &mut HashMap<u64, Connection<PlacementRequest, PlacementReply>>,
    hint: Option<u64>,
    request: &PlacementRequest,
) -> Option<u64> {
    let bound = Duration::from_millis(REPORT_BOUND_MS);
    let mut left: Vec<u64> = placement_drivers.keys().copied().collect();
    let mut next = hint.or(left.first().copied());
    while let Some(replica) = next {
        left.retain(|other| *other != replica);
        next = left.first().copied();
        let Some(address) = placement_drivers.get(&replica) else { continue };
        let connection = match connections.get(&replica).filter(|c| !c.is_closed()).cloned() {
            Some(connection) => connection,
            None => match Connection::connect(*address, bound).await {
                Ok(connection) => {
                    connections.insert(replica, connection.clone());
                    connection
                }
                Err(_) => continue,
            },
        };
        match connection.call_within(request, bound).await {
            Ok(PlacementReply::Accepted) => return Some(replica),
            Ok(PlacementReply::NotLeader { leader }) => {
                if let Some(leader) = leader.filter(|leader| left.contains(leader)) {
                    next = Some(leader);
                }
            }
            Ok(PlacementReply::State { .. } | PlacementReply::Members(_)) => {
                tracing::debug!(%address, "an answer to another question")
            }
            Err(error) => {
                tracing::debug!(%address, %error, "a report was not taken");
                connections.remove(&replica);
            }
        }
    }
    None
}
