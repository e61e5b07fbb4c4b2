//! The result of a round of the balancer.

use super::rejection::{Reason, Rejection};
use crate::state::NewDecision;
use std::sync::Arc;

/// What a round decides, and why it decides no more.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RoundPlan {
    /// The decisions. Empty in most rounds.
    pub decisions: Vec<NewDecision>,
    /// Why each shard and range is left alone.
    pub rejections: Vec<Rejection>,
    /// Whether the load is imbalanced, nothing is under way, and no action is left. The caller then
    /// ends rebalancing ([`Rebalancing::rest`](super::Rebalancing::rest)).
    pub exhausted: bool,
}

/// The rejections to show after a round.
///
/// After a round that searched and found no action, the imbalance has to last again before there is
/// another search. Until then what the search found stays, instead of "not for long enough". What a
/// round says about shards and the cluster is always this round's: it may have changed.
pub fn explanation(before: &[Rejection], plan: &RoundPlan) -> Arc<Vec<Rejection>> {
    let waits = |rejection: &&Rejection| matches!(rejection.reason, Reason::NotYet { .. });
    let found = before.iter().filter(|rejection| rejection.reason.is_found_by_search());
    let found: Vec<Rejection> = found.copied().collect();
    if found.is_empty() || !plan.rejections.iter().any(|rejection| waits(&rejection)) {
        return Arc::new(plan.rejections.clone());
    }
    let current = plan.rejections.iter().filter(|rejection| !waits(rejection)).copied();
    Arc::new(current.chain(found).collect())
}

#[cfg(test)]
mod tests {
    use super::super::readiness::NotReady;
    use super::super::rejection::Subject;
    use super::*;
    use evenkeel_protocol::{RangeId, ShardId};

    fn about(subject: Subject, reason: Reason) -> Rejection {
        Rejection { subject, load: 1.0, reason }
    }

    fn plan(rejections: Vec<Rejection>) -> RoundPlan {
        RoundPlan { rejections, ..RoundPlan::default() }
    }

    #[test]
    fn what_a_search_found_stays_while_the_imbalance_has_to_last_again() {
        let (one, range) = (Subject::Shard(ShardId(1)), Subject::Range(RangeId(7), ShardId(1)));
        let not_yet = about(one, Reason::NotYet { ratio: 1.5, for_ms: 200 });
        let not_reported = about(Subject::All, Reason::NotReady(NotReady::NotReported(ShardId(2))));
        let shown = explanation(&[not_reported], &plan(vec![not_yet]));
        assert_eq!(*shown, [not_yet], "shard 2 has reported by now");

        let (single_key, clock) = (about(range, Reason::SingleKey), about(one, Reason::ClockOff { off_ms: 3000 }));
        let searched = explanation(&shown, &plan(vec![clock, single_key]));
        assert_eq!(*searched, [clock, single_key]);
        let silent = about(Subject::Shard(ShardId(2)), Reason::Silent);
        let shown = explanation(&searched, &plan(vec![not_yet, silent]));
        assert_eq!(*shown, [silent, single_key], "the clock is right again, and another shard silent");
        assert_eq!(*explanation(&shown, &plan(vec![not_yet])), [single_key]);

        let balanced = about(one, Reason::Balanced { ratio: 1.0, act_above: 1.15 });
        assert_eq!(*explanation(&shown, &plan(vec![balanced])), [balanced]);
    }
}
