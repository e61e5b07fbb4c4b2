//! From text to one command: checks size, nesting and the number of statements, and finds the kind
//! of the statement.
//!
//! Clients are not trusted, so the cost of a text is bounded before the parser sees it: by its
//! length, and by the depth of the tree that it can become. Trees are dropped and walked
//! recursively, so depth costs stack. The parser bounds nesting of parentheses but not chains of
//! operators; this module therefore counts the tokens between two commas.

use super::command::Command;
use super::limits::MAX_SQL_BYTES;
use super::parsed::Parsed;
use super::refuse::syntax;
use super::{create, refuse, settings, statement};
use evenkeel_protocol::error::{SqlError, codes};
use evenkeel_protocol::shard::TransactionOptions;
use sqlparser::ast::Statement;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

/// The most tokens an expression can have between two commas, parentheses around it included.
const MAX_CHAIN_TOKENS: usize = 1_000;
/// The deepest nesting of parentheses, about.
const MAX_NESTING: usize = 50;

/// Reads exactly one statement; a semicolon after it is fine.
///
/// # Errors
///
/// The text is no SQL (42601), is too long or nested too deeply (54000), or asks for what the store
/// cannot do correctly (0A000, with a hint what to do instead).
pub fn parse(sql: &str) -> Result<Command, SqlError> {
    if sql.len() > MAX_SQL_BYTES {
        let message = format!("the statement is {} bytes long; at most {MAX_SQL_BYTES} are possible", sql.len());
        return Err(SqlError::new(codes::PROGRAM_LIMIT, message).hint("send it in parts, or its values as parameters"));
    }
    if sql.contains('\0') {
        return Err(syntax("the statement contains a zero byte"));
    }
    let dialect = PostgreSqlDialect {};
    let mut tokens =
        Tokenizer::new(&dialect, sql).tokenize_with_location().map_err(|error| syntax(error.to_string()))?;
    tokens.retain(|token| !matches!(token.token, Token::Whitespace(_)));
    check_depth(&tokens)?;
    while tokens.last().is_some_and(|token| matches!(token.token, Token::SemiColon | Token::EOF)) {
        tokens.pop();
    }
    if tokens.iter().any(|token| token.token == Token::SemiColon) {
        return Err(syntax("the text holds several statements").hint("send one statement at a time"));
    }
    let words = leading_words(&tokens);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some(first) = words.first() else {
        return Err(syntax(if tokens.is_empty() {
            "the statement is empty"
        } else {
            "a statement begins with a word"
        }));
    };
    if let Some(command) = settings::command(&tokens)? {
        return Ok(Command::Setting(command));
    }
    if let Some(refusal) = refuse::refusal(&words) {
        return Err(refusal);
    }
    if matches!(*first, "BEGIN" | "START" | "COMMIT" | "END" | "ROLLBACK" | "ABORT") {
        return transaction(&all_words(&tokens)?);
    }
    check_misread(&tokens)?;
    let mut parser = Parser::new(&dialect).with_recursion_limit(MAX_NESTING).with_tokens_with_locations(tokens);
    let statement = parser.parse_statement().map_err(parser_error)?;
    let rest = parser.peek_token();
    if rest.token != Token::EOF {
        return Err(syntax(format!("syntax error at or near {:?}", rest.token.to_string())));
    }
    command(statement)
}

fn command(statement: Statement) -> Result<Command, SqlError> {
    Ok(match statement {
        Statement::Query(query) => Command::Statement(Parsed::new(statement::query(query)?)),
        Statement::Insert(insert) => Command::Statement(Parsed::new(statement::insert(insert)?)),
        Statement::Update(update) => Command::Statement(Parsed::new(statement::update(update)?)),
        Statement::Delete(delete) => Command::Statement(Parsed::new(statement::delete(delete)?)),
        Statement::CreateTable(table) => create::create_table(table)?,
        _ => {
            return Err(SqlError::unsupported(
                "this kind of statement is not supported",
                "use SELECT, INSERT, UPDATE, DELETE, CREATE TABLE, BEGIN, COMMIT or ROLLBACK",
            ));
        }
    })
}

fn parser_error(error: ParserError) -> SqlError {
    match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => syntax(message),
        ParserError::RecursionLimitExceeded => too_deep(),
    }
}

fn too_deep() -> SqlError {
    SqlError::new(codes::PROGRAM_LIMIT, "the statement is nested too deeply")
        .hint("write a long chain of ORs as IN (…), or send the statement in parts")
}

/// Bounds the depth of the tree that `tokens` can grow into: each level costs at least one token
/// that no comma separates from the one above.
fn check_depth(tokens: &[TokenWithSpan]) -> Result<(), SqlError> {
    let (mut depth, mut outer) = (0, Vec::new());
    let mut start = 0;
    for token in tokens {
        match token.token {
            Token::LParen | Token::LBracket => {
                outer.push((start, depth));
                depth += 1;
                start = depth;
            }
            Token::RParen | Token::RBracket => (start, depth) = outer.pop().unwrap_or((0, depth)),
            Token::Comma => depth = start,
            _ => depth += 1,
        }
        if depth > MAX_CHAIN_TOKENS {
            return Err(too_deep());
        }
    }
    Ok(())
}

/// Refuses what the parser reads as something else than PostgreSQL does, without a trace in the
/// tree.
fn check_misread(tokens: &[TokenWithSpan]) -> Result<(), SqlError> {
    for (i, token) in tokens.iter().enumerate() {
        match word(&token.token).as_deref() {
            // Taken for an alias in `SELECT a ISNULL`.
            Some("ISNULL") => return Err(SqlError::unsupported("ISNULL is not supported", "write IS NULL")),
            // The precision of `interval(3) '1 s'` gets lost.
            Some("INTERVAL") if tokens.get(i + 1).is_some_and(|next| next.token == Token::LParen) => {
                return Err(SqlError::unsupported("a precision of interval is not supported", "leave it out"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The first words, in upper case; enough to tell statements apart.
fn leading_words(tokens: &[TokenWithSpan]) -> Vec<String> {
    tokens.iter().map_while(|token| word(&token.token)).take(3).collect()
}

fn word(token: &Token) -> Option<String> {
    match token {
        Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_ascii_uppercase()),
        _ => None,
    }
}

/// A transaction command's words; commas between modes are optional in PostgreSQL, so they are left
/// out.
fn all_words(tokens: &[TokenWithSpan]) -> Result<Vec<String>, SqlError> {
    let tokens = tokens.iter().filter(|token| token.token != Token::Comma);
    tokens.map(|t| word(&t.token).ok_or_else(|| syntax(format!("syntax error at or near {}", t.token)))).collect()
}

fn transaction(words: &[String]) -> Result<Command, SqlError> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let command = words[0];
    let rest = match words.get(1) {
        Some(&"WORK" | &"TRANSACTION") => &words[2..],
        _ if command == "START" => return Err(syntax("START must be followed by TRANSACTION")),
        _ => &words[1..],
    };
    match command {
        "BEGIN" | "START" => transaction_modes(rest).map(Command::Begin),
        _ if rest.first() == Some(&"TO") => Err(SqlError::unsupported(
            "savepoints are not supported yet",
            "end the transaction with ROLLBACK and begin it again",
        )),
        _ if rest.first() == Some(&"PREPARED") => Err(SqlError::unsupported(
            "prepared transactions are not supported, because they bypass the log",
            "use COMMIT",
        )),
        _ if rest == ["AND", "CHAIN"] => {
            Err(SqlError::unsupported("AND CHAIN is not supported", "begin the next transaction with BEGIN"))
        }
        _ if !rest.is_empty() && rest != ["AND", "NO", "CHAIN"] => {
            Err(syntax(format!("syntax error at or near \"{}\"", rest[0])))
        }
        "COMMIT" | "END" => Ok(Command::Commit),
        _ => Ok(Command::Rollback),
    }
}

fn transaction_modes(mut words: &[&str]) -> Result<TransactionOptions, SqlError> {
    let mut options = TransactionOptions::default();
    while !words.is_empty() {
        let taken = match words {
            ["READ", "ONLY", ..] => {
                options.read_only = true;
                2
            }
            ["READ", "WRITE", ..] => {
                options.read_only = false;
                2
            }
            // PostgreSQL treats READ UNCOMMITTED as READ COMMITTED.
            ["ISOLATION", "LEVEL", "READ", "COMMITTED" | "UNCOMMITTED", ..] => {
                options.repeatable_read = false;
                4
            }
            ["ISOLATION", "LEVEL", "REPEATABLE", "READ", ..] => {
                options.repeatable_read = true;
                4
            }
            // Invariant 5: SERIALIZABLE is checked at COMMIT, when the entry is already decided.
            ["ISOLATION", "LEVEL", "SERIALIZABLE", ..] => {
                return Err(SqlError::unsupported(
                    "SERIALIZABLE is not supported yet",
                    "use REPEATABLE READ, and SELECT … FOR UPDATE for rows that a decision depends on",
                ));
            }
            ["NOT", "DEFERRABLE", ..] => 2,
            ["DEFERRABLE", ..] => return Err(refuse::clause("DEFERRABLE")),
            _ => return Err(syntax(format!("syntax error at or near \"{}\"", words[0]))),
        };
        words = &words[taken..];
    }
    Ok(options)
}
