//! Texts for a database in which users' tables are parents of others that have their rows. Pure.
//!
//! There `ONLY` would leave all rows out. It means nothing where users cannot inherit, so it is
//! left out instead, and blanks keep the positions of what follows. System columns would be those
//! of the tables below.

use super::calls::scan;
use pg_query::protobuf::{ScanToken, Token};

/// Columns that every table has, and that say where a row is rather than what it holds.
const SYSTEM_COLUMNS: [&str; 6] = ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];

/// The text of statements that mean the same there.
pub fn for_parents(text: &str) -> String {
    let without = scan(text).and_then(|tokens| without_only(text, &tokens));
    without.unwrap_or_else(|| text.to_string())
}

/// The text without `ONLY` before tables; `None` if there is none.
pub(super) fn without_only(text: &str, tokens: &[ScanToken]) -> Option<String> {
    let mut changed: Option<Vec<u8>> = None;
    for (at, token) in tokens.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|before| kind(&tokens[before]));
        // FETCH FIRST ROW ONLY, READ ONLY.
        let of_rows = matches!(before, Some(Token::Row | Token::Rows | Token::Read));
        if kind(token) != Some(Token::Only) || of_rows {
            continue;
        }
        let (start, end) = (usize::try_from(token.start).ok()?, usize::try_from(token.end).ok()?);
        changed.get_or_insert_with(|| text.as_bytes().to_vec()).get_mut(start..end)?.fill(b' ');
    }
    String::from_utf8(changed?).ok()
}

/// What the text has that would mean something else there: a system column, or TABLESAMPLE, which
/// foreign tables pass over.
pub(super) fn not_for_parents(text: &str, tokens: &[ScanToken]) -> Option<&'static str> {
    if tokens.iter().any(|token| kind(token) == Some(Token::Tablesample)) {
        return Some("TABLESAMPLE");
    }
    names_system_columns(text, tokens).then_some("a system column")
}

fn names_system_columns(text: &str, tokens: &[ScanToken]) -> bool {
    tokens.iter().any(|token| {
        let (Ok(start), Ok(end)) = (usize::try_from(token.start), usize::try_from(token.end)) else { return false };
        kind(token) == Some(Token::Ident)
            && text.get(start..end).is_some_and(|name| {
                SYSTEM_COLUMNS.iter().any(|column| name.trim_matches('"').eq_ignore_ascii_case(column))
            })
    })
}

fn kind(token: &ScanToken) -> Option<Token> {
    Token::try_from(token.token).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn without(text: &str) -> Option<String> {
        without_only(text, &scan(text).unwrap())
    }

    #[test]
    fn only_before_a_table_is_left_out_and_positions_stay() {
        assert_eq!(without("SELECT 'ONLY' FROM ONLY t").as_deref(), Some("SELECT 'ONLY' FROM      t"));
        assert_eq!(
            without("ALTER TABLE IF EXISTS only t ADD x int").as_deref(),
            Some("ALTER TABLE IF EXISTS      t ADD x int")
        );
        for text in ["SELECT 1 FETCH FIRST ROW ONLY", "SELECT 1 FETCH FIRST 2 ROWS ONLY", "SELECT \"only\" FROM t"] {
            assert_eq!(without(text), None, "{text}");
        }
    }

    #[test]
    fn system_columns_are_noticed_by_name() {
        let names = |text: &str| names_system_columns(text, &scan(text).unwrap());
        assert!(names("SELECT t.CTID FROM t") && names("SELECT \"xmin\" FROM t"));
        assert!(!names("SELECT 'ctid', ctid_2 FROM t -- ctid"));
        let sample = "SELECT 1 FROM t TABLESAMPLE system (1)";
        assert_eq!(not_for_parents(sample, &scan(sample).unwrap()), Some("TABLESAMPLE"));
    }
}
