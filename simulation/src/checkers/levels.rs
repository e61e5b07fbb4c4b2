//! The promises of the levels (R28, `docs/decisions/levels.md`).
//!
//! **Losses.** A write answered at `memory` is lost only if two replicas of its shard crashed
//! before it was known to be lost. A write answered at `local` is lost only if its leader crashed
//! or was deposed. [`super::counters`] checks that no other client has seen a lost write: a value
//! that a client has seen obliges every later addition.
//!
//! **Reads at `leader`.** A deposed leader may answer without the writes of its successors. It
//! never goes back behind its own answers. Once it has said that it does not lead, it answers only
//! in a later leadership, which has everything that was acknowledged by then (invariant 4).

use crate::history::events::{Denial, Event, LEADER, LOCAL, Loss, ShardReplica};
use crate::topology::Part;
use evenkeel_protocol::Durability;
use std::collections::{BTreeMap, BTreeSet};

/// Writes that were answered early and lost without a cause that may lose them, in words.
pub fn losses(losses: &[Loss], crashes: &[(u64, Part)], denials: &[Denial], history: &[Event]) -> Vec<String> {
    let unexplained = |loss: &&Loss| {
        let meanwhile = |at_ms: u64| (loss.sent_ms..=loss.told_ms).contains(&at_ms);
        let crashed = |(at_ms, part): &(u64, Part)| match part {
            Part::Shard(shard, replica) if shard.0 == loss.by.0 && meanwhile(*at_ms) => Some(*replica),
            _ => None,
        };
        let crashed: BTreeSet<u64> = crashes.iter().filter_map(crashed).collect();
        if loss.durability == Durability::Memory {
            return crashed.len() < 2;
        }
        let another = |by: ShardReplica| by.0 == loss.by.0 && by != loss.by;
        let over = another(loss.told_by)
            || denials.iter().any(|denial| denial.by == loss.by && meanwhile(denial.answered_ms))
            || history.iter().any(|e| e.how != LOCAL && meanwhile(e.answered_ms) && e.by.is_some_and(another));
        !over && !crashed.contains(&loss.by.1)
    };
    losses.iter().filter(unexplained).map(|loss| format!("lost, and nothing could lose it: {loss:?}")).collect()
}

/// Reads at `leader` that missed a value, in words.
pub fn leader_reads(history: &[Event], denials: &[Denial]) -> Vec<String> {
    let mut by_key: BTreeMap<i64, Vec<&Event>> = BTreeMap::new();
    for event in history {
        by_key.entry(event.key).or_default().push(event);
    }
    let mut by_replica: BTreeMap<ShardReplica, Vec<&Denial>> = BTreeMap::new();
    for denial in denials {
        by_replica.entry(denial.by).or_default().push(denial);
    }
    let wrong = |read: &Event| {
        let seen = read.seen.filter(|_| read.how == LEADER)?;
        let denied = by_replica.get(&read.by?).into_iter().flatten();
        let not_leading_ms =
            denied.filter(|denial| denial.answered_ms < read.sent_ms).map(|denial| denial.asked_ms).max().unwrap_or(0);
        let obliges = |event: &&&Event| {
            let before_ms = if event.by == read.by { read.sent_ms } else { not_leading_ms };
            event.answered_ms < before_ms
        };
        let least = by_key[&read.key].iter().filter(obliges).max_by_key(|event| event.seen)?;
        let known = least.seen.filter(|known| *known > seen)?;
        let (key, at) = (read.key, read.sent_ms);
        let (how, by) = (least.how, read.by);
        Some(format!(
            "counter {key}: a read at level leader sent at {at} ms to {by:?} saw {seen}, after {how} saw {known}"
        ))
    };
    history.iter().filter_map(wrong).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_protocol::ShardId;

    fn loss(durability: Durability) -> Loss {
        Loss { durability, by: (1, 1), sent_ms: 10, told_ms: 100, told_by: (1, 1) }
    }

    fn crash(at_ms: u64, shard: u32, replica: u64) -> (u64, Part) {
        (at_ms, Part::Shard(ShardId(shard), replica))
    }

    #[test]
    fn memory_is_lost_by_two_crashes_and_not_by_less() {
        let unexplained = |crashes: &[(u64, Part)]| losses(&[loss(Durability::Memory)], crashes, &[], &[]).len();
        assert_eq!(unexplained(&[crash(20, 1, 2), crash(30, 1, 3)]), 0);
        assert_eq!(unexplained(&[crash(20, 1, 2), crash(30, 1, 2)]), 1, "one replica, twice");
        assert_eq!(unexplained(&[crash(20, 1, 2), crash(30, 2, 3)]), 1, "another shard's");
        assert_eq!(unexplained(&[crash(20, 1, 2), crash(5, 1, 3)]), 1, "too early");
    }

    #[test]
    fn local_is_lost_with_its_leader_and_not_otherwise() {
        let write = loss(Durability::Local);
        assert_eq!(losses(&[write], &[crash(20, 1, 2)], &[], &[]).len(), 1, "not its leader");
        assert!(losses(&[write], &[crash(20, 1, 1)], &[], &[]).is_empty());
        assert!(losses(&[Loss { told_by: (1, 2), ..write }], &[], &[], &[]).is_empty());
        let denial = Denial { by: (1, 1), asked_ms: 19, answered_ms: 20 };
        assert!(losses(&[write], &[], &[denial], &[]).is_empty());
        assert_eq!(losses(&[write], &[], &[Denial { answered_ms: 5, ..denial }], &[]).len(), 1, "before it was sent");
    }

    #[test]
    fn a_read_at_leader_may_miss_what_a_successor_did_and_nothing_else() {
        let event = |how, by, sent_ms, seen| Event {
            key: 1,
            adds: false,
            how,
            sent_ms,
            answered_ms: sent_ms + 5,
            seen: Some(seen),
            by: Some(by),
        };
        let successor = event("an addition", (1, 2), 10, 7);
        let behind = event(LEADER, (1, 1), 30, 6);
        assert!(leader_reads(&[successor, behind], &[]).is_empty());
        assert_eq!(leader_reads(&[event("an addition", (1, 1), 10, 7), behind], &[]).len(), 1, "its own");
        let denial = |asked_ms, answered_ms| Denial { by: (1, 1), asked_ms, answered_ms };
        assert_eq!(leader_reads(&[successor, behind], &[denial(20, 22)]).len(), 1, "a later leadership is whole");
        assert!(leader_reads(&[successor, behind], &[denial(12, 22), denial(31, 33)]).is_empty());
    }
}
