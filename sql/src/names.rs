//! Identifiers, in lower case or quoted as PostgreSQL reads them.

use evenkeel_protocol::error::{SqlError, codes};
use sqlparser::ast::{Ident, ObjectName, ObjectNamePart};

/// The longest name, in bytes. PostgreSQL cuts longer ones off silently, and two tables could
/// become one.
pub(super) const MAX_NAME_BYTES: usize = 63;

/// Words that are values, not columns, when they are not quoted.
const VALUE_WORDS: [&str; 12] = [
    "current_catalog",
    "current_date",
    "current_role",
    "current_schema",
    "current_time",
    "current_timestamp",
    "current_user",
    "localtime",
    "localtimestamp",
    "session_user",
    "system_user",
    "user",
];

/// The columns that every table of PostgreSQL has.
const SYSTEM_COLUMNS: [&str; 6] = ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];

/// Whether PostgreSQL reserves the name for a system column.
pub(super) fn is_system_column(name: &str) -> bool {
    SYSTEM_COLUMNS.contains(&name)
}

/// Whether an unquoted word stands for a value (`current_user`).
pub(super) fn is_value_word(ident: &Ident) -> bool {
    ident.quote_style.is_none() && VALUE_WORDS.iter().any(|word| word.eq_ignore_ascii_case(&ident.value))
}

/// The name that an identifier stands for: in lower case unless quoted.
pub(super) fn identifier(ident: &Ident) -> Result<String, SqlError> {
    let name = match ident.quote_style {
        None => ident.value.to_ascii_lowercase(),
        Some('"') => ident.value.clone(),
        Some(_) => return Err(SqlError::new(codes::SYNTAX_ERROR, "names are quoted with double quotes")),
    };
    if name.is_empty() {
        return Err(SqlError::new(codes::SYNTAX_ERROR, "a name must not be empty"));
    }
    if name.len() > MAX_NAME_BYTES {
        let message = format!("the name {name:?} is longer than {MAX_NAME_BYTES} bytes");
        return Err(SqlError::new("42622", message).hint("choose a shorter name"));
    }
    Ok(name)
}

fn parts(name: &ObjectName) -> Result<Vec<String>, SqlError> {
    let part = |part: &ObjectNamePart| match part {
        ObjectNamePart::Identifier(ident) => identifier(ident),
        ObjectNamePart::Function(_) => Err(SqlError::new(codes::SYNTAX_ERROR, "a name is expected")),
    };
    name.0.iter().map(part).collect()
}

/// A table's name, after checking that it is in the one schema there is.
pub(super) fn table(name: &ObjectName) -> Result<String, SqlError> {
    let mut parts = parts(name)?;
    let table = parts.pop().unwrap_or_default();
    match parts.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["public"] if !table.starts_with("pg_") => Ok(table),
        ["pg_catalog" | "information_schema"] | [] | ["public"] => Err(SqlError::unsupported(
            "system catalogs are not supported: each server has its own",
            "ask the placement driver's REST API",
        )),
        ["evenkeel"] => Err(SqlError::new("42501", "the schema evenkeel is the store's own")),
        _ => Err(SqlError::unsupported("there is one schema, public", "name the table without a schema")),
    }
}

/// A column's name, unqualified.
pub(super) fn column(name: &ObjectName) -> Result<String, SqlError> {
    match &mut parts(name)?[..] {
        [column] => Ok(std::mem::take(column)),
        _ => Err(SqlError::new(codes::SYNTAX_ERROR, "a column's name is expected here, without a table's")),
    }
}

/// A function's name; only the built-in ones are known, so it has no schema (or `pg_catalog`).
pub(super) fn function(name: &ObjectName) -> Result<String, SqlError> {
    match &mut parts(name)?[..] {
        [function] => Ok(std::mem::take(function)),
        [schema, function] if schema == "pg_catalog" => Ok(std::mem::take(function)),
        _ => Err(SqlError::unsupported(
            format!("the function {name} is not supported"),
            "only PostgreSQL's built-in functions are",
        )),
    }
}
