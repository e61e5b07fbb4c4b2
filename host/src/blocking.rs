//! Blocking work beside asynchronous tasks.

use crate::simulation::simulation;

/// Runs blocking work (mostly on files) on another thread.
///
/// # Errors
/// The work panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    if simulation().is_some() {
        // The simulation does not control the moments at which another thread runs.
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}
