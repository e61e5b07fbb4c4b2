//! A replica's RPC service: who may ask what of whom.

use crate::checks::Adoption;
use crate::connection::{NotKept, Session};
use crate::entry::Control;
use crate::housekeeping::settle;
use crate::leader::reign::Outcome;
use crate::leader::{Leader, now_ms};
use crate::members;
use crate::migration::{fence, peers, source};
use crate::node::{Current, Node};
use crate::report::build_report;
use crate::transfer;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{
    ControlReply, ControlRequest, Durability, Inspection, ReadLevel, ReplicaChecksums, ShardReply, ShardRequest,
    StatementReply, StatementRequest, TransactionOptions,
};
use evenkeel_protocol::{Failure, KeyInterval, OperatorId, SqlError};
use evenkeel_replicated_log::Role;
use evenkeel_rpc::{Replier, RpcError, Service};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long replicas may take for their checksums, in milliseconds.
const CHECKSUMS_MS: u64 = 60_000;
/// How long a statement waits for a reign that is about to begin here, in milliseconds.
const READY_MS: u64 = 500;
/// How long another replica may take to say what it knows of an adoption, in milliseconds.
const ADOPTED_MS: u64 = 1_000;

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

    async fn call(self: Arc<Self>, session: Arc<Session>, request: ShardRequest, replier: Replier<ShardReply>) {
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
            ShardRequest::Copy(request) => match self.current() {
                Some(current) => source::serve_copy(current.shared, current.requests, request, replier).await,
                None => replier.reply(&ShardReply::Failed(starting())).await,
            },
            ShardRequest::State => match self.current() {
                Some(current) => transfer::serve_state(current.requests, replier).await,
                None => replier.reply(&ShardReply::Failed(starting())).await,
            },
            other => {
                let reply = self.answer(&session, other).await.unwrap_or_else(ShardReply::Failed);
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

    /// The reign that serves, or where to go instead.
    pub fn leader(&self) -> Result<Arc<Leader>, Failure> {
        let serving = self.current().and_then(|current| current.leading.borrow().clone());
        if let Some(leader) = serving.filter(|leader| !leader.reign.has_ended()) {
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

    /// The same for statements: waits a little for a reign that is about to begin here, so that clients that were sent on to
    /// the new leader need not ask again and again.
    async fn leader_soon(&self) -> Result<Arc<Leader>, Failure> {
        let soon = async {
            let mut role = self.log.role();
            let mut current = self.current.subscribe();
            while matches!(*role.borrow_and_update(), Role::Leader { .. }) {
                let Some(mut leading) = current.borrow_and_update().as_ref().map(|c| c.leading.clone()) else { break };
                if leading.borrow_and_update().as_ref().is_some_and(|leader| !leader.reign.has_ended()) {
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

    async fn answer(&self, session: &Session, request: ShardRequest) -> Result<ShardReply, Failure> {
        match request {
            ShardRequest::Statement(request)
                if request.read == ReadLevel::Local
                    || (request.read == ReadLevel::Leader && deliberate(Bug::LeaderReadAnywhere)) =>
            {
                let local = self.current().map(|current| current.local).ok_or_else(starting)?;
                Ok(ShardReply::Rows(local.read(&request).await?))
            }
            ShardRequest::Statement(request) => {
                Ok(ShardReply::Rows(self.leader_soon().await?.statement(request).await?))
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
            ShardRequest::Fence { operator, .. } => Ok(fence::fence(&*self.leader()?, &self.fences, operator).await),
            ShardRequest::Settled { operator, adopted } => {
                settle(&*self.leader()?, operator, adopted).await;
                Ok(ShardReply::Done)
            }
            ShardRequest::AskSettled { operator } => self.ask_settled(operator).await,
            ShardRequest::Inspect => Ok(ShardReply::Inspect(Box::new(self.inspect()))),
            ShardRequest::AdoptedChecksum { operator } => Ok(ShardReply::Control(self.adopted_checksum(operator))),
            ShardRequest::Checkpoint { nonce } => {
                let sums = self.checks.of_checkpoint(nonce, Duration::from_millis(CHECKSUMS_MS)).await;
                Ok(ShardReply::Control(ControlReply::Checksums(vec![sums])))
            }
            ShardRequest::Copy(_) | ShardRequest::State => Err(SqlError::new("XX000", "answered by a stream").into()),
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
            ControlRequest::MoveChecksum { operator } => self.move_checksum(&leader, operator).await,
            ControlRequest::Purge { operator } => purge(&leader, operator).await,
            ControlRequest::Checksums => Ok(ControlReply::Checksums(self.checksums(&leader).await?)),
            ControlRequest::ChangeReplicas { remove, add } => {
                // What the membership shows may have been decided without a deposed leader: it is a read.
                leader.barrier().await?;
                Ok(members::change(&self.log, leader.reign.term, remove, add.as_ref()))
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

    async fn move_checksum(&self, leader: &Leader, operator: OperatorId) -> Result<ControlReply, Failure> {
        if let Some(checksum) = leader.checksum_at_fence(operator).await? {
            return Ok(ControlReply::Checksum(checksum));
        }
        let own = self.adopted_checksum(operator);
        if !matches!(own, ControlReply::Refused { .. }) {
            return Ok(own);
        }
        // Each replica took its own when it applied the adoption; one that was not restarted since still knows it.
        let replicas = members::addresses(&self.log.membership().borrow());
        let others = replicas.iter().filter(|(replica, _)| **replica != self.config.replica);
        let bound = Duration::from_millis(ADOPTED_MS);
        let request = ShardRequest::AdoptedChecksum { operator };
        let asked = others.map(|(_, at)| peers::ask(*at, &request, bound));
        let answers = futures::future::join_all(asked).await;
        let told = |answer: &Result<ShardReply, RpcError>| match answer {
            Ok(ShardReply::Control(reply @ ControlReply::Checksum(_))) => Some(reply.clone()),
            _ => None,
        };
        if let Some(known) = answers.iter().find_map(told) {
            return Ok(known);
        }
        let refused = |answer: &Result<ShardReply, RpcError>| {
            matches!(answer, Ok(ShardReply::Control(ControlReply::Refused { .. })))
        };
        if !answers.iter().all(refused) && self.checks.may_ask(operator) {
            return Ok(ControlReply::Pending { waiting_for: "a replica that knows the adopted rows' checksum".into() });
        }
        Ok(own)
    }

    /// What this replica knows of an adopted range's checksum.
    fn adopted_checksum(&self, operator: OperatorId) -> ControlReply {
        match self.checks.adoption(operator) {
            Some(Adoption { checksum: Some(checksum), .. }) => ControlReply::Checksum(checksum),
            Some(Adoption { unknown: false, .. }) => {
                ControlReply::Pending { waiting_for: "the checksum of the adopted rows".into() }
            }
            Some(_) | None => {
                let reason = format!("no replica that answers saw operator {operator} adopt the range, and runs since");
                ControlReply::Refused { code: "checksum-unknown".into(), reason }
            }
        }
    }

    /// R31: all replicas' checksums at the same place in the log.
    async fn checksums(&self, leader: &Leader) -> Result<Vec<ReplicaChecksums>, Failure> {
        let nonce = rand_nonce();
        match leader.control(Control::Checkpoint { nonce }).await? {
            Outcome::Effective(_) => {}
            _ => return Err(Failure::NotLeader { leader: None }),
        }
        let bound = Duration::from_millis(CHECKSUMS_MS);
        let replicas = members::addresses(&self.log.membership().borrow());
        let asked = replicas.iter().map(|(replica, address)| async move {
            if *replica == self.config.replica {
                return self.checks.of_checkpoint(nonce, bound).await;
            }
            match peers::ask(*address, &ShardRequest::Checkpoint { nonce }, bound).await {
                Ok(ShardReply::Control(ControlReply::Checksums(mut sums))) if sums.len() == 1 => sums.remove(0),
                Ok(other) => silent(*replica, format!("{other:?}")),
                Err(error) => silent(*replica, error.to_string()),
            }
        });
        Ok(futures::future::join_all(asked).await)
    }

    async fn ask_settled(&self, operator: OperatorId) -> Result<ShardReply, Failure> {
        let leader = self.leader()?;
        let state = leader.shared().state();
        let known = match state.move_in(operator).map(|m| m.phase) {
            Some(crate::fold::InPhase::Adopted) => Some(true),
            Some(crate::fold::InPhase::Discarding) => Some(false),
            Some(crate::fold::InPhase::Copying) => None,
            // Forgotten only after the source has purged, so never while the source asks.
            None => None,
        };
        leader.barrier().await?;
        Ok(ShardReply::Settled(known))
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
            applied: shared.map_or(0, |shared| shared.progress.watermark()),
            decided: status.decided.0,
            first: status.first_retained.0,
            postgres_pid: current.as_ref().and_then(|current| current.postgres_pid),
            ranges: ranges.unwrap_or_default(),
        }
    }
}

fn silent(replica: u64, reason: String) -> ReplicaChecksums {
    ReplicaChecksums { replica, index: 0, ranges: Err(reason) }
}

/// Tells checkpoint requests apart; uniqueness among the last few is enough.
fn rand_nonce() -> u64 {
    crate::checks::now_us()
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
