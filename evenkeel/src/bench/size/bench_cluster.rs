//! Clusters for the parts of `bench size`, and the memory of their processes.

use crate::bench::size::config::SizeConfig;
use crate::bench::size::figures::{Bar, Figure};
use crate::bench::size::usage::Peak;
use crate::error::CommandError;
use crate::executable::own_executable;
use crate::screen::{Screen, while_waiting};
use evenkeel_local_cluster::{Cluster, ClusterOptions};

/// The memory that a replica's process may use, in bytes, without its PostgreSQL.
const MEMORY_BUDGET_BYTES: f64 = 512.0 * 1024.0 * 1024.0;

/// The settings and the display of all parts.
pub struct SizeBench<'a> {
    /// The settings.
    pub config: &'a SizeConfig,
    /// The display.
    pub screen: Screen,
}

impl SizeBench<'_> {
    /// The bytes of the smaller data set.
    pub fn bytes(&self) -> u64 {
        (self.config.gigabytes * 1e9) as u64
    }

    /// Starts a cluster of `shards` shards, with the balancer on or off.
    pub async fn cluster(&self, shards: u32, balancer: bool) -> Result<Cluster, CommandError> {
        let mut options = ClusterOptions::new(own_executable()?);
        options.shards = shards;
        options.postgres_bin.clone_from(&self.config.postgres_bin);
        options.balancer.insert("enabled".into(), toml::Value::Boolean(balancer));
        let cluster = Cluster::launch(options)?;
        let what = format!("starting {shards} shards of three replicas");
        let (ready, _) = while_waiting(&self.screen, &what, cluster.wait_ready()).await;
        ready.map_err(CommandError::failed)?;
        Ok(cluster)
    }

    /// Runs `work` on the cluster, stops the cluster, and returns the result of `work`. `peak`
    /// records the memory of its processes.
    pub async fn on<T>(
        &self,
        cluster: Cluster,
        peak: &Peak,
        work: impl AsyncFnOnce(&Cluster) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let pids = || cluster.process_ids().into_iter().filter_map(|id| cluster.pid(id)).collect();
        let ended = tokio::select! {
            ended = work(&cluster) => ended,
            never = peak.watch(pids) => match never {},
        };
        cluster.stop().await;
        ended
    }
}

/// The peak memory of one process of a cluster, against its budget.
pub fn memory(peak: &Peak, at: &str) -> Figure {
    let most = peak.bytes() as f64 / 1e6;
    Figure::new("peak memory of one process", at, most, "MB").bar(Bar::AtMost(MEMORY_BUDGET_BYTES / 1e6))
}
