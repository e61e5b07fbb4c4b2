//! What a program chooses for its answers: per session, per transaction, per statement; the innermost choice wins.

use evenkeel_protocol::{Durability, ReadLevel};
use evenkeel_sql::{Setting, SettingName};

/// How fresh reads are, and what writes have reached, when they are answered (R17, R28).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Levels {
    /// How fresh a read must be. A statement that changes or locks rows is the leader's at every level.
    pub read: ReadLevel,
    /// A `local` read is refused (72000) if no replica can prove that its state is at most this old, in milliseconds. `None` takes any age
    /// that can be proven, and the answer states it.
    pub max_staleness_ms: Option<u64>,
    /// What a write has reached when it is answered. Below `disk` only in a [`crate::ClientSession`], which does not go on before
    /// the write is on a quorum's disks, and says so if it has been lost.
    pub durability: Durability,
    /// Which of a shard's replicas a `local` read asks first, from 1. `None`: they take turns; a session stays with one.
    pub replica: Option<u64>,
}

/// What one statement chooses instead of its session's levels; `None` leaves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatementLevels {
    /// See [`Levels::read`].
    pub read: Option<ReadLevel>,
    /// See [`Levels::max_staleness_ms`]; `Some(None)` is no bound.
    pub max_staleness_ms: Option<Option<u64>>,
    /// See [`Levels::durability`].
    pub durability: Option<Durability>,
    /// See [`Levels::replica`].
    pub replica: Option<Option<u64>>,
}

impl Levels {
    /// These, with what a statement chooses instead.
    pub fn with(self, chosen: StatementLevels) -> Levels {
        Levels {
            read: chosen.read.unwrap_or(self.read),
            max_staleness_ms: chosen.max_staleness_ms.unwrap_or(self.max_staleness_ms),
            durability: chosen.durability.unwrap_or(self.durability),
            replica: chosen.replica.unwrap_or(self.replica),
        }
    }

    pub(crate) fn set(&mut self, setting: Setting) {
        match setting {
            Setting::ReadLevel(read) => self.read = read,
            Setting::MaxStaleness(bound) => self.max_staleness_ms = bound,
            Setting::Durability(durability) => self.durability = durability,
            Setting::Replica(replica) => self.replica = replica,
        }
    }

    /// The setting's value, to be set again or shown.
    pub(crate) fn get(&self, name: SettingName) -> Setting {
        match name {
            SettingName::ReadLevel => Setting::ReadLevel(self.read),
            SettingName::MaxStaleness => Setting::MaxStaleness(self.max_staleness_ms),
            SettingName::Durability => Setting::Durability(self.durability),
            SettingName::Replica => Setting::Replica(self.replica),
        }
    }
}

/// A setting's value as `SHOW` gives it.
pub(crate) fn shown(setting: Setting) -> String {
    match setting {
        Setting::ReadLevel(read) => read.to_string(),
        Setting::MaxStaleness(bound) => bound.map_or_else(|| "0".to_string(), |ms| format!("{ms}ms")),
        Setting::Durability(durability) => durability.to_string(),
        Setting::Replica(replica) => replica.unwrap_or(0).to_string(),
    }
}
