//! The balancer during a run: held still while rows are loaded and read back, and afterwards as it was found. Whoever has switched it
//! off wants the load to run without it.

use crate::cli::CommandError;
use crate::rest::{Rest, RestError};
use serde::Deserialize;
use std::time::Duration;
use tokio::time::Instant;

/// How long a placement driver may have no leader, in seconds.
const PATIENCE_S: u64 = 60;

/// A cluster's balancer, and what it was before the run.
#[derive(Debug, Clone)]
pub struct Balancer {
    rest: Rest,
    enabled: bool,
}

/// The part of `GET /v1/balancer` that is read here.
#[derive(Debug, Deserialize)]
struct Setting {
    enabled: bool,
}

impl Balancer {
    /// Asks whether it is on. That is the first that a run asks: where nobody can be reached, it says so at once.
    pub async fn found(rest: &Rest) -> Result<Balancer, CommandError> {
        let ask = async || match rest.get("/v1/balancer").await {
            Err(error @ RestError::Unreachable { .. }) => Ok(Err(error)),
            answer => answer.map(Ok),
        };
        let Setting { enabled } = patiently(ask).await?.map_err(CommandError::failed)?;
        Ok(Balancer { rest: rest.clone(), enabled })
    }

    /// Holds it still.
    pub async fn hold(&self) -> Result<(), CommandError> {
        self.set(false).await
    }

    /// Sets it as it was found.
    pub async fn restore(&self) -> Result<(), CommandError> {
        self.set(self.enabled).await
    }

    async fn set(&self, enabled: bool) -> Result<(), CommandError> {
        let body = serde_json::json!({ "enabled": enabled });
        let _: serde_json::Value = patiently(async || self.rest.post("/v1/balancer", &body).await).await?;
        Ok(())
    }
}

/// Asking or saying it twice changes nothing, so both may be repeated while the placement driver elects a leader.
async fn patiently<T>(ask: impl AsyncFn() -> Result<T, RestError>) -> Result<T, CommandError> {
    let deadline = Instant::now() + Duration::from_secs(PATIENCE_S);
    loop {
        match ask().await {
            Err(error) if error.is_temporary() && Instant::now() < deadline => crate::cluster::wait::pause().await,
            answer => return answer.map_err(CommandError::failed),
        }
    }
}
