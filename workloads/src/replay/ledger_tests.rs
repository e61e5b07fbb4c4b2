//! The ledger against a row that a correct store, or a wrong one, would hold.
#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

const LOST_TWO: RowVerdict = RowVerdict::Lost { acknowledged: 2 };

fn acknowledged(ledger: &mut Ledger, key: i64, effect: WriteEffect) -> u32 {
    let issued = ledger.issue(key, effect).unwrap();
    ledger.acknowledge(key);
    issued.version
}

/// A row of this version, with a count that suits it.
fn of_version(ledger: &Ledger, key: i64, version: i64) -> FoundRow {
    let suits = |record: &KeyRecord| u32::try_from(version).map_or(0, |version| *record.counts(version).start());
    FoundRow { version, count: ledger.keys.get(&key).map_or(0, suits).into() }
}

fn judge(ledger: &Ledger, key: i64, version: Option<i64>) -> RowVerdict {
    ledger.judge(key, version.map(|version| of_version(ledger, key, version)))
}

#[test]
fn an_acknowledged_write_must_be_there() {
    let mut ledger = Ledger::new(1, 10);
    acknowledged(&mut ledger, 7, WriteEffect::Inserted);
    assert_eq!(acknowledged(&mut ledger, 7, WriteEffect::Updated), 2);
    assert_eq!(judge(&ledger, 7, Some(2)), RowVerdict::Intact);
    assert_eq!(judge(&ledger, 7, Some(1)), LOST_TWO);
    assert_eq!(judge(&ledger, 7, None), LOST_TWO);
    assert_eq!(judge(&ledger, 7, Some(3)), RowVerdict::NeverIssued);
    assert_eq!(judge(&ledger, 7, Some(0)), RowVerdict::NeverIssued);
    assert_eq!(judge(&ledger, 7, Some(i64::MAX)), RowVerdict::NeverIssued);
    assert_eq!(judge(&ledger, 8, Some(1)), RowVerdict::NeverIssued);
    assert_eq!(judge(&ledger, 8, None), RowVerdict::Intact);
}

#[test]
fn an_unknown_write_may_or_may_not_be_there_until_a_later_one_is_acknowledged() {
    let mut ledger = Ledger::new(1, 10);
    acknowledged(&mut ledger, 7, WriteEffect::Inserted);
    ledger.issue(7, WriteEffect::Updated).unwrap();
    ledger.unknown(7);
    for version in [1, 2] {
        assert_eq!(judge(&ledger, 7, Some(version)), RowVerdict::Intact);
    }
    assert_eq!(judge(&ledger, 7, None), RowVerdict::Lost { acknowledged: 1 });
    acknowledged(&mut ledger, 7, WriteEffect::Updated);
    assert_eq!(judge(&ledger, 7, Some(2)), RowVerdict::Lost { acknowledged: 3 });
    assert_eq!(judge(&ledger, 7, Some(3)), RowVerdict::Intact);
}

#[test]
fn a_write_reported_as_not_applied_must_not_appear() {
    let mut ledger = Ledger::new(1, 10);
    acknowledged(&mut ledger, 7, WriteEffect::Inserted);
    ledger.issue(7, WriteEffect::Updated).unwrap();
    ledger.not_applied(7);
    assert_eq!(judge(&ledger, 7, Some(1)), RowVerdict::Intact);
    assert_eq!(judge(&ledger, 7, Some(2)), RowVerdict::NeverIssued);
}

#[test]
fn deletes_leave_nothing_and_unknown_ones_leave_it_open() {
    let mut ledger = Ledger::new(1, 10);
    acknowledged(&mut ledger, 7, WriteEffect::Inserted);
    ledger.issue(7, WriteEffect::Deleted).unwrap();
    ledger.unknown(7);
    assert_eq!(ledger.presence(7), Presence::Unknown);
    assert_eq!(judge(&ledger, 7, None), RowVerdict::Intact);
    assert_eq!(judge(&ledger, 7, Some(1)), RowVerdict::Intact);
    assert_eq!(judge(&ledger, 7, Some(2)), RowVerdict::NeverIssued);
    ledger.observe(7, None);
    assert_eq!(ledger.presence(7), Presence::Absent);
    assert_eq!(judge(&ledger, 7, Some(1)), LOST_TWO);
    acknowledged(&mut ledger, 7, WriteEffect::Inserted);
    assert_eq!(ledger.presence(7), Presence::Present);
    assert_eq!(judge(&ledger, 7, None), RowVerdict::Lost { acknowledged: 3 });
}

#[test]
fn an_abandoned_write_counts_as_unknown() {
    let mut ledger = Ledger::new(1, 10);
    acknowledged(&mut ledger, 7, WriteEffect::Inserted);
    ledger.issue(7, WriteEffect::Updated).unwrap();
    assert_eq!(judge(&ledger, 7, Some(1)), RowVerdict::Intact);
    assert_eq!(judge(&ledger, 7, Some(2)), RowVerdict::Intact);
}

#[test]
fn unknown_outcomes_are_limited_and_never_turn_into_false_alarms() {
    let mut ledger = Ledger::new(1, 10);
    acknowledged(&mut ledger, 7, WriteEffect::Inserted);
    for _ in 0..100 {
        ledger.issue(7, WriteEffect::Updated).unwrap();
        ledger.unknown(7);
    }
    assert_eq!(ledger.keys[&7].unknown.as_ref().unwrap().writes.len(), MAX_UNKNOWN_PER_KEY);
    for version in 1..=101 {
        assert_eq!(judge(&ledger, 7, Some(version)), RowVerdict::Intact, "{version}");
    }
    assert_eq!(judge(&ledger, 7, Some(102)), RowVerdict::NeverIssued);
    ledger.observe(7, Some(of_version(&ledger, 7, 50)));
    assert_eq!(judge(&ledger, 7, Some(49)), RowVerdict::Lost { acknowledged: 50 });
    assert_eq!(judge(&ledger, 7, Some(51)), RowVerdict::Intact, "it may still arrive");
    acknowledged(&mut ledger, 7, WriteEffect::Updated);
    assert_eq!(judge(&ledger, 7, Some(51)), RowVerdict::Lost { acknowledged: 102 });
}

#[test]
fn reads_are_checked_against_what_was_acknowledged_before_them() {
    let mut ledger = Ledger::new(1, 10);
    acknowledged(&mut ledger, 7, WriteEffect::Inserted);
    let floor = ledger.read_floor(7);
    acknowledged(&mut ledger, 7, WriteEffect::Updated);
    ledger.issue(7, WriteEffect::Updated).unwrap();
    for (version, allowed) in [(Some(0), false), (Some(1), true), (Some(3), true), (Some(4), false), (None, false)] {
        assert_eq!(
            ledger.read_allowed(7, floor, version.map(|version| of_version(&ledger, 7, version))),
            allowed,
            "{version:?}"
        );
    }
    ledger.acknowledge(7);
    ledger.issue(7, WriteEffect::Deleted).unwrap();
    assert!(ledger.read_allowed(7, floor, None), "a delete may have overtaken the read");
    assert!(ledger.read_allowed(99, ledger.read_floor(99), None));
    assert!(!ledger.read_allowed(99, ledger.read_floor(99), Some(FoundRow { version: 1, count: 1 })));
}

#[test]
fn keys_are_limited() {
    let mut ledger = Ledger::new(1, 1);
    acknowledged(&mut ledger, 7, WriteEffect::Inserted);
    assert_eq!(ledger.issue(8, WriteEffect::Updated), Err(LedgerFull { max_keys: 1 }));
    assert_eq!(ledger.issue(7, WriteEffect::Updated), Ok(Issued { version: 2, over: 1 }));
    assert_eq!(ledger.sorted_keys(), [7]);
}

#[test]
fn the_hottest_share_is_exact() {
    let mut ledger = Ledger::new(1, 10);
    assert_eq!(ledger.hottest_key_share(), 0.0);
    acknowledged(&mut ledger, 7, WriteEffect::Updated);
    for key in [7, 7, 7, 1] {
        ledger.touch(key);
    }
    assert_eq!(ledger.hottest_key_share(), 0.75);
}

#[test]
fn a_count_tells_a_write_that_was_applied_twice_or_not_at_all() {
    let mut ledger = Ledger::new(1, 10);
    let at = |version, count| Some(FoundRow { version, count });
    acknowledged(&mut ledger, 7, WriteEffect::Inserted);
    acknowledged(&mut ledger, 7, WriteEffect::Updated);
    assert_eq!(ledger.judge(7, at(2, 2)), RowVerdict::Intact);
    assert_eq!(ledger.judge(7, at(2, 3)), RowVerdict::Miscounted { least: 2, most: 2 });
    assert_eq!(ledger.judge(7, at(2, 1)), RowVerdict::Miscounted { least: 2, most: 2 });
    ledger.issue(7, WriteEffect::Updated).unwrap();
    ledger.unknown(7);
    assert_eq!(ledger.issue(7, WriteEffect::Updated), Ok(Issued { version: 4, over: 2 }));
    ledger.acknowledge(7);
    for (count, verdict) in [
        (2, RowVerdict::Miscounted { least: 3, most: 4 }),
        (3, RowVerdict::Intact),
        (4, RowVerdict::Intact),
        (5, RowVerdict::Miscounted { least: 3, most: 4 }),
    ] {
        assert_eq!(ledger.judge(7, at(4, count)), verdict, "{count}");
    }
    // What a read has seen is what it is from then on.
    ledger.observe(7, at(4, 4));
    assert_eq!(ledger.judge(7, at(4, 3)), RowVerdict::Miscounted { least: 4, most: 4 });
    // A new row counts from the start.
    acknowledged(&mut ledger, 7, WriteEffect::Deleted);
    acknowledged(&mut ledger, 7, WriteEffect::Inserted);
    assert_eq!(ledger.judge(7, at(6, 1)), RowVerdict::Intact);
    assert_eq!(ledger.judge(7, at(6, 5)), RowVerdict::Miscounted { least: 1, most: 1 });
}

#[test]
fn a_scan_must_show_what_was_there_before_it_and_is_there_after_it() {
    let mut ledger = Ledger::new(1, 10);
    for key in [10, 20, 30] {
        acknowledged(&mut ledger, key, WriteEffect::Inserted);
    }
    let began = ledger.time();
    assert_eq!(ledger.surely_present(11..=29, began), Some(20));
    assert_eq!(ledger.surely_present(21..=29, began), None);
    assert_eq!(ledger.surely_present(RangeInclusive::new(29, 21), began), None);
    acknowledged(&mut ledger, 25, WriteEffect::Inserted);
    assert_eq!(ledger.surely_present(21..=29, began), None, "it may have come after the scan");
    assert_eq!(ledger.surely_present(21..=29, ledger.time()), Some(25));
    ledger.issue(20, WriteEffect::Deleted).unwrap();
    assert_eq!(ledger.surely_present(11..=24, began), None, "it may be going");
    ledger.not_applied(20);
    assert_eq!(ledger.surely_present(11..=24, began), Some(20));
    acknowledged(&mut ledger, 20, WriteEffect::Deleted);
    acknowledged(&mut ledger, 20, WriteEffect::Inserted);
    assert_eq!(ledger.surely_present(11..=24, began), None, "it was gone for a while");
}

/// The effect of a write in the store, and its answer.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Acknowledged,
    Refused,
    UnknownApplied,
    UnknownDropped,
    /// Unknown, and applied only after this many more writes.
    UnknownLate(usize),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        4 => Just(Fate::Acknowledged),
        1 => Just(Fate::Refused),
        1 => Just(Fate::UnknownApplied),
        1 => Just(Fate::UnknownDropped),
        2 => (1usize..5).prop_map(Fate::UnknownLate),
    ]
}

/// One row of a correct store. Updates and deletes take effect over the versions that they name, as
/// targets ask for.
fn apply(stored: &mut Option<FoundRow>, issued: Issued, effect: WriteEffect) -> bool {
    let version = i64::from(issued.version);
    let takes_effect = match (effect, *stored) {
        (WriteEffect::Inserted, stored) => stored.is_none(),
        (_, Some(stored)) => (i64::from(issued.over)..=version).contains(&stored.version),
        (_, None) => false,
    };
    if takes_effect {
        let count = stored.map_or(0, |stored| stored.count) + 1;
        *stored = effect.leaves_row().then_some(FoundRow { version, count });
    }
    takes_effect
}

proptest! {
    /// A correct store is never called wrong, whatever arrives late; and undoing the last
    /// acknowledged write, applying it twice, or losing one that a later one covers never goes
    /// unseen.
    #[test]
    fn no_false_alarm_and_no_loss_unseen(writes in proptest::collection::vec((fate(), prop::bool::weighted(0.2)), 1..60)) {
        let mut ledger = Ledger::new(1, 1);
        let mut stored: Option<FoundRow> = None;
        let mut late: Vec<(usize, Issued)> = Vec::new();
        for (step, (fate, delete)) in writes.into_iter().enumerate() {
            for (_, issued) in late.extract_if(.., |(due, _)| *due <= step) {
                apply(&mut stored, issued, WriteEffect::Updated);
            }
            if ledger.presence(7) == Presence::Unknown {
                ledger.observe(7, stored);
            }
            let effect = match stored {
                Some(_) if delete => WriteEffect::Deleted,
                Some(_) => WriteEffect::Updated,
                None => WriteEffect::Inserted,
            };
            let issued = ledger.issue(7, effect).unwrap();
            match fate {
                Fate::Acknowledged => {
                    prop_assert!(apply(&mut stored, issued, effect));
                    ledger.acknowledge(7);
                }
                Fate::Refused => ledger.not_applied(7),
                Fate::UnknownApplied => {
                    apply(&mut stored, issued, effect);
                    ledger.unknown(7);
                }
                Fate::UnknownLate(steps) if effect == WriteEffect::Updated => {
                    late.push((step + steps, issued));
                    ledger.unknown(7);
                }
                Fate::UnknownLate(_) | Fate::UnknownDropped => ledger.unknown(7),
            }
            prop_assert_eq!(ledger.judge(7, stored), RowVerdict::Intact, "after {:?}", fate);
            prop_assert!(ledger.read_allowed(7, ledger.read_floor(7), stored));
        }
        let record = &ledger.keys[&7];
        if let Some(stored) = stored.filter(|_| record.acknowledged > 0 && record.present) {
            let older = FoundRow { version: i64::from(record.acknowledged) - 1, ..stored };
            prop_assert_ne!(ledger.judge(7, Some(older)), RowVerdict::Intact);
            let most = i64::from(*record.counts(stored.version as u32).end());
            prop_assert_ne!(ledger.judge(7, Some(FoundRow { count: most + 1, ..stored })), RowVerdict::Intact);
        }
    }
}
