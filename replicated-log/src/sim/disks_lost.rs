//! Chosen schedules of disks that are lost in a group's founding configuration, before all replicas
//! have met (`core::disks`).

#![allow(clippy::unwrap_used)]

use crate::config::Limits;
use crate::core::Fault;

use super::schedules::Group;

/// Three replicas of which 1 and 2 have not met; 2 then loses its disk and meets 1.
fn unmet(faults: &[Fault]) -> Group {
    let mut group = Group::limited(faults, 50, Limits::default());
    group.apart.insert((1, 2));
    (1..=3).for_each(|id| group.start(id));
    group.run_until("3 to have met both, and 1 to have heard of it", |group| {
        group.now_ms > 1_000 && [1, 2].iter().all(|id| group.peer(3, *id).connected) && group.leader().is_some()
    });
    group.lose_disk(2);
    group.apart.clear();
    group
}

/// Until 1 knows the second disk.
fn met(mut group: Group) -> Group {
    group.run_until("1 to hear of the other disk", |group| group.peer(1, 2).disk == Some(102));
    group
}

// Log rule 10: 2 has promised and accepted for 3; the quorum of 1 and 2 would know nothing of that.
#[test]
fn a_replica_that_has_not_met_a_member_knows_its_disk_from_the_others() {
    let group = met(unmet(&[]));
    let seen = group.peer(1, 2);
    assert!(seen.other_disk && !seen.connected, "{seen:?}");
    let group = met(unmet(&[Fault::WithholdDisks]));
    let seen = group.peer(1, 2);
    assert!(seen.connected, "it is accepted, which this test must notice: {seen:?}");
}

// Log rule 10: 1 was cut off from both, and so takes the second disk for the first. As soon as it
// hears from 3, no replica accepts 2 any more, whichever leads, and a change can readmit it.
#[test]
fn a_member_with_two_disks_is_refused_by_all() {
    let mut group = Group::limited(&[], 50, Limits::default());
    group.apart.extend([(1, 2), (1, 3)]);
    (1..=3).for_each(|id| group.start(id));
    group.run_until("2 and 3 to have a leader", |group| group.now_ms > 1_000 && group.leader().is_some());
    group.lose_disk(2);
    group.apart = [(1, 3), (2, 3)].into();
    group.run_until("1 to take the other disk for the first", |group| group.peer(1, 2).connected);
    group.apart.clear();
    let lost = |group: &Group, id| {
        let seen = group.peer(id, 2);
        seen.other_disk && !seen.connected && seen.disk == Some(102)
    };
    group.run_until("a leader without it", |group| {
        [1, 3].iter().all(|id| lost(group, *id)) && group.leader().is_some_and(|leader| leader != 2)
    });
    // A restart does not bring it back.
    group.crash(1);
    group.start(1);
    group.run_until("1 to refuse it again", |group| lost(group, 1) && group.leader().is_some());
}
