//! Membership of the shard's replica group: the members as the log knows them, and changes of them.
//!
//! A change is a barrier in the log. After the barrier the next configuration begins, with other
//! members (log rule 10, see `replicated-log`). Here a leader proposes a change: unasked for a
//! replica that came back with an empty disk, and on an administrator's request for a machine that
//! takes the place of another. New members get the state by [`crate::state_transfer`].

use crate::migration::peers;
use evenkeel_protocol::report::ShardMembers;
use evenkeel_protocol::shard::{ControlReply, NewReplica};
use evenkeel_replicated_log::{ChangeError, LogHandle, Member, Members, Membership, ReplicaId, Role, Term};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// The addresses at which replicas accept RPC, by number.
pub fn addresses(membership: &Membership) -> BTreeMap<u64, SocketAddr> {
    let rpc = |(id, member): (&ReplicaId, &Member)| member.contacts.first().map(|address| (id.0, *address));
    membership.members.iter().filter_map(rpc).collect()
}

/// The members that a leader reports.
pub fn reported(log: &LogHandle) -> ShardMembers {
    let membership = log.membership();
    let membership = membership.borrow();
    ShardMembers { epoch: membership.configuration, replicas: addresses(&membership) }
}

/// A member as the log records it.
pub fn member(rpc: SocketAddr, log: SocketAddr) -> Member {
    Member { contacts: vec![rpc], ..Member::from(log) }
}

/// Removes a replica, adds one, or both at once. Idempotent: `Done` once the shard is led in such a
/// configuration.
pub async fn change(log: &LogHandle, term: Term, remove: Option<u64>, add: Option<&NewReplica>) -> ControlReply {
    let now = log.membership().borrow().members.clone();
    let mut next = now.clone();
    if let Some(replica) = remove {
        next.remove(&ReplicaId(replica));
    }
    if let Some(new) = add {
        let id = ReplicaId(new.replica);
        let elsewhere = now.get(&id).is_some_and(|known| known.log != new.log);
        if elsewhere {
            let reason = format!("replica {id} exists and listens elsewhere; a new machine gets a new number");
            return ControlReply::Refused { code: "replica-exists".into(), reason };
        }
        next.entry(id).or_insert_with(|| member(new.rpc, new.log));
    }
    if next == now {
        return ControlReply::Done;
    }
    propose(log, term, &next).await
}

/// Members that are being re-seeded, or do not say: a group must not rely on them for the rows (log
/// rule 10).
async fn lacking(log: &LogHandle) -> BTreeSet<ReplicaId> {
    let others = addresses(&log.membership().borrow()).into_iter().filter(|(id, _)| *id != log.me().0);
    let asked = others.map(|(id, address)| async move {
        let answer = peers::inspect_one(address).await;
        answer.is_none_or(|peer| peer.seeding).then_some(ReplicaId(id))
    });
    futures::future::join_all(asked).await.into_iter().flatten().collect()
}

/// Proposes these members.
pub(crate) async fn propose(log: &LogHandle, term: Term, next: &Members) -> ControlReply {
    match log.change_members_lacking(term, next, &lacking(log).await) {
        Ok(()) => ControlReply::Pending { waiting_for: "the next epoch to have a leader".into() },
        Err(ChangeError::Impossible(reason)) => ControlReply::Refused { code: "impossible".into(), reason },
        // It may be possible in a moment: a replica that comes has to be heard of first.
        Err(error @ (ChangeError::Refused(_) | ChangeError::Propose(_))) => {
            ControlReply::Pending { waiting_for: error.to_string() }
        }
    }
}

/// A process that ended after it had stored a peer's state, and before its log knew that, still has
/// the state.
pub async fn claim_state(log: &LogHandle, position: u64, term: Term) {
    let mut role = log.role();
    let behind = |role: &Role| matches!(role, Role::Behind { trimmed, .. } if trimmed.0 <= position);
    if role.wait_for(behind).await.is_ok() && log.installed(evenkeel_replicated_log::LogIndex(position), term).is_err()
    {
        tracing::debug!("the log has stopped");
    }
    std::future::pending::<()>().await;
}
