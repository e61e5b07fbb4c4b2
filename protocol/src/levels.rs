//! Read levels and durability levels, which a session chooses.
//!
//! They change only when and from where a statement is answered (R28). Other readers see only
//! decided writes on a quorum's disks, at every read level.

use crate::error::{SqlError, codes};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadLevel {
    /// The read sees everything that was acknowledged before it began.
    #[default]
    Linearizable,
    /// The read sees the state of the replica that believes to lead; a deposed leader may be
    /// behind.
    Leader,
    /// The read sees the state of any replica; the answer says how old that state can be (R17).
    Local,
}

/// How durable a write is when it is answered (R28). It is replicated to the disks of a quorum at
/// every level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The leader has executed it: lost if the leader dies, or another takes over, before it was
    /// replicated.
    Local,
    /// In a quorum's memory: lost only if two replicas crash before a majority has it on disk.
    Memory,
    /// On a quorum's disks.
    #[default]
    Disk,
}

/// `levels!(Type, "description", Variant = "name", …)`: names, from and to.
macro_rules! levels {
    ($type:ident, $setting:literal, $($variant:ident = $name:literal),+) => {
        impl $type {
            /// Its name, as in SQL and on the command line.
            pub fn name(self) -> &'static str {
                match self { $($type::$variant => $name),+ }
            }

            /// The level of this name, in any case.
            ///
            /// # Errors
            /// 22023, naming the accepted values.
            pub fn from_name(name: &str) -> Result<$type, SqlError> {
                $(if name.eq_ignore_ascii_case($name) { return Ok($type::$variant); })+
                let message = format!("invalid value for {}: {name:?}", $setting);
                Err(SqlError::new(codes::INVALID_PARAMETER, message)
                    .hint(concat!("Accepted are", $(" ", $name),+, ".")))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

levels!(ReadLevel, "evenkeel.read_level", Linearizable = "linearizable", Leader = "leader", Local = "local");
levels!(Durability, "evenkeel.durability", Disk = "disk", Memory = "memory", Local = "local");

/// A time as PostgreSQL writes them in settings: a whole number with `ms` (also without a unit),
/// `s` or `min`. In milliseconds.
///
/// # Errors
/// 22023, naming the accepted values.
pub fn parse_duration_ms(text: &str) -> Result<u64, SqlError> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        _ => 0,
    };
    let parsed = number.parse::<u64>().ok().filter(|_| factor > 0).and_then(|n| n.checked_mul(factor));
    parsed.ok_or_else(|| {
        SqlError::new(codes::INVALID_PARAMETER, format!("{text:?} is not a time"))
            .hint("Accepted is a whole number with a unit: 500ms, 2s, 1min.")
    })
}

/// How a transaction begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TransactionOptions {
    /// `REPEATABLE READ` instead of `READ COMMITTED`.
    pub repeatable_read: bool,
    /// `READ ONLY`.
    pub read_only: bool,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn levels_are_known_by_their_names() {
        for level in [ReadLevel::Linearizable, ReadLevel::Leader, ReadLevel::Local] {
            assert_eq!(ReadLevel::from_name(&level.to_string().to_uppercase()).unwrap(), level);
        }
        for level in [Durability::Disk, Durability::Memory, Durability::Local] {
            assert_eq!(Durability::from_name(level.name()).unwrap(), level);
        }
        let error = Durability::from_name("paper").unwrap_err();
        assert_eq!(error.code, codes::INVALID_PARAMETER);
        assert_eq!(error.hint.unwrap(), "Accepted are disk memory local.");
        // `disk` asks for most.
        assert!(Durability::Disk > Durability::Memory && Durability::Memory > Durability::Local);
    }

    #[test]
    fn times_are_read_as_postgresql_writes_them() {
        for (text, ms) in [("500ms", 500), ("2s", 2_000), (" 1 min ", 60_000), ("7", 7), ("0", 0)] {
            assert_eq!(parse_duration_ms(text).unwrap(), ms);
        }
        for wrong in ["", "ms", "-1s", "1h", "1.5s", "99999999999999999999s", "18446744073709551615s"] {
            assert_eq!(parse_duration_ms(wrong).unwrap_err().code, codes::INVALID_PARAMETER, "{wrong:?}");
        }
    }
}
