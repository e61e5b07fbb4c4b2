//! Who the replicas are, of a shard and of the placement driver itself, and how that is changed: `POST /v1/shards/{id}/replicas` and
//! `/v1/members`.
//!
//! Both are idempotent, and both answer when the new epoch has begun. In between a request may be told to come again: the change of the
//! placement driver's own members ends its leader's leadership.

use super::{Error, Failure, json_with};
use crate::server::{NewDriver, REST, RPC, Shared, contacts, next_members};
use crate::state::Refusal;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::api::{MemberBody, MembersBody};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{ControlReply, ControlRequest, NewReplica};
use evenkeel_replicated_log::{ChangeError, Member, Membership, ReplicaId};
use serde::Deserialize;
use serde_json::json as value;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use warp::http::StatusCode;
use warp::reply::Response;

/// How long a request waits for the new epoch, in milliseconds.
const CHANGE_MS: u64 = 20_000;
/// How long a shard may take to answer, in milliseconds.
const CALL_MS: u64 = 2_000;
/// Between two questions whether it is done, in milliseconds.
const ASK_AGAIN_MS: u64 = 100;

/// The body of `POST /v1/shards/{id}/replicas`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShardChange {
    #[serde(default)]
    remove: Option<u64>,
    #[serde(default)]
    add: Option<NewReplica>,
}

/// The body of `POST /v1/members`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DriverChange {
    #[serde(default)]
    remove: Vec<u64>,
    #[serde(default)]
    add: Vec<NewDriver>,
}

fn nothing_named() -> Failure {
    Error::bad_request("the body names no replica to remove and none to add").into()
}

fn not_changed(reason: String) -> Error {
    Error::new(409, "not-changed", "The replicas stay as they are", reason)
}

/// Refuses to take out what is not there, neither by the placement driver's table nor by what the shard has reported. With a replica that
/// came in meanwhile it is a request asked again, which is done.
fn check_there(shared: &Shared, id: ShardId, change: &ShardChange) -> Result<(), Failure> {
    let mut replicas = shard_info(shared, id)?.replicas;
    if let Some(view) = shared.leading().as_ref().and_then(|leading| leading.picture.shards.get(&id)) {
        replicas.extend(view.report.members.iter().flat_map(|members| members.replicas.clone()));
    }
    let there = |replica: u64| replicas.contains_key(&replica);
    match change.remove {
        Some(replica) if !there(replica) && !change.add.is_some_and(|new| there(new.replica)) => {
            let detail = format!("shard {id} has no replica {replica}: it has left already, or never was one");
            Err(Error::new(409, "unknown-replica", "There is no such replica", detail).into())
        }
        _ => Ok(()),
    }
}

fn shard_info(shared: &Shared, id: ShardId) -> Result<ShardInfo, Refusal> {
    let info = shared.applied().state.shards.get(&id).map(|shard| shard.info.clone());
    info.ok_or(Refusal::UnknownShard(id))
}

fn not_yet(waiting_for: String) -> Failure {
    Error::new(503, "not-changed-yet", "The replicas have not changed yet", waiting_for).into()
}

/// Asks the shard until it is done; its report then brings the new addresses into the table.
pub(super) async fn change_shard(shared: &Arc<Shared>, id: ShardId, change: ShardChange) -> Result<Response, Failure> {
    let deadline = Instant::now() + Duration::from_millis(CHANGE_MS);
    if change.remove.is_none() && change.add.is_none() {
        return Err(nothing_named());
    }
    // Only now: once the shard has been asked, the replica may be gone because of that.
    check_there(shared, id, &change)?;
    loop {
        if shared.leading().is_none() {
            return Err(Failure::NeedsLeader);
        }
        let mut info = shard_info(shared, id)?;
        // Who comes in may lead already when the table does not have it yet.
        info.replicas.extend(change.add.map(|new| (new.replica, new.rpc)));
        let leader = shared.shard_leaders().get(&id).copied();
        let request = ControlRequest::ChangeReplicas { remove: change.remove, add: change.add };
        let waiting_for = match shared.calls.ask(&info, leader, &request, Duration::from_millis(CALL_MS)).await {
            Ok(ControlReply::Done) => {
                let body =
                    value!({ "shard": id, "removed": change.remove, "added": change.add.map(|new| new.replica) });
                return Ok(json_with(StatusCode::OK, &body));
            }
            Ok(ControlReply::Refused { reason, .. }) => return Err(not_changed(reason).into()),
            Ok(ControlReply::Pending { waiting_for }) => waiting_for,
            Ok(_) => return Err(Error::new(502, "shard-answer", "The shard answered something else", "").into()),
            Err(trouble) => trouble,
        };
        if Instant::now() >= deadline {
            return Err(not_yet(waiting_for));
        }
        tokio::time::sleep(Duration::from_millis(ASK_AGAIN_MS)).await;
    }
}

/// Changes the placement driver's own replicas. To take out what is not there is done: the change ends the leadership in which it is asked for, so that
/// it is usual for the next leader to be asked again.
pub(super) async fn change_driver(shared: &Arc<Shared>, change: DriverChange) -> Result<Response, Failure> {
    if change.remove.is_empty() && change.add.is_empty() {
        return Err(nothing_named());
    }
    let deadline = Instant::now() + Duration::from_millis(CHANGE_MS);
    loop {
        let term = shared.leading().as_ref().map(|leading| leading.term).ok_or(Failure::NeedsLeader)?;
        let now = shared.log.membership().borrow().members.clone();
        let next = next_members(&now, &change.remove, &change.add).map_err(not_changed)?;
        let Some(next) = next else {
            return Ok(json_with(StatusCode::OK, &body_now(shared)));
        };
        let waiting_for = match shared.log.change_members(term, &next) {
            Ok(()) => "the next epoch to have a leader".to_string(),
            Err(ChangeError::Impossible(reason)) => return Err(not_changed(reason).into()),
            Err(ChangeError::Refused(reason)) => reason,
            Err(ChangeError::Propose(_)) => return Err(Failure::NeedsLeader),
        };
        if Instant::now() >= deadline {
            return Err(not_yet(waiting_for));
        }
        tokio::time::sleep(Duration::from_millis(ASK_AGAIN_MS)).await;
    }
}

/// The body of `GET /v1/members`.
pub(super) fn body(membership: &Membership) -> MembersBody {
    let (rest, rpc) = (contacts(membership, REST), contacts(membership, RPC));
    let member = |(id, member): (&ReplicaId, &Member)| MemberBody {
        replica: id.0,
        rest: rest.get(&id.0).copied(),
        rpc: rpc.get(&id.0).copied(),
        log: member.log,
    };
    MembersBody { epoch: membership.epoch, leader: None, members: membership.members.iter().map(member).collect() }
}

/// As [`body`], with who leads.
pub(super) fn body_now(shared: &Shared) -> MembersBody {
    MembersBody { leader: shared.leader(), ..body(&shared.log.membership().borrow()) }
}
