//! `GET /v1/members` and `POST /v1/members`: the replicas of the placement driver itself.
//!
//! A change is idempotent, and is answered once the new configuration is in force. Meanwhile a
//! request may be redirected: the change ends its leader's leadership.

use super::failure::ApiFailure;
use super::problem::{self, ApiProblem};
use super::request::parse;
use super::response::json_with;
use crate::replica::membership::{REST, RPC, contacts};
use crate::replica::{NewMember, ReplicaHandles, next_members};
use evenkeel_protocol::api::{MemberBody, MembersBody};
use evenkeel_replicated_log::{ChangeError, Member, Membership, ReplicaId};
use serde::Deserialize;
use std::time::Duration;
use warp::http::StatusCode;
use warp::reply::Response;

/// How long a request waits for the new configuration, in milliseconds.
const CHANGE_MS: u64 = 20_000;
/// The interval between two checks of the configuration, in milliseconds.
const CHECK_AGAIN_MS: u64 = 100;

/// The body of `POST /v1/members`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeMembersBody {
    #[serde(default)]
    remove: Vec<u64>,
    #[serde(default)]
    add: Vec<NewMember>,
}

/// `GET /v1/members`.
pub(super) fn get(handles: &ReplicaHandles) -> Response {
    json_with(StatusCode::OK, &present_body(handles))
}

/// `POST /v1/members`. To remove a replica that is no member is no change: the change ends the
/// leadership in which it is requested, so clients usually repeat the request at the next leader.
pub(super) async fn change(handles: &ReplicaHandles, body: &[u8]) -> Result<Response, ApiFailure> {
    let change: ChangeMembersBody = parse(body)?;
    if change.remove.is_empty() && change.add.is_empty() {
        return Err(ApiProblem::bad_request("the body names no replica to remove and none to add").into());
    }
    let deadline = evenkeel_host::tokio_now() + Duration::from_millis(CHANGE_MS);
    loop {
        let term = handles.leading().as_ref().map(|leading| leading.term).ok_or(ApiFailure::NeedsLeader)?;
        let now = handles.log.membership().borrow().members.clone();
        let not_changed = |reason: String| problem::NOT_CHANGED.because(reason);
        let next = next_members(&now, &change.remove, &change.add).map_err(not_changed)?;
        let Some(next) = next else { return Ok(get(handles)) };
        let waiting_for = match handles.log.change_members(term, &next) {
            Ok(()) => "the next configuration to have a leader".to_string(),
            Err(ChangeError::Impossible(reason)) => return Err(not_changed(reason).into()),
            Err(ChangeError::Refused(reason)) => reason,
            Err(ChangeError::Propose(_)) => return Err(ApiFailure::NeedsLeader),
        };
        if evenkeel_host::tokio_now() >= deadline {
            return Err(problem::NOT_CHANGED_YET.because(waiting_for).into());
        }
        evenkeel_host::sleep(Duration::from_millis(CHECK_AGAIN_MS)).await;
    }
}

/// The body of `GET /v1/members` without the leader.
pub(super) fn body(membership: &Membership) -> MembersBody {
    let (rest, rpc) = (contacts(membership, REST), contacts(membership, RPC));
    let member = |(id, member): (&ReplicaId, &Member)| MemberBody {
        replica: id.0,
        rest: rest.get(&id.0).copied(),
        rpc: rpc.get(&id.0).copied(),
        log: member.log,
    };
    MembersBody {
        epoch: membership.configuration,
        leader: None,
        members: membership.members.iter().map(member).collect(),
    }
}

fn present_body(handles: &ReplicaHandles) -> MembersBody {
    MembersBody { leader: handles.leader(), ..body(&handles.log.membership().borrow()) }
}
