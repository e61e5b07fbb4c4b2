//! A workload by its name, as it is given on a command line and printed in a report.
//!
//! A name is a word, for some workloads followed by `:` and a parameter: `mixgraph`, `ycsb-a`,
//! `ycsb-a:unscrambled`, `zipf:1.2`. A wrong name is answered with the list of the right ones.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::generators::hotspot::{Front, Hotspot, Motion};
use crate::generators::mixgraph::{self, mixgraph};
use crate::generators::ycsb::{Core, Requests, ycsb};
use crate::generators::zipf::{Placement, Zipf};
use crate::generators::{Generator, KeyChooser, MixedGenerator, OperationMix, SizeDistribution, Uniform};

/// The accepted names, with the meaning of each; `name:default` where a parameter may follow.
pub const ACCEPTED: &[(&str, &str)] = &[
    ("mixgraph", "Facebook's social graph: 30 key ranges, the hottest with four fifths of the load"),
    ("ycsb-a[:KEYS]", "50 % read, 50 % update; KEYS is scrambled, unscrambled, latest, hotspot or uniform"),
    ("ycsb-b[:KEYS]", "95 % read, 5 % update"),
    ("ycsb-c[:KEYS]", "100 % read"),
    ("ycsb-d[:KEYS]", "95 % read of the latest rows, 5 % insert"),
    ("ycsb-e[:KEYS]", "95 % scan of 1 to 100 rows, 5 % insert"),
    ("ycsb-f[:KEYS]", "50 % read, 50 % read-modify-write"),
    ("uniform", "80 % read, 20 % update, all keys alike"),
    ("zipf:S", "80 % read, 20 % update, Zipf with exponent S (0 to 10), hottest keys side by side"),
    ("zipf-scattered:S", "the same, hot keys anywhere"),
    ("hotspot-jump[:SECONDS]", "90 % of the load on 2 % of the keys, elsewhere every SECONDS (20)"),
    ("hotspot-drift[:SHARE]", "90 % of the load on 2 % of the keys, moving by SHARE (0.01) of the keys per second"),
    ("sequential", "60 % insert at the end, 40 % read of recent rows"),
];

/// Size of the values of the workloads that no publication prescribes, in bytes.
const VALUE_BYTES: u32 = 100;

/// Why a scenario cannot be had. The message says what would be accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScenarioError {
    /// There is no such workload.
    #[error("unknown workload `{name}`; accepted: {}", accepted_names())]
    UnknownName {
        /// The name as given.
        name: String,
    },
    /// The parameter behind the colon is wrong or missing.
    #[error("workload `{name}`: the parameter is `{parameter}`, expected {expected}")]
    Parameter {
        /// The word before the colon.
        name: String,
        /// What followed, possibly nothing.
        parameter: String,
        /// The accepted names.
        expected: &'static str,
    },
    /// The table is too small or too large for the workload.
    #[error("workload `{name}` needs {min_rows} to {max_rows} rows, not {rows}")]
    Rows {
        /// The workload.
        name: String,
        /// Rows asked for.
        rows: u64,
        /// Fewest rows.
        min_rows: u64,
        /// Most rows.
        max_rows: u64,
    },
}

fn accepted_names() -> String {
    ACCEPTED.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// The most rows that a table is loaded with.
pub const MAX_ROWS: u64 = 10_000_000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Mixgraph,
    Ycsb(Core, Requests),
    Uniform,
    Zipf(f64, Placement),
    HotspotJump(Duration),
    HotspotDrift(f64),
    Sequential,
}

/// A workload that has been named and not yet started.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    name: String,
    kind: Kind,
}

impl FromStr for Scenario {
    type Err = ScenarioError;

    fn from_str(text: &str) -> Result<Self, ScenarioError> {
        let (name, parameter) = match text.split_once(':') {
            Some((name, parameter)) => (name, Some(parameter)),
            None => (text, None),
        };
        Ok(Self { name: text.to_owned(), kind: parse_kind(name, parameter)? })
    }
}

fn parse_kind(name: &str, parameter: Option<&str>) -> Result<Kind, ScenarioError> {
    let wrong = |expected| ScenarioError::Parameter {
        name: name.to_owned(),
        parameter: parameter.unwrap_or_default().to_owned(),
        expected,
    };
    let number = |default: Option<f64>, range: std::ops::RangeInclusive<f64>, expected| match parameter {
        None => default.ok_or_else(|| wrong(expected)),
        Some(text) => text.parse().ok().filter(|value| range.contains(value)).ok_or_else(|| wrong(expected)),
    };
    let plain = |kind| if parameter.is_none() { Ok(kind) } else { Err(wrong("none")) };
    const EXPONENT: &str = "an exponent from 0 to 10, as in zipf:1.2";
    match name {
        "mixgraph" => plain(Kind::Mixgraph),
        "uniform" => plain(Kind::Uniform),
        "sequential" => plain(Kind::Sequential),
        "zipf" => Ok(Kind::Zipf(number(None, 0.0..=10.0, EXPONENT)?, Placement::Adjacent)),
        "zipf-scattered" => Ok(Kind::Zipf(number(None, 0.0..=10.0, EXPONENT)?, Placement::Scattered)),
        "hotspot-jump" => {
            let seconds = number(Some(20.0), 0.1..=86_400.0, "seconds from 0.1 to 86400")?;
            Ok(Kind::HotspotJump(Duration::from_secs_f64(seconds)))
        }
        "hotspot-drift" => {
            Ok(Kind::HotspotDrift(number(Some(0.01), 0.0..=1.0, "a share of the key space per second, 0 to 1")?))
        }
        _ => {
            let core = match name.strip_prefix("ycsb-") {
                Some("a") => Core::A,
                Some("b") => Core::B,
                Some("c") => Core::C,
                Some("d") => Core::D,
                Some("e") => Core::E,
                Some("f") => Core::F,
                _ => return Err(ScenarioError::UnknownName { name: name.to_owned() }),
            };
            let requests = match parameter {
                None => core.requests(),
                Some("scrambled") => Requests::Scrambled,
                Some("unscrambled") => Requests::Unscrambled,
                Some("latest") => Requests::Latest,
                Some("hotspot") => Requests::Hotspot,
                Some("uniform") => Requests::Uniform,
                Some(_) => return Err(wrong("scrambled, unscrambled, latest, hotspot or uniform")),
            };
            Ok(Kind::Ycsb(core, requests))
        }
    }
}

impl Scenario {
    /// The name it was asked for by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts it over a table of `rows` rows. The same name, rows and seed give the same
    /// operations.
    pub fn generator(&self, rows: u64, seed: u64) -> Result<Box<dyn Generator>, ScenarioError> {
        let min_rows = if self.kind == Kind::Mixgraph { mixgraph::KEY_RANGES } else { 1 };
        if !(min_rows..=MAX_ROWS).contains(&rows) {
            return Err(ScenarioError::Rows { name: self.name.clone(), rows, min_rows, max_rows: MAX_ROWS });
        }
        Ok(match self.kind {
            Kind::Mixgraph => Box::new(mixgraph(rows, seed)),
            Kind::Ycsb(core, requests) => ycsb(core, requests, rows, seed),
            Kind::Uniform => reads_and_updates(Uniform, rows, seed),
            Kind::Zipf(exponent, placement) => {
                reads_and_updates(Zipf::new(rows, exponent, placement, seed), rows, seed)
            }
            Kind::HotspotJump(period) => {
                reads_and_updates(Hotspot::new(0.02, 0.9, Motion::Jump { period }, seed), rows, seed)
            }
            Kind::HotspotDrift(key_space_per_s) => {
                reads_and_updates(Hotspot::new(0.02, 0.9, Motion::Drift { key_space_per_s }, seed), rows, seed)
            }
            Kind::Sequential => {
                let mix = OperationMix { insert: 0.6, ..OperationMix::default() };
                assemble(Front::new(1_000.0), mix, rows, seed)
            }
        })
    }
}

fn reads_and_updates(chooser: impl KeyChooser + 'static, rows: u64, seed: u64) -> Box<dyn Generator> {
    assemble(chooser, OperationMix { update: 0.2, ..OperationMix::default() }, rows, seed)
}

fn assemble(chooser: impl KeyChooser + 'static, mix: OperationMix, rows: u64, seed: u64) -> Box<dyn Generator> {
    let (values, scans) = (SizeDistribution::Fixed(VALUE_BYTES), SizeDistribution::Fixed(1));
    Box::new(MixedGenerator::new(chooser, mix, values, scans, rows, seed))
}

impl fmt::Display for Scenario {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::operation::OperationKind;

    const ALL: [&str; 14] = [
        "mixgraph",
        "ycsb-a",
        "ycsb-b",
        "ycsb-c:unscrambled",
        "ycsb-d",
        "ycsb-e:hotspot",
        "ycsb-f:uniform",
        "uniform",
        "zipf:1.2",
        "zipf-scattered:0.8",
        "hotspot-jump",
        "hotspot-jump:5",
        "hotspot-drift:0.02",
        "sequential",
    ];

    #[test]
    fn every_name_starts_repeats_and_stays_within_its_rows() {
        for name in ALL {
            let scenario: Scenario = name.parse().unwrap();
            assert_eq!(scenario.to_string(), name);
            let operations = |seed| {
                let mut generator = scenario.generator(2_000, seed).unwrap();
                assert!((0.0..=1.0).contains(&generator.hottest_key_share()), "{name}");
                let next = |at| generator.next(Duration::from_millis(at));
                (0..3_000).map(next).collect::<Vec<_>>()
            };
            assert_eq!(operations(1), operations(1), "{name}");
            assert_ne!(operations(1), operations(2), "{name}");
            let mut rows = 2_000;
            for operation in operations(1) {
                if operation.kind == OperationKind::Insert {
                    assert_eq!(operation.key, rows, "{name}");
                    rows += 1;
                }
                assert!((0..rows).contains(&operation.key), "{name}");
            }
        }
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_right_ones() {
        let error = "ycsb-g".parse::<Scenario>().unwrap_err().to_string();
        assert!(error.starts_with("unknown workload `ycsb-g`; accepted: mixgraph, ycsb-a[:KEYS]"), "{error}");
        for (text, message) in [
            ("zipf", "workload `zipf`: the parameter is ``, expected an exponent from 0 to 10, as in zipf:1.2"),
            ("zipf:-1", "workload `zipf`: the parameter is `-1`, expected an exponent from 0 to 10, as in zipf:1.2"),
            ("zipf:NaN", "workload `zipf`: the parameter is `NaN`, expected an exponent from 0 to 10, as in zipf:1.2"),
            ("uniform:3", "workload `uniform`: the parameter is `3`, expected none"),
            ("hotspot-jump:0", "workload `hotspot-jump`: the parameter is `0`, expected seconds from 0.1 to 86400"),
        ] {
            assert_eq!(text.parse::<Scenario>().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn the_table_must_have_room() {
        let scenario: Scenario = "mixgraph".parse().unwrap();
        let error = scenario.generator(29, 1).err().unwrap();
        assert_eq!(error.to_string(), "workload `mixgraph` needs 30 to 10000000 rows, not 29");
        assert!("uniform".parse::<Scenario>().unwrap().generator(0, 1).is_err());
    }
}
