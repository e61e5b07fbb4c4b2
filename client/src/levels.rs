//! Levels of reads and writes, chosen per session, transaction or statement; the innermost choice
//! wins.

use evenkeel_protocol::{Durability, ReadLevel};
use evenkeel_sql::{Setting, SettingName};

/// How fresh reads are, and how durable writes are when they are acknowledged (R17, R28).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Levels {
    /// How fresh a read must be. The leader executes statements that change or lock rows at every
    /// level.
    pub read: ReadLevel,
    /// The staleness bound of `local` reads, in milliseconds: a read fails with 72000 if no replica
    /// can prove the bound. `None` accepts any bound that a replica can prove; the answer states
    /// it.
    pub max_staleness_ms: Option<u64>,
    /// The durability of a write when it is acknowledged. A durability below `disk` needs a
    /// [`crate::Session`], whose next statement waits until the write is on a quorum's disks and
    /// reports its loss.
    pub durability: Durability,
    /// The place of the replica that a `local` read asks first, from 1. `None`: the replicas take
    /// turns; a session stays with one.
    pub replica: Option<u64>,
}

/// The levels of one statement; `None` leaves those of its session.
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
    /// These levels, with the choices of a statement.
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

    /// The value of a setting.
    pub(crate) fn get(&self, name: SettingName) -> Setting {
        match name {
            SettingName::ReadLevel => Setting::ReadLevel(self.read),
            SettingName::MaxStaleness => Setting::MaxStaleness(self.max_staleness_ms),
            SettingName::Durability => Setting::Durability(self.durability),
            SettingName::Replica => Setting::Replica(self.replica),
        }
    }
}

/// The value of a setting as `SHOW` displays it.
pub(crate) fn shown(setting: Setting) -> String {
    match setting {
        Setting::ReadLevel(read) => read.to_string(),
        Setting::MaxStaleness(bound) => bound.map_or_else(|| "0".to_string(), |ms| format!("{ms}ms")),
        Setting::Durability(durability) => durability.to_string(),
        Setting::Replica(replica) => replica.unwrap_or(0).to_string(),
    }
}
