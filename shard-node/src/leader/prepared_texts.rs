//! Statements that a raw session has prepared, by their texts. Pure.
//!
//! A prepared statement is good for one text with one list of parameter types *and* one list of
//! settings: PostgreSQL evaluates literals when it parses (`'2024-01-01 12:00'::timestamptz` by the
//! time zone, names by the search path). A text with a literal that means the present time is not
//! kept, since it would mean the time of its first execution for ever.
//!
//! Promises: the number of statements is bounded; the least recently used goes first.

use std::collections::HashMap;
use std::sync::Arc;

/// Prepared statements per session.
const MAX_PREPARED: usize = 128;
/// The longest text that is kept, in bytes: longer ones are rarely executed twice.
const MAX_TEXT_BYTES: usize = 16 << 10;
/// Words that mean the present time inside of a literal.
const PRESENT_TIME: [&str; 4] = ["now", "today", "tomorrow", "yesterday"];

/// What a statement is prepared for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PreparedKey {
    /// The text.
    pub sql: Arc<str>,
    /// The parameters' types, as object ids; 0 for "not given".
    pub types: Vec<u32>,
    /// The session's settings.
    pub settings: Arc<[(String, String)]>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct PreparedTexts {
    known: HashMap<PreparedKey, Prepared>,
    /// The number of uses so far; and of names.
    uses: u64,
}

#[derive(Debug)]
struct Prepared {
    name: String,
    used: u64,
}

impl PreparedTexts {
    /// The name of a statement that is prepared.
    pub fn find(&mut self, key: &PreparedKey) -> Option<String> {
        self.uses += 1;
        let found = self.known.get_mut(key)?;
        found.used = self.uses;
        Some(found.name.clone())
    }

    /// A name that no statement has; `None` if the text is not to be kept.
    pub fn new_name(&mut self, key: &PreparedKey) -> Option<String> {
        if key.sql.len() > MAX_TEXT_BYTES || may_mean_present_time(&key.sql) {
            return None;
        }
        self.uses += 1;
        Some(format!("evenkeel_{}", self.uses))
    }

    /// A statement has been prepared under a new name. Returns the name of one to be closed.
    pub fn keep(&mut self, key: PreparedKey, name: String) -> Option<String> {
        let mut closed = None;
        if self.known.len() >= MAX_PREPARED {
            let oldest = self.known.iter().min_by_key(|(_, prepared)| prepared.used).map(|(key, _)| key.clone());
            closed = oldest.and_then(|key| self.known.remove(&key)).map(|prepared| prepared.name);
        }
        self.known.insert(key, Prepared { name, used: self.uses });
        closed
    }

    /// Forgets all statements. Returns their names.
    pub fn take_all(&mut self) -> Vec<String> {
        self.known.drain().map(|(_, prepared)| prepared.name).collect()
    }
}

/// Whether a literal of the text may mean the present time. `now()` is a function and no literal.
fn may_mean_present_time(sql: &str) -> bool {
    let lower = sql.to_ascii_lowercase();
    let bytes = lower.as_bytes();
    let in_word = |at: Option<&u8>| at.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    PRESENT_TIME.iter().any(|word| {
        lower.match_indices(word).any(|(at, _)| {
            let end = at + word.len();
            let alone = !in_word(at.checked_sub(1).and_then(|before| bytes.get(before))) && !in_word(bytes.get(end));
            alone && !lower[end..].trim_start().starts_with('(')
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(sql: &str) -> PreparedKey {
        PreparedKey { sql: sql.into(), types: Vec::new(), settings: Arc::default() }
    }

    #[test]
    fn statements_are_bounded_and_those_in_use_stay() {
        let mut texts = PreparedTexts::default();
        let first = key("SELECT 0");
        let mut closed = 0;
        for n in 0..3 * MAX_PREPARED {
            let new = key(&format!("SELECT {n}"));
            assert_eq!(texts.find(&new), None);
            let Some(name) = texts.new_name(&new) else { panic!("{n}") };
            closed += usize::from(texts.keep(new, name).is_some());
            assert!(texts.find(&first).is_some(), "after {n} others");
        }
        assert_eq!((closed, texts.known.len()), (2 * MAX_PREPARED, MAX_PREPARED));
        assert_eq!(texts.take_all().len(), MAX_PREPARED);
        assert_eq!(texts.find(&first), None);
    }

    #[test]
    fn a_statement_is_for_its_settings_and_types() {
        let mut texts = PreparedTexts::default();
        let name = texts.new_name(&key("SELECT 1")).unwrap_or_default();
        texts.keep(key("SELECT 1"), name);
        let settings: Arc<[(String, String)]> = [("timezone".to_string(), "Asia/Tokyo".to_string())].into();
        assert_eq!(texts.find(&PreparedKey { settings, ..key("SELECT 1") }), None);
        assert_eq!(texts.find(&PreparedKey { types: vec![23], ..key("SELECT 1") }), None);
        assert!(texts.find(&key("SELECT 1")).is_some());
    }

    #[test]
    fn a_literal_of_the_present_time_is_not_kept() {
        for text in ["INSERT INTO t VALUES ('now')", "SELECT timestamp ' NOW '", "SELECT 'today'::date"] {
            assert!(may_mean_present_time(text), "{text}");
        }
        for text in ["SELECT now()", "SELECT now ()", "SELECT known, snow, now_at FROM t", "SELECT 1"] {
            assert!(!may_mean_present_time(text), "{text}");
        }
    }
}
