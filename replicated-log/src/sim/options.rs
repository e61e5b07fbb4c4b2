//! What a run is: its options, the rates of its faults and of its load, its replicas' clocks and
//! bounds, and the counts of what happened.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::StdRng;

use crate::config::{Limits, Timing};
use crate::core::Fault;

#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) fault: Option<Fault>,
    /// Each sync whose number is a multiple of this does nothing; 0 turns this off.
    pub(super) skip_sync_every: u64,
    pub(super) compaction: bool,
    /// Single messages get lost too, against log rule 3, and are sent again sooner. Safety must
    /// hold all the same.
    pub(super) lossy: bool,
    /// Segments so large that there is only one: damage then shows in the replicas' behaviour, not
    /// at their start.
    pub(super) one_segment: bool,
    /// Only crashes and cuts, for violations that take several of them at once.
    pub(super) storm: bool,
    /// Long leases, many reads, leaders that are cut off and processes that restart at once.
    pub(super) leases: bool,
    /// Members come and go, and lose their disks.
    pub(super) changes: bool,
    /// Slow syncs, and crashes of one or all replicas meanwhile.
    pub(super) slow_disks: bool,
    /// The largest drift of clocks, either way. The period of leases allows for 50.
    pub(super) drift_permille: i64,
    /// Replicas that were away for a moment are far behind, and no replica drops the log that they
    /// need.
    pub(super) far: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            fault: None,
            skip_sync_every: 0,
            compaction: true,
            lossy: false,
            one_segment: false,
            storm: false,
            leases: false,
            changes: true,
            slow_disks: false,
            drift_permille: 50,
            far: false,
        }
    }
}

/// Counts of events.
#[derive(Clone, Debug, Default)]
pub(super) struct Stats {
    pub(super) counts: BTreeMap<&'static str, u64>,
}

const EXPECTED: [&str; 29] = [
    "entries",
    "rejected entries",
    "reads",
    "reads by lease",
    "freezes before a turn",
    "freezes inside a turn",
    "reads refused",
    "crashes before the sync",
    "crashes after the sync",
    "crashes in a power cut",
    "sessions lost",
    "partitions",
    "one-way cuts",
    "leaderships",
    "compactions",
    "state transfers",
    "leaders behind",
    "ineligible replicas",
    "dropped proposals",
    "membership changes",
    "disks lost",
    "configurations entered",
    "configurations entered by transfer",
    "staleness bounds",
    "writes acknowledged in memory",
    "slow syncs",
    "entries shown before a sync",
    "pieces of decided entries",
    "candidates far behind",
];

impl Stats {
    pub(super) fn count(&mut self, what: &'static str, n: u64) {
        *self.counts.entry(what).or_default() += n;
    }

    pub(super) fn add(&mut self, other: &Stats) {
        for (what, n) in &other.counts {
            self.count(what, *n);
        }
        self.count("seeds", 1);
    }

    pub(super) fn missing(&self) -> Vec<&'static str> {
        EXPECTED.into_iter().filter(|what| self.counts.get(what).is_none_or(|n| *n == 0)).collect()
    }
}

/// The rates of a run's faults and of its load.
#[derive(Clone, Debug)]
pub(super) struct FaultRates {
    pub(super) crash: f64,
    pub(super) cut: f64,
    pub(super) lose_session: f64,
    pub(super) pause: f64,
    pub(super) freeze: f64,
    pub(super) write: f64,
    pub(super) read: f64,
    pub(super) latency_ms: u64,
    pub(super) chaos_ms: u64,
    pub(super) lose_message: f64,
    pub(super) power_cut: f64,
    pub(super) change: f64,
    pub(super) wipe: f64,
    /// The rate of slow syncs.
    pub(super) slow_sync: f64,
    /// An application stops being able to serve.
    pub(super) ineligible: f64,
}

impl FaultRates {
    pub(super) fn draw(rng: &mut StdRng, options: &Options) -> FaultRates {
        let rates = FaultRates {
            crash: [0.0, 0.001, 0.004][rng.random_range(0..3)],
            cut: [0.0, 0.003, 0.01][rng.random_range(0..3)],
            lose_session: [0.0, 0.003, 0.015][rng.random_range(0..3)],
            pause: [0.0, 0.002][rng.random_range(0..2)],
            freeze: [0.0, 0.004][rng.random_range(0..2)],
            write: rng.random_range(0.05..0.6),
            read: rng.random_range(0.02..0.3),
            latency_ms: rng.random_range(0..12),
            chaos_ms: rng.random_range(500..2_500),
            power_cut: [0.0, 0.002][rng.random_range(0..2)],
            slow_sync: [0.0, 0.003][rng.random_range(0..2)],
            ineligible: 0.001,
            lose_message: if options.lossy { 0.05 } else { 0.0 },
            change: if options.changes { [0.0, 0.003, 0.01][rng.random_range(0..3)] } else { 0.0 },
            wipe: if options.changes { [0.0, 0.002][rng.random_range(0..2)] } else { 0.0 },
        };
        match options {
            Options { leases: true, .. } => FaultRates {
                crash: 0.006,
                cut: 0.006,
                power_cut: 0.0,
                pause: 0.0,
                // Released leases test nothing.
                ineligible: 0.0,
                write: rng.random_range(0.2..0.5),
                read: 0.3,
                chaos_ms: 2_500,
                ..rates
            },
            Options { slow_disks: true, .. } => FaultRates {
                crash: 0.006,
                cut: 0.01,
                power_cut: 0.006,
                slow_sync: 0.3,
                pause: 0.0,
                freeze: 0.0,
                write: rng.random_range(0.2..0.5),
                latency_ms: rates.latency_ms / 3,
                chaos_ms: 4_000,
                ..rates
            },
            Options { storm: true, .. } => FaultRates {
                crash: 0.02,
                cut: 0.02,
                lose_session: 0.0,
                power_cut: 0.0,
                pause: 0.0,
                latency_ms: rates.latency_ms / 3,
                chaos_ms: 2_500,
                ..rates
            },
            _ => rates,
        }
    }
}

/// Clocks and bounds of a run's replicas: small enough for everything to happen within seconds.
pub(super) fn settings(rng: &mut StdRng, options: &Options) -> (Timing, Limits) {
    let timing = Timing {
        tick_ms: 10,
        election_timeout_ms: 50,
        // Never within a run, as good as never in practice (log rule 5): nothing may depend on it
        // while whole sessions are lost.
        resend_ms: if options.lossy { 60 } else { 1_000_000 },
        status_ms: 20,
        lease_ms: match rng.random_range(0..5) {
            _ if options.leases => rng.random_range(300..500),
            _ if options.slow_disks => rng.random_range(0..60),
            0 => 0,
            _ => rng.random_range(40..400),
        },
        barrier_timeout_ms: 300,
        linger_ms: rng.random_range(0..200),
        forget_peer_ms: rng.random_range(50..800),
        ..Timing::default()
    };
    let limits = Limits {
        segment_bytes: if options.one_segment { 1 << 30 } else { rng.random_range(300..3_000) },
        retention_bytes: rng.random_range(0..3_000),
        recent_bytes: rng.random_range(0..2_000),
        log_cap_bytes: rng.random_range(3_000..30_000),
        // Small enough that who was away for a moment is far behind, in every other run.
        sync_bytes: if options.far || rng.random_bool(0.5) { rng.random_range(300..1_500) } else { 10_000 },
        ..Limits::default()
    };
    (timing, limits)
}
