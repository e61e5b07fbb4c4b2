//! Repair of replicas that have lost their disks: a configuration with the same members and their
//! present disks.

use crate::leader::Leader;
use crate::replica::membership;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How often a leader looks for replicas that have lost their disks, in milliseconds. It acts when
/// it has seen one twice: a disk that comes and goes is more likely a mistake in a configuration.
const LOOK_MS: u64 = 500;

/// Repairs replicas that have lost their disks, by a change to the same members with their present
/// disks. Never returns.
pub async fn repair_replicas(leader: Arc<Leader>) {
    let log = &leader.shared().log;
    let mut before = BTreeMap::new();
    loop {
        evenkeel_host::sleep(Duration::from_millis(LOOK_MS)).await;
        let lost = log.lost_disks();
        if !lost.is_empty() && lost == before {
            tracing::warn!(replicas = ?lost.keys(), "came back with another disk; a new configuration admits them");
            metrics::counter!("evenkeel_replicas_reseeded_total").increment(lost.len() as u64);
            let members = log.membership().borrow().members.clone();
            let reply = membership::propose(log, leader.leadership.term, &members).await;
            tracing::info!(?reply, "asked for the same members with other disks");
        }
        before = lost;
    }
}
