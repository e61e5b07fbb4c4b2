//! All checkers, applied to a run that has ended, and the counts of its report.

use super::cluster::Cluster;
use super::options::RunReport;
use crate::checkers;
use crate::checkers::scrubbed::Scrubbed;
use crate::history::RunHistory;
use evenkeel_placement_driver::state::PlacementState;

/// Judges a run and completes its report.
pub(super) fn judge(cluster: &Cluster, shards: u32, scrubbed: &Scrubbed, report: &mut RunReport) {
    let history = cluster.history.borrow();
    let applied = cluster.registry.read().values().map(|shared| shared.applied().clone()).max_by_key(|a| a.index);
    let state = applied.as_ref().map(|applied| &applied.state);
    report.wrong.extend(violations(cluster, &history, state));
    if let Some(state) = state {
        for operator in state.operators.values() {
            let kind = format!("{:?}", operator.work);
            let kind = kind.split(' ').next().unwrap_or_default().to_string();
            *report.operators.entry(format!("{kind} {:?}", operator.status)).or_default() += 1;
        }
    }
    report.counts.clone_from(&cluster.membership.borrow().counts);
    if let Some(state) = state {
        let gone = u64::from(shards) - (state.shards.len() as u64).min(shards.into());
        report.counts.insert("shards drained and gone in the end", gone);
    }
    let (rounds, pieces) = scrubbed.done();
    report.counts.insert("rounds of comparing replicas", rounds);
    report.counts.insert("pieces of ranges compared", pieces);
    let coordination = &history.coordination;
    report.operations = history.events.len() + coordination.writes.len() + coordination.reads.len();
    report.counts.extend(&history.counts);
}

fn violations(cluster: &Cluster, history: &RunHistory, state: Option<&PlacementState>) -> Vec<String> {
    let mut wrong = Vec::new();
    if let Some(sentence) = &history.trouble {
        wrong.push(sentence.clone());
    }
    wrong.extend(checkers::counters::check(&history.events, history.last.as_ref()));
    wrong.extend(checkers::transfers::check(history.last.as_ref()));
    wrong.extend(checkers::levels::losses(&history.losses, &history.crashes, &history.denials, &history.events));
    wrong.extend(checkers::levels::leader_reads(&history.events, &history.denials));
    wrong.extend(checkers::replicas_equal::check(&cluster.hardware, &cluster.membership.borrow()));
    if let Some(state) = state {
        wrong.extend(checkers::moves_verified::check(state));
        if !cluster.membership.borrow().restored {
            wrong.extend(checkers::coordination_store::check(&history.coordination, &state.kv));
        }
        wrong.extend(checkers::drained::check(state, &history.owners));
    }
    wrong.extend(cluster.hardware.times().wrong());
    wrong.extend(checkers::one_owner::check(&history.owners));
    wrong.extend(history.overload.iter().flat_map(checkers::overload::check));
    for machine in cluster.machines.keys() {
        if let Some(sql) = cluster.hardware.postgres(*machine).unknown() {
            wrong.push(format!("the simulated server does not know the statement {sql}"));
        }
    }
    wrong
}
