//! `--chaos`: kills processes with SIGKILL while ranges move, and starts them again.
//!
//! [`FaultPlan`] chooses what to kill and when.

use crate::cluster::Cluster;
use crate::process_id::ProcessId;
use crate::run::error::RunError;
use crate::run::fault_plan::{AWAY_MS, ChaosAction, FaultPlan, FaultTarget};
use crate::run::progress::ProgressListener;
use crate::run::watch::Watch;
use crate::wait;
use evenkeel_protocol::api::{MoveBody, OperatorBody};
use evenkeel_workloads::report::FaultRecord;
use std::time::{Duration, Instant};

/// The faults of a run.
#[derive(Debug, Default)]
pub struct ChaosResult {
    /// The faults that were injected.
    pub faults: Vec<FaultRecord>,
    /// In words, the faults that were not injected.
    pub findings: Vec<String>,
}

/// Injects faults until all four are done or the run nears its end. Returns when every process has
/// been started again.
pub async fn run(
    cluster: &Cluster,
    watch: &Watch,
    progress: &dyn ProgressListener,
    started: Instant,
    duration_s: f64,
    seed: u64,
) -> Result<ChaosResult, RunError> {
    let mut plan = FaultPlan::new(seed);
    let mut faults: Vec<FaultRecord> = Vec::new();
    let mut away: Vec<(Instant, ProcessId)> = Vec::new();
    while (!plan.is_done() || !away.is_empty()) && evenkeel_host::elapsed(started).as_secs_f64() < duration_s {
        for (_, id) in
            away.extract_if(.., |(since, _)| evenkeel_host::elapsed(*since) >= Duration::from_millis(AWAY_MS))
        {
            cluster.restart(id).map_err(RunError::failed)?;
            progress.line(&format!(
                "{:>6.1} s  chaos: {id} is started again",
                evenkeel_host::elapsed(started).as_secs_f64()
            ));
        }
        let down = away.iter().map(|(_, id)| *id).collect();
        let elapsed = evenkeel_host::elapsed(started).as_secs_f64() / duration_s;
        match plan.next(&watch.last(), placement_driver_leader(cluster).await, &down, elapsed) {
            Some(ChaosAction::Kill(target, id, operator)) => {
                let at_s = evenkeel_host::elapsed(started).as_secs_f64();
                let what = kill(cluster, target, id)?;
                if target != FaultTarget::Postgres {
                    away.push((evenkeel_host::now(), id));
                }
                let what = format!("{what} while operator {operator} was moving a range");
                progress.line(&format!("{at_s:>6.1} s  chaos: {what}"));
                faults.push(FaultRecord { at_s, what });
                // Earlier observations say nothing about the time after the kill.
                watch.fresh().await;
            }
            Some(ChaosAction::AskForMove(range, to)) => {
                let path = format!("/v1/ranges/{range}/move");
                if let Err(error) = cluster.admin().post::<_, OperatorBody>(&path, &MoveBody { to }).await {
                    tracing::debug!(%error, "asking for a move");
                    plan.refused();
                }
            }
            None => {}
        }
        wait::pause().await;
    }
    for (_, id) in away {
        cluster.restart(id).map_err(RunError::failed)?;
    }
    Ok(ChaosResult { faults, findings: plan.findings() })
}

fn kill(cluster: &Cluster, target: FaultTarget, id: ProcessId) -> Result<String, RunError> {
    Ok(match target {
        FaultTarget::Postgres => {
            let pid = cluster.kill_postgres(id).map_err(RunError::failed)?;
            format!("kill -9 of {id}'s PostgreSQL (pid {pid}, of the destination's leader)")
        }
        _ => {
            cluster.kill(id).map_err(RunError::failed)?;
            format!("kill -9 of {id}, {},", target.name())
        }
    })
}

/// The placement driver's leader, by the account of the replica that answers.
async fn placement_driver_leader(cluster: &Cluster) -> Option<u64> {
    let status: serde_json::Value = cluster.admin().get("/v1/status").await.ok()?;
    status["leader"].as_u64()
}
