//! A replica of the placement driver as a process runs it: with its REST API.

use crate::api;
use crate::config::Config;
use crate::metrics;
use crate::replica::{self, RunError};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::future::Future;
use tokio::net::TcpListener;

/// Runs a replica until `shutdown` completes.
///
/// # Errors
/// [`RunError`] if the replica cannot start or cannot continue. A retry without a change does not
/// help.
pub fn run(
    config: Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> BoxFuture<'static, Result<(), RunError>> {
    boxed(config, shutdown.boxed())
}

/// The body of an `async fn` is compiled by the crate that awaits it, and a replica's body is most
/// of this crate. Boxed here, it is compiled once.
#[inline(never)]
fn boxed(config: Config, shutdown: BoxFuture<'static, ()>) -> BoxFuture<'static, Result<(), RunError>> {
    with_rest(config, shutdown).boxed()
}

async fn with_rest(config: Config, shutdown: BoxFuture<'static, ()>) -> Result<(), RunError> {
    config.check().map_err(RunError::Config)?;
    metrics::install();
    let Some(address) = config.listen_rest.or(config.rest.get(&config.replica).copied()) else {
        return Err(RunError::Config(format!("rest: replica {} has no address", config.replica)));
    };
    let bound = TcpListener::bind(address).await;
    let listener = bound.map_err(|source| RunError::Io { what: format!("rest: {address}"), source })?;
    let front = |handles, mut stopped: tokio::sync::watch::Receiver<bool>| {
        let end = async move {
            // An error means that the sender is gone, which is an end too.
            stopped.wait_for(|stopped| *stopped).await.ok();
        };
        api::serve(listener, handles, end)
    };
    replica::serve(config, front, shutdown).await
}
