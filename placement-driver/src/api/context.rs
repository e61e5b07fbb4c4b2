//! The context of the handlers.

use super::watch_limit::WatchLimit;
use crate::replica::ReplicaHandles;
use metrics::Counter;
use std::sync::Arc;

/// What handlers work with.
pub(crate) struct ApiContext {
    /// The replica.
    pub handles: Arc<ReplicaHandles>,
    /// Counts lookups of a key's route.
    pub lookups: Counter,
    /// Limits the watches that are open.
    pub watches: WatchLimit,
}

impl ApiContext {
    pub(super) fn new(handles: Arc<ReplicaHandles>) -> ApiContext {
        let lookups = metrics::counter!("evenkeel_placement_lookups_total");
        ApiContext { handles, lookups, watches: WatchLimit::default() }
    }
}
