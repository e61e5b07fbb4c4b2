//! What the balancer promises, in a closed loop over synthetic workloads.
#![allow(clippy::unwrap_used)]

use super::planning_context::PlanningContext;
use super::simulation::{Random, Simulation, Workload, mixgraph_like, zipf};
use super::testing::state_with_table;
use super::*;
use crate::config::BalancerConfig;
use crate::load::{LoadModel, Source};
use crate::state::{Action, Command, PlacementState};
use evenkeel_protocol::report::ShardReport;
use evenkeel_protocol::{RangeId, ShardId};
use proptest::prelude::*;

const SEEDS: u64 = 3;

/// Runs a stationary workload, and checks that it is balanced in time and then left alone.
fn levels_and_stops(name: &str, floor: f64, seeds: u64, workload: impl Fn() -> Workload) {
    for seed in 1..=seeds {
        let mut simulation = Simulation::new(3, 2000, seed, workload());
        simulation.run(45);
        let level_s = simulation.level_from(1.25 * floor);
        let last_move_s = simulation.moves.last().map_or(0, |(at, ..)| (at - 1_700_000_000_000) / 1000);
        let summary = format!(
            "{name} seed {seed}: level from second {level_s}, {} splits, {} moves, last at {last_move_s} s, ranges {}, loads {:?}",
            simulation.splits.len(),
            simulation.moves.len(),
            simulation.state.ranges.len(),
            simulation.loads()
        );
        println!("{summary}");
        assert!(level_s <= 11, "{summary}");
        assert!(last_move_s <= 20, "still moving: {summary}");
    }
}

#[test]
fn uniform_load_is_level_within_ten_seconds_and_then_left_alone() {
    levels_and_stops("uniform", 1.0, SEEDS, || Box::new(|random, _| random.below(100_000) as i64));
}

#[test]
fn zipf_is_level_and_left_alone() {
    levels_and_stops("zipf 0.99 scrambled", 1.0, SEEDS, || zipf(100_000, 0.99, true));
    levels_and_stops("zipf 0.99 in order", 1.0, SEEDS, || zipf(100_000, 0.99, false));
}

#[test]
fn a_key_hotter_than_a_shards_part_is_isolated() {
    // Zipf 1.3 over 100,000: the first key has about 26% of the load, so the floor stays 1; with
    // 1.8 it has 53% and the floor is 1.6.
    levels_and_stops("zipf 1.3", 1.0, SEEDS, || zipf(100_000, 1.3, true));
    levels_and_stops("zipf 1.8", 3.0 * 0.532, SEEDS, || zipf(100_000, 1.8, true));
}

#[test]
fn mixgraph_is_level_and_left_alone() {
    levels_and_stops("mixgraph", 1.0, SEEDS, || mixgraph_like(100_000));
}

#[test]
fn a_hotspot_of_a_fifth_of_the_keys_is_level_and_left_alone() {
    levels_and_stops("hotspot", 1.0, SEEDS, || {
        Box::new(
            |random: &mut Random, _| {
                if random.unit() < 0.8 { random.below(20_000) as i64 } else { random.below(100_000) as i64 }
            },
        )
    });
}

#[test]
fn load_follows_a_jumping_hotspot() {
    for seed in 1..=SEEDS {
        let hotspot: Workload = Box::new(|random, ms| {
            let place = (ms / 40_000) * 37_000 % 100_000;
            let n = if random.unit() < 0.9 { place + random.below(5_000) } else { random.below(100_000) };
            n as i64
        });
        let mut simulation = Simulation::new(3, 2000, seed, hotspot);
        simulation.run(120);
        for jump in 0..3usize {
            let after_jump = &simulation.imbalance[jump * 40 + 14..jump * 40 + 39];
            let worst = after_jump.iter().copied().fold(0.0, f64::max);
            assert!(worst <= 1.25, "seed {seed}, jump {jump}: {after_jump:?}");
        }
    }
}

/// A shard that stalls for three seconds and then serves its queue looks too busy for a while. Its
/// load is balanced all the same.
#[test]
fn a_stall_and_the_burst_after_it_move_nothing() {
    for seed in 1..=SEEDS {
        let mut simulation = Simulation::new(3, 2000, seed, Box::new(|random, _| random.below(100_000) as i64));
        simulation.run(20);
        let (moves, splits) = (simulation.moves.len(), simulation.splits.len());
        for _ in 0..4 {
            simulation.stall(ShardId(2), 3);
            simulation.run(15);
        }
        assert_eq!((simulation.moves.len(), simulation.splits.len()), (moves, splits), "seed {seed}");
    }
}

#[test]
fn a_drifting_hotspot_does_not_make_it_thrash() {
    let hotspot: Workload = Box::new(|random, ms| {
        let place = ms / 10;
        let n = if random.unit() < 0.9 { place + random.below(20_000) } else { random.below(100_000) };
        n as i64
    });
    let mut simulation = Simulation::new(3, 2000, 5, hotspot);
    simulation.run(120);
    let late = &simulation.imbalance[20..];
    let mean = late.iter().sum::<f64>() / late.len() as f64;
    println!(
        "drifting: mean imbalance {mean:.2}, {} splits, {} moves",
        simulation.splits.len(),
        simulation.moves.len()
    );
    assert!(mean < 1.3, "{late:?}");
    assert!(simulation.moves.len() < 90, "{} moves in 120 s", simulation.moves.len());
}

/// Every insert goes to the end: no split helps for longer than a moment, so nothing is to be done.
#[test]
fn a_sequential_front_is_left_alone_with_a_reason() {
    let front: Workload = Box::new(|random, ms| (ms * 2 + random.below(500)) as i64);
    let mut simulation = Simulation::new(3, 2000, 3, front);
    simulation.run(60);
    println!("front: {} splits, {} moves", simulation.splits.len(), simulation.moves.len());
    assert!(simulation.splits.len() <= 2 && simulation.moves.len() <= 8);
    let shifting = |r: &Rejection| matches!(r.reason, Reason::Shifting { .. });
    assert!(simulation.rejections.iter().any(shifting), "{:?}", simulation.rejections);
}

#[test]
fn without_load_nothing_is_done() {
    let mut simulation = Simulation::new(3, 8, 1, Box::new(|random, _| random.below(100) as i64));
    simulation.run(60);
    assert!(simulation.splits.is_empty() && simulation.moves.is_empty() && simulation.merges.is_empty());
}

#[test]
fn a_drained_shard_is_emptied_and_a_new_one_fills() {
    let mut simulation = Simulation::new(3, 2000, 1, Box::new(|random, _| random.below(100_000) as i64));
    simulation.run(20);
    simulation.apply(Command::DrainShard(ShardId(2)));
    simulation.run(15);
    assert_eq!(simulation.state.range_counts()[&ShardId(2)], 0);
    simulation.apply(Command::RemoveShard(ShardId(2)));
    simulation.add_shard(4);
    let before = simulation.moves.len();
    simulation.run(30);
    assert!(simulation.imbalance[60..].iter().all(|i| *i <= 1.25), "{:?}", simulation.imbalance);
    println!("filling: {} moves", simulation.moves.len() - before);
    assert!(simulation.moves[before..].iter().all(|(.., to)| *to == ShardId(4)), "only the new shard is filled");
}

#[test]
fn what_has_long_been_cold_is_merged_and_not_split_again() {
    let hotspot: Workload = Box::new(|random, ms| {
        let place = if ms < 15_000 { 0 } else { 90_000 };
        (place + random.below(10_000)) as i64
    });
    let mut simulation = Simulation::new(3, 2000, 2, hotspot);
    simulation.run(60);
    assert!(simulation.merges.is_empty(), "nothing has been cold for long enough");
    let ranges = simulation.state.ranges.len();
    simulation.run(160);
    assert!(!simulation.merges.is_empty());
    assert!(simulation.state.ranges.len() < ranges, "{ranges} ranges before");
    let splits = simulation.splits.len();
    simulation.run(60);
    assert_eq!(simulation.splits.len(), splits, "a merge that has to be split again was none");
}

/// R29: a placement driver that has just taken over plans nothing until every shard has reported
/// for a window.
#[test]
fn a_new_leadership_waits_for_a_full_window_of_every_shard() {
    let mut simulation = Simulation::new(3, 2000, 1, Box::new(|random, _| random.below(100_000) as i64));
    simulation.apply(Command::SetBalancer { enabled: false });
    let at = vec![super::testing::key(90_000)];
    simulation.apply(Command::Begin(Action::Split { range: RangeId(1), epoch: None, at }));
    simulation.run(1);
    simulation.apply(Command::Begin(Action::Move { range: RangeId(2), epoch: None, to: ShardId(3) }));
    simulation.run(5);
    assert_eq!(simulation.state.range_counts()[&ShardId(3)], 1);
    simulation.apply(Command::SetBalancer { enabled: true });
    simulation.balancer = Balancer::default();
    simulation.silent = vec![ShardId(3)];
    simulation.run(10);
    assert!(simulation.splits.is_empty() && simulation.moves.is_empty());
    let plan = simulation.balancer.plan(&simulation.state, &simulation.config, simulation.now_ms);
    assert!(matches!(
        plan.rejections[..],
        [Rejection { reason: Reason::NotReady(NotReady::NotReported(ShardId(3))), .. }]
    ));
    simulation.silent.clear();
    simulation.run(15);
    assert!(!simulation.moves.is_empty());
}

/// R29: a silent shard that owns nothing carries no load. A shard with a mistyped address must not
/// stop balancing for ever.
#[test]
fn a_new_leadership_does_not_wait_for_a_silent_shard_that_owns_nothing() {
    let mut simulation = Simulation::new(3, 2000, 1, Box::new(|random, _| random.below(100_000) as i64));
    simulation.add_shard(9);
    simulation.silent = vec![ShardId(9)];
    simulation.balancer = Balancer::default();
    assert_eq!(simulation.balancer.shard_for_new_range(&simulation.state), None, "nobody has spoken yet");
    simulation.run(15);
    assert!(!simulation.moves.is_empty(), "{:?}", simulation.rejections);
    assert_ne!(simulation.balancer.shard_for_new_range(&simulation.state), Some(ShardId(9)), "only to who speaks");
}

/// R29: a drain is planned like everything else. Otherwise the shard that reports first in a
/// leadership would get all ranges.
#[test]
fn a_drain_waits_for_a_full_window_of_every_shard() {
    let mut simulation = Simulation::new(3, 2000, 1, Box::new(|random, _| random.below(100_000) as i64));
    simulation.run(15);
    simulation.apply(Command::SetBalancer { enabled: false });
    simulation.apply(Command::DrainShard(ShardId(1)));
    let moves = simulation.moves.len();
    let began_ms = simulation.now_ms;
    simulation.balancer = Balancer::default();
    simulation.run(10);
    let first_ms = simulation.moves[moves].0;
    assert!(first_ms >= began_ms + simulation.config.window_ms, "after {} ms", first_ms - began_ms);
}

/// R29: a shard that falls silent is neither source nor target.
#[test]
fn a_silent_shard_is_left_out() {
    let mut simulation = Simulation::new(4, 2000, 1, Box::new(|random, _| random.below(100_000) as i64));
    simulation.apply(Command::SetBalancer { enabled: false });
    simulation.run(3);
    simulation.silent = vec![ShardId(4)];
    simulation.run(3);
    simulation.apply(Command::SetBalancer { enabled: true });
    simulation.run(20);
    // The simulation itself asserts that no move names it.
    assert!(simulation.moves.iter().any(|(.., to)| *to == ShardId(3)));
}

/// Rates rise while ranges move: the expectations of moved ranges rise with the measurements of the
/// others, because the proportion carries over.
#[test]
fn expectations_keep_their_proportion() {
    let mut simulation = Simulation::new(3, 900, 1, Box::new(|random, _| random.below(100_000) as i64));
    while simulation.moves.len() < 4 {
        simulation.tick();
    }
    simulation.statements_per_s = 3000;
    for _ in 0..7 {
        simulation.tick();
    }
    let mut compared = 0;
    for (id, view) in &simulation.balancer.load.ranges {
        if matches!(view.source, Source::Expected { .. }) {
            let part = simulation.keys_of(*id, 100_000) as f64 / 100_000.0;
            let expected = simulation.balancer.load.rate(*id) / simulation.balancer.imbalance.total;
            assert!(
                (expected / part - 1.0).abs() < 0.3,
                "range {id}: {expected:.3} of the load, {part:.3} of the keys"
            );
            compared += 1;
        }
    }
    assert!(compared >= 2, "{compared}");
}

/// A relieved shard serves more: rates rise while pieces move, and the expectations of moved ranges
/// must rise with them.
#[test]
fn expectations_follow_the_total() {
    let mut simulation = Simulation::new(3, 600, 1, Box::new(|random, _| random.below(100_000) as i64));
    simulation.run(3);
    for rate in [1000, 1400, 1800, 2000] {
        simulation.statements_per_s = rate;
        simulation.run(2);
    }
    simulation.run(20);
    let moves: Vec<_> = simulation.moves.iter().map(|(at, ..)| *at).collect();
    assert!(simulation.imbalance[16..].iter().all(|i| *i <= 1.25), "{:?}", simulation.imbalance);
    assert!(simulation.moves.len() <= 12, "{moves:?}");
}

#[test]
fn plans_are_deterministic_and_say_why() {
    let run = || {
        let mut simulation = Simulation::new(3, 2000, 7, mixgraph_like(50_000));
        simulation.run(12);
        simulation
    };
    let (a, b) = (run(), run());
    assert_eq!(a.state, b.state);
    assert!(!a.state.decisions.is_empty());
    for decision in &a.state.decisions {
        assert!(decision.decided.why.chars().any(|c| c.is_ascii_digit()), "{}", decision.decided.why);
        println!("{}", decision.decided.why);
    }
    let plan = a.balancer.plan(&a.state, &a.config, a.now_ms);
    for shard in 1..=3 {
        assert!(plan.rejections.iter().any(|r| matches!(r.subject, Subject::Shard(id) if id.0 == shard)));
    }
}

#[test]
fn a_switched_off_balancer_does_nothing() {
    let mut simulation = Simulation::new(3, 2000, 7, mixgraph_like(50_000));
    simulation.apply(Command::SetBalancer { enabled: false });
    simulation.run(12);
    assert!(simulation.moves.is_empty() && simulation.splits.is_empty());
}

#[test]
fn expected_pieces_add_up_to_their_parent() {
    let mut simulation = Simulation::new(3, 2000, 9, mixgraph_like(50_000));
    while simulation.splits.is_empty() {
        simulation.run(1);
    }
    let expected =
        simulation.balancer.load.ranges.values().filter(|v| matches!(v.source, Source::Expected { .. })).count();
    assert!(expected > 0);
    let sum: f64 = simulation.balancer.load.ranges.keys().map(|id| simulation.balancer.load.rate(*id)).sum();
    assert!((sum - simulation.balancer.imbalance.total).abs() < 1.0, "{sum}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]
    /// Whatever the skew, the number of shards and the rate: no gap, no overlap, no return within
    /// the cool-down (asserted at every step inside the simulation), and it stops.
    #[test]
    fn any_stationary_load_is_left_alone_in_the_end(
        seed in any::<u64>(), shards in 2u32..6, rate in 300u64..3000, exponent in 0.2f64..1.6, scrambled in any::<bool>(),
    ) {
        let mut simulation = Simulation::new(shards, rate, seed, zipf(20_000, exponent, scrambled));
        simulation.run(45);
        let (moves, splits) = (simulation.moves.len(), simulation.splits.len());
        simulation.run(40);
        prop_assert!(simulation.moves.len() - moves <= 1, "{} further moves", simulation.moves.len() - moves);
        prop_assert!(simulation.splits.len() - splits <= 1);
    }
}

/// What failed is not tried again at once: the reason may still be there.
#[test]
fn a_range_on_which_an_operator_failed_is_left_alone_for_a_while() {
    let mut simulation = Simulation::new(3, 2000, 1, Box::new(|random, _| random.below(100_000) as i64));
    let action = crate::state::Action::Split { range: RangeId(1), epoch: None, at: vec![super::testing::key(5)] };
    simulation.apply(Command::Begin(action));
    let operator = simulation.state.running().next().unwrap().id;
    let transition = crate::state::Transition::Refused { reason: "no".into() };
    simulation.apply(Command::Advance { operator, from: crate::state::Step::Apply, transition });
    simulation.run(9);
    assert!(simulation.splits.is_empty());
    let failed = |r: &Rejection| matches!(r.reason, Reason::FailedLately { .. });
    assert!(simulation.rejections.iter().any(failed), "{:?}", simulation.rejections);
    simulation.run(6);
    assert_eq!(simulation.splits.len(), 1);
}

#[test]
fn a_table_goes_to_the_least_loaded_shard() {
    let mut simulation = Simulation::new(2, 2000, 1, Box::new(|random, _| random.below(100_000) as i64));
    assert_eq!(simulation.balancer.shard_for_new_range(&simulation.state), Some(ShardId(2)), "fewest ranges");
    simulation.apply(Command::SetBalancer { enabled: false });
    simulation.run(5);
    assert_eq!(simulation.balancer.shard_for_new_range(&simulation.state), Some(ShardId(2)), "least load");
    assert_eq!(simulation.balancer.shard_for_new_range(&PlacementState::default()), None);
    assert!(simulation.balancer.load.rate(RangeId(1)) > 1000.0);
}

/// The slots of a shard are its bandwidth: small ranges go many at a time, large ones a few; one
/// shard's moves take nothing from the others.
#[test]
fn a_shard_moves_as_much_at_once_as_its_bandwidth_carries() {
    let mut state = super::testing::state_with_table(6);
    for range in 1..12 {
        let at = vec![super::testing::key(range * 10)];
        let id = RangeId(range as u64);
        super::testing::must(&mut state, 1, Command::Begin(Action::Split { range: id, epoch: None, at }));
        let operator = state.running().next().unwrap().id;
        let transition = crate::state::Transition::Applied;
        let command = Command::Advance { operator, from: crate::state::Step::Apply, transition };
        super::testing::must(&mut state, 1, command);
    }
    let config = BalancerConfig::default();
    let begun = |bytes: u64, bandwidth: Option<f64>| {
        let mut load = LoadModel::default();
        load.update(&state, &config, 1000);
        load.ranges.values_mut().for_each(|view| view.bytes = bytes);
        load.bandwidth.extend(bandwidth.map(|bandwidth| (ShardId(1), bandwidth)));
        let mut context = PlanningContext::new(&state, &load, &Imbalance::default(), &config, 1000);
        let mut begun = 0;
        for (range, to) in state.ranges.values().zip((2..=6).cycle().map(ShardId)) {
            if context.may_send(ShardId(1)) && context.may_receive(to) {
                context.take_move(range, to);
                begun += 1;
            }
        }
        begun
    };
    assert_eq!(begun(1 << 30, None), config.moves_per_shard, "large ranges: few at a time");
    assert_eq!(begun(1 << 20, None), config.max_moves_per_shard, "small ones: more");
    assert_eq!(begun(1 << 20, Some(1e6)), config.moves_per_shard, "not through a shard that has been seen to be slow");
}

/// A range that moves is served by its source until the fence. While its destination is silent its
/// load counts at the source.
#[test]
fn what_moves_to_a_silent_shard_counts_where_it_is() {
    let mut simulation = Simulation::new(3, 2000, 1, Box::new(|random, _| random.below(100_000) as i64));
    simulation.apply(Command::SetBalancer { enabled: false });
    simulation.move_ms = (1_000_000, 1);
    simulation.run(3);
    simulation.apply(Command::Begin(Action::Move { range: RangeId(1), epoch: None, to: ShardId(3) }));
    simulation.run(2);
    assert!(simulation.loads()[&ShardId(1)] < 1.0 && simulation.loads()[&ShardId(3)] > 1000.0);
    simulation.silent = vec![ShardId(3)];
    simulation.run(3);
    assert!(simulation.loads()[&ShardId(1)] > 1000.0, "{:?}", simulation.loads());
}

/// A range above the size limit is split whatever its load, and its pieces are neither split nor
/// merged again.
#[test]
fn a_range_that_is_too_large_is_split_by_size_once() {
    let mut simulation = Simulation::new(3, 0, 1, Box::new(|random, _| random.below(100_000) as i64));
    simulation.bytes_per_key = (2 << 30) / 100_000;
    simulation.run(40);
    let largest =
        |simulation: &Simulation| simulation.state.ranges.keys().map(|id| simulation.bytes_of(*id)).max().unwrap_or(0);
    assert!(largest(&simulation) <= simulation.config.split_bytes, "{}", largest(&simulation));
    assert!((8..=20).contains(&simulation.state.ranges.len()), "{} ranges", simulation.state.ranges.len());
    let why = &simulation.state.decisions[0].decided.why;
    assert!(why.contains("larger than 256 MiB"), "{why}");
    // With load on few keys all the rest is cold for minutes.
    simulation.statements_per_s = 500;
    simulation.run(30);
    let (splits, ranges) = (simulation.splits.len(), simulation.state.ranges.len());
    simulation.run(150);
    assert_eq!(largest(&simulation).max(256 << 20), 256 << 20);
    assert!(simulation.splits.len() <= splits + 1, "{} splits, {splits} before", simulation.splits.len());
    assert!(simulation.merges.len() <= 4 + ranges, "{} merges", simulation.merges.len());
}

/// Impossible figures of one shard must not affect the decisions about the others: they are left
/// out, a rejection says so, and once the figures are possible again the load is balanced.
#[test]
fn figures_that_cannot_be_do_not_switch_the_balancer_off() {
    for figure in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -5.0, 1e300] {
        let mut simulation = Simulation::new(3, 2000, 1, Box::new(|random, _| random.below(100_000) as i64));
        simulation.lies = Some((ShardId(1), figure));
        simulation.run(10);
        let level = &simulation.balancer.imbalance;
        assert!(level.total.is_finite() && level.mean.is_finite() && level.ratio_to_mean.is_finite(), "{level:?}");
        let told = simulation.rejections.iter().any(|rejection| {
            rejection.subject == Subject::Shard(ShardId(1))
                && matches!(rejection.reason, Reason::FaultyReport { what: "rate", refused: false })
        });
        assert!(told, "{figure}: {:?}", simulation.rejections);
        simulation.lies = None;
        simulation.run(20);
        let last = simulation.imbalance.iter().rev().take(5).copied().fold(0.0, f64::max);
        assert!(last < 1.25, "{figure}: {last}");
    }
}

/// The order of a shard's reports is believed for as long as the latest is fresh: one with a number
/// that is far too high must not keep the others out for ever.
#[test]
fn a_report_with_too_high_a_number_shuts_the_others_out_for_a_while_only() {
    let state = state_with_table(2);
    let config = BalancerConfig::default();
    let mut load = LoadModel::default();
    let mut observe = |term, sequence, now_ms| {
        let report = ShardReport { term, ..crate::operators::testing::report(1, sequence, vec![]) };
        load.observe(report, &state, &config, now_ms).taken
    };
    assert!(observe(9, 1 << 40, 1000));
    assert!(!observe(9, 1, 2000) && !observe(10 << 60, 1, 2000));
    assert!(!observe(9, 2, 11_000));
    assert!(observe(9, 3, 11_001) && observe(9, 4, 11_002));
}

/// What a fast clock does to its shard's writes (R14) must not be spread by moves, and balancing
/// goes on beside it.
#[test]
fn nothing_is_moved_to_a_shard_whose_clock_is_off() {
    let mut simulation = Simulation::new(4, 2000, 1, Box::new(|random, _| random.below(100_000) as i64));
    simulation.fast = Some((ShardId(3), 3_600_000));
    simulation.run(20);
    assert!(!simulation.moves.is_empty() && simulation.moves.iter().all(|(.., to)| *to != ShardId(3)));
    let told = |simulation: &Simulation| {
        let about = |rejection: &&Rejection| rejection.subject == Subject::Shard(ShardId(3));
        simulation.rejections.iter().filter(about).any(|r| matches!(r.reason, Reason::ClockOff { .. }))
    };
    assert!(told(&simulation), "{:?}", simulation.rejections);
    assert_ne!(simulation.balancer.shard_for_new_range(&simulation.state), Some(ShardId(3)), "it has the least load");
    simulation.fast = None;
    simulation.term += 1;
    simulation.run(25);
    assert!(!told(&simulation) && simulation.moves.iter().any(|(.., to)| *to == ShardId(3)));
}
