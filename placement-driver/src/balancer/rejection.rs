//! Why the balancer left a shard or a range alone.

use super::level::NotReady;
use evenkeel_protocol::{OperatorId, RangeId, ShardId};
use std::fmt;

/// Why something was left alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rejection {
    /// What.
    pub subject: Subject,
    /// Its load, in statements per second.
    pub load: f64,
    /// Why.
    pub reason: Reason,
}

/// What was left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Everything.
    All,
    /// A shard.
    Shard(ShardId),
    /// A range, on a shard.
    Range(RangeId, ShardId),
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reason {
    /// Someone switched the balancer off.
    SwitchedOff,
    /// R30.
    Restoring,
    /// R29: not enough is known.
    NotReady(NotReady),
    /// There is too little load to judge by.
    LittleLoad {
        /// All of it, in statements per second.
        total: f64,
    },
    /// The load is even enough.
    Level {
        /// The imbalance over its floor.
        ratio: f64,
        /// The ratio above which something is done.
        act_above: f64,
    },
    /// The load is uneven, but not for long enough yet.
    NotYet {
        /// The imbalance over its floor.
        ratio: f64,
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// The shard has no more than its part.
    BelowCeiling {
        /// What it may carry, in statements per second.
        ceiling: f64,
    },
    /// R29: a silent shard is neither source nor target.
    Silent,
    /// Its reports hold what cannot be.
    WrongReport {
        /// What kind of number.
        what: &'static str,
        /// Whether the whole report was refused; otherwise what was wrong was left out of it.
        refused: bool,
    },
    /// Its leader's clock is too far from the others'.
    ClockOff {
        /// By how much it is fast, in milliseconds.
        off_ms: i64,
    },
    /// An operator is at work.
    Busy(OperatorId),
    /// As many moves as are allowed at once involve this shard.
    EnoughMoves {
        /// How many.
        moves: usize,
    },
    /// Its load would be too much for every other shard, and splitting would not help.
    DoesNotFit,
    /// All its load is on one key.
    SingleKey,
    /// Where in the range the load falls changes faster than a split could follow.
    Shifting {
        /// The share that shifted within two seconds.
        shift: f64,
    },
    /// Its load has not been known for long enough to split by.
    TooNew,
    /// It was cut just now.
    CutLately {
        /// How long ago, in milliseconds.
        ago_ms: u64,
    },
    /// It left the only shard that could take it a short while ago.
    CoolingDown {
        /// The shard it left.
        left: ShardId,
        /// How much longer, in milliseconds.
        for_ms: u64,
    },
    /// Operators on it failed or were cancelled: the reason may still be there.
    FailedLately {
        /// How many, one after the other.
        times: u32,
        /// How long ago the last was, in milliseconds.
        ago_ms: u64,
        /// How much longer the range is left alone, in milliseconds.
        for_ms: u64,
    },
    /// There are as many ranges as are allowed.
    TooManyRanges,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::All => write!(f, "the cluster"),
            Subject::Shard(id) => write!(f, "shard {id}"),
            Subject::Range(id, shard) => write!(f, "range {id} on shard {shard}"),
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
            Reason::Level { ratio, act_above } => {
                write!(f, "level: imbalance is {ratio:.2} × its floor, below {act_above:.2}")
            }
            Reason::NotYet { ratio, for_ms } => {
                write!(f, "imbalance is {ratio:.2} × its floor, but only for {for_ms} ms so far")
            }
            Reason::BelowCeiling { ceiling } => write!(f, "it carries no more than its part ({ceiling:.0}/s)"),
            Reason::Silent => write!(f, "it does not report: neither source nor target"),
            Reason::WrongReport { what, refused: true } => {
                write!(f, "its reports are refused: what they say ({what}) cannot be")
            }
            Reason::WrongReport { what, refused: false } => {
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
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:.0}/s): {}", self.subject, self.load, self.reason)
    }
}
