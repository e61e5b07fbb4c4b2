//! `replay`: a run against a cluster that is up, with the same checks and report as `demo`.

use crate::cli::CommandError;
use crate::cluster::endpoints::Endpoints;
use crate::config::{ConfigError, Kind, Layers, Setting, resolve};
use crate::rest::Rest;
use crate::roles;
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
    settings.extend([Setting::optional("endpoints", Kind::Path), Setting::optional("url", Kind::Text)]);
    settings
}

/// Runs it. It starts nothing, so nothing is left behind but a table.
pub async fn replay(layers: &Layers) -> Result<(), CommandError> {
    let config: ReplayConfig = resolve(&settings(), &roles::all_keys(), layers)?;
    let urls = match (&config.endpoints, &config.url) {
        (Some(path), _) => Endpoints::read(path).map_err(CommandError::Failed)?.rest,
        (None, Some(urls)) => urls.split(',').map(|url| url.trim().to_string()).collect(),
        (None, None) => {
            let line =
                "endpoints is missing: give the file that demo --endpoints wrote, or --url with the placement driver's";
            return Err(ConfigError::new(line).into());
        }
    };
    let screen = Screen::new();
    let stage = Stage { rest: Rest::new(urls), cluster: None, chaos: false, screen: screen.clone() };
    let end = roles::told_to_end(false).map_err(|e| CommandError::Failed(format!("listening for signals: {e}")))?;
    let finished = tokio::select! {
        finished = crate::run::run(&config.run, &stage) => finished?,
        () = end => {
            // The run may have been holding the balancer still.
            let on = serde_json::json!({ "enabled": true });
            let answer: Result<serde_json::Value, _> = stage.rest.post("/v1/balancer", &on).await;
            answer.map_err(CommandError::failed)?;
            return Err(CommandError::Interrupted);
        }
    };
    if crate::demo::show(&screen, &finished) {
        Ok(())
    } else {
        Err(CommandError::Failed("the run has found something wrong: see the report".into()))
    }
}
