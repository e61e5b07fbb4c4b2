//! What a session needs of its gateway. Values.

use super::planner::Planner;
use crate::front::server::FrontPostgres;
use evenkeel_client::Client;
use std::sync::Arc;

/// See the module.
pub struct SessionContext {
    /// The store.
    pub client: Client,
    /// The gateway's own PostgreSQL.
    pub front: Arc<FrontPostgres>,
    /// The planner.
    pub planner: Arc<Planner>,
}
