//! A text without its constants, under which statements that differ only in these share an
//! analysis. Pure.
//!
//! A constant is masked by its kind, since its kind can decide the type of a result. What else can
//! change what a statement touches or returns stays: arguments of functions, lengths of types,
//! constants of kinds that are not known here. Fingerprints would not do: they leave out more.

use pg_query::protobuf::{KeywordKind, ScanToken, Token};

/// Longer texts are not masked, in bytes: they are bulk loads, which do not repeat.
const MAX_BYTES: usize = 16 << 10;

/// The masked text; `None` if the text is not worth it. The tokens are the text's, without its
/// comments.
pub(super) fn masked(text: &str, tokens: &[ScanToken]) -> Option<String> {
    if text.len() > MAX_BYTES {
        return None;
    }
    let mut out = String::with_capacity(text.len());
    let mut taken = 0;
    // For each open parenthesis whether constants within it may be masked.
    let mut open: Vec<bool> = Vec::new();
    let mut before: Option<&ScanToken> = None;
    for token in tokens {
        let (start, end) = (usize::try_from(token.start).ok()?, usize::try_from(token.end).ok()?);
        let outer = open.last().copied().unwrap_or(true);
        match Token::try_from(token.token).ok()? {
            Token::Ascii40 => open.push(outer && opens_a_list(before)),
            Token::Ascii91 => open.push(outer),
            Token::Ascii41 | Token::Ascii93 => _ = open.pop(),
            kind if outer => {
                if let Some(mask) = mask(kind, text.get(start..end)?) {
                    out.push_str(text.get(taken..start)?);
                    out.push_str(mask);
                    taken = end;
                }
            }
            _ => {}
        }
        before = Some(token);
    }
    out.push_str(text.get(taken..)?);
    Some(out)
}

/// What stands for a constant. No text contains these by itself, since none contains a zero byte.
fn mask(kind: Token, constant: &str) -> Option<&'static str> {
    match kind {
        Token::Iconst => Some("\0i"),
        Token::Fconst if constant.parse::<i64>().is_ok() => Some("\0l"),
        Token::Fconst => Some("\0n"),
        Token::Sconst => Some("\0s"),
        _ => None,
    }
}

/// Whether a parenthesis after this token opens an expression or a list of them, rather than the
/// arguments of a function or a type.
fn opens_a_list(before: Option<&ScanToken>) -> bool {
    let Some(before) = before else { return true };
    match Token::try_from(before.token) {
        Ok(Token::Values | Token::InP | Token::And | Token::Or | Token::Not | Token::Where | Token::On) => true,
        Ok(Token::Select | Token::When | Token::Then | Token::Else | Token::Set | Token::By | Token::Having) => true,
        Ok(Token::Ident | Token::Uident) => false,
        _ => KeywordKind::try_from(before.keyword_kind) == Ok(KeywordKind::NoKeyword),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::calls::scan;
    use super::*;

    fn same(one: &str, other: &str) -> bool {
        masked(one, &scan(one).unwrap()).unwrap() == masked(other, &scan(other).unwrap()).unwrap()
    }

    #[test]
    fn constants_of_a_kind_are_alike() {
        assert!(same("SELECT v FROM t WHERE id = 1 AND s = 'a'", "SELECT v FROM t WHERE id = 22 AND s = 'b''c'"));
        assert!(same("INSERT INTO t VALUES (1, 'a'), ((2), NULL)", "INSERT INTO t VALUES (3, ''), ((4), NULL)"));
        assert!(same("SELECT 1 WHERE x IN (1, 2)", "SELECT 1 WHERE x IN (3, 4)"));
        assert!(same("UPDATE t SET a = (b + 1) * 2.5", "UPDATE t SET a = (b + 7) * 1e9"));
    }

    #[test]
    fn kinds_and_whatever_else_decides_a_type_differ() {
        for (one, other) in [
            ("SELECT 1", "SELECT 3000000000"),
            ("SELECT 1", "SELECT 1.0"),
            ("SELECT 1", "SELECT '1'"),
            ("SELECT 3000000000", "SELECT 30000000000000000000"),
            ("SELECT x::varchar(1)", "SELECT x::varchar(2)"),
            ("SELECT x::numeric(5, 1)", "SELECT x::numeric(5, 2)"),
            ("SELECT CAST(x AS \"char\"(1))", "SELECT CAST(x AS \"char\"(2))"),
            ("SELECT f(1)", "SELECT f(2)"),
            ("SELECT f /* ( */ (1)", "SELECT f /* ( */ (2)"),
            ("SELECT f(a, (1))", "SELECT f(a, (2))"),
            ("SELECT U&\"f\"(1)", "SELECT U&\"f\"(2)"),
            ("SELECT f(ARRAY['a'])", "SELECT f(ARRAY['b'])"),
            ("SELECT nextval('a')", "SELECT nextval('b')"),
            ("SELECT coalesce(1, x)", "SELECT coalesce(2, x)"),
            ("SELECT B'1'", "SELECT B'11'"),
            ("SELECT $1", "SELECT $2"),
            ("SELECT a /* 1 */", "SELECT a /* 2 */"),
        ] {
            assert!(!same(one, other), "{one} {other}");
        }
    }
}
