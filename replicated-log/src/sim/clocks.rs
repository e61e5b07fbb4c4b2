//! Wall clocks (R14): in most runs one replica's clock is an hour off, and a leader must not use
//! it.

#![allow(clippy::unwrap_used)]

use crate::config::Limits;
use crate::core::Core;
use crate::role::Role;

use super::oracle::{Checked, ensure};
use super::schedules::Group;
use evenkeel_host::ForgetfulDisk as SimDisk;

/// The true wall clock when a run begins, in milliseconds since the Unix epoch.
const TRUE_MS: u64 = 1_800_000_000_000;
const HOUR_MS: u64 = 3_600_000;
/// The largest difference of a leader's clock from the true time: its own tolerance, and drift.
const BOUND_MS: u64 = 2_000 + 500;

/// The wall clock that one of `n` replicas begins with: in two thirds of all runs one of them is
/// off.
pub(super) fn drawn(seed: u64, n: u64, id: u64) -> u64 {
    match (seed % 3, seed % n + 1 == id) {
        (1, true) => TRUE_MS + HOUR_MS,
        (2, true) => TRUE_MS - HOUR_MS,
        _ => TRUE_MS,
    }
}

/// With one clock off, no leader uses a time in the future.
pub(super) fn check(id: u64, core: &Core<SimDisk>, now_ms: u64) -> Checked<()> {
    let shown_ms = core.corrected_clock_ms();
    let leads = matches!(core.role(), Role::Leader { .. });
    ensure(!leads || shown_ms <= TRUE_MS + now_ms + BOUND_MS, || {
        format!("replica {id} leads and is {} ms ahead", shown_ms.saturating_sub(TRUE_MS + now_ms))
    })
}

fn off_ms(group: &Group, id: u64) -> i64 {
    let core = &group.nodes[&id].process.as_ref().unwrap().core;
    core.corrected_clock_ms() as i64 - (TRUE_MS + group.now_ms) as i64
}

// Whichever replica leads first, and at once; the clock of a replica that is away stays known.
#[test]
fn one_clock_that_is_off_is_outvoted() {
    for (wrong, ahead_ms) in [(1, 3_600_000), (2, 3_600_000), (3, 3_600_000), (1, -3_600_000), (3, -3_600_000)] {
        let mut group = Group::limited(&[], 50, Limits::default());
        for (id, node) in &mut group.nodes {
            node.config.unix_at_boot_ms = TRUE_MS.saturating_add_signed(if *id == wrong { ahead_ms } else { 0 });
        }
        (1..=3).for_each(|id| group.start(id));
        group.run_until("a leader", |group| group.leader().is_some());
        let leader = group.leader().unwrap();
        assert!(off_ms(&group, leader).abs() <= 2_000, "{leader} with {wrong} off: {}", off_ms(&group, leader));
        group.run_until("a leader that stays", |group| group.now_ms > 1_000 && group.leader().is_some());
        let away = (1..=3).find(|id| *id != wrong).unwrap();
        group.crash(away);
        group.run_until("a leader among the others", |group| group.now_ms > 20_000 || group.leader().is_some());
        for id in (1..=3).filter(|id| *id != away) {
            assert!(off_ms(&group, id).abs() <= 2_500, "{id} with {wrong} off and {away} away: {}", off_ms(&group, id));
        }
    }
}
