//! The replicas of the placement driver itself. The log has the membership (see `replicated-log`);
//! each member has its RPC and REST addresses as contacts.

use crate::config::Config;
use evenkeel_replicated_log::{Member, Members, Membership, ReplicaId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The index of the RPC address among a member's contacts.
pub(crate) const RPC: usize = 0;
/// The index of the REST address among a member's contacts.
pub(crate) const REST: usize = 1;

/// A replica to add. Its process runs already, with an empty folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewMember {
    /// Its number, 1 to 255. No other machine has ever had it.
    pub replica: u64,
    /// Its REST address.
    pub rest: SocketAddr,
    /// Its RPC address, for reports.
    pub rpc: SocketAddr,
    /// Its address for the log's traffic.
    pub log: SocketAddr,
}

fn member(rest: SocketAddr, rpc: SocketAddr, log: SocketAddr) -> Member {
    Member { contacts: vec![rpc, rest], ..Member::from(log) }
}

/// The members of a new cluster.
pub(super) fn founding(config: &Config) -> Members {
    let member = |(id, log): (&u64, &SocketAddr)| {
        Some((ReplicaId(*id), member(*config.rest.get(id)?, *config.rpc.get(id)?, *log)))
    };
    config.log.iter().filter_map(member).collect()
}

/// The addresses of all members by number. `which` is [`RPC`] or [`REST`].
pub(crate) fn contacts(membership: &Membership, which: usize) -> BTreeMap<u64, SocketAddr> {
    let contact = |(id, member): (&ReplicaId, &Member)| Some((id.0, *member.contacts.get(which)?));
    membership.members.iter().filter_map(contact).collect()
}

/// The members without `remove` and with `add`; `None` if that changes nothing.
///
/// # Errors
/// One sentence, if a replica to add is known at another address.
pub fn next_members(now: &Members, remove: &[u64], add: &[NewMember]) -> Result<Option<Members>, String> {
    let mut next = now.clone();
    for replica in remove {
        next.remove(&ReplicaId(*replica));
    }
    for new in add {
        let id = ReplicaId(new.replica);
        if now.get(&id).is_some_and(|known| known.log != new.log) {
            return Err(format!("replica {id} exists and listens elsewhere; a new machine gets a new number"));
        }
        next.entry(id).or_insert_with(|| member(new.rest, new.rpc, new.log));
    }
    Ok((next != *now).then_some(next))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn new(replica: u64) -> NewMember {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port + replica as u16));
        NewMember { replica, rest: at(7000), rpc: at(8000), log: at(9000) }
    }

    #[test]
    fn a_change_asked_again_is_done() {
        let three = next_members(&Members::new(), &[], &[new(1), new(2), new(3)]).unwrap().unwrap();
        let five = next_members(&three, &[], &[new(4), new(5)]).unwrap().unwrap();
        assert_eq!(next_members(&five, &[], &[new(4), new(5)]), Ok(None));
        let other = next_members(&five, &[1, 2], &[]).unwrap().unwrap();
        assert_eq!(other.keys().map(|id| id.0).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(next_members(&other, &[1, 2], &[]), Ok(None));
        let elsewhere = NewMember { log: new(9).log, ..new(4) };
        assert!(next_members(&five, &[], &[elsewhere]).is_err());
        let membership = Membership { configuration: 2, members: five, ..Membership::default() };
        assert_eq!(contacts(&membership, REST)[&4], new(4).rest);
        assert_eq!(contacts(&membership, RPC)[&4], new(4).rpc);
    }
}
