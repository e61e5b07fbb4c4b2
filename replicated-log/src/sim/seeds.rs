//! Runs of many seeds: with all rules, where every promise must hold, and with one left out, which
//! some seed must notice.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::core::Fault;

use super::options::{Options, Stats};

/// Seeds run by default: a good half minute on two busy cores, without optimisation.
const DEFAULT_SEEDS: u64 = 500;

/// Runs one seed. `Err` says what was violated, be it a check here or an assertion in the code
/// under test.
fn run(seed: u64, options: &Options) -> Result<Stats, String> {
    let run = AssertUnwindSafe(|| super::run::run(seed, options));
    match catch_unwind(run) {
        Ok(result) => result.map_err(|violation| violation.0),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(format!("panic: {}", text.unwrap_or_default()))
        }
    }
}

/// Runs seeds on all cores until one fails; the first failure, or what was seen in all of them.
fn run_many(seeds: std::ops::Range<u64>, options: &Options) -> Result<Stats, (u64, String)> {
    let next = AtomicU64::new(seeds.start);
    let outcome = Mutex::new(Ok(Stats::default()));
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let result = run(seed, options);
                    let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
                    match (&mut *outcome, result) {
                        (Ok(total), Ok(stats)) => total.add(&stats),
                        (Ok(_), Err(what)) => *outcome = Err((seed, what)),
                        (Err(_), _) => {}
                    }
                    if outcome.is_err() {
                        next.store(seeds.end, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn number_from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

fn promises_hold(test: &str, share: u64, options: &Options) -> Option<Stats> {
    let seeds = match number_from_env("EVENKEEL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number_from_env("EVENKEEL_SEEDS").unwrap_or(DEFAULT_SEEDS) / share,
    };
    let many = seeds.end - seeds.start >= 100;
    match run_many(seeds, options) {
        Ok(stats) => {
            println!("{stats:#?}");
            many.then_some(stats)
        }
        Err((seed, what)) => panic!(
            "seed {seed}: {what}\nagain: EVENKEEL_SEED={seed} cargo test -p evenkeel-replicated-log --lib {test} -- \
             --nocapture"
        ),
    }
}

#[test]
fn promises_hold_on_every_schedule() {
    if let Some(stats) = promises_hold("promises_hold_on_every_schedule", 1, &Options::default()) {
        // An event that never happened was not tested.
        assert_eq!(stats.missing(), Vec::<&str>::new());
    }
}

#[test]
fn promises_hold_in_a_storm() {
    promises_hold("promises_hold_in_a_storm", 4, &Options { storm: true, ..Options::default() });
}

#[test]
fn leases_hold_among_restarts_and_cuts() {
    promises_hold("leases_hold_among_restarts_and_cuts", 4, &Options { leases: true, ..Options::default() });
}

// R28: a write acknowledged in memory is lost only if two replicas crash before it is on disk; the
// oracle checks each such write. `schedules` shows what can be lost, and that a majority's memory
// is not enough.
#[test]
fn memory_survives_one_crash_on_slow_disks() {
    promises_hold("memory_survives_one_crash_on_slow_disks", 2, &Options { slow_disks: true, ..Options::default() });
}

// A replica that was away receives decided entries in pieces, among crashes and elections.
#[test]
fn pieces_keep_promises() {
    promises_hold("pieces_keep_promises", 4, &far());
}

fn far() -> Options {
    Options { far: true, storm: true, changes: false, compaction: false, one_segment: true, ..Options::default() }
}

// A part of the log that counts as accepted in the newest round hides the rest.
#[test]
fn accepting_pieces_in_the_newest_round_is_noticed() {
    let options = Options { fault: Some(Fault::AcceptPieces), ..far() };
    must_be_noticed("accepting pieces in the promise's round", &options);
}

// R14: the oracle knows the true time.
#[test]
fn a_leader_that_goes_by_its_own_clock_is_noticed() {
    let options = Options { fault: Some(Fault::OwnClock), ..Options::default() };
    must_be_noticed("leaders that go by their own wall clocks", &options);
}

/// Some seed among these must notice what `options` leaves out.
fn must_be_noticed(what: &str, options: &Options) {
    // The panics on the way are the assertions that notice; their backtraces would bury the result.
    let seeds = number_from_env("EVENKEEL_SEEDS").unwrap_or(DEFAULT_SEEDS).max(300) * 2;
    match run_many(0..seeds, options) {
        Ok(stats) => panic!("{seeds} seeds passed {what}: {stats:#?}"),
        Err((seed, violation)) => println!("seed {seed} notices {what}: {violation}"),
    }
}

// Log rule 1: a sent message must be durable.
#[test]
fn a_skipped_sync_is_noticed() {
    let options = Options { skip_sync_every: 3, one_segment: true, ..Options::default() };
    must_be_noticed("one sync in three left out", &options);
}

// Log rule 1: only the leader's own AcceptDecides (and messages that are never durable) may
// overtake the sync.
#[test]
fn answering_before_the_sync_is_noticed() {
    let options = Options { fault: Some(Fault::SendBeforeSync), one_segment: true, storm: true, ..Options::default() };
    must_be_noticed("sending every message before the sync", &options);
}

// Log rule 2. Whole sessions lost as log rule 3 wants it do not bring the schedule about; single
// messages lost do.
#[test]
fn leaving_out_rule_2_is_noticed() {
    let lossy = Options { compaction: false, lossy: true, ..Options::default() };
    let seeds = number_from_env("EVENKEEL_SEEDS").unwrap_or(DEFAULT_SEEDS) / 4;
    if let Err((seed, what)) = run_many(0..seeds, &lossy) {
        panic!("lossy seed {seed}, with the rule: {what}");
    }
    let options = Options { fault: Some(Fault::PromiseWithoutTaking), ..lossy };
    must_be_noticed("feeding Promises without taking messages first", &options);
}

// Log rule 9, its first half.
#[test]
fn reads_without_a_majority_are_noticed() {
    let options = Options { fault: Some(Fault::ReadWithoutProbe), ..Options::default() };
    must_be_noticed("answering reads without a probe", &options);
}

// Log rules 8 and 9.
#[test]
fn reads_before_leader_start_are_noticed() {
    let options = Options { fault: Some(Fault::ReadBeforeStart), ..Options::default() };
    must_be_noticed("answering reads before LeaderStart is decided", &options);
}

// Log rule 9, leases: the candidate may be one of the holders.
#[test]
fn a_lease_from_a_mere_majority_is_noticed() {
    let options = Options { fault: Some(Fault::LeaseOfMajority), leases: true, ..Options::default() };
    must_be_noticed("counting a lease with a majority of holders", &options);
}

// Log rule 9, leases: a hold is forgotten in a restart.
#[test]
fn leaving_out_the_hold_after_a_restart_is_noticed() {
    let options = Options { fault: Some(Fault::NoRestartHold), leases: true, ..Options::default() };
    must_be_noticed("promising at once after a restart", &options);
}

// Log rule 9, leases.
#[test]
fn promising_during_a_hold_is_noticed() {
    let options = Options { fault: Some(Fault::NoHold), leases: true, ..Options::default() };
    must_be_noticed("promising to any candidate during a hold", &options);
}

// Log rule 9, leases: clocks are allowed to be off by 5 %, not by 60.
#[test]
fn clocks_that_drift_too_far_are_noticed() {
    // The leases of a configuration end with it, rightly.
    let options = Options { drift_permille: 600, leases: true, changes: false, ..Options::default() };
    must_be_noticed("clocks that drift too far", &options);
}

// Log rule 10: the barrier takes effect when it is decided, and not before.
#[test]
fn beginning_a_configuration_early_is_noticed() {
    let options = Options { fault: Some(Fault::ChangeBeforeDecided), ..Options::default() };
    must_be_noticed("beginning a configuration before the barrier is decided", &options);
}

// Log rule 10: entries behind the barrier are rejected.
#[test]
fn passing_the_barrier_is_noticed() {
    let options = Options { fault: Some(Fault::PassBarrier), ..Options::default() };
    must_be_noticed("proposals that take effect behind the barrier", &options);
}

// Log rule 10: every voter of a configuration has all entries of earlier configurations.
#[test]
fn voting_without_the_state_is_noticed() {
    let options = Options { fault: Some(Fault::VoteWithoutState), ..Options::default() };
    must_be_noticed("replicas that vote before they have the state", &options);
}

// Log rule 10: an empty disk never rejoins the configuration in which another one made promises.
#[test]
fn accepting_any_disk_is_noticed() {
    let options = Options { fault: Some(Fault::AcceptAnyDisk), ..Options::default() };
    must_be_noticed("a replica that rejoins its configuration with an empty disk", &options);
}

// Invariant 1.
#[test]
fn leaving_out_the_term_fence_is_noticed() {
    let options = Options { fault: Some(Fault::NoFence), ..Options::default() };
    must_be_noticed("judging entries without the term", &options);
}

// R17: a deposed leader does not know the writes acknowledged since by others.
#[test]
fn a_staleness_bound_by_a_deposed_leader_is_noticed() {
    let options = Options { fault: Some(Fault::StalenessBoundWithoutProof), leases: true, ..Options::default() };
    must_be_noticed("giving staleness bounds without a lease or a probe", &options);
}

// R17: a staleness bound is true for the time of the question, not for that of the answer.
#[test]
fn a_staleness_bound_dated_by_its_arrival_is_noticed() {
    let options = Options { fault: Some(Fault::StalenessBoundWhenAnswered), ..Options::default() };
    must_be_noticed("dating staleness bounds by their arrival", &options);
}

// Log rule 11.
#[test]
fn leaving_stuck_replicas_alone_is_noticed() {
    let options = Options { fault: Some(Fault::LeaveStuck), ..Options::default() };
    must_be_noticed("leaving replicas stuck above the leader's ballot", &options);
}

// A run is a function of its seed, or its number would be worth nothing.
#[test]
fn the_same_seed_is_the_same_run() {
    let options = Options::default();
    let first = run(42, &options).map(|s| format!("{s:?}"));
    assert_eq!(first, run(42, &options).map(|s| format!("{s:?}")));
}
