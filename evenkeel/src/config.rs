//! Configuration in layers: a TOML file, the environment, flags. A later layer overrides an earlier
//! one.
//!
//! A command describes its settings once, as a list of [`Setting`]s. All three layers pass through
//! that list, so that a mistake is reported the same way in each of them: one line with the key,
//! the value and the accepted values. A key that no command knows is an error in the file and in
//! the environment alike.
//!
//! The environment variable of a setting is `EVENKEEL_` and its key in capitals
//! (`EVENKEEL_DATA_DIR`). In a section two underscores stand for the dot
//! (`EVENKEEL_BALANCER__COOL_DOWN_MS`).
//!
//! This module is pure: the caller passes the file's text, the environment and the flags.

use evenkeel_client::admin::parse_url;
use evenkeel_local_cluster::InvalidSetting;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

/// The values that a setting accepts.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A whole number within these bounds, both included.
    Count(i64, i64),
    /// A number within these bounds, both included.
    Number(f64, f64),
    /// 0, or a number within these bounds.
    ZeroOr(f64, f64),
    /// A share, 0 to 1.
    Share,
    /// `true` or `false`.
    Flag,
    /// A path.
    Path,
    /// Any text.
    Text,
    /// A time within these bounds, in seconds: a number of seconds, or a number with `ms`, `s`, `m`
    /// or `h`. Stored in seconds.
    Seconds(f64, f64),
    /// URLs of the placement driver's replicas, separated by commas. Stored as text.
    Urls,
    /// An address: `IP:PORT`.
    Address,
    /// Numbered addresses: a table in the file, `1=IP:PORT,2=IP:PORT` elsewhere.
    Addresses,
    /// A section, described by its default values.
    Section(toml::Table),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A list of tables with these keys. Only a file can hold it.
    Tables(Vec<(&'static str, Kind)>),
    /// A table of texts by name. Only a file can hold it. Messages do not repeat the texts: they
    /// are secrets, or nearly.
    Secrets,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Count(min, i64::MAX) => write!(f, "a whole number from {min} up"),
            Kind::Count(min, max) => write!(f, "a whole number from {min} to {max}"),
            Kind::Number(min, max) if min.is_finite() && max.is_finite() => write!(f, "a number from {min} to {max}"),
            Kind::Number(..) => write!(f, "a number"),
            Kind::ZeroOr(min, max) => write!(f, "0, or a number from {min} to {max}"),
            Kind::Share => write!(f, "a number from 0 to 1"),
            Kind::Flag => write!(f, "true or false"),
            Kind::Path => write!(f, "a path"),
            Kind::Text => write!(f, "a text"),
            Kind::Seconds(min, max) => {
                write!(f, "a time from {min} to {max} seconds, plain or with a unit: 500ms, 60s, 2m, 1h")
            }
            Kind::Urls => write!(f, "URLs with commas between: http://127.0.0.1:7101"),
            Kind::Address => write!(f, "an address: 127.0.0.1:7101"),
            Kind::Addresses => write!(f, "addresses by replica number: 1=127.0.0.1:7101,2=127.0.0.1:7102"),
            Kind::Section(keys) => {
                write!(f, "a section with {}", keys.keys().cloned().collect::<Vec<_>>().join(", "))
            }
            Kind::OneOf(words) => write!(f, "{}", words.join(", ")),
            Kind::Tables(keys) => {
                let keys: Vec<_> = keys.iter().map(|(key, _)| *key).collect();
                write!(f, "a list of tables with {}, in the file", keys.join(", "))
            }
            Kind::Secrets => write!(f, "a table of texts by name, in the file"),
        }
    }
}

/// One setting of a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Its key in the file.
    pub key: &'static str,
    /// The accepted values.
    pub kind: Kind,
    /// Whether the command needs it.
    pub required: bool,
    /// The setting that this one replaces. Of the two, the one of the later layer counts. One layer
    /// has at most one of them.
    pub instead_of: Option<&'static str>,
}

impl Setting {
    /// An optional setting.
    pub fn optional(key: &'static str, kind: Kind) -> Setting {
        Setting { key, kind, required: false, instead_of: None }
    }

    /// A required setting.
    pub fn required(key: &'static str, kind: Kind) -> Setting {
        Setting { key, kind, required: true, instead_of: None }
    }

    /// The same setting, given instead of another one.
    pub fn instead_of(self, other: &'static str) -> Setting {
        Setting { instead_of: Some(other), ..self }
    }
}

/// A mistake in the configuration, as one line. The process ends with exit status 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// An error with this line; line breaks become spaces.
    pub fn new(line: impl AsRef<str>) -> ConfigError {
        ConfigError(line.as_ref().split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// The error of a value that is not accepted.
    pub fn value(key: &str, value: impl fmt::Display, origin: &str, accepted: impl fmt::Display) -> ConfigError {
        ConfigError::new(format!("{key} = {value} ({origin}): accepted is {accepted}"))
    }
}

impl From<InvalidSetting> for ConfigError {
    fn from(error: InvalidSetting) -> ConfigError {
        ConfigError::value(error.setting, error.value, "configuration", error.accepted)
    }
}

/// The layers of a configuration, in rising precedence.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// The file's name and text.
    pub file: Option<(String, String)>,
    /// The environment.
    pub environment: Vec<(String, String)>,
    /// The given flags: key and text.
    pub flags: Vec<(&'static str, String)>,
    /// Keys of other commands. The environment is shared by all commands, so these keys are ignored
    /// there.
    pub other_commands_keys: Vec<&'static str>,
}

/// The flag of a key. `--log` is the log filter of every command, so the flag of the log's
/// addresses differs from its key.
fn flag_name(key: &str) -> String {
    match key {
        "log" => "log-addresses".to_string(),
        key => key.replace('_', "-"),
    }
}

/// What messages show in place of a secret.
const HIDDEN: &str = "…";
/// Variables with the prefix that are no settings of a command.
const OTHER_VARIABLES: &[&str] =
    &["CONFIG", "URL", "BIN", "SEEDS", "FORMAT", "TEST_LOG", "TEST_DATA_DIR", "TRACES", "SIMULATION_TRACE"];

/// The configuration of a command with these settings.
pub fn resolve<T: DeserializeOwned>(settings: &[Setting], layers: &Layers) -> Result<T, ConfigError> {
    let file = match &layers.file {
        Some((name, text)) => read_file(settings, name, text)?,
        None => toml::Table::new(),
    };
    let environment = read_environment(settings, layers)?;
    let flags = read_flags(settings, &layers.flags)?;
    let mut all = [("file", file), ("environment", environment), ("flags", flags)];
    choose(settings, &mut all)?;
    let mut merged = toml::Table::new();
    for (_, layer) in all {
        overlay(settings, layer, &mut merged);
    }
    if let Some(missing) = settings.iter().find(|s| s.required && !merged.contains_key(s.key)) {
        return Err(ConfigError::new(format!(
            "{} is missing: give {} as {} in the file, EVENKEEL_{} or --{}",
            missing.key,
            missing.kind,
            missing.key,
            missing.key.to_uppercase(),
            flag_name(missing.key)
        )));
    }
    // JSON, unlike TOML, can be read into maps with numbers as keys.
    let json = serde_json::to_value(&merged).map_err(|e| ConfigError::new(e.to_string()))?;
    serde_json::from_value(json).map_err(|e| ConfigError::new(format!("configuration: {e}")))
}

fn find<'a>(settings: &'a [Setting], key: &str, origin: &str) -> Result<&'a Setting, ConfigError> {
    settings.iter().find(|s| s.key == key).ok_or_else(|| {
        let known: Vec<_> = settings.iter().map(|s| s.key).collect();
        ConfigError::new(format!("{key} ({origin}): no such key; accepted are {}", known.join(", ")))
    })
}

/// Of two settings that replace each other, keeps the one of the last layer that has either.
fn choose(settings: &[Setting], layers: &mut [(&str, toml::Table)]) -> Result<(), ConfigError> {
    for (key, other) in settings.iter().filter_map(|s| Some((s.key, s.instead_of?))) {
        let last = layers.iter().rev().find(|(_, layer)| layer.contains_key(key) || layer.contains_key(other));
        let Some((origin, layer)) = last else { continue };
        let overridden = match (layer.contains_key(key), layer.contains_key(other)) {
            (true, true) => {
                return Err(ConfigError::new(format!("{key} and {other} ({origin}): accepted is one of them")));
            }
            (true, false) => other,
            _ => key,
        };
        for (_, layer) in layers.iter_mut() {
            layer.remove(overridden);
        }
    }
    Ok(())
}

/// Applies one layer over the earlier ones. Sections are merged key by key.
fn overlay(settings: &[Setting], layer: toml::Table, merged: &mut toml::Table) {
    for (key, value) in layer {
        let section = settings.iter().any(|s| s.key == key && matches!(s.kind, Kind::Section(_)));
        match (merged.get_mut(&key), value) {
            (Some(toml::Value::Table(before)), toml::Value::Table(now)) if section => before.extend(now),
            (_, value) => drop(merged.insert(key, value)),
        }
    }
}

fn read_flags(settings: &[Setting], flags: &[(&'static str, String)]) -> Result<toml::Table, ConfigError> {
    let mut layer = toml::Table::new();
    for (key, text) in flags {
        let origin = format!("flag --{}", flag_name(key));
        let setting = find(settings, key, &origin)?;
        let value =
            from_text(&setting.kind, text).ok_or_else(|| ConfigError::value(key, text, &origin, &setting.kind))?;
        layer.insert((*key).to_string(), value);
    }
    Ok(layer)
}

fn read_file(settings: &[Setting], name: &str, text: &str) -> Result<toml::Table, ConfigError> {
    let mut layer = toml::Table::new();
    let origin = format!("file {name}");
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        ConfigError::new(format!("{name}, line {line}: {}", e.message()))
    })?;
    for (key, value) in table {
        let setting = find(settings, &key, &origin)?;
        let accepted = from_toml(&setting.kind, &value).map_err(|part| {
            let (key, value, kind) = inside(&key, part);
            ConfigError::value(&key, value, &origin, kind)
        })?;
        layer.insert(key, accepted);
    }
    Ok(layer)
}

fn read_environment(settings: &[Setting], layers: &Layers) -> Result<toml::Table, ConfigError> {
    let mut layer = toml::Table::new();
    for (variable, text) in &layers.environment {
        read_variable(settings, &layers.other_commands_keys, variable, text, &mut layer)?;
    }
    Ok(layer)
}

fn read_variable(
    settings: &[Setting],
    other_commands_keys: &[&str],
    variable: &str,
    text: &str,
    layer: &mut toml::Table,
) -> Result<(), ConfigError> {
    let Some(name) = variable.strip_prefix("EVENKEEL_") else {
        return Ok(());
    };
    let (key, inner) = match name.split_once("__") {
        Some((section, inner)) => (section.to_lowercase(), Some(inner.to_lowercase())),
        None => (name.to_lowercase(), None),
    };
    let elsewhere = OTHER_VARIABLES.contains(&name) || other_commands_keys.contains(&key.as_str());
    if elsewhere && !settings.iter().any(|s| s.key == key) {
        return Ok(());
    }
    let origin = format!("environment {variable}");
    let setting = find(settings, &key, &origin)?;
    let text = if setting.kind == Kind::Secrets { HIDDEN } else { text };
    match (inner, &setting.kind) {
        (Some(inner), Kind::Section(defaults)) => {
            let kind = defaults.get(&inner).map(kind_of).ok_or_else(|| {
                ConfigError::new(format!("{key}.{inner} ({origin}): no such key; accepted is {}", setting.kind))
            })?;
            let value = from_text(&kind, text)
                .ok_or_else(|| ConfigError::value(&format!("{key}.{inner}"), text, &origin, kind))?;
            let section = layer.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let Some(section) = section.as_table_mut() {
                section.insert(inner, value);
            }
        }
        (Some(_), kind) => return Err(ConfigError::value(&key, text, &origin, kind)),
        (None, kind) => {
            let value = from_text(kind, text).ok_or_else(|| ConfigError::value(&key, text, &origin, kind))?;
            layer.insert(key, value);
        }
    }
    Ok(())
}

/// The values that a key of a section accepts, by its default value.
fn kind_of(default: &toml::Value) -> Kind {
    match default {
        toml::Value::Integer(_) => Kind::Count(0, i64::MAX),
        toml::Value::Float(_) => Kind::Number(f64::NEG_INFINITY, f64::INFINITY),
        toml::Value::Boolean(_) => Kind::Flag,
        toml::Value::Table(table) => Kind::Section(table.clone()),
        _ => Kind::Text,
    }
}

/// The value of a text; `None` if it is not accepted.
fn from_text(kind: &Kind, text: &str) -> Option<toml::Value> {
    let text = text.trim();
    Some(match kind {
        Kind::Count(min, max) => {
            let n = text.replace('_', "").parse().ok().filter(|n| (*min..=*max).contains(n))?;
            toml::Value::Integer(n)
        }
        Kind::Number(min, max) => {
            toml::Value::Float(text.parse().ok().filter(|n: &f64| n.is_finite() && (*min..=*max).contains(n))?)
        }
        Kind::ZeroOr(min, max) => {
            toml::Value::Float(text.parse().ok().filter(|n| *n == 0.0 || (*min..=*max).contains(n))?)
        }
        Kind::Share => toml::Value::Float(text.parse().ok().filter(|n| (0.0..=1.0).contains(n))?),
        Kind::Flag => toml::Value::Boolean(text.parse().ok()?),
        Kind::Path | Kind::Text => toml::Value::String(Some(text).filter(|t| !t.is_empty())?.to_string()),
        Kind::Seconds(min, max) => {
            toml::Value::Float(parse_seconds(text).filter(|seconds| (*min..=*max).contains(seconds))?)
        }
        Kind::Urls => {
            let urls: Option<Vec<String>> = text.split(',').map(|url| parse_url(url).ok()).collect();
            toml::Value::String(urls?.join(","))
        }
        Kind::Address => {
            text.parse::<SocketAddr>().ok()?;
            toml::Value::String(text.to_string())
        }
        Kind::Addresses => {
            let mut table = toml::Table::new();
            for part in text.split(',') {
                let (number, address) = part.trim().split_once('=')?;
                number.trim().parse::<u64>().ok()?;
                address.trim().parse::<SocketAddr>().ok()?;
                table.insert(number.trim().to_string(), toml::Value::String(address.trim().to_string()));
            }
            toml::Value::Table(table)
        }
        Kind::OneOf(words) => toml::Value::String((*words.iter().find(|word| **word == text)?).to_string()),
        Kind::Section(_) | Kind::Tables(_) | Kind::Secrets => return None,
    })
}

/// A part of a value that is not accepted: the path to it inside the value, the value there, and
/// the accepted values.
type WrongPart = (String, String, String);

/// A wrong part of the value that has this key in a larger value.
fn inside(key: &str, (path, value, kind): WrongPart) -> WrongPart {
    (if path.is_empty() { key.to_string() } else { format!("{key}.{path}") }, value, kind)
}

/// A list of tables, each value in the form of the configuration's type.
fn tables_from_toml(
    kind: &Kind,
    keys: &[(&'static str, Kind)],
    tables: &[toml::Value],
) -> Result<toml::Value, WrongPart> {
    let mut accepted = Vec::new();
    for (number, table) in (1..).zip(tables) {
        let place = |part| inside(&format!("{number}"), part);
        let table = table.as_table().ok_or_else(|| place((String::new(), table.to_string(), kind.to_string())))?;
        let mut checked = toml::Table::new();
        for (key, value) in table {
            let value = match keys.iter().find(|(known, _)| known == key) {
                None => Err((String::new(), value.to_string(), format!("nothing: no such key, but {kind}"))),
                Some((_, kind)) => from_toml(kind, value),
            };
            checked.insert(key.clone(), value.map_err(|part| place(inside(key, part)))?);
        }
        accepted.push(toml::Value::Table(checked));
    }
    Ok(toml::Value::Array(accepted))
}

/// The value in the form of the configuration's type.
fn from_toml(kind: &Kind, value: &toml::Value) -> Result<toml::Value, WrongPart> {
    let wrong = || (String::new(), value.to_string(), kind.to_string());
    match (kind, value) {
        (Kind::Section(defaults), toml::Value::Table(table)) => {
            let mut accepted = toml::Table::new();
            for (key, value) in table {
                let inner = match defaults.get(key) {
                    None => Err((String::new(), value.to_string(), format!("nothing: no such key, but {kind}"))),
                    Some(default) => from_toml(&kind_of(default), value),
                };
                accepted.insert(key.clone(), inner.map_err(|part| inside(key, part))?);
            }
            Ok(toml::Value::Table(accepted))
        }
        (Kind::Addresses, toml::Value::Table(table)) => {
            for (number, address) in table {
                let good =
                    number.parse::<u64>().is_ok() && address.as_str().is_some_and(|a| a.parse::<SocketAddr>().is_ok());
                if !good {
                    return Err((number.clone(), address.to_string(), "a replica number and \"IP:PORT\"".into()));
                }
            }
            Ok(value.clone())
        }
        (Kind::Tables(keys), toml::Value::Array(tables)) => tables_from_toml(kind, keys, tables),
        (Kind::Secrets, toml::Value::Table(table)) => match table.iter().find(|(_, text)| !text.is_str()) {
            Some((name, _)) => Err((name.clone(), HIDDEN.into(), "a text".into())),
            None => Ok(value.clone()),
        },
        (Kind::Secrets, _) => Err((String::new(), HIDDEN.into(), kind.to_string())),
        (Kind::OneOf(_), toml::Value::String(text)) => from_text(kind, text).ok_or_else(wrong),
        (Kind::Path | Kind::Text | Kind::Seconds(..) | Kind::Urls, toml::Value::String(text))
        | (Kind::Address | Kind::Addresses, toml::Value::String(text)) => from_text(kind, text).ok_or_else(wrong),
        (Kind::Count(..), toml::Value::Integer(_))
        | (
            Kind::Number(..) | Kind::ZeroOr(..) | Kind::Share | Kind::Seconds(..),
            toml::Value::Integer(_) | toml::Value::Float(_),
        )
        | (Kind::Flag, toml::Value::Boolean(_)) => from_text(kind, &value.to_string()).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

/// Seconds of a time with or without a unit.
fn parse_seconds(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let number: f64 = digits.trim().parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number * unit)
}

/// Checks that `replica` has an address in each of these maps, and that they name the same
/// replicas.
pub fn check_members(replica: u64, maps: &[(&str, &BTreeMap<u64, SocketAddr>)]) -> Result<(), ConfigError> {
    let Some((first, named)) = maps.first() else { return Ok(()) };
    let list = |map: &BTreeMap<u64, SocketAddr>| map.keys().map(u64::to_string).collect::<Vec<_>>().join(", ");
    for (key, map) in maps {
        if !map.keys().eq(named.keys()) {
            let accepted = format!("the replicas that {first} has: {}", list(named));
            return Err(ConfigError::value(key, list(map), "replica numbers", accepted));
        }
        if let Some(number) = map.keys().find(|number| !(1..=255).contains(*number)) {
            return Err(ConfigError::value(key, number, "replica numbers", "1 to 255"));
        }
    }
    if !named.contains_key(&replica) {
        let accepted = format!("a number that {first} has: {}", list(named));
        return Err(ConfigError::value("replica", replica, "all layers", accepted));
    }
    Ok(())
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
