//! Clocks that reports show, in a load model.

#![allow(clippy::unwrap_used)]
use crate::balancer::testing::state_with_table;
use crate::config::BalancerConfig;
use crate::load::LoadModel;
use crate::operators::testing::report;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::report::ShardReport;

const WALL_MS: u64 = 1_700_000_000_000;

fn heard(clocks: &[(u32, u64, u64)], own_ms: Option<u64>) -> LoadModel {
    let (state, config) = (state_with_table(4), BalancerConfig::default());
    let mut load = LoadModel::default();
    for (sequence, (shard, clock_ms, now_ms)) in clocks.iter().enumerate() {
        let report = ShardReport { clock_ms: *clock_ms, ..report(*shard, sequence as u64 + 1, vec![]) };
        assert!(load.observe(report, &state, &config, *now_ms).taken);
    }
    let now_ms = clocks.last().unwrap().2;
    load.set_clock(own_ms, now_ms);
    load.update(&state, &config, now_ms);
    load
}

#[test]
fn the_clock_that_is_off_is_distinguished_from_the_others() {
    let hour = WALL_MS + 3_600_000;
    let load = heard(&[(1, WALL_MS, 5000), (2, hour, 5000), (3, WALL_MS + 1500, 5000)], None);
    assert_eq!(load.clock_off_ms(ShardId(2)), Some(3_598_500));
    assert!(load.clock_is_off(ShardId(2)));
    assert!(!load.clock_is_off(ShardId(1)) && !load.clock_is_off(ShardId(3)));
    // Two clocks do not show which is wrong; the placement driver's own clock decides.
    assert_eq!(heard(&[(1, WALL_MS, 5000), (2, hour, 5000)], None).clock_off_ms(ShardId(2)), None);
    let load = heard(&[(1, WALL_MS, 5000), (2, hour, 5000)], Some(WALL_MS + 20));
    assert!(load.clock_is_off(ShardId(2)) && !load.clock_is_off(ShardId(1)));
    let slow = heard(&[(1, WALL_MS - 60_000, 5000), (2, WALL_MS, 5000)], Some(WALL_MS));
    assert!(slow.clock_is_off(ShardId(1)) && slow.clock_off_ms(ShardId(1)).unwrap() < 0);
}

#[test]
fn a_report_that_was_long_on_its_way_does_not_make_a_clock_slow() {
    let clocks = [(1, WALL_MS, 5000), (2, WALL_MS, 5000), (3, WALL_MS, 5000), (1, WALL_MS + 500, 8500)];
    let mut later = clocks.to_vec();
    later.extend([(2, WALL_MS + 3500, 8500), (3, WALL_MS + 3500, 8500)]);
    assert!(!heard(&later, None).clock_is_off(ShardId(1)));
}
