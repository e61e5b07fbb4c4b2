//! Users' settings in a session of PostgreSQL. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A user's settings that differ from the server's: names and values as `set_config` takes them.
pub type Settings = BTreeMap<String, String>;

/// Settings of which each name is quoted by itself.
const LISTS: [&str; 4] = ["search_path", "temp_tablespaces", "session_preload_libraries", "local_preload_libraries"];

/// The settings that a shard or the front PostgreSQL has to know, as pairs.
pub fn pairs(settings: &Settings) -> Arc<[(String, String)]> {
    settings.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The statement that makes a setting.
pub fn set(name: &str, value: &str, local: bool) -> String {
    let scope = if local { "LOCAL " } else { "" };
    let name_quoted = format!("\"{}\"", name.replace('"', "\"\""));
    if LISTS.contains(&name) && !value.is_empty() {
        return format!("SET {scope}{name_quoted} TO {value}");
    }
    format!("SET {scope}{name_quoted} TO {}", literal(value))
}

/// A text as SQL.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_and_lists_are_not() {
        assert_eq!(set("timezone", "Europe/O'Hare", false), "SET \"timezone\" TO 'Europe/O''Hare'");
        assert_eq!(set("search_path", "\"a\", \"b\"", true), "SET LOCAL \"search_path\" TO \"a\", \"b\"");
        assert_eq!(set("search_path", "", true), "SET LOCAL \"search_path\" TO ''");
        assert_eq!(set("x.y", "a\\'b", false), "SET \"x.y\" TO  E'a\\\\''b'");
    }
}
