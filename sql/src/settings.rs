//! `SET`, `RESET` and `SHOW` of Evenkeel's own settings, by which a session chooses levels of reads
//! and writes.
//!
//! | setting | values |
//! |---|---|
//! | `evenkeel.read_level` | `linearizable`, `leader`, `local` |
//! | `evenkeel.max_staleness` | a time (`500ms`, `2s`); 0 is no bound |
//! | `evenkeel.durability` | `disk`, `memory`, `local` |
//! | `evenkeel.replica` | the replica that `local` reads prefer, by number; 0 is none |
//!
//! Other settings stay refused: statements of many sessions share one PostgreSQL session.

use super::refuse::syntax;
use evenkeel_protocol::error::{SqlError, codes};
use evenkeel_protocol::levels::{Durability, ReadLevel, parse_duration_ms};
use sqlparser::tokenizer::{Token, TokenWithSpan};

/// The name that all of them begin with.
const PREFIX: &str = "EVENKEEL";

/// A setting, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingName {
    /// `evenkeel.read_level`
    ReadLevel,
    /// `evenkeel.max_staleness`
    MaxStaleness,
    /// `evenkeel.durability`
    Durability,
    /// `evenkeel.replica`
    Replica,
}

impl SettingName {
    /// All of them.
    pub const ALL: [SettingName; 4] =
        [SettingName::ReadLevel, SettingName::MaxStaleness, SettingName::Durability, SettingName::Replica];

    /// As in SQL.
    pub fn name(self) -> &'static str {
        match self {
            SettingName::ReadLevel => "evenkeel.read_level",
            SettingName::MaxStaleness => "evenkeel.max_staleness",
            SettingName::Durability => "evenkeel.durability",
            SettingName::Replica => "evenkeel.replica",
        }
    }

    fn of(name: &str) -> Result<SettingName, SqlError> {
        let found = SettingName::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            SqlError::new(codes::UNDEFINED_SETTING, format!("unrecognized configuration parameter {name:?}"))
                .hint(format!("There are {}.", SettingName::ALL.map(SettingName::name).join(", ")))
        })
    }

    fn value(self, text: &str) -> Result<Setting, SqlError> {
        Ok(match self {
            SettingName::ReadLevel => Setting::ReadLevel(ReadLevel::from_name(text)?),
            SettingName::MaxStaleness => Setting::MaxStaleness(Some(parse_duration_ms(text)?).filter(|ms| *ms > 0)),
            SettingName::Durability => Setting::Durability(Durability::from_name(text)?),
            SettingName::Replica => {
                let wrong = |_| SqlError::new(codes::INVALID_PARAMETER, format!("{text:?} is no replica's number"));
                Setting::Replica(Some(text.parse().map_err(wrong)?).filter(|replica| *replica > 0))
            }
        })
    }
}

/// A setting with its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// How fresh reads must be.
    ReadLevel(ReadLevel),
    /// How old the state of a `local` read may be, in milliseconds; `None` is any age.
    MaxStaleness(Option<u64>),
    /// What a write has reached when it is answered.
    Durability(Durability),
    /// The replica that `local` reads prefer.
    Replica(Option<u64>),
}

/// A command about settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingCommand {
    /// `SET`, for the session or (`LOCAL`) for the rest of the transaction.
    Set {
        /// Whether only for the transaction.
        local: bool,
        /// The setting.
        setting: Setting,
    },
    /// `RESET`, or `SET … TO DEFAULT`: as the session began. `None` is all.
    Reset {
        /// Whether only for the transaction.
        local: bool,
        /// Which.
        name: Option<SettingName>,
    },
    /// `SHOW`
    Show(SettingName),
}

/// Reads the command, if these tokens are one about Evenkeel's own settings (or `RESET ALL`).
pub(super) fn command(tokens: &[TokenWithSpan]) -> Result<Option<SettingCommand>, SqlError> {
    let mut texts = tokens.iter().map(|token| text(&token.token)).collect::<Vec<_>>().into_iter().peekable();
    let verb = texts.next().unwrap_or_default().to_ascii_uppercase();
    let upper = |t: Option<&String>| t.map(|t| t.to_ascii_uppercase()).unwrap_or_default();
    let scope = upper(texts.peek());
    let local = verb == "SET" && scope == "LOCAL";
    if verb == "SET" && (local || scope == "SESSION") {
        texts.next();
    }
    let all = verb == "RESET" && upper(texts.peek()) == "ALL";
    if !matches!(verb.as_str(), "SET" | "RESET" | "SHOW") || (upper(texts.peek()) != PREFIX && !all) {
        return Ok(None);
    }
    let name = match all {
        true => {
            texts.next();
            None
        }
        false => {
            let name: String = texts.by_ref().take(3).collect();
            Some(SettingName::of(&name)?)
        }
    };
    let command = match (verb.as_str(), name) {
        ("SHOW", Some(name)) => SettingCommand::Show(name),
        ("SET", Some(name)) => {
            if !matches!(upper(texts.next().as_ref()).as_str(), "=" | "TO") {
                return Err(syntax(format!("SET {} must be followed by = and a value", name.name())));
            }
            // A time may be written without quotes, as two tokens: a number and its unit.
            let value: String = texts.by_ref().collect();
            match value.eq_ignore_ascii_case("DEFAULT") {
                true => SettingCommand::Reset { local, name: Some(name) },
                false => SettingCommand::Set { local, setting: name.value(&value)? },
            }
        }
        (_, name) => SettingCommand::Reset { local, name },
    };
    match texts.next() {
        None => Ok(Some(command)),
        Some(rest) => Err(syntax(format!("syntax error at or near {rest:?}"))),
    }
}

fn text(token: &Token) -> String {
    match token {
        Token::SingleQuotedString(text) => text.clone(),
        Token::Word(word) => word.value.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
