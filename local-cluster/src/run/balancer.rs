//! The switch of a cluster's balancer, and its restoration.
//!
//! A run switches the balancer off while it loads rows and reads them back. Afterwards it sets the
//! switch as it found it: an administrator who has switched the balancer off wants the load to run
//! without it.

use crate::run::error::RunError;
use crate::wait;
use evenkeel_client::admin::{AdminClient, AdminError};
use serde::Deserialize;
use std::time::Duration;

/// How long a placement driver may have no leader, in seconds.
const PATIENCE_S: u64 = 60;

/// The switch of a cluster's balancer, and its position before the run.
#[derive(Debug, Clone)]
pub struct BalancerSwitch {
    admin: AdminClient,
    enabled: bool,
}

/// The field of `GET /v1/balancer` that is used here.
#[derive(Debug, Deserialize)]
struct BalancerState {
    enabled: bool,
}

impl BalancerSwitch {
    /// Reads the switch. This is a run's first request: if no placement driver is reached, it fails
    /// at once.
    pub async fn read(admin: &AdminClient) -> Result<BalancerSwitch, RunError> {
        let ask = async || match admin.get("/v1/balancer").await {
            Err(error @ AdminError::Unreachable { .. }) => Ok(Err(error)),
            answer => answer.map(Ok),
        };
        let BalancerState { enabled } = patiently(ask).await?.map_err(RunError::failed)?;
        Ok(BalancerSwitch { admin: admin.clone(), enabled })
    }

    /// Switches the balancer off.
    pub async fn switch_off(&self) -> Result<(), RunError> {
        self.set(false).await
    }

    /// Sets the switch as it was before the run.
    pub async fn restore(&self) -> Result<(), RunError> {
        self.set(self.enabled).await
    }

    async fn set(&self, enabled: bool) -> Result<(), RunError> {
        let body = serde_json::json!({ "enabled": enabled });
        let _: serde_json::Value = patiently(async || self.admin.post("/v1/balancer", &body).await).await?;
        Ok(())
    }
}

/// Repeats an idempotent request while the placement driver elects a leader.
async fn patiently<T>(ask: impl AsyncFn() -> Result<T, AdminError>) -> Result<T, RunError> {
    let deadline = evenkeel_host::tokio_now() + Duration::from_secs(PATIENCE_S);
    loop {
        match ask().await {
            Err(error) if error.is_temporary() && evenkeel_host::tokio_now() < deadline => wait::pause().await,
            answer => return answer.map_err(RunError::failed),
        }
    }
}
