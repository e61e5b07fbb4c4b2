//! Balance of a real trace: the number of pieces that balance it, and the result of the balancer in
//! its closed loop.
//!
//! Figures for docs/decisions/bursty-load.md, not checks: the trace is no part of the product, so
//! these tests are run by hand.
//!
//!     EVENKEEL_TRACE=orm-busy-1m.csv.gz cargo test --release -p evenkeel-placement-driver --lib
//!     traced -- --ignored --nocapture
#![allow(clippy::unwrap_used)]

use super::simulation::Simulation;
use crate::config::BalancerConfig;
use std::io::Read;
use std::rc::Rc;

/// Shards that carry the load.
const SHARDS: usize = 3;
/// Accesses per second.
const RATES: [usize; 2] = [8_000, 10_000];
/// The load is to be level from this second on.
const LEVEL_BY_S: usize = 20;
/// The most by which the busiest shard may exceed its part, as a factor; the floor of this trace's
/// imbalance is 1.
const LEVEL: f64 = 1.25;
/// How long a move takes in a cluster, in milliseconds: at least, and by how much more at most.
const MOVE_MS: (u64, u64) = (300, 700);

/// The accesses' keys in their order. The file that `EVENKEEL_TRACE` names has a line of names,
/// then `time,op,key` per line.
fn keys() -> Rc<Vec<i64>> {
    let path = std::env::var("EVENKEEL_TRACE").expect("EVENKEEL_TRACE names the trace");
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    Rc::new(text.lines().skip(1).map(|line| line.split(',').nth(2).unwrap().parse().unwrap()).collect())
}

/// Where in the trace a run begins, so that no figure is luck: at its start, after a third, after
/// two thirds. Then it goes round.
fn phases(keys: &[i64]) -> [usize; 3] {
    [0, keys.len() / 3, 2 * keys.len() / 3]
}

/// What the last `window` seconds say at each second from [`LEVEL_BY_S`] on: the share above
/// [`LEVEL`], and the worst.
fn held(per_second: &[Vec<u64>], window: usize) -> String {
    let ratio = |end: usize| {
        let sum = |shard: usize| -> u64 { per_second[end + 1 - window..=end].iter().map(|loads| loads[shard]).sum() };
        let sums: Vec<u64> = (0..SHARDS).map(sum).collect();
        *sums.iter().max().unwrap() as f64 * SHARDS as f64 / sums.iter().sum::<u64>() as f64
    };
    let ratios: Vec<f64> = (LEVEL_BY_S..per_second.len()).map(ratio).collect();
    let above = ratios.iter().filter(|ratio| **ratio > LEVEL).count() as f64 / ratios.len() as f64;
    let worst = ratios.iter().copied().fold(0.0, f64::max);
    format!("{window} s: {:3.0} %, {worst:.2}", above * 100.0)
}

/// Ranges of equally many rows, cut without regard to the load, scattered over the shards in turn,
/// and never moved.
#[test]
#[ignore = "needs a trace"]
fn what_stripes_of_equally_many_rows_would_hold() {
    let keys = keys();
    let mut rows = keys.to_vec();
    rows.sort_unstable();
    rows.dedup();
    for stripes in [192, 384, 768, 1500, 3000, 6000] {
        for rate in RATES {
            for phase in phases(&keys) {
                let mut per_second = vec![vec![0u64; SHARDS]; keys.len() / rate];
                for (n, loads) in per_second.iter_mut().enumerate() {
                    for access in 0..rate {
                        let key = keys[(phase + n * rate + access) % keys.len()];
                        let row = rows.partition_point(|other| *other < key);
                        loads[row * stripes / rows.len() % SHARDS] += 1;
                    }
                }
                let (second, ten) = (held(&per_second, 1), held(&per_second, 10));
                println!("{stripes} stripes, {rate}/s from {phase}: {second}; {ten}");
            }
        }
    }
}

/// The balancer as it is, with everything on one shard at first.
#[test]
#[ignore = "needs a trace"]
fn what_the_balancer_holds() {
    let default = BalancerConfig::default;
    let finer = BalancerConfig { pieces_per_shard: 16.0, moves_per_shard: 4, ..default() };
    let finest = BalancerConfig {
        pieces_per_shard: 64.0,
        split_above: 0.1,
        act_above: 1.05,
        persist_level_ms: 2000,
        moves_per_shard: 8,
        max_moves_per_shard: 8,
        ..default()
    };
    let configs = [("defaults", default()), ("16 pieces, 8 moves", finer), ("64 pieces, 16 moves, eager", finest)];
    let keys = keys();
    for (name, config) in configs {
        for rate in RATES {
            for phase in phases(&keys) {
                let (trace, mut next) = (keys.clone(), phase);
                let workload = Box::new(move |_: &mut _, _| {
                    next += 1;
                    trace[(next - 1) % trace.len()]
                });
                let mut simulation = Simulation::new(SHARDS as u32, rate as u64, 1, workload);
                simulation.config = config.clone();
                simulation.move_ms = MOVE_MS;
                let begin_ms = simulation.now_ms;
                simulation.run((keys.len() / rate) as u64);
                let late_ms = begin_ms + 1000 * LEVEL_BY_S as u64;
                let late = simulation.moves.iter().filter(|(at_ms, ..)| *at_ms >= late_ms).count();
                println!(
                    "{name}, {rate}/s from {phase}: {}; {}; {} moves, {late} of them from second {LEVEL_BY_S} on; {} ranges",
                    held(&simulation.per_second, 1),
                    held(&simulation.per_second, 10),
                    simulation.moves.len(),
                    simulation.state.ranges.len()
                );
            }
        }
    }
}
