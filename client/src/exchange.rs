//! Getting one request answered: by one shard, whichever of its replicas leads, and by the next shard when the range has moved.
//!
//! It owns nothing; it is the shell around [`crate::retry`], which decides, and does what it says: connect, send, wait,
//! fetch routes. It promises that every attempt of a request carries the same ids, and that no attempt outlives the
//! deadline.

use crate::error::ClientError;
use crate::leaders;
use crate::pool::Link;
use crate::retry::{Attempts, Hint, Outcome, Step, too_stale};
use crate::router::{self, Across, NoTarget, Piece, Target};
use crate::session::Session;
use crate::stats::add;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{
    Durability, ReadLevel, ShardReply, ShardRequest, StatementReply, StatementRequest, TransactionOptions,
};
use evenkeel_protocol::{Failure, Key, ShardId, SqlError, TableId, TxnId};
use evenkeel_rpc::{ReplyStream, RpcError};
use evenkeel_sql::Touches;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A replica that is silent for this long with a `local` read is left for another, in milliseconds: longer than it waits to
/// prove how fresh it is.
const LOCAL_SILENCE_MS: u64 = 500;

/// A request that can be sent on any connection.
pub(crate) enum Payload<'a> {
    /// The same on each.
    Fixed(&'a ShardRequest),
    /// The first statement of a transaction, which takes its number from the connection.
    Begin { options: TransactionOptions, statement: &'a StatementRequest },
    /// A read at level `local`, and the replica to begin with: the `prefer`th, from 1, around.
    Local { request: &'a ShardRequest, prefer: u64 },
    /// A commit whose connection was lost.
    Recommit { id: TxnId, key: Option<(TableId, Key)> },
}

impl Payload<'_> {
    /// The request on this connection, and its transaction's number there.
    fn on(&self, link: &Link) -> (Cow<'_, ShardRequest>, u64) {
        match self {
            Payload::Fixed(request) | Payload::Local { request, .. } => (Cow::Borrowed(request), 0),
            Payload::Begin { options, statement } => {
                let transaction = link.new_transaction();
                let statement = StatementRequest::clone(statement);
                (Cow::Owned(ShardRequest::InTransaction { transaction, begin: Some(*options), statement }), transaction)
            }
            Payload::Recommit { id, key } => {
                let transaction = link.new_transaction();
                let durability = Durability::Disk;
                (Cow::Owned(ShardRequest::Commit { transaction, id: *id, key: key.clone(), durability }), transaction)
            }
        }
    }
}

/// A reply, and where it came from.
pub(crate) struct Answered {
    pub reply: ShardReply,
    pub shard: ShardId,
    pub replica: u64,
    pub link: Arc<Link>,
    /// The transaction's number on the connection, if one has begun.
    pub transaction: u64,
    /// Present if it was answered before its COMMIT (R28): what becomes of that.
    pub rest: Option<ReplyStream<ShardReply>>,
}

/// A reply, and perhaps the stream on which another follows.
pub(crate) struct Replied {
    pub reply: ShardReply,
    pub rest: Option<ReplyStream<ShardReply>>,
}

/// Whether any replica may answer this.
fn is_local(request: &ShardRequest) -> bool {
    match request {
        ShardRequest::Statement(statement) => statement.read == ReadLevel::Local,
        ShardRequest::Piece(piece) => piece.statement.read == ReadLevel::Local,
        _ => false,
    }
}

/// Whether this may be answered before its COMMIT, and so by a stream (R28).
fn is_early(request: &ShardRequest) -> bool {
    let (ShardRequest::Statement(StatementRequest { durability, .. }) | ShardRequest::Commit { durability, .. }) =
        request
    else {
        return false;
    };
    *durability < Durability::Disk
}

impl Answered {
    /// The reply as that of a statement.
    pub(crate) fn rows(self) -> Result<StatementReply, ClientError> {
        rows(self.reply)
    }
}

/// The reply to a statement.
pub(crate) fn rows(reply: ShardReply) -> Result<StatementReply, ClientError> {
    match reply {
        ShardReply::Rows(reply) => Ok(reply),
        other => Err(unexpected(&other)),
    }
}

/// A shard answered something else than was asked.
pub(crate) fn unexpected(reply: &ShardReply) -> ClientError {
    let text: String = format!("{reply:?}").chars().take(80).collect();
    let error = SqlError::new(codes::INTERNAL, format!("a shard answered with what was not asked for: {text}"));
    ClientError::Sql(error.hint("Do all parts of the store have the same version?"))
}

/// What became of a request.
pub(crate) enum Delivered {
    /// One shard answered.
    One(Answered),
    /// Nothing was sent: it goes to several shards.
    RangeByRange(Vec<Piece>),
}

/// Why a shard did not answer.
pub(crate) enum Detour {
    /// Look up again where the statement goes.
    Reroute(Option<Hint>),
    /// There is nothing more to try.
    GiveUp(ClientError),
}

/// What a statement touches, which is what it is routed by.
#[derive(Clone, Copy)]
pub(crate) struct Destination<'a> {
    pub across: Across,
    pub touches: &'a Touches,
    pub table: Option<TableId>,
}

impl Session {
    /// Gets a request answered by the one shard that it touches.
    pub(crate) async fn deliver(
        &self,
        to: Destination<'_>,
        payload: &Payload<'_>,
        attempts: &mut Attempts,
    ) -> Result<Delivered, ClientError> {
        let mut hint: Option<Hint> = None;
        let mut refreshed = false;
        loop {
            let routes = self.routes.current();
            let followed = hint.and_then(|hint| router::hinted(hint, to.touches, to.table, &routes));
            let target = match followed {
                Some(shard) => Ok(Target::OneShard(shard)),
                None => router::route(to.across, to.touches, to.table, &routes),
            };
            drop(routes);
            let detour = match target {
                Ok(Target::RangeByRange(pieces)) => return Ok(Delivered::RangeByRange(pieces)),
                Ok(Target::OneShard(shard)) => match self.at_shard(shard, payload, attempts).await {
                    Ok(answered) => return Ok(Delivered::One(answered)),
                    Err(detour) => detour,
                },
                Err(NoTarget::Unknown) => self.take(attempts, Outcome::NoRoute).await,
                // A refusal must not come from a table that is out of date.
                Err(NoTarget::Refused(_)) if !refreshed => {
                    refreshed = true;
                    self.refresh_until(attempts.deadline_ms()).await;
                    Detour::Reroute(None)
                }
                Err(NoTarget::Refused(error)) => return Err(refused(error, attempts.is_unknown())),
            };
            match detour {
                Detour::GiveUp(error) => return Err(error),
                Detour::Reroute(None) => {}
                Detour::Reroute(Some(new)) => {
                    hint = Some(new);
                    match router::hinted(new, to.touches, to.table, &self.routes.current()) {
                        // The redirect suffices for this statement; the others find the table corrected.
                        Some(_) => self.want_refresh(),
                        None => self.refresh_until(attempts.deadline_ms()).await,
                    }
                }
            }
        }
    }

    /// Asks a shard's replicas, one after the other, until one answers.
    pub(crate) async fn at_shard(
        &self,
        shard: ShardId,
        payload: &Payload<'_>,
        attempts: &mut Attempts,
    ) -> Result<Answered, Detour> {
        if let Payload::Local { request, prefer } = payload {
            return self.at_any_replica(shard, request, *prefer, attempts).await;
        }
        let mut wanted = self.leaders.get(shard);
        let mut last = None;
        // The replica that could not be reached. The others may name it as the leader until they have elected another; asking
        // it each time would double the time that it takes to find that one.
        let mut unreachable = None;
        loop {
            let chosen = self.routes.current().shard(shard).and_then(|info| leaders::choose(info, wanted, last));
            let outcome = match chosen {
                None => Outcome::NoRoute,
                Some((replica, address)) => {
                    last = Some(replica);
                    match self.attempt(shard, replica, address, payload, attempts.deadline_ms()).await {
                        Ok(answered) => return Ok(answered),
                        Err(outcome) => outcome,
                    }
                }
            };
            tracing::trace!(%shard, ?last, ?outcome, "an attempt failed");
            if matches!(outcome, Outcome::NeverSent(_) | Outcome::Lost(_)) {
                unreachable = last;
            }
            match self.step(attempts, outcome).await {
                Step::Same { .. } => wanted = last,
                Step::Replica { leader, .. } => {
                    wanted = leader.filter(|leader| Some(*leader) != last && Some(*leader) != unreachable);
                }
                Step::Reroute { hint, .. } => return Err(Detour::Reroute(hint)),
                Step::Refresh { .. } => return Err(Detour::Reroute(None)),
                Step::GiveUp(error) => return Err(Detour::GiveUp(error)),
            }
        }
    }

    /// Gets a `local` read answered by any replica of a shard, beginning with the one preferred. When each has had its turn and
    /// one of them said that it is too stale, that is the answer.
    async fn at_any_replica(
        &self,
        shard: ShardId,
        request: &ShardRequest,
        prefer: u64,
        attempts: &mut Attempts,
    ) -> Result<Answered, Detour> {
        let mut turns = 0;
        let mut passed = 0;
        let mut stale: Option<Failure> = None;
        loop {
            // Attempts on other ranges, or before a redirect, count too: nobody is asked over and over.
            let turn = prefer + u64::from(attempts.retries()) + passed;
            let (chosen, replicas) = {
                let routes = self.routes.current();
                let info = routes.shard(shard);
                let replicas = info.map_or(0, |info| info.replicas.len() as u64);
                let nth = |info: &ShardInfo| {
                    let nth = turn.saturating_sub(1).checked_rem(replicas)? as usize;
                    info.replicas.iter().nth(nth).map(|(replica, address)| (*replica, *address))
                };
                (info.and_then(nth), replicas)
            };
            // If all of them are silent, each has its turn all the same.
            if let Some((replica, _)) = chosen
                && passed + 1 < replicas
                && self.silent.pass_over(shard, replica, self.now_ms())
            {
                passed += 1;
                continue;
            }
            let outcome = match chosen {
                None => Outcome::NoRoute,
                Some((replica, address)) => {
                    let payload = Payload::Fixed(request);
                    match self.attempt(shard, replica, address, &payload, attempts.deadline_ms()).await {
                        Ok(answered) => {
                            self.silent.answered(shard, replica);
                            return Ok(answered);
                        }
                        Err(outcome) => {
                            if matches!(outcome, Outcome::Lost(_) | Outcome::NeverSent(_)) {
                                self.silent.noted(shard, replica, self.now_ms());
                            }
                            outcome
                        }
                    }
                }
            };
            tracing::trace!(%shard, ?chosen, ?outcome, "a local read failed");
            turns += 1;
            if let Outcome::TooStale(failure) = &outcome {
                stale = Some(failure.clone());
            }
            if let Some(failure) = stale.as_ref().filter(|_| turns >= replicas) {
                return Err(Detour::GiveUp(too_stale(failure)));
            }
            match self.step(attempts, outcome).await {
                Step::Same { .. } | Step::Replica { .. } => {}
                Step::Reroute { hint, .. } => return Err(Detour::Reroute(hint)),
                Step::Refresh { .. } => return Err(Detour::Reroute(None)),
                Step::GiveUp(error) => return Err(Detour::GiveUp(error)),
            }
        }
    }

    /// Decides about an outcome that concerns no replica, and does what was decided.
    pub(crate) async fn take(&self, attempts: &mut Attempts, outcome: Outcome) -> Detour {
        match self.step(attempts, outcome).await {
            Step::GiveUp(error) => Detour::GiveUp(error),
            _ => Detour::Reroute(None),
        }
    }

    /// Decides, then waits and fetches as decided.
    async fn step(&self, attempts: &mut Attempts, outcome: Outcome) -> Step {
        let step = attempts.next(outcome, self.now_ms(), rand::random());
        match &step {
            Step::Same { wait_ms } | Step::Replica { wait_ms, .. } | Step::Reroute { wait_ms, .. } => {
                pause(*wait_ms).await;
            }
            Step::Refresh { wait_ms } => {
                pause(*wait_ms).await;
                self.refresh_until(attempts.deadline_ms()).await;
            }
            Step::GiveUp(_) => {}
        }
        step
    }

    async fn attempt(
        &self,
        shard: ShardId,
        replica: u64,
        address: SocketAddr,
        payload: &Payload<'_>,
        deadline_ms: u64,
    ) -> Result<Answered, Outcome> {
        // Connecting has its own, shorter limit; but nobody waits for a machine that is gone once another leads.
        let link = tokio::select! {
            biased;
            link = self.pool.get(address) => link.map_err(rpc_outcome)?,
            leader = self.another_leads(shard, replica) => return Err(Outcome::NotLeader(Some(leader))),
        };
        let (request, transaction) = payload.on(&link);
        let begins = matches!(payload, Payload::Begin { .. });
        let mut beginning = Beginning { link: link.clone(), transaction, kept: !begins };
        let Replied { reply, rest } = self.exchange(&link, shard, replica, &request, deadline_ms).await?;
        beginning.kept = true;
        Ok(Answered { reply, shard, replica, link, transaction, rest })
    }

    /// As [`Session::exchange`], for what is answered once.
    pub(crate) async fn call(
        &self,
        link: &Link,
        shard: ShardId,
        replica: u64,
        request: &ShardRequest,
        deadline_ms: u64,
    ) -> Result<ShardReply, Outcome> {
        Ok(self.exchange(link, shard, replica, request, deadline_ms).await?.reply)
    }

    /// Sends a request to a replica and waits for the answer: until `deadline_ms`, or until another replica leads; a `local`
    /// read, which another replica may answer as well, only until this one has been silent for long.
    pub(crate) async fn exchange(
        &self,
        link: &Link,
        shard: ShardId,
        replica: u64,
        request: &ShardRequest,
        deadline_ms: u64,
    ) -> Result<Replied, Outcome> {
        let left = Duration::from_millis(deadline_ms.saturating_sub(self.now_ms()));
        let local = is_local(request);
        let silence = Duration::from_millis(self.config.silence_ms.max(LOCAL_SILENCE_MS));
        let replied = tokio::select! {
            biased;
            reply = first_reply(link, request) => reply.map_err(rpc_outcome)?,
            leader = self.another_leads(shard, replica), if !local => {
                let reason = format!("replica {replica} of shard {shard} has been silent, and replica {leader} leads now");
                return Err(Outcome::Deposed { reason, leader: Some(leader) });
            }
            () = tokio::time::sleep(silence), if local => {
                return Err(Outcome::Lost(format!("replica {replica} of shard {shard} has been silent")));
            }
            () = tokio::time::sleep(left) => return Err(Outcome::Expired),
        };
        // Who answers a `local` read need not lead.
        let leads = || {
            if !local {
                self.leaders.answered(shard, replica)
            }
        };
        let failure = match replied {
            Replied { reply: ShardReply::Failed(failure), .. } => failure,
            replied => {
                leads();
                return Ok(replied);
            }
        };
        Err(match failure {
            Failure::Sql(error) => {
                leads();
                Outcome::Sql(error)
            }
            Failure::TooStale { .. } => Outcome::TooStale(failure),
            Failure::NotLeader { leader } => Outcome::NotLeader(leader),
            Failure::Moved { to, range } => {
                leads();
                add(&self.counters.redirects, 1);
                Outcome::Moved(self.routes.redirected(shard, to, range))
            }
            Failure::Busy { reason, retry_after_ms } => Outcome::Busy { reason, retry_after_ms: retry_after_ms.into() },
            Failure::Overloaded { retry_after_ms } => Outcome::Overloaded { retry_after_ms: retry_after_ms.into() },
            Failure::OutcomeUnknown { reason } => Outcome::Deposed { reason, leader: None },
        })
    }

    /// Completes, with its number, when another replica than `replica` says that it leads; asks after each `silence_ms`. Asking
    /// changes nothing, unlike sending the request elsewhere while the first may only be slow.
    pub(crate) async fn another_leads(&self, shard: ShardId, replica: u64) -> u64 {
        let silence = Duration::from_millis(self.config.silence_ms);
        loop {
            tokio::time::sleep(silence).await;
            let ask = self.who_else_leads(shard, replica, silence);
            // Half of the silence, so that who asks regularly is not told twice what it knows.
            if let Some(leader) = self.inquiries.share(shard, replica, silence / 2, ask).await {
                return leader;
            }
        }
    }

    /// Asks all replicas but `replica` at the same time; the first that says that it leads counts.
    async fn who_else_leads(&self, shard: ShardId, replica: u64, patience: Duration) -> Option<u64> {
        let info = self.routes.current().shard(shard)?.clone();
        let others = info.replicas.into_iter().filter(|(other, _)| *other != replica);
        let mut asked: FuturesUnordered<_> =
            others.map(|(other, address)| async move { self.leads(address).await.then_some(other) }).collect();
        let first = async {
            while let Some(said) = asked.next().await {
                if said.is_some() {
                    return said;
                }
            }
            None
        };
        tokio::time::timeout(patience, first).await.ok().flatten()
    }

    async fn leads(&self, address: SocketAddr) -> bool {
        let Ok(link) = self.pool.get(address).await else { return false };
        matches!(link.call(&ShardRequest::WhoLeads).await, Ok(ShardReply::Leads(said)) if said.itself)
    }
}

/// The answer; with a stream if another reply follows it.
async fn first_reply(link: &Link, request: &ShardRequest) -> Result<Replied, RpcError> {
    if !is_early(request) {
        return Ok(Replied { reply: link.call(request).await?, rest: None });
    }
    let mut replies = link.stream(request).await?;
    match replies.next().await {
        Some(ShardReply::Early(reply)) => Ok(Replied { reply: ShardReply::Rows(reply), rest: Some(replies) }),
        Some(reply) => Ok(Replied { reply, rest: None }),
        None => Err(RpcError::Lost("it ended without a reply".into())),
    }
}

/// A transaction whose first statement is under way. If that fails, or is given up, then wherever it stands nobody will go on
/// with it: its locks must not wait for the connection's end.
struct Beginning {
    link: Arc<Link>,
    transaction: u64,
    kept: bool,
}

impl Drop for Beginning {
    fn drop(&mut self) {
        if !self.kept {
            roll_back(self.link.clone(), self.transaction);
        }
    }
}

/// A refusal, unless the statement was sent when its keys were still together: then nobody can be asked any more what became
/// of it.
fn refused(error: SqlError, maybe_done: bool) -> ClientError {
    if !maybe_done {
        return ClientError::Sql(error);
    }
    let message =
        "the answer was lost, and its keys have since come to lie on several shards; it may have taken effect";
    ClientError::OutcomeUnknown(SqlError::new(codes::OUTCOME_UNKNOWN, message).hint(crate::retry::STILL_POSSIBLE))
}

/// Ends a transaction that nobody goes on with, without waiting for it.
pub(crate) fn roll_back(link: Arc<Link>, transaction: u64) {
    if link.is_closed() {
        return;
    }
    // Outside of a runtime (the program is ending) the connection's end does it.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        drop(runtime.spawn(async move { link.call(&ShardRequest::Rollback { transaction }).await }));
    }
}

/// Waits, if there is anything to wait for.
pub(crate) async fn pause(wait_ms: u64) {
    if wait_ms > 0 {
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    }
}

fn rpc_outcome(error: RpcError) -> Outcome {
    match error {
        RpcError::Connect { .. } => Outcome::NeverSent(error.to_string()),
        RpcError::Unsendable(reason) => Outcome::Unsendable(reason),
        RpcError::Lost(_) | RpcError::TimedOut(_) => Outcome::Lost(error.to_string()),
    }
}
