//! The RPC service of a replica: requests of clients, of peers, and of the placement driver.
//!
//! | sender | requests |
//! |---|---|
//! | client | statements, transactions, pieces of streams |
//! | placement driver | control requests, reports |
//! | peer of this shard | checkpoints for comparison, state, rows for a re-seed |
//! | replica of another shard | copies of moving ranges, fences, outcomes of moves and of transactions |
//!
//! A request that only a leader can serve is answered with `NotLeader` elsewhere. While PostgreSQL
//! starts, every request that needs it is answered with `Busy`.

use super::connection_transactions::{ConnectionTransactions, no_longer_open};
use super::membership;
use super::pass_through;
use super::process::ReplicaProcess;
use crate::clock::now_ms;
use crate::leader::ended_transaction::Ending;
use crate::log_entry::{Purpose, Resolution};
use crate::maintenance::{build_report, purge, resolve_move};
use crate::migration::{fence, peers, source};
use crate::scrub::checkpoint_sums::SUM_UP_MS;
use crate::scrub::compare::compare;
use crate::state_transfer;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{
    ControlReply, ControlRequest, Durability, Inspection, Leads, ReadLevel, ShardReply, ShardRequest, StatementReply,
    StatementRequest, TransactionOptions,
};
use evenkeel_protocol::{Failure, OperatorId, SqlError};
use evenkeel_rpc::{Gone, Replier, Service};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::oneshot;

impl Service for ReplicaProcess {
    type Request = ShardRequest;
    type Reply = ShardReply;
    type Session = ConnectionTransactions;

    fn opened(&self, _: SocketAddr) -> ConnectionTransactions {
        ConnectionTransactions::default()
    }

    fn closed(&self, session: Arc<ConnectionTransactions>) {
        for (leader, handle) in session.close() {
            tokio::spawn(async move { leader.roll_back_transaction(&handle).await });
        }
        for (id, leader) in session.abandoned() {
            leader.abandon_transaction(id);
        }
    }

    async fn call(
        self: Arc<Self>,
        session: Arc<ConnectionTransactions>,
        request: ShardRequest,
        mut replier: Replier<ShardReply>,
    ) {
        match request {
            // Not in a `local` read, which writes nothing.
            ShardRequest::Statement(request)
                if request.durability < Durability::Disk && request.read != ReadLevel::Local =>
            {
                let (early, answered) = oneshot::channel();
                let executed = async { self.leader_soon().await?.statement_early(request, Some(early)).await };
                reply_early(executed, answered, ShardReply::Rows, replier).await;
            }
            ShardRequest::Commit { transaction, id, key: None, durability, participants }
                if durability < Durability::Disk && participants.is_empty() =>
            {
                let (early, answered) = oneshot::channel();
                let committed = async {
                    match session.take(transaction) {
                        Some((leader, handle)) => leader.commit_early(&handle, id, durability, Some(early)).await,
                        None => self.leader_soon().await?.commit_again(id, None).await,
                    }
                };
                reply_early(committed, answered, |()| ShardReply::Done, replier).await;
            }
            ShardRequest::Copy(request) => match self.whole() {
                Some(start) => source::serve_copy(start.handles, start.requests, &self.copies, request, replier).await,
                None => replier.reply(&ShardReply::Failed(starting())).await,
            },
            ShardRequest::State => match self.whole() {
                Some(start) => state_transfer::serve_state(start.requests, replier).await,
                None => replier.reply(&ShardReply::Failed(starting())).await,
            },
            ShardRequest::SeedRows(request) => match self.whole() {
                Some(start) => state_transfer::serve_rows(start.handles, &self.pacer, request, replier).await,
                None => replier.reply(&ShardReply::Failed(starting())).await,
            },
            ShardRequest::PassThrough(request) => pass_through::serve(&self, &session, &request, replier).await,
            other => {
                let gone = replier.gone();
                let reply = answer(&self, &session, other, gone).await.unwrap_or_else(ShardReply::Failed);
                replier.reply_or(&reply, too_long).await;
            }
        }
    }
}

/// Answers a write at a durability below `disk`: early if it comes to that, and again when its
/// COMMIT has ended (R28); else once, by `whole`.
async fn reply_early<T>(
    executed: impl Future<Output = Result<T, Failure>>,
    answered: oneshot::Receiver<StatementReply>,
    whole: impl FnOnce(T) -> ShardReply,
    mut replier: Replier<ShardReply>,
) {
    tokio::pin!(executed);
    let early = tokio::select! {
        biased;
        result = &mut executed => {
            return replier.reply_or(&result.map_or_else(ShardReply::Failed, whole), too_long).await;
        }
        early = answered => early,
    };
    // Without an early answer it was no write, or it failed before it got so far.
    let outcome = match early {
        Ok(reply) => {
            replier.item(&ShardReply::Early(reply)).await;
            executed
                .await
                .map(|_| ShardReply::Done)
                .or_else(|lost| if deliberate(Bug::LossNotReported) { Ok(ShardReply::Done) } else { Err(lost) })
        }
        Err(_) => executed.await.map(whole),
    };
    replier.reply_or(&outcome.unwrap_or_else(ShardReply::Failed), too_long).await;
}

/// The answer in place of an answer that no frame can hold. Rows are bounded before they get here.
fn too_long(reason: &str) -> ShardReply {
    ShardReply::Failed(SqlError::new(codes::PROGRAM_LIMIT, format!("the answer cannot be sent: {reason}")).into())
}

fn starting() -> Failure {
    Failure::Busy { reason: "the replica is starting".into(), retry_after_ms: 50 }
}

async fn answer(
    process: &ReplicaProcess,
    session: &ConnectionTransactions,
    request: ShardRequest,
    gone: Gone,
) -> Result<ShardReply, Failure> {
    match request {
        ShardRequest::Statement(request)
            if request.read == ReadLevel::Local
                || (request.read == ReadLevel::Leader && deliberate(Bug::LeaderReadAnywhere)) =>
        {
            let local = process.whole().map(|start| start.local).ok_or_else(starting)?;
            Ok(ShardReply::Rows(local.read(&request, gone).await?))
        }
        ShardRequest::Statement(request) => {
            Ok(ShardReply::Rows(process.leader_soon().await?.statement(request, Some(gone)).await?))
        }
        ShardRequest::Piece(request) if request.statement.read == ReadLevel::Local => {
            let local = process.whole().map(|start| start.local).ok_or_else(starting)?;
            Ok(ShardReply::Piece(local.piece(request, gone).await?))
        }
        ShardRequest::Piece(request) => Ok(ShardReply::Piece(process.leader_soon().await?.piece(request, gone).await?)),
        ShardRequest::InTransaction { transaction, begin, statement } => {
            in_transaction(process, session, transaction, begin, statement).await
        }
        ShardRequest::Commit { transaction, id, key, participants, durability: _ } => {
            match session.take(transaction) {
                Some((leader, handle)) => leader.commit_transaction(&handle, &Ending { id, participants }).await?,
                None => process.leader_soon().await?.commit_again(id, key).await?,
            }
            Ok(ShardReply::Done)
        }
        ShardRequest::Prepare { transaction, id, decider } => {
            let Some((leader, handle)) = session.take(transaction) else { return Err(no_longer_open()) };
            session.prepare(id, &leader);
            let prepared = leader.prepare_transaction(&handle, id, decider).await;
            prepared.inspect_err(|_| session.resolve(id)).map(|()| ShardReply::Done)
        }
        ShardRequest::Resolve { id, committed } => {
            process.leader_soon().await?.resolve_transaction(Resolution { id, committed }).await?;
            session.resolve(id);
            Ok(ShardReply::Done)
        }
        ShardRequest::AskDecision { id } => Ok(ShardReply::Decision(process.leader()?.decision(id).await?)),
        ShardRequest::AskPrepared { ids } => {
            Ok(ShardReply::StillPrepared(process.leader()?.still_prepared(ids).await?))
        }
        ShardRequest::Rollback { transaction } => {
            if let Some((leader, handle)) = session.take(transaction) {
                leader.roll_back_transaction(&handle).await;
            }
            Ok(ShardReply::Done)
        }
        ShardRequest::Control(request) => Ok(ShardReply::Control(control(process, request).await?)),
        ShardRequest::Fence { operator, .. } => Ok(fence::fence(&process.leader()?, &process.fences, operator).await),
        ShardRequest::Resolved { operator, adopted } => {
            resolve_move(&*process.leader()?, operator, adopted).await;
            Ok(ShardReply::Done)
        }
        ShardRequest::CopyTaken { copy, items } => {
            process.copies.taken(copy, items);
            Ok(ShardReply::Done)
        }
        ShardRequest::CopyStored { operator, attempt } => {
            let applied = process.current().map_or(0, |start| start.handles.progress.watermark());
            Ok(ShardReply::CopyStored { applied, differs: process.observations.differing(operator, attempt) })
        }
        ShardRequest::AskResolved { operator } => ask_outcome(process, operator).await,
        ShardRequest::Inspect => Ok(ShardReply::Inspect(Box::new(inspect(process)))),
        ShardRequest::WhoLeads => Ok(ShardReply::Leads(who_leads(process))),
        ShardRequest::Checkpoint { nonce } => {
            let sums = process.scrub.sums.sums_of(nonce, Duration::from_millis(SUM_UP_MS)).await;
            Ok(ShardReply::Sums(Box::new(sums)))
        }
        ShardRequest::Copy(_) | ShardRequest::State | ShardRequest::SeedRows(_) | ShardRequest::PassThrough(_) => {
            Err(SqlError::new("XX000", "answered by a stream").into())
        }
    }
}

async fn in_transaction(
    process: &ReplicaProcess,
    session: &ConnectionTransactions,
    transaction: u64,
    begin: Option<TransactionOptions>,
    statement: StatementRequest,
) -> Result<ShardReply, Failure> {
    let (leader, handle) = match (session.find(transaction), begin) {
        (Some(open), _) => open,
        (None, Some(options)) => {
            let leader = process.leader_soon().await?;
            let handle = leader.begin_transaction(options).await?;
            if let Err(why) = session.put(transaction, (leader.clone(), handle.clone())) {
                leader.roll_back_transaction(&handle).await;
                return Err(why.into());
            }
            (leader, handle)
        }
        (None, None) => return Err(no_longer_open()),
    };
    Ok(ShardReply::Rows(leader.in_transaction(&handle, statement).await?))
}

async fn control(process: &ReplicaProcess, request: ControlRequest) -> Result<ControlReply, Failure> {
    if let ControlRequest::TransferLeadership { to } = request {
        return transfer_leadership(process, to).await;
    }
    let leader = process.leader()?;
    match request {
        ControlRequest::SizeSplitKeys { range, epoch, pieces } => leader.size_split_keys(range, epoch, pieces).await,
        ControlRequest::Purge { operator } => purge(&leader, operator).await,
        ControlRequest::Compare { from, left_behind } => {
            let purpose = if left_behind { Purpose::LeftBehind } else { Purpose::Look };
            let found = compare(&process.scrub, &leader, &from.unwrap_or_default(), purpose).await?;
            Ok(ControlReply::Compared(Box::new(found)))
        }
        ControlRequest::ChangeReplicas { remove, add } => {
            // What the membership shows may have been decided without a deposed leader: it is a
            // read.
            leader.barrier().await?;
            Ok(membership::change(&process.log, leader.leadership.term, remove, add.as_ref()).await)
        }
        ControlRequest::Report => {
            let report = build_report(&leader, &process.config, (&process.observations, &process.scrub), 0, now_ms());
            Ok(ControlReply::Report(Box::new(report)))
        }
        ControlRequest::CheckTable { schema } => Ok(crate::table_definition::check(&schema)),
        ControlRequest::PrepareSchema { operator, delta } => leader.prepare_schema(operator, delta).await,
        ControlRequest::AbortSchema { operator } => leader.abort_schema(operator).await,
        ControlRequest::ApplySchema { delta, ranges } => leader.apply_schema(delta, ranges).await,
        ControlRequest::SchemaAfter { version } => leader.schema_after(version).await,
        entry => leader.serve_control(&entry).await,
    }
}

/// Hands leadership over: the target must ask for it itself (log rule 15).
async fn transfer_leadership(process: &ReplicaProcess, to: Option<u64>) -> Result<ControlReply, Failure> {
    match to {
        Some(me) if me == process.config.replica => process.log.try_lead(),
        Some(other) => {
            let Some(address) = membership::addresses(&process.log.membership().borrow()).get(&other).copied() else {
                let reason = format!("shard {} has no replica {other}", process.config.shard);
                return Ok(ControlReply::Refused { code: "no-such-replica".into(), reason });
            };
            let request = ShardRequest::Control(ControlRequest::TransferLeadership { to: Some(other) });
            let reply = peers::ask(address, &request, Duration::from_secs(2)).await;
            reply.map_err(|error| Failure::Busy { reason: error.to_string(), retry_after_ms: 100 })?;
        }
        None => process.log.yield_leadership(),
    }
    Ok(ControlReply::Done)
}

async fn ask_outcome(process: &ReplicaProcess, operator: OperatorId) -> Result<ShardReply, Failure> {
    let leader = process.leader()?;
    let known = leader.shared().state().resolved(operator);
    leader.barrier().await?;
    Ok(ShardReply::Resolved(known))
}

fn who_leads(process: &ReplicaProcess) -> Leads {
    Leads { itself: process.leader().is_ok(), leader: process.log.status().leader.map(|leader| leader.0) }
}

fn inspect(process: &ReplicaProcess) -> Inspection {
    let status = process.log.status();
    let current = process.current();
    let leads = process.leader().is_ok();
    let handles = current.as_ref().map(|start| &start.handles);
    let ranges = handles.map(|handles| {
        let state = handles.state();
        state.owned().map(|r| (r.id, r.epoch, r.table, r.interval.clone(), true)).collect()
    });
    Inspection {
        shard: process.config.shard,
        replica: process.config.replica,
        replicas: membership::addresses(&process.log.membership().borrow()),
        leads,
        leader: status.leader.map(|l| l.0),
        applied: handles.filter(|handles| handles.is_whole()).map_or(0, |handles| handles.progress.watermark()),
        seeded_bytes: process.seeded_bytes.load(Ordering::Relaxed),
        seeding: handles.is_some_and(|handles| !handles.is_whole()),
        decided: status.decided.0,
        first: status.first_retained.0,
        postgres_pid: current.as_ref().and_then(|start| start.postgres_pid),
        ranges: ranges.unwrap_or_default(),
    }
}
