//! The six core workloads of YCSB.
//!
//! | workload | operations | keys |
//! |---|---|---|
//! | A | 50 % read, 50 % update | zipfian |
//! | B | 95 % read, 5 % update | zipfian |
//! | C | 100 % read | zipfian |
//! | D | 95 % read, 5 % insert | latest |
//! | E | 95 % scan of 1 to 100 rows, 5 % insert | zipfian |
//! | F | 50 % read, 50 % read-modify-write | zipfian |
//!
//! The zipfian is scrambled by default, as YCSB's is; the others can be asked for. A record is one
//! value of 1,000 bytes (YCSB's ten fields of 100), and an update writes it whole: rows here have
//! one value column.

use super::generator::Generator;
use super::hotspot::{Hotspot, Motion};
use super::key_chooser::{KeyChooser, Uniform};
use super::mixed::{MixedGenerator, OperationMix, SizeDistribution};
use super::zipfian::{Latest, ScrambledZipfian, YCSB_THETA, Zipfian};

/// Size of a record's value, in bytes.
pub const VALUE_BYTES: u32 = 1_000;

/// The longest scan of workload E, in rows.
pub const MAX_SCAN_ROWS: u32 = 100;

/// A core workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    /// Update heavy.
    A,
    /// Read mostly.
    B,
    /// Read only.
    C,
    /// Read latest.
    D,
    /// Short scans.
    E,
    /// Read-modify-write.
    F,
}

/// How keys are requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requests {
    /// Zipfian, hot keys scattered.
    Scrambled,
    /// Zipfian, hot keys at the start of the key space.
    Unscrambled,
    /// Zipfian by age, the newest row is the hottest.
    Latest,
    /// 80 % of the operations on 20 % of the keys.
    Hotspot,
    /// All keys alike.
    Uniform,
}

impl Core {
    /// Its operations.
    pub fn mix(self) -> OperationMix {
        let none = OperationMix::default();
        match self {
            Self::A => OperationMix { update: 0.5, ..none },
            Self::B => OperationMix { update: 0.05, ..none },
            Self::C => none,
            Self::D => OperationMix { insert: 0.05, ..none },
            Self::E => OperationMix { insert: 0.05, scan: 0.95, ..none },
            Self::F => OperationMix { read_modify_write: 0.5, ..none },
        }
    }

    /// Its published request distribution.
    pub fn requests(self) -> Requests {
        if self == Self::D { Requests::Latest } else { Requests::Scrambled }
    }
}

fn assemble(chooser: impl KeyChooser + 'static, core: Core, rows: u64, seed: u64) -> Box<dyn Generator> {
    let scans = SizeDistribution::Uniform { max: MAX_SCAN_ROWS };
    let values = SizeDistribution::Fixed(VALUE_BYTES);
    Box::new(MixedGenerator::new(chooser, core.mix(), values, scans, rows, seed))
}

/// Workload `core` over a table that starts with `rows` rows.
pub fn ycsb(core: Core, requests: Requests, rows: u64, seed: u64) -> Box<dyn Generator> {
    match requests {
        Requests::Scrambled => assemble(ScrambledZipfian::new(YCSB_THETA), core, rows, seed),
        Requests::Unscrambled => assemble(Zipfian::new(rows, YCSB_THETA), core, rows, seed),
        Requests::Latest => assemble(Latest::new(rows, YCSB_THETA), core, rows, seed),
        Requests::Hotspot => assemble(Hotspot::new(0.2, 0.8, Motion::Still, seed), core, rows, seed),
        Requests::Uniform => assemble(Uniform, core, rows, seed),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::generators::key_shares::sampled_hottest_share;
    use crate::operation::OperationKind;

    #[test]
    fn each_workload_has_its_operations() {
        for (core, reads) in
            [(Core::A, 0.5), (Core::B, 0.95), (Core::C, 1.0), (Core::D, 0.95), (Core::E, 0.0), (Core::F, 0.5)]
        {
            let mut generator = ycsb(core, core.requests(), 1_000, 3);
            let operations: Vec<_> = (0..20_000).map(|_| generator.next(Duration::ZERO)).collect();
            let share = |wanted: fn(OperationKind) -> bool| {
                operations.iter().filter(|operation| wanted(operation.kind)).count() as f64 / 20_000.0
            };
            assert!((share(|kind| kind == OperationKind::Read) - reads).abs() < 0.015, "{core:?}");
            let mix = core.mix();
            assert!((share(|kind| kind == OperationKind::Insert) - mix.insert).abs() < 0.015, "{core:?}");
            assert!((share(|kind| kind == OperationKind::ReadModifyWrite) - mix.read_modify_write).abs() < 0.015);
            assert!((share(|kind| matches!(kind, OperationKind::Scan { .. })) - mix.scan).abs() < 0.015);
        }
    }

    #[test]
    fn the_claimed_hottest_share_is_the_drawn_one() {
        for requests in [Requests::Scrambled, Requests::Unscrambled, Requests::Hotspot] {
            let claimed = ycsb(Core::A, requests, 2_000, 3).hottest_key_share();
            let sampled = sampled_hottest_share(&mut *ycsb(Core::A, requests, 2_000, 3), 200_000);
            assert!((claimed - sampled).abs() < 0.004, "{requests:?}: {claimed} against {sampled}");
        }
        // "Latest" moves on: over its window the claim must hold, too.
        let claimed = ycsb(Core::D, Requests::Latest, 20_000, 3).hottest_key_share();
        let sampled = sampled_hottest_share(&mut *ycsb(Core::D, Requests::Latest, 20_000, 3), 10_000);
        assert!((claimed - sampled).abs() < 0.004, "{claimed} against {sampled}");
    }

    #[test]
    fn the_same_seed_gives_the_same_operations() {
        let draw = |seed| {
            let mut generator = ycsb(Core::E, Requests::Scrambled, 1_000, seed);
            (0..1_000).map(|_| generator.next(Duration::ZERO)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
