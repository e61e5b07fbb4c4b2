//! Invariant 3: all placement drivers have the same state, since each applies the same log,
//! snapshots and state transfers included.

use crate::membership_model::MembershipModel;
use crate::registry::Registry;
use crate::topology::Group;

/// Differences, in words. A replica that is behind differs too: it must catch up.
pub fn check(registry: &Registry, membership: &MembershipModel) -> Vec<String> {
    let members = membership.replicas(Group::PlacementDriver);
    let registry = registry.read();
    let mut wrong = Vec::new();
    if let Some(missing) = members.iter().find(|member| !registry.contains_key(member)) {
        wrong.push(format!("placement driver {missing} does not run"));
    }
    let mut all = registry.iter().filter(|(number, _)| members.contains(number));
    let Some((first, one)) = all.next() else { return wrong };
    for (number, other) in all {
        let (one, other) = (one.applied(), other.applied());
        if (one.index, one.term) != (other.index, other.term) {
            wrong.push(format!("placement driver {first} is at {}, {number} at {}", one.index, other.index));
        } else if one.state != other.state {
            wrong.push(format!("placement drivers {first} and {number} differ at {}", one.index));
        }
    }
    wrong
}
