//! Brings transactions over several shards to an end when their clients do not (R26).
//!
//! Normally a client prepares a transaction on all of its shards but one, has that one commit, and
//! tells the others. A participant asks the deciding shard itself when the client has gone, when it
//! takes too long, or when the leadership that prepared the transaction has ended. If the deciding
//! shard has not committed by then, it never will.
//!
//! The deciding shard remembers its decisions until every participant has them in its log: it asks
//! them for those that are still prepared, and forgets the rest.

use crate::leader::Leader;
use crate::log_entry::Resolution;
use crate::migration::peers::PeerPool;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{ShardReply, ShardRequest};
use evenkeel_protocol::{ShardId, TxnId};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often is looked for transactions in doubt, in milliseconds.
const LOOK_MS: u64 = 50;
/// How long a client that is connected may take between the two phases, in milliseconds: longer
/// than it waits for the slowest shard to prepare.
const PATIENCE_MS: u64 = 6_000;
/// The interval at which the deciding shard is asked again, in milliseconds.
const AGAIN_MS: u64 = 200;
/// How long one question may take, in milliseconds.
const ASK_MS: u64 = 500;
/// How old a decision is when it is first tried to forget it, in milliseconds; and the interval of
/// further tries.
const FORGET_MS: u64 = 1_000;
/// The most decisions that one try looks at.
const MAX_IDS: usize = 20_000;

/// Asks about prepared transactions and forgets decisions, for as long as the leadership lasts.
/// Never returns.
pub(super) async fn end_transactions_in_doubt(leader: Arc<Leader>) {
    let peers = PeerPool::default();
    // Those that an earlier leadership has prepared: nobody else resolves them.
    let mut due: HashMap<TxnId, Instant> =
        leader.shared().transactions().all_prepared().map(|prepared| (prepared.id, evenkeel_host::now())).collect();
    let mut forget_at = evenkeel_host::now() + Duration::from_millis(FORGET_MS);
    let mut seen: BTreeSet<TxnId> = BTreeSet::new();
    loop {
        let asked = to_ask(&leader, &mut due);
        join_all(asked.iter().map(|(id, decider)| ask(&leader, &peers, *id, decider))).await;
        if evenkeel_host::now() >= forget_at {
            seen = forget(&leader, &peers, seen).await;
            forget_at = evenkeel_host::now() + Duration::from_millis(FORGET_MS);
        }
        evenkeel_host::sleep(Duration::from_millis(LOOK_MS)).await;
    }
}

/// The transactions to ask about now, with the shards that decide. `due` says when each is.
fn to_ask(leader: &Leader, due: &mut HashMap<TxnId, Instant>) -> Vec<(TxnId, ShardInfo)> {
    let now = evenkeel_host::now();
    let transactions = leader.shared().transactions();
    metrics::gauge!("evenkeel_prepared_transactions").set(transactions.all_prepared().count() as f64);
    due.retain(|id, _| transactions.prepared(*id).is_some());
    let mut asked = Vec::new();
    for prepared in transactions.all_prepared() {
        let at = due.entry(prepared.id).or_insert_with(|| now + Duration::from_millis(PATIENCE_MS));
        if *at <= now || leader.is_abandoned(prepared.id) {
            *at = now + Duration::from_millis(AGAIN_MS);
            asked.push((prepared.id, prepared.decider.clone()));
        }
    }
    asked
}

/// Asks the deciding shard, and resolves the transaction.
async fn ask(leader: &Leader, peers: &PeerPool, id: TxnId, decider: &ShardInfo) {
    metrics::counter!("evenkeel_transactions_in_doubt_total").increment(1);
    let request = ShardRequest::AskDecision { id };
    let answer = peers.ask_leader(decider, &request, Duration::from_millis(ASK_MS)).await;
    let Some(ShardReply::Decision(Some(committed))) = answer else { return };
    tracing::debug!(%id, committed, decider = %decider.id, "a transaction over several shards was in doubt");
    if let Err(failure) = leader.resolve_transaction(Resolution { id, committed }).await {
        tracing::debug!(%id, ?failure, "it is not resolved yet");
    }
}

/// Forgets decisions that every participant has in its log, of those that were there the last time,
/// too. Returns those that are there now.
async fn forget(leader: &Leader, peers: &PeerPool, seen: BTreeSet<TxnId>) -> BTreeSet<TxnId> {
    let decisions: Vec<_> = leader.shared().transactions().decisions().take(MAX_IDS).cloned().collect();
    let mut of_shard: BTreeMap<ShardId, (ShardInfo, Vec<TxnId>)> = BTreeMap::new();
    for decision in decisions.iter().filter(|decision| seen.contains(&decision.id)) {
        for shard in &decision.participants {
            of_shard.entry(shard.id).or_insert_with(|| (shard.clone(), Vec::new())).1.push(decision.id);
        }
    }
    let asked = of_shard.values().map(|(shard, ids)| still_prepared(peers, shard, ids.clone()));
    let kept: BTreeSet<TxnId> = join_all(asked).await.into_iter().flatten().collect();
    let known: Vec<TxnId> =
        decisions.iter().map(|decision| decision.id).filter(|id| seen.contains(id) && !kept.contains(id)).collect();
    // A leadership that is over forgets nothing; the next one asks again.
    if !known.is_empty() && leader.forget_decisions(known.clone()).await.is_err() {
        tracing::debug!("decisions are not forgotten yet");
    }
    decisions.iter().map(|decision| decision.id).filter(|id| !known.contains(id)).collect()
}

/// Which of these may still be prepared on a shard: all of them, if it does not say.
async fn still_prepared(peers: &PeerPool, shard: &ShardInfo, ids: Vec<TxnId>) -> Vec<TxnId> {
    let request = ShardRequest::AskPrepared { ids: ids.clone() };
    match peers.ask_leader(shard, &request, Duration::from_millis(ASK_MS)).await {
        Some(ShardReply::StillPrepared(prepared)) => prepared,
        _ => ids,
    }
}
