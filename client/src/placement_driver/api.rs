//! The requests that the client makes to the placement driver.

use super::sse::Event;
use evenkeel_protocol::api::{CreateTableBody, MembersBody, Problem, RoutesBody, SchemaChangeBody, SchemaChangesBody};
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;

/// Why a request to the placement driver has no result.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No endpoint carried the request out for certain.
    #[error("the placement driver cannot be reached: {reason}")]
    Unreachable {
        /// Why, for each endpoint.
        reason: String,
        /// Whether an endpoint may have carried the request out; its answer was lost.
        maybe_done: bool,
    },
    /// The placement driver refuses the request, and would refuse it again.
    #[error("{}", .0.detail)]
    Refused(Problem),
}

/// The events of a watch.
pub trait Events: Send {
    /// The next event. An error, one sentence, is the end of the watch.
    fn next(&mut self) -> BoxFuture<'_, Result<Event, String>>;
}

/// The placement driver's API.
pub trait Api: Send + Sync {
    /// `GET /v1/routes`: the whole routing table.
    fn routes(&self) -> BoxFuture<'_, Result<RoutesBody, ApiError>>;

    /// `GET /v1/routes/watch`: the changes after the version `last_event_id`. The watch ends when
    /// nothing, not even a comment, arrives for the configured time.
    fn watch<'a>(&'a self, last_event_id: &'a str) -> BoxFuture<'a, Result<Box<dyn Events>, ApiError>>;

    /// `POST /v1/tables`: creates a table, within `timeout`.
    fn create_table<'a>(&'a self, body: &'a CreateTableBody, timeout: Duration) -> BoxFuture<'a, Result<(), ApiError>>;

    /// `GET /v1/schema?after=VERSION`: the schema's version, and the changes after a version.
    fn schema_after(&self, version: u64) -> BoxFuture<'_, Result<SchemaChangesBody, ApiError>>;

    /// `POST /v1/schema`: changes the schema, within `timeout`. It may be sent again after an unknown
    /// outcome.
    fn change_schema<'a>(
        &'a self,
        body: &'a SchemaChangeBody,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<SchemaChangesBody, ApiError>>;

    /// Adds the endpoints of the placement driver's replicas to the known ones.
    fn learn(&self, members: &MembersBody);

    /// Lets the next request begin at another endpoint.
    fn pass_over(&self);

    /// The known endpoints, the configured ones first.
    fn endpoints(&self) -> Arc<[String]>;
}
