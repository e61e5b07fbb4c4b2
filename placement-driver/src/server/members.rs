//! Who the placement driver's own replicas are: as its log says (see `replicated-log`), each with its REST and RPC address.

use crate::config::Config;
use evenkeel_replicated_log::{LogHandle, Member, Members, Membership, ReplicaId, Term};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Where a member's RPC address is among its contacts.
pub(crate) const RPC: usize = 0;
/// Where its REST address is.
pub(crate) const REST: usize = 1;
/// How often a leader looks for replicas that have lost their disks, in milliseconds.
const MEND_MS: u64 = 500;

/// A replica to be let in. Its process runs already, with an empty folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewDriver {
    /// Its number, 1 to 255: one that no other machine has had.
    pub replica: u64,
    /// Where it listens for REST.
    pub rest: SocketAddr,
    /// Where it listens for reports.
    pub rpc: SocketAddr,
    /// Where it listens for the other replicas.
    pub log: SocketAddr,
}

fn member(rest: SocketAddr, rpc: SocketAddr, log: SocketAddr) -> Member {
    Member { contacts: vec![rpc, rest], ..Member::from(log) }
}

/// The members that found the cluster.
pub(super) fn founding(config: &Config) -> Members {
    let member = |(id, log): (&u64, &SocketAddr)| {
        Some((ReplicaId(*id), member(*config.rest.get(id)?, *config.rpc.get(id)?, *log)))
    };
    config.log.iter().filter_map(member).collect()
}

pub(crate) fn contacts(membership: &Membership, which: usize) -> BTreeMap<u64, SocketAddr> {
    let contact = |(id, member): (&ReplicaId, &Member)| Some((id.0, *member.contacts.get(which)?));
    membership.members.iter().filter_map(contact).collect()
}

/// The members without `remove` and with `add`; `None` if they are so already. An error says what is wrong with that.
pub fn next_members(now: &Members, remove: &[u64], add: &[NewDriver]) -> Result<Option<Members>, String> {
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

/// Brings replicas back that have lost their disks: by a change to the same members, with the disks that they have now.
#[derive(Debug, Default)]
pub(super) struct Mending {
    lost: BTreeMap<ReplicaId, Option<u64>>,
    looked_ms: u64,
}

impl Mending {
    /// Looks now and then; acts when it has seen the same twice.
    pub(super) fn look(&mut self, log: &LogHandle, term: Term, now_ms: u64) {
        if now_ms < self.looked_ms + MEND_MS {
            return;
        }
        self.looked_ms = now_ms;
        let lost = log.lost_disks();
        if !lost.is_empty() && lost == self.lost {
            let members = log.membership().borrow().members.clone();
            let asked = log.change_members(term, &members);
            tracing::warn!(replicas = ?lost.keys(), ?asked, "came back with another disk; a new epoch lets them in");
        }
        self.lost = lost;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn new(replica: u64) -> NewDriver {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port + replica as u16));
        NewDriver { replica, rest: at(7000), rpc: at(8000), log: at(9000) }
    }

    #[test]
    fn a_change_asked_again_is_done() {
        let three = next_members(&Members::new(), &[], &[new(1), new(2), new(3)]).unwrap().unwrap();
        let five = next_members(&three, &[], &[new(4), new(5)]).unwrap().unwrap();
        assert_eq!(next_members(&five, &[], &[new(4), new(5)]), Ok(None));
        let other = next_members(&five, &[1, 2], &[]).unwrap().unwrap();
        assert_eq!(other.keys().map(|id| id.0).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(next_members(&other, &[1, 2], &[]), Ok(None));
        let elsewhere = NewDriver { log: new(9).log, ..new(4) };
        assert!(next_members(&five, &[], &[elsewhere]).is_err());
        let membership = Membership { configuration: 2, members: five, ..Membership::default() };
        assert_eq!(contacts(&membership, REST)[&4], new(4).rest);
        assert_eq!(contacts(&membership, RPC)[&4], new(4).rpc);
    }
}
