//! A replica's RPC service: who may ask what of whom.

use crate::connection::{NotKept, Session};
use crate::entry::{Control, Purpose};
use crate::housekeeping::settle;
use crate::leader::{Leader, now_ms};
use crate::members;
use crate::migration::{fence, peers, source};
use crate::node::{Current, Node};
use crate::report::build_report;
use crate::scrub::sums::SUM_UP_MS;
use crate::transfer;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{
    ControlReply, ControlRequest, Durability, Inspection, Leads, ReadLevel, ShardReply, ShardRequest, StatementReply,
    StatementRequest, TransactionOptions,
};
use evenkeel_protocol::{Failure, KeyInterval, OperatorId, SqlError};
use evenkeel_replicated_log::Role;
use evenkeel_rpc::{Gone, Replier, Service};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long a statement waits for a leadership that is about to begin here, in milliseconds.
const READY_MS: u64 = 500;

impl Service for Node {
    type Request = ShardRequest;
    type Reply = ShardReply;
    type Session = Session;

    fn opened(&self, _: SocketAddr) -> Session {
        Session::default()
    }

    fn closed(&self, session: Arc<Session>) {
        for (leader, handle) in session.close() {
            tokio::spawn(async move { leader.roll_back_transaction(&handle).await });
        }
    }

    async fn call(self: Arc<Self>, session: Arc<Session>, request: ShardRequest, mut replier: Replier<ShardReply>) {
        match request {
            // Not in a `local` read, which writes nothing.
            ShardRequest::Statement(request)
                if request.durability < Durability::Disk && request.read != ReadLevel::Local =>
            {
                let (early, answered) = oneshot::channel();
                let executed = async { self.leader_soon().await?.statement_early(request, Some(early)).await };
                reply_early(executed, answered, ShardReply::Rows, replier).await;
            }
            ShardRequest::Commit { transaction, id, key: None, durability } if durability < Durability::Disk => {
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
                Some(current) => {
                    source::serve_copy(current.shared, current.requests, &self.copies, request, replier).await
                }
                None => replier.reply(&ShardReply::Failed(starting())).await,
            },
            ShardRequest::State => match self.whole() {
                Some(current) => transfer::serve_state(current.requests, replier).await,
                None => replier.reply(&ShardReply::Failed(starting())).await,
            },
            ShardRequest::SeedRows(request) => match self.whole() {
                Some(current) => transfer::serve_rows(current.shared, &self.pacer, request, replier).await,
                None => replier.reply(&ShardReply::Failed(starting())).await,
            },
            other => {
                let gone = replier.gone();
                let reply = self.answer(&session, other, gone).await.unwrap_or_else(ShardReply::Failed);
                replier.reply_or(&reply, too_long).await;
            }
        }
    }
}

/// Answers a write at a durability below `disk`: early if it comes to that, and again when its COMMIT has ended (R28); else
/// once, by `whole`.
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
    let settled = match early {
        Ok(reply) => {
            replier.item(&ShardReply::Early(reply)).await;
            executed
                .await
                .map(|_| ShardReply::Done)
                .or_else(|lost| if deliberate(Bug::LossNotTold) { Ok(ShardReply::Done) } else { Err(lost) })
        }
        Err(_) => executed.await.map(whole),
    };
    replier.reply_or(&settled.unwrap_or_else(ShardReply::Failed), too_long).await;
}

/// The answer in place of one that no frame can hold. Rows are bounded before they get here.
fn too_long(reason: &str) -> ShardReply {
    ShardReply::Failed(SqlError::new(codes::PROGRAM_LIMIT, format!("the answer cannot be sent: {reason}")).into())
}

fn starting() -> Failure {
    Failure::Busy { reason: "the replica is starting".into(), retry_after_ms: 50 }
}

impl Node {
    fn current(&self) -> Option<Current> {
        self.current.borrow().clone()
    }

    /// The same, if no rows are missing.
    fn whole(&self) -> Option<Current> {
        self.current().filter(|current| current.shared.is_whole())
    }

    /// The leadership that serves, or where to go instead.
    pub fn leader(&self) -> Result<Arc<Leader>, Failure> {
        let serving = self.current().and_then(|current| current.leading.borrow().clone());
        if let Some(leader) = serving.filter(|leader| !leader.leadership.has_ended()) {
            return Ok(leader);
        }
        Err(match &*self.log.role().borrow() {
            // Elected, and not whole yet (invariant 4).
            Role::Leader { .. } => {
                Failure::Busy { reason: "the new leader is getting ready".into(), retry_after_ms: 5 }
            }
            Role::Follower { leader } | Role::Behind { leader, .. } => {
                Failure::NotLeader { leader: leader.map(|l| l.0).filter(|l| *l != self.config.replica) }
            }
        })
    }

    /// The same for statements: waits a little for a leadership that is about to begin here, so that clients that were sent on to
    /// the new leader need not ask again and again.
    async fn leader_soon(&self) -> Result<Arc<Leader>, Failure> {
        let soon = async {
            let mut role = self.log.role();
            let mut current = self.current.subscribe();
            while matches!(*role.borrow_and_update(), Role::Leader { .. }) {
                let Some(mut leading) = current.borrow_and_update().as_ref().map(|c| c.leading.clone()) else { break };
                if leading.borrow_and_update().as_ref().is_some_and(|leader| !leader.leadership.has_ended()) {
                    break;
                }
                // Whichever changes, the next look tells; the end of a sender is the end of this replica.
                let changed = tokio::select! {
                    changed = role.changed() => changed.is_ok(),
                    changed = current.changed() => changed.is_ok(),
                    changed = leading.changed() => changed.is_ok(),
                };
                if !changed {
                    break;
                }
            }
        };
        if self.leader().is_err() {
            // If the time is over `leader` says what is to be said.
            let _ = tokio::time::timeout(Duration::from_millis(READY_MS), soon).await;
        }
        self.leader()
    }

    async fn answer(&self, session: &Session, request: ShardRequest, gone: Gone) -> Result<ShardReply, Failure> {
        match request {
            ShardRequest::Statement(request)
                if request.read == ReadLevel::Local
                    || (request.read == ReadLevel::Leader && deliberate(Bug::LeaderReadAnywhere)) =>
            {
                let local = self.whole().map(|current| current.local).ok_or_else(starting)?;
                Ok(ShardReply::Rows(local.read(&request, gone).await?))
            }
            ShardRequest::Statement(request) => {
                Ok(ShardReply::Rows(self.leader_soon().await?.statement(request, Some(gone)).await?))
            }
            ShardRequest::Piece(request) if request.statement.read == ReadLevel::Local => {
                let local = self.whole().map(|current| current.local).ok_or_else(starting)?;
                Ok(ShardReply::Piece(local.piece(request, gone).await?))
            }
            ShardRequest::Piece(request) => {
                Ok(ShardReply::Piece(self.leader_soon().await?.piece(request, gone).await?))
            }
            ShardRequest::InTransaction { transaction, begin, statement } => {
                self.in_transaction(session, transaction, begin, statement).await
            }
            ShardRequest::Commit { transaction, id, key, .. } => {
                match session.take(transaction) {
                    Some((leader, handle)) => leader.commit_transaction(&handle, id).await?,
                    None => self.leader_soon().await?.commit_again(id, key).await?,
                }
                Ok(ShardReply::Done)
            }
            ShardRequest::Rollback { transaction } => {
                if let Some((leader, handle)) = session.take(transaction) {
                    leader.roll_back_transaction(&handle).await;
                }
                Ok(ShardReply::Done)
            }
            ShardRequest::Control(request) => Ok(ShardReply::Control(self.control(request).await?)),
            ShardRequest::Fence { operator, .. } => Ok(fence::fence(&self.leader()?, &self.fences, operator).await),
            ShardRequest::Resolved { operator, adopted } => {
                settle(&*self.leader()?, operator, adopted).await;
                Ok(ShardReply::Done)
            }
            ShardRequest::CopyTaken { copy, items } => {
                self.copies.taken(copy, items);
                Ok(ShardReply::Done)
            }
            ShardRequest::CopyStored { operator, attempt } => {
                let applied = self.current().map_or(0, |current| current.shared.progress.watermark());
                Ok(ShardReply::CopyStored { applied, differs: self.checks.differing(operator, attempt) })
            }
            ShardRequest::AskResolved { operator } => self.ask_settled(operator).await,
            ShardRequest::Inspect => Ok(ShardReply::Inspect(Box::new(self.inspect()))),
            ShardRequest::WhoLeads => Ok(ShardReply::Leads(self.who_leads())),
            ShardRequest::Checkpoint { nonce } => {
                let sums = self.checks.scrub.sums_of(nonce, Duration::from_millis(SUM_UP_MS)).await;
                Ok(ShardReply::Sums(Box::new(sums)))
            }
            ShardRequest::Copy(_) | ShardRequest::State | ShardRequest::SeedRows(_) => {
                Err(SqlError::new("XX000", "answered by a stream").into())
            }
        }
    }

    async fn in_transaction(
        &self,
        session: &Session,
        transaction: u64,
        begin: Option<TransactionOptions>,
        statement: StatementRequest,
    ) -> Result<ShardReply, Failure> {
        let (leader, handle) = match (session.find(transaction), begin) {
            (Some(open), _) => open,
            (None, Some(options)) => {
                let leader = self.leader_soon().await?;
                let handle = leader.begin_transaction(options).await?;
                if let Err(why) = session.put(transaction, (leader.clone(), handle.clone())) {
                    leader.roll_back_transaction(&handle).await;
                    return Err(match why {
                        NotKept::TooMany => SqlError::new("53300", "too many transactions are open on this connection"),
                        NotKept::Ended => SqlError::new("40001", "the transaction was rolled back as it began"),
                    }
                    .into());
                }
                (leader, handle)
            }
            (None, None) => {
                let gone = SqlError::new("40001", "the transaction is no longer open here");
                return Err(gone.hint("Retry the transaction.").into());
            }
        };
        Ok(ShardReply::Rows(leader.in_transaction(&handle, statement).await?))
    }

    async fn control(&self, request: ControlRequest) -> Result<ControlReply, Failure> {
        if let ControlRequest::TransferLeadership { to } = request {
            return self.transfer_leadership(to).await;
        }
        let leader = self.leader()?;
        match request {
            ControlRequest::SizeSplitKeys { range, epoch, pieces } => {
                leader.size_split_keys(range, epoch, pieces).await
            }
            ControlRequest::Purge { operator } => purge(&leader, operator).await,
            ControlRequest::Compare { from, left_behind } => {
                let purpose = if left_behind { Purpose::LeftBehind } else { Purpose::Look };
                let found = self.checks.scrub.compare(&leader, &from.unwrap_or_default(), purpose).await?;
                Ok(ControlReply::Compared(Box::new(found)))
            }
            ControlRequest::ChangeReplicas { remove, add } => {
                // What the membership shows may have been decided without a deposed leader: it is a read.
                leader.barrier().await?;
                Ok(members::change(&self.log, leader.leadership.term, remove, add.as_ref()).await)
            }
            ControlRequest::Report => {
                let report = build_report(&leader, &self.config, &self.checks, 0, now_ms());
                Ok(ControlReply::Report(Box::new(report)))
            }
            entry => leader.serve_control(&entry).await,
        }
    }

    /// Hands leadership over: the target must ask for it itself (log rule 15).
    async fn transfer_leadership(&self, to: Option<u64>) -> Result<ControlReply, Failure> {
        match to {
            Some(me) if me == self.config.replica => self.log.try_lead(),
            Some(other) => {
                let Some(address) = members::addresses(&self.log.membership().borrow()).get(&other).copied() else {
                    let reason = format!("shard {} has no replica {other}", self.config.shard);
                    return Ok(ControlReply::Refused { code: "no-such-replica".into(), reason });
                };
                let request = ShardRequest::Control(ControlRequest::TransferLeadership { to: Some(other) });
                let reply = peers::ask(address, &request, Duration::from_secs(2)).await;
                reply.map_err(|error| Failure::Busy { reason: error.to_string(), retry_after_ms: 100 })?;
            }
            None => self.log.yield_leadership(),
        }
        Ok(ControlReply::Done)
    }

    async fn ask_settled(&self, operator: OperatorId) -> Result<ShardReply, Failure> {
        let leader = self.leader()?;
        let known = leader.shared().state().settled(operator);
        leader.barrier().await?;
        Ok(ShardReply::Resolved(known))
    }

    fn who_leads(&self) -> Leads {
        Leads { itself: self.leader().is_ok(), leader: self.log.status().leader.map(|leader| leader.0) }
    }

    fn inspect(&self) -> Inspection {
        let status = self.log.status();
        let current = self.current();
        let leads = self.leader().is_ok();
        let shared = current.as_ref().map(|current| &current.shared);
        let ranges = shared.map(|shared| {
            let state = shared.state();
            state.owned().map(|r| (r.id, r.epoch, r.table, r.interval.clone(), true)).collect()
        });
        Inspection {
            shard: self.config.shard,
            replica: self.config.replica,
            replicas: members::addresses(&self.log.membership().borrow()),
            leads,
            leader: status.leader.map(|l| l.0),
            applied: shared.filter(|shared| shared.is_whole()).map_or(0, |shared| shared.progress.watermark()),
            seeded_bytes: self.seeded_bytes.load(Ordering::Relaxed),
            seeding: shared.is_some_and(|shared| !shared.is_whole()),
            decided: status.decided.0,
            first: status.first_retained.0,
            postgres_pid: current.as_ref().and_then(|current| current.postgres_pid),
            ranges: ranges.unwrap_or_default(),
        }
    }
}

/// R24: only a copy that was handed over is deleted.
async fn purge(leader: &Arc<Leader>, operator: OperatorId) -> Result<ControlReply, Failure> {
    use crate::fold::OutPhase;
    let state = leader.shared().state();
    let movement = state.move_out(operator);
    match movement.map(|m| m.phase) {
        None => {
            leader.barrier().await?;
            Ok(ControlReply::Done)
        }
        Some(OutPhase::HandedOver) => {
            // An empty piece says in the log that it may begin; whoever leads then does it (see `housekeeping`).
            let start = movement.map(|m| m.interval.start.clone()).unwrap_or_default();
            let interval = KeyInterval::new(start.clone(), Some(start));
            leader.control(Control::Purge { operator, interval, last: false }).await?;
            Ok(ControlReply::Pending { waiting_for: "the rows to be deleted".into() })
        }
        Some(OutPhase::Purging) => Ok(ControlReply::Pending { waiting_for: "the rows to be deleted".into() }),
        Some(OutPhase::Open | OutPhase::Fenced { .. }) => {
            Ok(ControlReply::Pending { waiting_for: "the destination to say that it has adopted the range".into() })
        }
    }
}
