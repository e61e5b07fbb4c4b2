//! Errors of the analyser: refusals of unsupported statements, and errors that several modules
//! raise.
//!
//! A refusal has a message that names the unsupported feature and a hint that names an alternative.
//! [`refusal`] looks at the first words of a statement and not at a parsed tree, so that a
//! statement which the parser does not know is refused clearly and not as a syntax error.

use evenkeel_protocol::error::{SqlError, codes};
use evenkeel_protocol::key::KeyError;

/// The refusal of a statement that begins with these words (upper case); `None` if such statements
/// are supported.
pub(super) fn refusal(words: &[&str]) -> Option<SqlError> {
    let (what, instead) = match *words.first()? {
        "CREATE" => return refused_creation(&words[1..]),
        "DROP" if words.get(1) == Some(&"TABLE") => {
            ("dropping a table is not supported yet", "delete its rows, or create another table")
        }
        "DROP" | "ALTER" => (
            "changing the schema is not supported yet",
            "create a table with the columns it needs, and copy the rows through the client",
        ),
        "TRUNCATE" => ("TRUNCATE is not supported, because it bypasses the capture of row changes", "use DELETE"),
        "MERGE" => (
            "MERGE is not supported, because its changes cannot be captured",
            "use INSERT … ON CONFLICT (primary key) DO UPDATE",
        ),
        "GRANT" | "REVOKE" | "REASSIGN" | "SECURITY" => {
            ("privileges are not supported: every client has the same", "restrict who can connect")
        }
        "SET" | "RESET" | "DISCARD" => (
            "session settings are not supported, because statements of many sessions share one PostgreSQL session",
            "give the isolation level in BEGIN, and the time zone in AT TIME ZONE",
        ),
        "SHOW" => ("SHOW is not supported: there is no single server to ask", "ask the placement driver's REST API"),
        "LISTEN" | "NOTIFY" | "UNLISTEN" => {
            ("notifications are not supported, because they are not in the log", "poll a table")
        }
        "LOCK" => ("LOCK is not supported: a table lies on many servers", "lock the rows with SELECT … FOR UPDATE"),
        "PREPARE" if words.get(1) == Some(&"TRANSACTION") => {
            ("PREPARE TRANSACTION is not supported, because it bypasses the log", "use COMMIT")
        }
        "PREPARE" | "EXECUTE" | "DEALLOCATE" => (
            "SQL-level prepared statements are not supported",
            "send the statement with parameters; the client caches its plan",
        ),
        "SAVEPOINT" | "RELEASE" => {
            ("savepoints are not supported yet", "end the transaction with ROLLBACK and begin it again")
        }
        "DECLARE" | "FETCH" | "MOVE" | "CLOSE" => {
            ("cursors are not supported", "read in pages: WHERE key > the last one, ORDER BY key, LIMIT")
        }
        "EXPLAIN" => (
            "EXPLAIN is not supported: there is no single server to ask",
            "try the statement on a PostgreSQL of your own with the same table",
        ),
        "COPY" => ("COPY is not supported yet", "use INSERT with many rows in VALUES"),
        "VACUUM" | "ANALYZE" | "ANALYSE" | "REINDEX" | "CLUSTER" | "CHECKPOINT" | "REFRESH" => {
            ("maintenance commands are not supported", "leave it to autovacuum, which runs on every replica")
        }
        "WITH" => ("WITH is not supported yet", "send one statement for each part"),
        "VALUES" | "TABLE" => ("a bare VALUES or TABLE is not supported", "use SELECT"),
        "DO" | "CALL" => (
            "procedures and anonymous blocks are not supported, because they can bypass the log",
            "send the statements one by one",
        ),
        "COMMENT" => ("comments on objects are not supported", "keep them in the source of the schema"),
        "LOAD" | "IMPORT" => ("server extensions are not supported", "use PostgreSQL's built-in types and functions"),
        _ => return None,
    };
    Some(SqlError::unsupported(what, instead))
}

/// The same for what follows CREATE.
fn refused_creation(words: &[&str]) -> Option<SqlError> {
    let (what, instead) = match *words.first()? {
        "TABLE" => return None,
        "TEMP" | "TEMPORARY" | "LOCAL" | "GLOBAL" => (
            "temporary tables are not supported: a session has no server of its own",
            "use a table with a key per session",
        ),
        "UNLOGGED" => ("unlogged tables are not supported: every change is in the log", "leave UNLOGGED out"),
        "FOREIGN" => ("foreign tables are not supported", "read the other server from the application"),
        "INDEX" | "UNIQUE" => {
            ("secondary indexes are not supported yet", "choose a primary key that begins with the column searched by")
        }
        "VIEW" | "MATERIALIZED" | "RECURSIVE" => ("views are not supported", "put the expressions into the SELECT"),
        "FUNCTION" | "PROCEDURE" | "AGGREGATE" | "OPERATOR" | "CAST" | "LANGUAGE" | "TRANSFORM" => (
            "functions of one's own are not supported, because they could write past the log",
            "compute it in the application",
        ),
        "TRIGGER" | "RULE" | "EVENT" | "CONSTRAINT" => (
            "triggers and rules are not supported, because what they change is not captured",
            "change those rows in the same transaction",
        ),
        "TYPE" | "DOMAIN" | "COLLATION" => (
            "types of one's own are not supported, because their object ids differ from server to server",
            "use a built-in type, with a CHECK where needed",
        ),
        "SEQUENCE" => ("sequences are not supported yet", "draw keys in the client, such as uuids"),
        "SCHEMA" | "DATABASE" | "TABLESPACE" => {
            ("there is one database with one schema, public", "tell tables apart by their names")
        }
        "EXTENSION" => ("extensions are not supported", "use PostgreSQL's built-in types and functions"),
        "ROLE" | "USER" | "GROUP" | "POLICY" => {
            ("roles and policies are not supported: every client has the same privileges", "restrict who can connect")
        }
        "OR" => ("CREATE OR REPLACE is not supported", "create it under another name"),
        _ => ("this CREATE is not supported", "only CREATE TABLE is"),
    };
    Some(SqlError::unsupported(what, instead))
}

/// A subquery, wherever it stands.
pub(super) fn subquery() -> SqlError {
    SqlError::unsupported(
        "subqueries are not supported yet, because their rows can lie on other shards",
        "run the inner query first and pass its result as parameters",
    )
}

/// Joins, and more than one table.
pub(super) fn join() -> SqlError {
    SqlError::unsupported(
        "a statement over several tables is not supported yet",
        "read each table by itself and join in the application",
    )
}

/// A clause that only other databases have, or that is not understood.
pub(super) fn clause(name: &str) -> SqlError {
    SqlError::unsupported(format!("{name} is not supported"), format!("leave {name} out"))
}

/// The text is no SQL (42601).
pub(super) fn syntax(message: impl Into<String>) -> SqlError {
    SqlError::new(codes::SYNTAX_ERROR, message)
}

/// A statement uses a parameter that was not given (42P02).
pub(super) fn missing_parameter(index: usize, given: usize) -> SqlError {
    SqlError::new(codes::UNDEFINED_PARAMETER, format!("there is no parameter ${}: {given} were given", index + 1))
}

/// A key error as an answer to the user.
pub(super) fn key_error(error: KeyError) -> SqlError {
    let (code, hint) = match &error {
        // PostgreSQL takes many more forms, and some of them mean another time on each day.
        KeyError::WrongType { expected: "timestamptz", .. } => {
            (codes::FEATURE_NOT_SUPPORTED, Some("write it out with its zone, such as 2026-01-31T12:00:00Z"))
        }
        KeyError::WrongType { expected: "bytea", found, .. } if found.starts_with("the text") => {
            (codes::FEATURE_NOT_SUPPORTED, Some("write it in hexadecimal, such as \\x01ff"))
        }
        KeyError::WrongType { found, .. } if found.starts_with("the text") => (codes::INVALID_TEXT, None),
        KeyError::WrongType { .. } | KeyError::WrongCount { .. } => (codes::DATATYPE_MISMATCH, None),
        KeyError::OutOfRange { .. } => (codes::OUT_OF_RANGE, None),
        KeyError::Null { .. } => (codes::NOT_NULL, None),
        KeyError::TooLong { .. } => (codes::PROGRAM_LIMIT, Some("use a shorter key, such as a hash of it")),
        KeyError::Malformed => (codes::INTERNAL, None),
    };
    let message = match &error {
        KeyError::WrongType { expected, found, .. } if code == codes::INVALID_TEXT => {
            format!("invalid input syntax for type {expected}: {}", found.trim_start_matches("the text "))
        }
        error => error.to_string(),
    };
    let answer = SqlError::new(code, message);
    match hint {
        Some(hint) => answer.hint(hint),
        None => answer,
    }
}
