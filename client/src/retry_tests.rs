#![allow(clippy::unwrap_used)]
use super::*;
use evenkeel_protocol::{Epoch, RangeId, ShardId};

const TIMEOUT_MS: u64 = 10_000;

fn attempts(repeat: Repeat) -> Attempts {
    Attempts::new(repeat, 0, TIMEOUT_MS)
}

fn busy(retry_after_ms: u64) -> AttemptFailure {
    AttemptFailure::Busy { reason: "full".into(), retry_after_ms }
}

fn lost() -> AttemptFailure {
    AttemptFailure::Lost("reset".into())
}

fn gave_up(step: RetryStep) -> ClientError {
    match step {
        RetryStep::GiveUp(error) => error,
        other => panic!("{other:?}"),
    }
}

/// The next step after each failure, for a first attempt and a random number of 1.
#[test]
fn each_failure_has_its_next_step() {
    let hint = RedirectHint { shard: ShardId(2), range: RangeId(1), epoch: Epoch(2) };
    let deposed = |leader| AttemptFailure::Deposed { reason: "silent".into(), leader };
    let conflict = || AttemptFailure::Sql(SqlError::new("40001", "conflict"));
    for (outcome, step) in [
        (AttemptFailure::NotLeader(Some(3)), RetryStep::Replica { leader: Some(3), wait_ms: 0 }),
        (AttemptFailure::NotLeader(None), RetryStep::Replica { leader: None, wait_ms: 0 }),
        (AttemptFailure::NeverSent("refused".into()), RetryStep::Replica { leader: None, wait_ms: 0 }),
        (lost(), RetryStep::Same { wait_ms: 0 }),
        (deposed(Some(2)), RetryStep::Replica { leader: Some(2), wait_ms: 0 }),
        (AttemptFailure::Moved(Learning::Routed), RetryStep::Reroute { hint: None, wait_ms: 0 }),
        (AttemptFailure::Moved(Learning::Hint(hint)), RetryStep::Reroute { hint: Some(hint), wait_ms: 0 }),
        (AttemptFailure::Moved(Learning::Nothing), RetryStep::Refresh { wait_ms: 0 }),
        (AttemptFailure::NoRoute, RetryStep::Refresh { wait_ms: 5 }),
        (busy(40), RetryStep::Same { wait_ms: 50 }),
        (conflict(), RetryStep::Same { wait_ms: 5 }),
    ] {
        for repeat in [Repeat::Free, Repeat::SameId] {
            let mut attempts = attempts(repeat);
            assert_eq!(attempts.next(outcome.clone(), 0, 1.0), step, "{outcome:?}");
            assert_eq!(attempts.retries(), 1);
        }
    }
    let unique = SqlError::new("23505", "duplicate");
    assert_eq!(
        gave_up(attempts(Repeat::SameId).next(AttemptFailure::Sql(unique.clone()), 0, 0.0)),
        ClientError::Sql(unique)
    );
    assert_eq!(
        gave_up(attempts(Repeat::SameId).next(AttemptFailure::Unsendable("16 MiB".into()), 0, 0.0)).code(),
        "54000"
    );
    // The answer to a repeated commit is final: its transaction is gone.
    assert_eq!(gave_up(attempts(Repeat::Commit).next(conflict(), 0, 0.0)).code(), "40001");
}

/// Breaks if a replica that accepts connections and closes them (a dead one behind a proxy, say) is
/// asked for ever.
#[test]
fn a_second_lost_connection_leads_to_another_replica() {
    for repeat in [Repeat::Free, Repeat::SameId] {
        let mut attempts = attempts(repeat);
        assert!(matches!(attempts.next(lost(), 0, 1.0), RetryStep::Same { .. }));
        assert!(matches!(attempts.next(lost(), 0, 1.0), RetryStep::Replica { leader: None, .. }));
        assert!(matches!(attempts.next(lost(), 0, 1.0), RetryStep::Replica { leader: None, .. }));
    }
}

/// A statement that an overloaded shard refuses waits longer each time and fails early (53300). A
/// write that may have been executed goes on asking.
#[test]
fn an_overloaded_shard_is_asked_seldom_and_not_for_long() {
    let refused = || AttemptFailure::Overloaded { retry_after_ms: 50 };
    for jitter in [0.0, 0.5, 1.0] {
        let mut write = attempts(Repeat::SameId).patient_for(0, 1_000);
        let (mut now_ms, mut waits) = (0, Vec::new());
        let error = loop {
            match write.next(refused(), now_ms, jitter) {
                RetryStep::Same { wait_ms } => {
                    waits.push(wait_ms);
                    now_ms += wait_ms;
                }
                step => break gave_up(step),
            }
        };
        assert!(waits.windows(2).all(|pair| pair[1] > pair[0]) && waits.len() <= 6, "{waits:?}");
        assert!(now_ms < 1_000 && error.code() == "53300" && error.is_retryable(), "{now_ms} {error:?}");
    }
    // With a long limit the statement is not given up for waits that are shorter.
    let mut patient = attempts(Repeat::SameId).patient_for(0, TIMEOUT_MS);
    let far = || AttemptFailure::Overloaded { retry_after_ms: 500 };
    let waited_ms = std::iter::from_fn(|| Some(patient.next(far(), 0, 1.0))).take(9).map(|step| match step {
        RetryStep::Same { wait_ms } => wait_ms,
        other => panic!("{other:?}"),
    });
    assert_eq!(waited_ms.max(), Some(1_000));
    // Its own deadline ends it, with the same code, if that comes first.
    let mut hasty = Attempts::new(Repeat::SameId, 0, 40).patient_for(0, 1_000);
    assert_eq!(gave_up(hasty.next(refused(), 0, 1.0)).code(), "53300");
    // The write may have been executed: only an answer tells, so the limit is the whole time.
    let mut lost_once = attempts(Repeat::SameId).patient_for(0, 1_000);
    lost_once.next(lost(), 0, 0.5);
    assert!(matches!(lost_once.next(refused(), 5_000, 0.5), RetryStep::Same { .. }));
    assert_eq!(gave_up(lost_once.next(refused(), TIMEOUT_MS - 1, 0.5)).code(), "08007");
}

/// Breaks if an unknown outcome is forgotten: a later, certain failure says nothing about the
/// earlier attempt (invariant 7).
#[test]
fn only_a_write_that_may_have_happened_ends_in_08007() {
    let late = TIMEOUT_MS - 1;
    for (outcomes, code, retryable) in [
        (vec![busy(500)], "57P03", true),
        (vec![AttemptFailure::NeverSent("refused".into())], "08006", true),
        (vec![AttemptFailure::NotLeader(None)], "57P03", true),
        (vec![lost()], "08007", false),
        (vec![lost(), AttemptFailure::NotLeader(None), busy(500)], "08007", false),
        (
            vec![lost(), AttemptFailure::Moved(Learning::Nothing), AttemptFailure::NeverSent("refused".into())],
            "08007",
            false,
        ),
        (vec![lost(), AttemptFailure::Sql(SqlError::new("40001", "conflict"))], "08007", false),
        (vec![AttemptFailure::Expired], "08007", false),
        (vec![AttemptFailure::Sql(SqlError::new("40001", "conflict"))], "40001", true),
    ] {
        let mut write = attempts(Repeat::SameId);
        let (last, before) = outcomes.split_last().unwrap();
        for outcome in before {
            assert!(!matches!(write.next(outcome.clone(), 0, 0.5), RetryStep::GiveUp(_)));
        }
        // Enough earlier failures that the next wait is longer than the time left.
        write.failures = 20;
        let error = gave_up(write.next(last.clone(), late, 1.0));
        assert_eq!((error.code(), error.is_retryable()), (code, retryable), "{outcomes:?}");
        let mut read = attempts(Repeat::Free);
        read.failures = 20;
        assert_ne!(gave_up(read.next(last.clone(), late, 1.0)).code(), "08007", "{last:?}");
    }
    let mut write = attempts(Repeat::SameId);
    write.next(lost(), 0, 0.0);
    let duplicate = AttemptFailure::Sql(SqlError::new("23505", "duplicate"));
    assert_eq!(gave_up(write.next(duplicate, 1, 0.0)).code(), "23505", "an answer is an answer");
}

#[test]
fn waits_double_to_a_twentieth_of_a_second_and_are_spread() {
    let waits = |jitter: f64| -> Vec<u64> {
        let mut attempts = attempts(Repeat::Free);
        let mut wait = |_| match attempts.next(AttemptFailure::NotLeader(None), 0, jitter) {
            RetryStep::Replica { wait_ms, .. } => wait_ms,
            other => panic!("{other:?}"),
        };
        (0..9).map(&mut wait).collect()
    };
    assert_eq!(waits(1.0), [0, 0, 5, 10, 20, 40, 50, 50, 50]);
    assert_eq!(waits(0.0), [0, 0, 3, 5, 10, 20, 25, 25, 25]);
}

/// With any answers of replicas, a statement ends at its deadline and does not spin until then.
#[test]
fn no_sequence_of_answers_goes_on_for_ever() {
    let hint = RedirectHint { shard: ShardId(2), range: RangeId(1), epoch: Epoch(2) };
    let outcomes = [
        AttemptFailure::NotLeader(Some(1)),
        AttemptFailure::NeverSent("refused".into()),
        AttemptFailure::Moved(Learning::Routed),
        AttemptFailure::Moved(Learning::Hint(hint)),
        AttemptFailure::Moved(Learning::Nothing),
        lost(),
        busy(0),
        AttemptFailure::NoRoute,
    ];
    for seed in 0..2_000u64 {
        let mut attempts = attempts(Repeat::SameId);
        let mut random = seed;
        let (mut now_ms, mut steps) = (0, 0);
        loop {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Some seeds repeat one failure for ever, the others mix them.
            let pick = if seed < 8 { seed } else { random >> 33 };
            match attempts.next(outcomes[pick as usize % outcomes.len()].clone(), now_ms, 0.5) {
                RetryStep::Same { wait_ms }
                | RetryStep::Replica { wait_ms, .. }
                | RetryStep::Reroute { wait_ms, .. }
                | RetryStep::Refresh { wait_ms } => now_ms += wait_ms,
                RetryStep::GiveUp(_) => break,
            }
            steps += 1;
            assert!(steps < 400 && now_ms < TIMEOUT_MS, "seed {seed}: {steps} steps in {now_ms} ms");
        }
    }
}

#[test]
fn in_a_transaction_only_patience_keeps_it() {
    let step = |outcome: AttemptFailure| in_transaction(&outcome, 0, TIMEOUT_MS, 0.0);
    assert_eq!(step(busy(20)), RetryStep::Same { wait_ms: 20 });
    for outcome in [
        lost(),
        AttemptFailure::NotLeader(None),
        AttemptFailure::Moved(Learning::Routed),
        AttemptFailure::Expired,
        AttemptFailure::NoRoute,
    ] {
        let error = gave_up(step(outcome));
        assert_eq!((error.code(), error.is_retryable()), ("40001", true));
    }
    assert_eq!(gave_up(in_transaction(&busy(20), TIMEOUT_MS - 1, TIMEOUT_MS, 0.0)).code(), "40001");
    assert_eq!(gave_up(step(AttemptFailure::Sql(SqlError::new("23505", "duplicate")))).code(), "23505");
}

/// Breaks if a write that failed with "another transaction holds the row" is sent again with too
/// little time left: it would end in 08007 while it waits at the shard, and could take effect after
/// its user has read the rows (F4).
#[test]
fn a_write_that_waits_for_a_lock_is_given_up_while_it_is_certain_that_nothing_happened() {
    let conflict = || AttemptFailure::Sql(SqlError::new("40001", "another transaction holds a row this needs"));
    let mut waiting = Attempts::new(Repeat::SameId, 0, 10_000);
    for tried_ms in [2_000, 4_000, 6_000] {
        assert!(matches!(waiting.next(conflict(), tried_ms, 0.0), RetryStep::Same { .. }));
    }
    let error = gave_up(waiting.next(conflict(), 8_000, 0.0));
    assert_eq!(error.code(), "40001", "and not 08007 two seconds later");
    // Repeating a read loses nothing.
    let mut reading = Attempts::new(Repeat::Free, 0, 10_000);
    assert!(matches!(reading.next(conflict(), 8_000, 0.0), RetryStep::Same { .. }));
}

#[test]
fn an_unknown_outcome_says_how_long_the_write_may_still_take_effect() {
    let mut lost = Attempts::new(Repeat::SameId, 0, 10_000);
    let error = gave_up(lost.next(AttemptFailure::Expired, 10_000, 0.0));
    assert_eq!(error.code(), "08007");
    assert!(format!("{error:?}").contains("within the next 40 seconds"), "{error:?}");
}
