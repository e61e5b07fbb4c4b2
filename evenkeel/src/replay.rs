//! `replay`: a run against a running cluster, with the same verification and report as `demo`.

use crate::config::{ConfigError, Kind, Layers, Setting, resolve};
use crate::error::CommandError;
use crate::roles;
use crate::run_config::{RunConfig, conclude};
use crate::screen::Screen;
use evenkeel_client::admin::AdminClient;
use evenkeel_local_cluster::endpoints::Endpoints;
use evenkeel_local_cluster::run::balancer::BalancerSwitch;
use evenkeel_local_cluster::run::{RunEnvironment, run};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;

/// The configuration of `replay`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ReplayConfig {
    /// The run.
    #[serde(flatten)]
    pub run: RunConfig,
    /// The `--endpoints` file of the cluster.
    #[serde(default)]
    pub endpoints: Option<PathBuf>,
    /// URLs of the placement driver's replicas instead.
    #[serde(default)]
    pub url: Option<String>,
}

/// The settings of `replay`.
pub fn settings() -> Vec<Setting> {
    let mut settings = RunConfig::settings();
    settings.extend([
        Setting::optional("endpoints", Kind::Path),
        Setting::optional("url", Kind::Urls).instead_of("endpoints"),
    ]);
    settings
}

/// Runs the workload. It starts no process; only a table is left behind.
pub async fn replay(layers: &Layers) -> Result<(), CommandError> {
    let config: ReplayConfig = resolve(&settings(), layers)?;
    let urls = config.urls()?;
    let workload = config.run.prepare()?;
    let screen = Screen::new();
    let admin = AdminClient::new(urls);
    let balancer = BalancerSwitch::read(&admin).await?;
    let progress = Arc::new(screen.clone());
    let environment = RunEnvironment { admin, balancer, cluster: None, chaos: false, progress };
    let end = roles::end_request(false).map_err(|e| CommandError::Failed(format!("listening for signals: {e}")))?;
    let options = config.run.options();
    let finished = tokio::select! {
        finished = run(&options, workload, &environment) => finished?,
        () = end => {
            // The run may have switched the balancer off.
            environment.balancer.restore().await?;
            return Err(CommandError::Interrupted);
        }
    };
    conclude(&finished, &config.run, &screen)
}

impl ReplayConfig {
    /// The URLs of the placement driver's replicas.
    fn urls(&self) -> Result<Vec<String>, ConfigError> {
        match (&self.endpoints, &self.url) {
            (Some(path), _) => {
                let read = Endpoints::read(path).map_err(|e| ConfigError::new(format!("endpoints: {e}")))?;
                Ok(read.rest)
            }
            (None, Some(urls)) => Ok(urls.split(',').map(str::to_string).collect()),
            (None, None) => Err(ConfigError::new(
                "endpoints is missing: give the file that demo --endpoints wrote, or --url with the placement driver's",
            )),
        }
    }
}
