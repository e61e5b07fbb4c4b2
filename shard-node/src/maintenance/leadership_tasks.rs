//! The background tasks of one leadership.

use super::move_driver::drive_moves;
use super::range_sizes::correct_sizes;
use super::repair::repair_replicas;
use super::reporting::send_reports;
use super::transactions_in_doubt::end_transactions_in_doubt;
use crate::config::Config;
use crate::leader::Leader;
use crate::move_observations::MoveObservations;
use crate::scrub::Scrub;
use crate::scrub::round::go_round;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Runs the background tasks of a leadership until it ends.
pub async fn leadership_tasks(
    leader: Arc<Leader>,
    config: Arc<Config>,
    observations: Arc<MoveObservations>,
    scrub: Arc<Scrub>,
) {
    let (report, wanted) = mpsc::channel(1);
    let mut ended = leader.leadership.ended();
    let observed = (observations.clone(), scrub.clone());
    tokio::select! {
        _ = ended.wait_for(|ended| *ended) => {}
        () = drive_moves(leader.clone(), observations.clone(), report) => {}
        () = send_reports(leader.clone(), config.clone(), observed, wanted) => {}
        () = end_transactions_in_doubt(leader.clone()) => {}
        () = correct_sizes(leader.clone()) => {}
        () = repair_replicas(leader.clone()) => {}
        () = go_round(&leader, &scrub, &config) => {}
    }
}
