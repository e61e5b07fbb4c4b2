//! The fault injector: options of a run, the rates of its faults, and their injection.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::StdRng;

use crate::config::{Limits, Timing};
use crate::core::{Fault, Input};

use super::simulated_replica::Frozen;
use super::world::World;

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

impl World {
    /// Injects the faults of one step.
    pub(super) fn inject_faults(&mut self) {
        if self.rng.random_bool(self.rates.cut) {
            self.rearrange_cuts();
        }
        if self.rng.random_bool(self.rates.lose_session) {
            let keys: Vec<_> = self.sessions.keys().copied().collect();
            if !keys.is_empty() {
                let key = keys[self.rng.random_range(0..keys.len())];
                self.lose_session(key);
            }
        }
        if self.rng.random_bool(self.rates.wipe) {
            let id = self.any();
            self.lose_disk(id);
        }
        if self.rng.random_bool(self.rates.pause) {
            let id = self.any();
            let until_ms = self.now_ms + self.rng.random_range(10..400);
            if let Some(process) = self.nodes.get_mut(&id).and_then(|n| n.process.as_mut()) {
                process.paused_until_ms = until_ms;
            }
        }
    }

    fn rearrange_cuts(&mut self) {
        self.cut.clear();
        let n = self.nodes.len() as u64;
        match self.rng.random_range(0..4) {
            0 => {}
            1 => {
                // Two sides.
                self.stats.count("partitions", 1);
                let side: Vec<bool> = (0..=n).map(|_| self.rng.random_bool(0.5)).collect();
                for (a, b) in pairs(n) {
                    if side[a as usize] != side[b as usize] {
                        self.cut.insert((a, b), ());
                        self.cut.insert((b, a), ());
                    }
                }
            }
            2 => {
                // One replica hears and is heard by one other only.
                self.stats.count("partitions", 1);
                let (alone, but) = (self.any(), self.any());
                for other in (1..=n).filter(|o| *o != but) {
                    self.cut.insert((alone, other), ());
                    self.cut.insert((other, alone), ());
                }
            }
            _ => {
                self.stats.count("one-way cuts", 1);
                for (a, b) in pairs(n) {
                    if self.rng.random_bool(0.3) {
                        self.cut.insert((a, b), ());
                    }
                }
            }
        }
    }

    /// Ends a session and loses a random suffix of its messages. The ends learn it at different
    /// times.
    pub(super) fn lose_session(&mut self, key: (u64, u64)) {
        if let Some(mut session) = self.sessions.remove(&key) {
            self.stats.count("sessions lost", 1);
            for end in 0..2 {
                let (me, peer) = if end == 0 { key } else { (key.1, key.0) };
                if !session.reported[end] {
                    continue;
                }
                // Messages in the receiver's buffers may still arrive.
                let kept = self.rng.random_range(0..=session.to[end].len());
                let rest = std::mem::take(&mut session.to[end]);
                let Some(node) = self.nodes.get_mut(&me) else { continue };
                let now_ms = node.clock_ms(self.now_ms);
                if let Some(p) = &mut node.process {
                    for (_, wire) in rest.into_iter().take(kept) {
                        let message = Input::Message { peer, session: session.number, wire };
                        match &mut p.frozen {
                            Some(Frozen::Before(inputs) | Frozen::Syncing { inputs, .. }) => {
                                inputs.push_back((now_ms, message));
                            }
                            _ => p.core.feed(now_ms, message),
                        }
                    }
                }
                if self.rng.random_bool(0.7) {
                    self.ends.push_back((me, peer, session.number));
                }
            }
        }
    }
}

pub(super) fn pairs(n: u64) -> impl Iterator<Item = (u64, u64)> {
    (1..=n).flat_map(move |a| (1..=n).filter(move |b| *b != a).map(move |b| (a, b)))
}
