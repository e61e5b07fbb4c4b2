//! Delivery of one request: to one shard, to the replica that leads it, and to the next shard when
//! the range has moved.
//!
//! It owns nothing. [`crate::retry`] decides; this module carries the decisions out: connect, send,
//! wait, fetch routes. It promises that every attempt of a request carries the same ids, and that
//! no attempt outlives the deadline.

use crate::core::ClientCore;
use crate::error::ClientError;
use crate::exchange::attempt;
use crate::payload::{Payload, repeated};
use crate::reply::ReplicaReply;
use crate::retry::{AttemptFailure, Attempts, RetryStep, STILL_POSSIBLE, too_stale};
use crate::routing::{self, Across, NoTarget, Piece, RedirectHint, Target};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::ShardRequest;
use evenkeel_protocol::{Failure, ShardId, SqlError, TableId};
use evenkeel_rpc::group::Order;
use evenkeel_sql::Touches;
use std::net::SocketAddr;
use std::time::Duration;

/// The result of a delivery.
#[expect(clippy::large_enum_variant, reason = "nearly all are replies, and each is taken apart at once")]
pub(crate) enum Delivery {
    /// One shard answered.
    Reply(ReplicaReply),
    /// Nothing was sent: the statement reads several shards, piece by piece.
    Pieces(Vec<Piece>),
}

/// Why a shard did not answer.
pub(crate) enum Detour {
    /// Look up the route again.
    Reroute(Option<RedirectHint>),
    /// Nothing is left to try.
    GiveUp(ClientError),
}

/// The keys that a statement touches, which decide its route.
#[derive(Clone, Copy)]
pub(crate) struct Destination<'a> {
    pub across: Across,
    pub touches: &'a Touches,
    pub table: Option<TableId>,
}

/// Has a request answered by the one shard that it touches.
pub(crate) async fn deliver(
    core: &ClientCore,
    to: Destination<'_>,
    payload: &Payload<'_>,
    attempts: &mut Attempts,
) -> Result<Delivery, ClientError> {
    let mut hint: Option<RedirectHint> = None;
    let mut refreshed = false;
    loop {
        let routes = core.routes();
        let followed = hint.and_then(|hint| routing::hinted(hint, to.touches, to.table, &routes));
        let target = match followed {
            Some(shard) => Ok(Target::OneShard(shard)),
            None => routing::route(to.across, to.touches, to.table, &routes),
        };
        drop(routes);
        let detour = match target {
            Ok(Target::RangeByRange(pieces)) => return Ok(Delivery::Pieces(pieces)),
            Ok(Target::OneShard(shard)) => match ask_shard(core, shard, payload, attempts).await {
                Ok(reply) => return Ok(Delivery::Reply(reply)),
                Err(detour) => detour,
            },
            Err(NoTarget::Unknown) => no_route(core, attempts).await,
            // A refusal must not be based on a table that is out of date.
            Err(NoTarget::Refused(_)) if !refreshed => {
                refreshed = true;
                core.refresh_until(attempts.deadline_ms()).await;
                Detour::Reroute(None)
            }
            Err(NoTarget::Refused(error)) => return Err(refused(error, attempts.is_unknown())),
        };
        match detour {
            Detour::GiveUp(error) => return Err(error),
            Detour::Reroute(None) => {}
            Detour::Reroute(Some(new)) => {
                hint = Some(new);
                match routing::hinted(new, to.touches, to.table, &core.routes()) {
                    // The redirect suffices for this statement; later ones find the table
                    // corrected.
                    Some(_) => core.routing.want_refresh(),
                    None => core.refresh_until(attempts.deadline_ms()).await,
                }
            }
        }
    }
}

/// Asks the replicas of a shard, one after the other, until one answers.
pub(crate) async fn ask_shard(
    core: &ClientCore,
    shard: ShardId,
    payload: &Payload<'_>,
    attempts: &mut Attempts,
) -> Result<ReplicaReply, Detour> {
    if let Payload::Local { request, prefer } = payload {
        return ask_any_replica(core, shard, request, *prefer, attempts).await;
    }
    let mut order = Order::new(core.leaders.get(shard));
    let at_disk = repeated(payload);
    let at_disk = at_disk.as_ref().map(Payload::Fixed);
    loop {
        let payload = at_disk.as_ref().filter(|_| attempts.is_unknown()).unwrap_or(payload);
        let chosen = {
            let routes = core.routes();
            routes.shard(shard).and_then(|info| address_of(info, order.next(&info.replicas)?))
        };
        let failure = match chosen {
            None => AttemptFailure::NoRoute,
            Some(replica) => match attempt(core, shard, replica, payload, attempts.deadline_ms()).await {
                Ok(reply) => return Ok(reply),
                Err(failure) => failure,
            },
        };
        tracing::trace!(%shard, ?chosen, ?failure, "an attempt failed");
        if failure.is_silence() {
            order.unreachable();
        }
        match next_step(core, attempts, failure).await {
            RetryStep::Same { .. } => order.ask_same(),
            RetryStep::Replica { leader, .. } => order.ask_other(leader),
            RetryStep::Reroute { hint, .. } => return Err(Detour::Reroute(hint)),
            RetryStep::Refresh { .. } => return Err(Detour::Reroute(None)),
            RetryStep::GiveUp(error) => return Err(Detour::GiveUp(error)),
        }
    }
}

fn address_of(info: &ShardInfo, replica: u64) -> Option<(u64, SocketAddr)> {
    info.replicas.get(&replica).map(|address| (replica, *address))
}

/// Has a `local` read answered by any replica of a shard, beginning with the preferred one. When
/// each replica has had its turn and one of them was too stale, the read fails with that.
async fn ask_any_replica(
    core: &ClientCore,
    shard: ShardId,
    request: &ShardRequest,
    prefer: u64,
    attempts: &mut Attempts,
) -> Result<ReplicaReply, Detour> {
    let payload = Payload::Fixed(request);
    let mut turns = 0;
    let mut passed = 0;
    let mut stale: Option<Failure> = None;
    loop {
        // Attempts on other ranges, or before a redirect, count too: no replica is asked over and
        // over.
        let turn = prefer + u64::from(attempts.retries()) + passed;
        let (chosen, replicas) = nth_replica(core, shard, turn);
        // If all replicas are silent, each has its turn all the same.
        if let Some((replica, _)) = chosen
            && passed + 1 < replicas
            && core.silent.pass_over(shard, replica, core.now_ms())
        {
            passed += 1;
            continue;
        }
        let failure = match chosen {
            None => AttemptFailure::NoRoute,
            Some(to) => match attempt(core, shard, to, &payload, attempts.deadline_ms()).await {
                Ok(reply) => {
                    core.silent.answered(shard, to.0);
                    return Ok(reply);
                }
                Err(failure) => {
                    if failure.is_silence() {
                        core.silent.noted(shard, to.0, core.now_ms());
                    }
                    failure
                }
            },
        };
        tracing::trace!(%shard, ?chosen, ?failure, "a local read failed");
        turns += 1;
        if let AttemptFailure::TooStale(failure) = &failure {
            stale = Some(failure.clone());
        }
        if let Some(failure) = stale.as_ref().filter(|_| turns >= replicas) {
            return Err(Detour::GiveUp(too_stale(failure)));
        }
        match next_step(core, attempts, failure).await {
            RetryStep::Same { .. } | RetryStep::Replica { .. } => {}
            RetryStep::Reroute { hint, .. } => return Err(Detour::Reroute(hint)),
            RetryStep::Refresh { .. } => return Err(Detour::Reroute(None)),
            RetryStep::GiveUp(error) => return Err(Detour::GiveUp(error)),
        }
    }
}

/// The replica at a place, from 1, around; and the number of replicas.
fn nth_replica(core: &ClientCore, shard: ShardId, turn: u64) -> (Option<(u64, SocketAddr)>, u64) {
    let routes = core.routes();
    let Some(info) = routes.shard(shard) else { return (None, 0) };
    let replicas = info.replicas.len() as u64;
    let place = turn.saturating_sub(1).checked_rem(replicas).map(|place| place as usize);
    let chosen = place.and_then(|place| info.replicas.iter().nth(place));
    (chosen.map(|(replica, address)| (*replica, *address)), replicas)
}

/// The detour of a statement without a route.
pub(crate) async fn no_route(core: &ClientCore, attempts: &mut Attempts) -> Detour {
    match next_step(core, attempts, AttemptFailure::NoRoute).await {
        RetryStep::GiveUp(error) => Detour::GiveUp(error),
        _ => Detour::Reroute(None),
    }
}

/// Decides on the next step, and waits and fetches as decided.
async fn next_step(core: &ClientCore, attempts: &mut Attempts, failure: AttemptFailure) -> RetryStep {
    let step = attempts.next(failure, core.now_ms(), evenkeel_host::random());
    match &step {
        RetryStep::Same { wait_ms } | RetryStep::Replica { wait_ms, .. } | RetryStep::Reroute { wait_ms, .. } => {
            pause(*wait_ms).await;
        }
        RetryStep::Refresh { wait_ms } => {
            pause(*wait_ms).await;
            core.refresh_until(attempts.deadline_ms()).await;
        }
        RetryStep::GiveUp(_) => {}
    }
    step
}

/// The error of a statement that no shard can execute. If an earlier attempt was sent while its
/// keys were still together, no shard can say any more whether it took effect.
fn refused(error: SqlError, maybe_done: bool) -> ClientError {
    if !maybe_done {
        return ClientError::Sql(error);
    }
    let message =
        "the answer was lost, and its keys have since come to lie on several shards; it may have taken effect";
    ClientError::OutcomeUnknown(SqlError::new(codes::OUTCOME_UNKNOWN, message).hint(STILL_POSSIBLE))
}

/// Waits for a number of milliseconds, if it is not 0.
pub(crate) async fn pause(wait_ms: u64) {
    if wait_ms > 0 {
        evenkeel_host::sleep(Duration::from_millis(wait_ms)).await;
    }
}
