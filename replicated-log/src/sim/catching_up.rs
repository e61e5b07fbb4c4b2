//! Chosen schedules of replicas that are far behind (`core::catch_up`): no message and no record
//! grows with how far.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;

use crate::config::Limits;
use crate::core::{Fault, Input};
use crate::entry::{Body, Entry};
use crate::ids::LogIndex;
use crate::item::Kind;
use crate::old_entries::OldEntries;
use crate::role::Role;

use super::schedules::Group;

const SYNC_BYTES: usize = 4 << 10;
const ENTRY_BYTES: usize = 100;
/// What a synchronisation may take: as much as is not far behind, the piece before which that was
/// said, and what the protocol adds.
const BOUND_BYTES: usize = 4 * SYNC_BYTES;

/// Three replicas, one of them the leader.
fn group(sync_bytes: usize, faults: &[Fault]) -> (Group, u64, [u64; 2]) {
    let limits = Limits { sync_bytes, ..Limits::default() };
    let mut group = Group::limited(faults, 50, limits);
    (1..=3).for_each(|id| group.start(id));
    // The first leaders follow each other.
    group.run_until("a leader that stays", |group| group.now_ms > 1_000 && group.leader().is_some());
    let leader = group.leader().unwrap();
    let rest: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    (group, leader, [rest[0], rest[1]])
}

fn propose(group: &mut Group, leader: u64, payload: &[u8]) {
    let Role::Leader { term, .. } = group.nodes[&leader].process.as_ref().unwrap().role else { panic!("no leader") };
    let payload = Bytes::copy_from_slice(payload);
    group.feed(leader, Input::Propose { kind: Kind::Data, term, payload, tracked: None });
}

/// Four hundred entries, a few in each turn.
fn much(group: &mut Group, leader: u64) {
    for _ in 0..100 {
        (0..4).for_each(|_| propose(group, leader, &[7; ENTRY_BYTES]));
        group.now_ms += 10;
        group.connect();
        for id in 1..=3 {
            group.feed(id, Input::Tick);
            group.turn(id, true);
        }
    }
    (group.largest_message_bytes, group.largest_write_bytes) = (0, 0);
}

fn decided(group: &Group, id: u64) -> u64 {
    group.nodes[&id].process.as_ref().map_or(0, |process| process.core.status().decided.0)
}

fn all_alike(group: &mut Group) {
    group.run_until("all to have decided the same", |group| {
        group.leader().is_some() && (1..=3).all(|id| decided(group, id) == decided(group, 1))
    });
    let logs: Vec<Vec<Entry>> = (1..=3).map(|id| entries(group, id)).collect();
    assert!(logs.iter().all(|log| *log == logs[0]));
    assert!(logs[0].iter().filter(|entry| entry.effective).count() > 400);
}

fn entries(group: &Group, id: u64) -> Vec<Entry> {
    let core = &group.nodes[&id].process.as_ref().unwrap().core;
    match core.old_entries(LogIndex(1), usize::MAX).unwrap() {
        OldEntries::Entries(entries) => entries,
        other => panic!("{other:?}"),
    }
}

fn largest(group: &Group) -> usize {
    group.largest_message_bytes.max(group.largest_write_bytes as usize)
}

/// A follower is away while much is written; what its return takes at most, in one message or
/// record.
fn a_follower_returns(sync_bytes: usize) -> usize {
    let (mut group, leader, [away, _]) = group(sync_bytes, &[]);
    group.crash(away);
    much(&mut group, leader);
    group.start(away);
    all_alike(&mut group);
    largest(&group)
}

// E11: an hour away or a day, it comes in pieces.
#[test]
fn a_follower_that_was_away_is_synchronised_in_pieces() {
    let bytes = a_follower_returns(SYNC_BYTES);
    assert!(bytes <= BOUND_BYTES, "{bytes}");
    let bytes = a_follower_returns(usize::MAX / 4);
    assert!(bytes > 400 * ENTRY_BYTES, "all in one message, which this test must notice: {bytes}");
}

/// One that was away stands for election as soon as it is back; the other one, which has
/// everything, hears it first.
fn a_candidate_is_behind(sync_bytes: usize) -> (usize, Option<u64>, u64) {
    let (mut group, leader, [away, fresh]) = group(sync_bytes, &[]);
    group.crash(away);
    much(&mut group, leader);
    group.crash(leader);
    group.start(away);
    group.connect();
    group.feed(away, Input::TryLead);
    group.run_until("a leader", |group| group.leader().is_some());
    let elected = group.leader();
    group.start(leader);
    all_alike(&mut group);
    (largest(&group), elected, fresh)
}

#[test]
fn a_candidate_that_is_far_behind_is_brought_near_by_who_is_not() {
    let (bytes, elected, fresh) = a_candidate_is_behind(SYNC_BYTES);
    assert!(bytes <= BOUND_BYTES, "{bytes}");
    assert_eq!(elected, Some(fresh));
    let (bytes, ..) = a_candidate_is_behind(usize::MAX / 4);
    assert!(bytes > 400 * ENTRY_BYTES, "all in one Promise, which this test must notice: {bytes}");
}

// What a deposed leader alone had accepted makes room for what was decided meanwhile.
#[test]
fn what_nobody_else_accepted_makes_room_for_pieces() {
    let (mut group, deposed, _) = group(SYNC_BYTES, &[]);
    group.cut.insert(deposed);
    group.connect();
    (0..3).for_each(|_| propose(&mut group, deposed, b"nobody else has it"));
    group.turn(deposed, true);
    group.run_until("another leader", |group| group.leader().is_some());
    let leader = group.leader().unwrap();
    assert_ne!(leader, deposed);
    much(&mut group, leader);
    group.cut.clear();
    all_alike(&mut group);
    assert!(largest(&group) <= BOUND_BYTES);
    let kept =
        entries(&group, deposed).iter().any(|e| matches!(&e.body, Body::Data(bytes) if bytes.starts_with(b"nobody")));
    assert!(!kept, "it was never decided");
}

/// Both replicas that are up accept a hundred entries, so that they are chosen. The follower
/// crashes before it hears so, and some pieces after its return the leader is gone for good: how
/// many of the entries the third replica and this one go on with.
fn chosen_and_behind_pieces(faults: &[Fault]) -> usize {
    let (mut group, leader, [follower, late]) = group(SYNC_BYTES, faults);
    group.crash(late);
    let before = decided(&group, follower);
    (0..100).for_each(|_| propose(&mut group, leader, b"chosen"));
    (0..20).for_each(|_| propose(&mut group, leader, &[7; 30 * ENTRY_BYTES]));
    group.turn(leader, true);
    group.turn(follower, true);
    group.turn(leader, true);
    let all = decided(&group, leader);
    assert!(all >= before + 120, "chosen by two of three");
    group.crash(follower);
    group.start(follower);
    group.run_until("some pieces", |group| (before + 1..all).contains(&decided(group, follower)));
    group.crash(leader);
    group.start(late);
    group.run_until("a leader", |group| group.leader().is_some());
    let last = group.leader().unwrap();
    entries(&group, last).iter().filter(|e| e.effective && matches!(e.body, Body::Data(_))).count()
}

// What was accepted as one of a majority stays behind the pieces, though nobody that is left knows
// that it is decided.
#[test]
fn what_was_accepted_behind_pieces_stays() {
    assert_eq!(chosen_and_behind_pieces(&[]), 120);
    let kept = chosen_and_behind_pieces(&[Fault::ForgetAccepted]);
    assert!(kept < 120, "forgotten, which this test must notice: {kept}");
}
