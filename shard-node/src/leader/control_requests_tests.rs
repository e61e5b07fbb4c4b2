//! Repeated and late requests of the placement driver.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::state_machine::test_support::{key, schema, shard};
use evenkeel_protocol::{Epoch, KeyInterval, RangeId, TableId, TableSchema};

fn split(operator: u64, range: u64, epoch: u64, at: i64, new: u64) -> ControlRequest {
    let at = vec![(key(at), RangeId(new))];
    ControlRequest::Split { operator: OperatorId(operator), range: RangeId(range), epoch: Epoch(epoch), at }
}

fn open(operator: u64, range: u64, epoch: u64, to: u32) -> ControlRequest {
    ControlRequest::MoveOpen {
        operator: OperatorId(operator),
        range: RangeId(range),
        epoch: Epoch(epoch),
        to: shard(to),
    }
}

fn code(reply: Option<ControlReply>) -> String {
    match reply {
        None => "to be done".into(),
        Some(ControlReply::Done) => "done".into(),
        Some(ControlReply::Refused { code, .. }) => code,
        other => format!("{other:?}"),
    }
}

/// A shard with range 1 up to key 10 and range 2 from there, split by operator 100.
fn state() -> ShardState {
    let mut state = ShardState::default();
    state.control(1, &Control::CreateTable { schema: schema(), range: RangeId(1) }).unwrap();
    state.control(2, &entry_of(&split(100, 1, 1, 10, 2)).unwrap()).unwrap();
    state
}

/// Breaks if the number alone identifies a request: a placement driver that was restored from a
/// backup assigns numbers again, and would take splits for done that were never made (R30).
#[test]
fn a_number_that_is_assigned_again_is_not_answered_done() {
    let mut state = state();
    assert_eq!(code(served_before(&state, &split(100, 1, 1, 10, 2))), "done");
    assert_eq!(code(served_before(&state, &split(100, 1, 1, 20, 3))), "stale-operator", "other pieces");
    assert_eq!(code(served_before(&state, &split(100, 2, 2, 20, 3))), "stale-operator", "another range");
    assert_eq!(code(served_before(&state, &open(100, 2, 2, 9))), "stale-operator", "a move");
    assert_eq!(code(served_before(&state, &split(101, 2, 2, 20, 3))), "to be done");
    state.control(3, &entry_of(&open(101, 2, 2, 9)).unwrap()).unwrap();
    assert_eq!(code(served_before(&state, &open(101, 2, 2, 9))), "done");
    assert_eq!(code(served_before(&state, &open(101, 2, 2, 8))), "stale-operator", "to another shard");
    assert_eq!(code(served_before(&state, &open(101, 1, 2, 9))), "stale-operator", "another range");
    let cancel = |operator, range| ControlRequest::MoveCancel { operator: OperatorId(operator), range: RangeId(range) };
    assert_eq!(code(served_before(&state, &cancel(101, 1))), "stale-operator", "it is not that range's move");
    assert_eq!(code(served_before(&state, &cancel(101, 2))), "to be done");
    state.control(4, &entry_of(&cancel(101, 2)).unwrap()).unwrap();
    assert_eq!(code(served_before(&state, &cancel(101, 2))), "done");
    let renamed = TableSchema { name: "u".into(), ..schema() };
    let create = |schema| ControlRequest::CreateTable { schema, range: RangeId(1) };
    assert_eq!(code(served_before(&state, &create(schema()))), "done");
    assert_eq!(code(served_before(&state, &create(renamed))), "stale-operator");
}

/// R23: a range that the destination has not adopted can be taken back, and an adopted range
/// cannot.
#[test]
fn a_range_is_taken_back_between_its_fence_and_its_adoption_only() {
    let back = || ControlRequest::TakeBack { operator: OperatorId(101) };
    let mut fenced = state();
    assert_eq!(code(served_before(&fenced, &back())), "to be done", "the log rejects an unknown operator");
    assert_eq!(fenced.control(3, &entry_of(&back()).unwrap()).unwrap_err().code, "no-such-operator");
    fenced.control(3, &entry_of(&open(101, 2, 2, 9)).unwrap()).unwrap();
    assert_eq!(code(served_before(&fenced, &back())), "not-fenced");
    fenced.control(4, &Control::Fence { operator: OperatorId(101), held_since_us: 0 }).unwrap();
    assert_eq!(code(served_before(&fenced, &back())), "to be done");
    let mut adopted = fenced.clone();
    adopted.control(5, &Control::HandedOver { operator: OperatorId(101) }).unwrap();
    assert_eq!(code(served_before(&adopted, &back())), "not-fenced");
    assert_eq!(adopted.control(6, &entry_of(&back()).unwrap()).unwrap_err().code, "not-fenced");
    let before = fenced.move_out(OperatorId(101)).unwrap().epoch;
    fenced.control(5, &entry_of(&back()).unwrap()).unwrap();
    assert_eq!(fenced.range(RangeId(2)).unwrap().epoch, before.next().next());
    assert_eq!(code(served_before(&fenced, &back())), "done", "asked again");
    // An adoption that is reported all the same is rejected.
    assert_eq!(
        fenced.control(6, &Control::HandedOver { operator: OperatorId(101) }).unwrap_err().code,
        "no-such-operator"
    );
}

/// S3: breaks if a declined move is forgotten when its rows are deleted. The source asks half a
/// second after its fence or later, and no shard would own the range (R23).
#[test]
fn a_source_that_asks_late_learns_that_its_range_was_not_adopted() {
    let incoming = |operator| Control::IngestOpen {
        operator: OperatorId(operator),
        schema: schema(),
        range: RangeId(1),
        interval: KeyInterval::ALL,
        epoch: Epoch(1),
        from: shard(7),
    };
    let mut state = ShardState::default();
    let operator = OperatorId(500);
    assert_eq!(state.resolved(operator), None, "it may be on its way");
    state.control(1, &incoming(500)).unwrap();
    assert_eq!(state.resolved(operator), None);
    state.control(2, &Control::IngestCancel { operator }).unwrap();
    assert_eq!(state.resolved(operator), Some(false));
    state.control(3, &Control::Discard { operator, interval: KeyInterval::ALL, last: true }).unwrap();
    assert_eq!(state.resolved(operator), Some(false), "also when all of it is deleted");
    assert_eq!(state.control(4, &incoming(500)).unwrap_err().code, "stale-operator", "and so it stays");
    // A move that is cancelled before it is opened here is never opened.
    state.control(5, &Control::IngestCancel { operator: OperatorId(501) }).unwrap();
    assert_eq!(state.resolved(OperatorId(501)), Some(false));
    assert_eq!(state.control(6, &incoming(501)).unwrap_err().code, "stale-operator");
}

/// The other side of a move is asked by the operator's number, so a number never denotes two moves.
#[test]
fn a_number_under_which_a_range_moves_is_used_by_no_other_move() {
    let mut state = state();
    state.control(3, &entry_of(&open(101, 2, 2, 9)).unwrap()).unwrap();
    assert_eq!(state.control(4, &entry_of(&open(101, 1, 2, 9)).unwrap()).unwrap_err().code, "stale-operator");
    assert_eq!(state.move_out(OperatorId(101)).unwrap().range, RangeId(2));
}

/// The same in the log, where an earlier request may arrive late; and the same for ids of ranges.
#[test]
fn the_log_takes_no_number_twice() {
    let mut state = state();
    let mut apply = |request: &ControlRequest| match state.control(9, &entry_of(request).unwrap()) {
        Ok(_) => "effective",
        Err(refusal) => refusal.code,
    };
    assert_eq!(apply(&split(100, 2, 2, 20, 3)), "stale-operator");
    assert_eq!(apply(&split(101, 2, 2, 20, 1)), "range-exists");
    assert_eq!(apply(&split(101, 2, 2, 20, 2)), "range-exists");
    assert_eq!(apply(&split(101, 2, 2, 20, 3)), "effective");
    let table = TableSchema { id: TableId(2), name: "u".into(), ..schema() };
    assert_eq!(apply(&ControlRequest::CreateTable { schema: table, range: RangeId(3) }), "range-exists");
}

/// Breaks if the numbers of finished operators and departed ranges are not reported: they would be
/// assigned again (R30).
#[test]
fn the_highest_numbers_outlive_their_owners() {
    let mut state = state();
    let from = shard(7);
    let incoming = ControlRequest::IngestOpen {
        operator: OperatorId(500),
        schema: TableSchema { id: TableId(40), name: "u".into(), ..schema() },
        range: RangeId(300),
        interval: KeyInterval::ALL,
        epoch: Epoch(1),
        from,
    };
    state.control(3, &entry_of(&incoming).unwrap()).unwrap();
    state.control(4, &Control::IngestCancel { operator: OperatorId(500) }).unwrap();
    let last = Control::Discard { operator: OperatorId(500), interval: KeyInterval::ALL, last: true };
    state.control(5, &last).unwrap();
    let highest = state.highest();
    assert_eq!((highest.operator, highest.range, highest.table), (OperatorId(500), RangeId(300), TableId(40)));
    // The numbers of a rejected entry count, too: they have been assigned.
    assert!(state.control(6, &entry_of(&split(600, 99, 1, 10, 700)).unwrap()).is_err());
    assert_eq!((state.highest().operator, state.highest().range), (OperatorId(600), RangeId(700)));
}
