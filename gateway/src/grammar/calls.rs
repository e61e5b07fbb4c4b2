//! The functions that a statement calls, found in its tokens. Pure.
//!
//! The called functions must be known completely: a user's function may touch tables that the
//! statement does not name, and `set_config` changes a session that others share. A call is a name
//! before a parenthesis, wherever it stands. A walk over the parser's tree would have to know every
//! kind of node, and the library's own walk leaves out window functions, RETURNING and more.

use pg_query::protobuf::{KeywordKind, ScanToken, Token};

/// What a statement calls.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Calls {
    /// The names, without schemas, in order and each once. A name that is no function's may be
    /// among them.
    pub functions: Vec<String>,
    /// The constant names given to `nextval`, `currval` and `setval`.
    pub sequences: Vec<String>,
    /// The settings that `set_config` is called with: names, values, and whether they hold for the
    /// transaction only. `None` if they are not all constants.
    pub configured: Option<Vec<(String, String, bool)>>,
    /// Whether a name is written with Unicode escapes, which are not read here.
    pub escaped: bool,
}

/// The tokens of a text without its comments; `None` if it cannot be scanned.
pub(super) fn scan(text: &str) -> Option<Vec<ScanToken>> {
    let mut tokens = pg_query::scan_tokens(text).ok()?;
    tokens.retain(|token| !matches!(kind(token), Some(Token::SqlComment | Token::CComment)));
    Some(tokens)
}

/// The calls in a text with these tokens.
pub(super) fn calls(text: &str, tokens: &[ScanToken]) -> Calls {
    let mut found = Calls { configured: Some(Vec::new()), ..Calls::default() };
    for at in 1..tokens.len() {
        if kind(&tokens[at]) != Some(Token::Ascii40) || !may_call(tokens, at - 1) {
            continue;
        }
        found.escaped |= kind(&tokens[at - 1]) == Some(Token::Uident);
        let Some(name) = name(text, &tokens[at - 1]) else { continue };
        let arguments = &tokens[at + 1..];
        match name.as_str() {
            "nextval" | "currval" | "setval" => {
                found.sequences.extend(arguments.first().and_then(|token| string(text, token)));
            }
            "set_config" => match (&mut found.configured, setting(text, arguments)) {
                (Some(known), Some(setting)) => known.push(setting),
                (configured, _) => *configured = None,
            },
            _ => {}
        }
        found.functions.push(name);
    }
    found.functions.sort_unstable();
    found.functions.dedup();
    found
}

/// Whether the name that ends here may be a function's, rather than a table's, an alias or a type.
fn may_call(tokens: &[ScanToken], mut at: usize) -> bool {
    while at >= 2 && kind(&tokens[at - 1]) == Some(Token::Ascii46) {
        at -= 2;
    }
    at.checked_sub(1).is_none_or(|before| !matches!(kind(&tokens[before]), Some(Token::Into | Token::As)))
}

fn kind(token: &ScanToken) -> Option<Token> {
    Token::try_from(token.token).ok()
}

fn source<'a>(text: &'a str, token: &ScanToken) -> Option<&'a str> {
    text.get(usize::try_from(token.start).ok()?..usize::try_from(token.end).ok()?)
}

/// A name as PostgreSQL has it; `None` if the token cannot be a function's name.
fn name(text: &str, token: &ScanToken) -> Option<String> {
    let keyword = KeywordKind::try_from(token.keyword_kind);
    let written = source(text, token)?;
    match kind(token)? {
        Token::Ident => match written.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
            Some(quoted) => Some(quoted.replace("\"\"", "\"")),
            None => Some(written.to_lowercase()),
        },
        _ if matches!(keyword, Ok(KeywordKind::NoKeyword | KeywordKind::ReservedKeyword)) => None,
        _ => Some(written.to_lowercase()),
    }
}

/// The value of a string constant without escapes.
fn string(text: &str, token: &ScanToken) -> Option<String> {
    if kind(token)? != Token::Sconst {
        return None;
    }
    let written = source(text, token)?;
    let plain = written.strip_prefix(['e', 'E']).filter(|rest| !rest.contains('\\')).unwrap_or(written);
    Some(plain.strip_prefix('\'')?.strip_suffix('\'')?.replace("''", "'"))
}

/// The arguments of `set_config`: two strings and a truth value.
fn setting(text: &str, arguments: &[ScanToken]) -> Option<(String, String, bool)> {
    let [of, comma, value, second, local, end, ..] = arguments else { return None };
    let commas = [comma, second].map(|token| kind(token) == Some(Token::Ascii44));
    if commas != [true, true] || kind(end) != Some(Token::Ascii41) {
        return None;
    }
    let local = match kind(local)? {
        Token::TrueP => true,
        Token::FalseP => false,
        _ => match string(text, local)?.to_lowercase().as_str() {
            "true" | "t" | "on" | "1" => true,
            "false" | "f" | "off" | "0" => false,
            _ => return None,
        },
    };
    Some((string(text, of)?.to_lowercase(), string(text, value)?, local))
}
