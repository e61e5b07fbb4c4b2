//! The meter against known loads.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn key(n: u32) -> Key {
    Key(n.to_be_bytes().to_vec().into())
}

/// A fixed stream of numbers in 0..1 (an LCG), so that tests need no seed.
fn uniform() -> impl FnMut() -> f64 {
    let mut state = 42u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Runs `per_tick` statements every 250 ms for `ticks` ticks, on keys that `choose` chooses.
fn run(meter: &mut RangeMeter, from_ms: u64, ticks: u64, per_tick: usize, mut choose: impl FnMut() -> u32) -> u64 {
    for tick in 1..=ticks {
        for _ in 0..per_tick {
            meter.record(&key(choose()), true, 60.0);
        }
        meter.tick(from_ms + 250 * tick);
    }
    from_ms + 250 * ticks
}

fn points_weight(meter: &RangeMeter) -> f64 {
    meter.points.values().map(|w| w.sum()).sum::<f64>() / meter.scale
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

#[test]
fn a_steady_rate_is_reported_from_the_first_tick_on_and_a_change_within_seconds() {
    let mut meter = RangeMeter::new(1_000);
    let mut now = run(&mut meter, 1_000, 1, 100, || 1);
    let load = meter.load(now);
    assert!(close(load.writes_per_s, 400.0), "{load:?}");
    assert!(close(load.postgres_us_per_s, 24_000.0));
    assert_eq!((load.reads_per_s, load.observed_ms), (0.0, 250));
    now = run(&mut meter, now, 100, 100, || 1);
    assert!(close(meter.load(now).writes_per_s, 400.0));
    now = run(&mut meter, now, 18, 1000, || 1);
    let later = meter.load(now).writes_per_s;
    assert!((3500.0..4000.0).contains(&later), "after three half-lives 7/8 of the change shows: {later}");
    now = run(&mut meter, now, 60, 0, || 1);
    assert!(meter.load(now).writes_per_s < 10.0, "silence decays");
    let silent = meter.load(now + 600_000);
    assert!(silent.writes_per_s < 1e-6 && silent.sketch.is_empty() && silent.hot.is_empty());
}

#[test]
fn rates_do_not_depend_on_how_ticks_are_spaced() {
    let mut meter = RangeMeter::new(0);
    let mut now = 0;
    for step in [10, 1000, 250, 3, 700, 5000, 40] {
        (0..step).for_each(|_| meter.record(&key(1), false, 1.0));
        now += step;
        meter.tick(now);
    }
    assert!(close(meter.load(now).reads_per_s, 1000.0));
}

#[test]
fn memory_is_bounded_and_quantiles_are_right_for_a_million_keys() {
    let mut meter = RangeMeter::new(0);
    let mut random = uniform();
    let now = run(&mut meter, 0, 40, 2000, || (random() * 1e6) as u32);
    assert!(meter.points.len() <= MAX_POINTS);
    let load = meter.load(now);
    assert!((MAX_SKETCH_POINTS * 3 / 4..=MAX_SKETCH_POINTS).contains(&load.sketch.len()), "{}", load.sketch.len());
    assert!(load.hot.is_empty(), "a uniform load has no hot key: {:?}", load.hot);
    let mut before = 0.0;
    for (point, share) in &load.sketch {
        let n = u32::from_be_bytes(point.as_bytes().try_into().unwrap());
        assert!((f64::from(n) / 1e6 - before).abs() < 0.02, "{n} at quantile {before}");
        assert!(*share < 2.0 / 64.0);
        before += share;
    }
    assert!(close(before, 1.0));
}

#[test]
fn hot_keys_under_zipf_are_found_with_their_shares() {
    // Zipf with exponent 1.1 over 100,000 keys, scattered over the key space.
    let weights: Vec<f64> = (1..=100_000).map(|n| f64::from(n).powf(-1.1)).collect();
    let total: f64 = weights.iter().sum();
    let sums: Vec<f64> = weights
        .iter()
        .scan(0.0, |sum, w| {
            *sum += w / total;
            Some(*sum)
        })
        .collect();
    let scatter = |rank: usize| (rank as u32).wrapping_mul(2_654_435_761);
    let mut random = uniform();
    let mut meter = RangeMeter::new(0);
    let now = run(&mut meter, 0, 40, 2500, || {
        let at = random();
        scatter(sums.partition_point(|sum| *sum < at))
    });
    let load = meter.load(now);
    assert!(load.hot.len() >= 5, "{:?}", load.hot);
    assert!(load.hot.is_sorted_by(|a, b| a.1 >= b.1));
    for (rank, weight) in weights.iter().take(5).enumerate() {
        let expected = weight / total;
        let (_, share) = load.hot.iter().find(|(k, _)| *k == key(scatter(rank))).unwrap();
        assert!((share / expected - 1.0).abs() < 0.2, "rank {rank}: {share} instead of {expected}");
    }
    // A hot key has a point of its own in the sketch, next to nothing else beside it.
    let (hottest, share) = &load.hot[0];
    let (_, around) = load.sketch.iter().find(|(k, _)| k == hottest).unwrap();
    assert!(around - share < 0.03, "{around} around {share}");
}

#[test]
fn a_few_statements_make_no_key_hot() {
    let mut meter = RangeMeter::new(0);
    (0..10).for_each(|_| meter.record(&key(7), true, 1.0));
    let load = meter.load(250);
    assert!(load.hot.is_empty());
    assert_eq!(load.sketch, [(key(7), 1.0)]);
}

#[test]
fn a_point_does_not_keep_the_request_alive() {
    let request = Bytes::from(vec![1u8; 4096]);
    let mut meter = RangeMeter::new(0);
    meter.record(&Key(request.slice(..8)), true, 1.0);
    assert!(request.is_unique(), "the meter has a copy of its own");
}

#[test]
fn pieces_report_their_part_at_once_and_start_to_be_observed_again() {
    let mut meter = RangeMeter::new(0);
    let mut random = uniform();
    let now = run(&mut meter, 0, 40, 1000, || (random() * 1000.0) as u32);
    let whole = meter.clone().load(now);
    let mut pieces = meter.split(&[key(250), key(500)], now);
    let loads: Vec<RangeLoad> = pieces.iter_mut().map(|piece| piece.load(now)).collect();
    for (load, share) in loads.iter().zip([0.25, 0.25, 0.5]) {
        assert!((load.writes_per_s / whole.writes_per_s / share - 1.0).abs() < 0.1, "{}", load.writes_per_s);
        assert_eq!(load.observed_ms, 0);
    }
    assert!(loads[1].sketch.iter().all(|(k, _)| (key(250)..key(500)).contains(k)));
}

#[test]
fn merging_adds_rates_even_if_one_side_was_observed_for_less() {
    let (mut left, mut right) = (RangeMeter::new(0), RangeMeter::new(9_750));
    run(&mut left, 0, 40, 300, || 1);
    run(&mut right, 9_750, 1, 100, || 2);
    let load = left.merge(right, 10_000).load(10_000);
    assert!(close(load.writes_per_s, 1600.0), "{}", load.writes_per_s);
    assert!(close(load.sketch[0].1, 0.75) && load.sketch[1].0 == key(2), "{:?}", load.sketch);
    let one_sided = RangeMeter::new(0).merge(RangeMeter::new(0), 0).load(0);
    assert_eq!(one_sided, RangeLoad::default());
}

proptest! {
    // Each case is thousands of statements.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn weight_is_never_lost(statements in proptest::collection::vec((0u32..6000, any::<bool>(), 0u64..4), 1..6000), cuts in proptest::collection::btree_set(1u32..6000, 0..5)) {
        let (mut meter, mut now, mut decayed, mut last) = (RangeMeter::new(0), 0, 0.0f64, 0);
        for (n, write, step) in &statements {
            meter.record(&key(*n), *write, 1.0);
            decayed += 1.0;
            now += step;
            if now - last >= 250 {
                meter.tick(now);
                decayed *= (-((now - last) as f64) / HALF_LIFE_MS).exp2();
                last = now;
            }
        }
        prop_assert!(meter.points.len() <= MAX_POINTS);
        prop_assert!((meter.statements() - decayed).abs() < 1e-6 * decayed.max(1.0));
        prop_assert!((points_weight(&meter) - decayed).abs() < 1e-6 * decayed.max(1.0));

        let whole = meter.clone().load(now);
        let cuts: Vec<Key> = cuts.into_iter().map(key).collect();
        let mut pieces = meter.split(&cuts, now);
        prop_assert_eq!(pieces.len(), cuts.len() + 1);
        let rate: f64 = pieces.iter_mut().map(|p| p.load(now).statements_per_s()).sum();
        prop_assert!((rate - whole.statements_per_s()).abs() < 1e-6 * rate.max(1.0));
        for (i, piece) in pieces.iter().enumerate() {
            prop_assert!(piece.points.keys().all(|k| (i == 0 || cuts[i - 1] <= *k) && cuts.get(i).is_none_or(|cut| k < cut)));
        }
        let merged = pieces.into_iter().reduce(|left, right| left.merge(right, now)).unwrap().load(now);
        prop_assert!((merged.statements_per_s() - rate).abs() < 1e-6 * rate.max(1.0));
    }

    #[test]
    fn sketches_have_growing_keys_and_shares_that_sum_to_one(keys in proptest::collection::vec(0u32..5000, 1..5000)) {
        let mut meter = RangeMeter::new(0);
        keys.iter().for_each(|n| meter.record(&key(*n), false, 1.0));
        let load = meter.load(100);
        prop_assert!(load.sketch.len() <= MAX_SKETCH_POINTS);
        prop_assert!(load.sketch.is_sorted_by(|a, b| a.0 < b.0));
        prop_assert!(close(load.sketch.iter().map(|(_, share)| share).sum(), 1.0));
        prop_assert!(load.hot.len() <= MAX_HOT_KEYS);
        // Every point is a key that a statement named.
        prop_assert!(load.sketch.iter().all(|(k, _)| keys.iter().any(|n| key(*n) == *k)));
        // The true weight left of each point is known to within one gap of the sketch and one of
        // the meter.
        let mut before = 0.0;
        for (point, share) in &load.sketch {
            let truth = keys.iter().filter(|n| key(**n) < *point).count() as f64 / keys.len() as f64;
            prop_assert!((truth - before).abs() <= 2.1 / COMPRESSED_POINTS as f64, "{} instead of {}", before, truth);
            before += share;
        }
    }
}
