//! The result of a round of the balancer.

use super::rejection::{Reason, Rejection};
use crate::state::NewDecision;
use std::sync::Arc;

/// What a round decides, and why it decides no more.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// The decisions. Empty in most rounds.
    pub decisions: Vec<NewDecision>,
    /// Why each shard and range is left alone.
    pub rejections: Vec<Rejection>,
    /// Whether the load is imbalanced, nothing is under way, and no action is left. The caller then
    /// ends rebalancing ([`Rebalancing::rest`](super::Rebalancing::rest)).
    pub exhausted: bool,
}

/// The rejections to show after a round. Those of the last round that ran out of actions stay until
/// there is another such round, or the load is balanced.
pub fn explanation(before: &Arc<Vec<Rejection>>, plan: &Plan) -> Arc<Vec<Rejection>> {
    let waiting = plan.rejections.iter().any(|rejection| matches!(rejection.reason, Reason::NotYet { .. }));
    if waiting && !before.is_empty() { before.clone() } else { Arc::new(plan.rejections.clone()) }
}
