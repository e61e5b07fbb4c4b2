//! `replay`: a run against a cluster that is up, with the same checks and report as `demo`.

use crate::cli::CommandError;
use crate::cluster::endpoints::Endpoints;
use crate::config::{ConfigError, Kind, Layers, Setting, resolve};
use crate::rest::Rest;
use crate::roles;
use crate::run::balancer::Balancer;
use crate::run::screen::Screen;
use crate::run::{RunConfig, Stage};
use serde::Deserialize;
use std::path::PathBuf;

/// What `replay` does.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ReplayConfig {
    /// What is run.
    #[serde(flatten)]
    pub run: RunConfig,
    /// The file that says where the cluster is.
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

/// Runs it. It starts nothing, so nothing is left behind but a table.
pub async fn replay(layers: &Layers) -> Result<(), CommandError> {
    let config: ReplayConfig = resolve(&settings(), &roles::all_keys(), layers)?;
    let urls = config.urls()?;
    let workload = config.run.prepare()?;
    let screen = Screen::new();
    let rest = Rest::new(urls);
    let balancer = Balancer::found(&rest).await?;
    let stage = Stage { rest, balancer, cluster: None, chaos: false, screen: screen.clone() };
    let end = roles::told_to_end(false).map_err(|e| CommandError::Failed(format!("listening for signals: {e}")))?;
    let finished = tokio::select! {
        finished = crate::run::run_prepared(&config.run, workload, &stage) => finished?,
        () = end => {
            // The run may have been holding the balancer still.
            stage.balancer.restore().await?;
            return Err(CommandError::Interrupted);
        }
    };
    finished.conclude(&config.run, &screen)
}

impl ReplayConfig {
    /// Where the placement driver is asked.
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
