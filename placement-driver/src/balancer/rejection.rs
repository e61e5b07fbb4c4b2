//! Rejections: why the balancer leaves a shard, a range or the whole cluster alone.
//!
//! Each reason has a sentence for people and a stable code for programs ([`Reason::code`]). A code
//! never changes its meaning:
//!
//! | code | meaning |
//! |---|---|
//! | `switched-off` | an administrator has switched the balancer off |
//! | `restoring` | the state comes from an old copy, and not all shards have reported (R30) |
//! | `too-few-shards` | fewer than two active shards report |
//! | `not-reported` | a shard has not reported for a full window in this leadership (R29) |
//! | `unsteady` | a shard has a new leader, or was silent until just now |
//! | `unmeasured` | a range has not been measured for a full window (R29) |
//! | `little-load` | the whole load is too small to be judged |
//! | `balanced` | the imbalance is below the threshold |
//! | `not-yet` | the imbalance is above the threshold, but not for long enough |
//! | `below-ceiling` | the shard does not carry too much |
//! | `silent` | the shard does not report: it is neither source nor target (R29) |
//! | `faulty-report` | the shard's reports contain impossible figures |
//! | `clock-off` | the shard's clock is too far from the median: nothing moves there |
//! | `busy` | an operator works on the range |
//! | `enough-moves` | the shard's move slots are taken |
//! | `does-not-fit` | the range would overfill every other shard, and splitting would not help |
//! | `single-key` | all load of the range falls on one key |
//! | `shifting` | the load shifts within the range faster than a split could follow |
//! | `too-new` | the range's load has not been known for long enough |
//! | `cut-lately` | the range was split or merged a short while ago |
//! | `cooling-down` | the range left the only shard that could take it a short while ago |
//! | `failed-lately` | operators on the range have failed or were cancelled |
//! | `too-many-ranges` | the limit on ranges is reached |
//! | `pinned` | the range's table neither splits nor moves |

use super::readiness::NotReady;
use evenkeel_protocol::api::RejectionBody;
use evenkeel_protocol::{OperatorId, RangeId, ShardId};
use std::fmt;

/// Why a subject is left alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rejection {
    /// The subject.
    pub subject: Subject,
    /// Its load in statements per second.
    pub load: f64,
    /// The reason.
    pub reason: Reason,
}

/// The subject that is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The cluster.
    All,
    /// A shard.
    Shard(ShardId),
    /// A range on a shard.
    Range(RangeId, ShardId),
}

/// A reason to leave a subject alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reason {
    /// An administrator has switched the balancer off.
    SwitchedOff,
    /// A restoration from an old copy is under way (R30).
    Restoring,
    /// The load model does not know enough (R29).
    NotReady(NotReady),
    /// The whole load is too small to be judged.
    LittleLoad {
        /// The whole load in statements per second.
        total: f64,
    },
    /// The load is balanced.
    Balanced {
        /// The imbalance divided by its floor.
        ratio: f64,
        /// The ratio above which rebalancing begins.
        act_above: f64,
    },
    /// The load is imbalanced, but not for long enough.
    NotYet {
        /// The imbalance divided by its floor.
        ratio: f64,
        /// The time for which it has been, in milliseconds.
        for_ms: u64,
    },
    /// The shard carries no more than the ceiling.
    BelowCeiling {
        /// The ceiling in statements per second.
        ceiling: f64,
    },
    /// The shard does not report: it is neither source nor target (R29).
    Silent,
    /// Its reports contain impossible figures.
    FaultyReport {
        /// The kind of figure.
        what: &'static str,
        /// Whether the whole report was refused. Otherwise only the faulty part was left out.
        refused: bool,
    },
    /// Its leader's clock is too far from the median: nothing moves there.
    ClockOff {
        /// The difference in milliseconds; positive if the clock is fast.
        off_ms: i64,
    },
    /// An operator works on it.
    Busy(OperatorId),
    /// Its move slots are taken.
    EnoughMoves {
        /// The moves under way at the shard.
        moves: usize,
    },
    /// It would overfill every other shard, and splitting would not help.
    DoesNotFit,
    /// All of its load falls on one key.
    SingleKey,
    /// The load shifts within it faster than a split could follow.
    Shifting {
        /// The share that has shifted within two seconds.
        shift: f64,
    },
    /// Its load has not been known for long enough.
    TooNew,
    /// It was split or merged a short while ago.
    CutLately {
        /// The time since then in milliseconds.
        ago_ms: u64,
    },
    /// It left the only shard that could take it a short while ago.
    CoolingDown {
        /// The shard it left.
        left: ShardId,
        /// The rest of the cool-down in milliseconds.
        for_ms: u64,
    },
    /// Operators on it have failed or were cancelled. The cause may persist.
    FailedLately {
        /// How many in a row.
        times: u32,
        /// The time since the last one in milliseconds.
        ago_ms: u64,
        /// The rest of the pause in milliseconds.
        for_ms: u64,
    },
    /// The limit on ranges is reached.
    TooManyRanges,
    /// Its table neither splits nor moves.
    Pinned,
}

impl Reason {
    /// A stable code for programs, in kebab case. The page of this module lists all codes.
    pub fn code(self) -> &'static str {
        match self {
            Reason::SwitchedOff => "switched-off",
            Reason::Restoring => "restoring",
            Reason::NotReady(why) => why.code(),
            Reason::LittleLoad { .. } => "little-load",
            Reason::Balanced { .. } => "balanced",
            Reason::NotYet { .. } => "not-yet",
            Reason::BelowCeiling { .. } => "below-ceiling",
            Reason::Silent => "silent",
            Reason::FaultyReport { .. } => "faulty-report",
            Reason::ClockOff { .. } => "clock-off",
            Reason::Busy(_) => "busy",
            Reason::EnoughMoves { .. } => "enough-moves",
            Reason::DoesNotFit => "does-not-fit",
            Reason::SingleKey => "single-key",
            Reason::Shifting { .. } => "shifting",
            Reason::TooNew => "too-new",
            Reason::CutLately { .. } => "cut-lately",
            Reason::CoolingDown { .. } => "cooling-down",
            Reason::FailedLately { .. } => "failed-lately",
            Reason::TooManyRanges => "too-many-ranges",
            Reason::Pinned => "pinned",
        }
    }

    /// Whether it is what a search for an action found: why this one was not possible. The others
    /// say how a shard or the cluster stands; every round finds that out by itself.
    pub(super) fn is_found_by_search(self) -> bool {
        match self {
            Reason::BelowCeiling { .. }
            | Reason::Busy(_)
            | Reason::EnoughMoves { .. }
            | Reason::DoesNotFit
            | Reason::SingleKey
            | Reason::Shifting { .. }
            | Reason::TooNew
            | Reason::CutLately { .. }
            | Reason::CoolingDown { .. }
            | Reason::FailedLately { .. }
            | Reason::TooManyRanges
            | Reason::Pinned => true,
            Reason::SwitchedOff
            | Reason::Restoring
            | Reason::NotReady(_)
            | Reason::LittleLoad { .. }
            | Reason::Balanced { .. }
            | Reason::NotYet { .. }
            | Reason::Silent
            | Reason::FaultyReport { .. }
            | Reason::ClockOff { .. } => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::SwitchedOff => write!(f, "the balancer is switched off"),
            Reason::Restoring => write!(f, "the state comes from a backup and not all shards have told what they have"),
            Reason::NotReady(why) => write!(f, "{why}"),
            Reason::LittleLoad { total } => write!(f, "{total:.0} statements/s in all are too few to judge by"),
            Reason::Balanced { ratio, act_above } => {
                write!(f, "level: imbalance is {ratio:.2} × its floor, below {act_above:.2}")
            }
            Reason::NotYet { ratio, for_ms } => {
                write!(f, "imbalance is {ratio:.2} × its floor, but only for {for_ms} ms so far")
            }
            Reason::BelowCeiling { ceiling } => write!(f, "it carries no more than its part ({ceiling:.0}/s)"),
            Reason::Silent => write!(f, "the shard does not report: neither source nor target"),
            Reason::FaultyReport { what, refused: true } => {
                write!(f, "its reports are refused: what they say ({what}) cannot be")
            }
            Reason::FaultyReport { what, refused: false } => {
                write!(f, "part of its reports ({what}) cannot be, and was left out")
            }
            Reason::ClockOff { off_ms } => {
                write!(f, "its clock is {off_ms} ms ahead of the median: nothing is moved there")
            }
            Reason::Busy(operator) => write!(f, "operator {operator} is at work"),
            Reason::EnoughMoves { moves } => write!(f, "{moves} moves are under way there already"),
            Reason::DoesNotFit => write!(f, "it fits on no other shard without making that too busy"),
            Reason::SingleKey => write!(f, "its load cannot be divided: it falls on one key"),
            Reason::Shifting { shift } => {
                write!(f, "{:.0}% of its load shifted within two seconds: a split could not follow", shift * 100.0)
            }
            Reason::TooNew => write!(f, "where its load falls has been known for less than two seconds"),
            Reason::CutLately { ago_ms } => write!(f, "it was cut {ago_ms} ms ago"),
            Reason::CoolingDown { left, for_ms } => {
                write!(f, "it left shard {left} and may not return for {for_ms} ms")
            }
            Reason::FailedLately { times, ago_ms, for_ms } => write!(
                f,
                "{times} operator(s) on it failed or were cancelled, the last {ago_ms} ms ago: left alone for another {for_ms} ms"
            ),
            Reason::TooManyRanges => write!(f, "there are as many ranges as are allowed"),
            Reason::Pinned => write!(f, "its table neither splits nor moves"),
        }
    }
}

impl Rejection {
    /// As the REST API shows it.
    pub fn body(&self) -> RejectionBody {
        let (range, shard) = match self.subject {
            Subject::All => (None, None),
            Subject::Shard(shard) => (None, Some(shard)),
            Subject::Range(range, shard) => (Some(range), Some(shard)),
        };
        let (code, reason) = (self.reason.code().to_string(), self.reason.to_string());
        RejectionBody { code, reason, range, shard, statements_per_s: self.load }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each reason. `Reason::code` has no wildcard, so that a new variant cannot be
    /// forgotten there.
    fn every_reason() -> Vec<Reason> {
        let (shard, range) = (ShardId(1), RangeId(1));
        vec![
            Reason::SwitchedOff,
            Reason::Restoring,
            Reason::NotReady(NotReady::TooFewShards),
            Reason::NotReady(NotReady::NotReported(shard)),
            Reason::NotReady(NotReady::Unsteady(shard)),
            Reason::NotReady(NotReady::Unmeasured(range)),
            Reason::LittleLoad { total: 1.0 },
            Reason::Balanced { ratio: 1.0, act_above: 1.1 },
            Reason::NotYet { ratio: 1.5, for_ms: 10 },
            Reason::BelowCeiling { ceiling: 1.0 },
            Reason::Silent,
            Reason::FaultyReport { what: "rate", refused: false },
            Reason::ClockOff { off_ms: 3000 },
            Reason::Busy(OperatorId(1)),
            Reason::EnoughMoves { moves: 2 },
            Reason::DoesNotFit,
            Reason::SingleKey,
            Reason::Shifting { shift: 0.5 },
            Reason::TooNew,
            Reason::CutLately { ago_ms: 10 },
            Reason::CoolingDown { left: shard, for_ms: 10 },
            Reason::FailedLately { times: 1, ago_ms: 10, for_ms: 10 },
            Reason::TooManyRanges,
            Reason::Pinned,
        ]
    }

    /// Programs rely on codes: each is documented on this module's page, in this order, and no two
    /// are equal.
    #[test]
    fn every_reason_has_a_code_of_its_own_and_it_is_documented() {
        let codes: Vec<&str> = every_reason().into_iter().map(Reason::code).collect();
        let rows = include_str!("rejection.rs").lines().filter_map(|line| line.strip_prefix("//! | `"));
        let documented: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
        assert_eq!(codes, documented);
        let different: std::collections::BTreeSet<&str> = codes.iter().copied().collect();
        assert_eq!(different.len(), codes.len());
        assert!(codes.iter().all(|code| code.chars().all(|c| c.is_ascii_lowercase() || c == '-')), "{codes:?}");
    }
}
