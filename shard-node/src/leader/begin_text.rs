//! The text that begins a transaction with the settings of a user's session. Pure.
//!
//! Promises: settings last until the transaction ends, and nothing but settings is in the text,
//! whatever their names and values are.

use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::TransactionOptions;
use std::fmt::Write;

/// The most settings of a session.
const MAX_SETTINGS: usize = 200;
/// Settings whose values are lists of names. `SET` takes each as a value of its own.
const LISTS_OF_NAMES: [&str; 2] = ["search_path", "temp_tablespaces"];
/// Settings that are not the user's: who the user is, and what the transaction is.
const NOT_SETTABLE: [&str; 9] = [
    "role",
    "session_authorization",
    "session_replication_role",
    "transaction_isolation",
    "transaction_read_only",
    "transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "default_transaction_deferrable",
];

/// `BEGIN …; SET LOCAL …`.
///
/// # Errors
/// 42704 for a name that no setting can have, or that is not a user's to set. 54000 for too many.
pub fn begin_text(options: TransactionOptions, settings: &[(String, String)]) -> Result<String, SqlError> {
    if settings.len() > MAX_SETTINGS {
        return Err(SqlError::new(codes::PROGRAM_LIMIT, format!("more than {MAX_SETTINGS} settings")));
    }
    let isolation = if options.repeatable_read { "REPEATABLE READ" } else { "READ COMMITTED" };
    let access = if options.read_only { "READ ONLY" } else { "READ WRITE" };
    let mut text = format!("BEGIN ISOLATION LEVEL {isolation} {access}");
    for (name, value) in settings {
        check_name(name)?;
        // A String takes everything.
        let _ = write!(text, "; SET LOCAL ");
        let parts = name.split('.').map(|part| format!("\"{part}\""));
        text.push_str(&parts.collect::<Vec<_>>().join("."));
        let values = if LISTS_OF_NAMES.iter().any(|list| name.eq_ignore_ascii_case(list)) {
            names(value)
        } else {
            vec![value.clone()]
        };
        text.push_str(" TO ");
        text.push_str(&values.iter().map(|value| literal(value)).collect::<Vec<_>>().join(", "));
    }
    Ok(text)
}

/// Whether a setting is among a session's.
pub fn has_setting(settings: &[(String, String)], name: &str) -> bool {
    settings.iter().any(|(other, _)| other.eq_ignore_ascii_case(name))
}

fn check_name(name: &str) -> Result<(), SqlError> {
    let unknown = || SqlError::new(codes::UNDEFINED_SETTING, format!("{name:?} is not a setting of a user's"));
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
    };
    let settable = !NOT_SETTABLE.iter().any(|other| name.eq_ignore_ascii_case(other));
    if name.split('.').all(is_part) && settable { Ok(()) } else { Err(unknown()) }
}

/// A text as a literal, whatever `standard_conforming_strings` says.
fn literal(value: &str) -> String {
    let doubled = value.replace('\'', "''");
    if doubled.contains('\\') { format!("E'{}'", doubled.replace('\\', "\\\\")) } else { format!("'{doubled}'") }
}

/// The names in a list as PostgreSQL shows it: separated by commas, in lower case unless in double
/// quotes.
fn names(list: &str) -> Vec<String> {
    let (mut names, mut rest) = (Vec::new(), list.trim_start());
    loop {
        let mut name = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted;
            while let Some(end) = rest.find('"') {
                name.push_str(&rest[..end]);
                rest = &rest[end + 1..];
                match rest.strip_prefix('"') {
                    Some(more) => {
                        name.push('"');
                        rest = more;
                    }
                    None => break,
                }
            }
            rest = rest.find(',').map_or("", |comma| &rest[comma..]);
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            name.push_str(&rest[..end].trim().to_ascii_lowercase());
            rest = &rest[end..];
        }
        names.push(name);
        match rest.strip_prefix(',') {
            Some(more) => rest = more.trim_start(),
            None => return names,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn text(settings: &[(&str, &str)]) -> Result<String, SqlError> {
        let settings: Vec<(String, String)> =
            settings.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        begin_text(TransactionOptions::default(), &settings)
    }

    #[test]
    fn settings_are_local_and_quoted() {
        let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
        assert_eq!(text(&[]).unwrap(), begin);
        assert_eq!(
            text(&[("TimeZone", "x'; DROP")]).unwrap(),
            format!("{begin}; SET LOCAL \"TimeZone\" TO 'x''; DROP'")
        );
        assert_eq!(text(&[("a.b", "\\'")]).unwrap(), format!("{begin}; SET LOCAL \"a\".\"b\" TO E'\\\\'''"));
        let path = text(&[("search_path", "Public, \"$user\",\"a\"\"b\" , c")]).unwrap();
        assert_eq!(path, format!("{begin}; SET LOCAL \"search_path\" TO 'public', '$user', 'a\"b', 'c'"));
        assert_eq!(text(&[("search_path", "")]).unwrap(), format!("{begin}; SET LOCAL \"search_path\" TO ''"));
        let options = TransactionOptions { repeatable_read: true, read_only: true };
        assert_eq!(begin_text(options, &[]).unwrap(), "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        for name in ["", "a b", "a\"b", "a.", "1a", "role", "Session_Authorization", "x;y"] {
            assert_eq!(text(&[(name, "1")]).unwrap_err().code, codes::UNDEFINED_SETTING, "{name}");
        }
    }
}
