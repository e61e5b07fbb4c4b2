//! What a statement does and which keys it touches.
//!
//! Clients ask in order to route a statement; shards ask again, since a client's view can be stale, in order to admit it (R9)
//! and to capture its changes (R7). Both use this code, so both come to the same answer. It owns nothing: a text and a
//! schema go in, a [`Plan`] comes out, and a plan with parameters gives [`Touches`], cheaply enough for every statement.
//!
//! It promises three things.
//!
//! * **What runs is what was analysed.** PostgreSQL never sees the user's text, only SQL that was written again from the
//!   parsed tree: names quoted and checked against the schema, functions from an allow-list, operands in parentheses. What is
//!   not understood, or what PostgreSQL would read differently, is refused with SQLSTATE 0A000 and a hint.
//! * **A statement never reads or writes a row outside of what it touches** (R9). Conditions narrow only as far as they
//!   are understood; a constant is understood only where PostgreSQL reads it as the same value of the key's type.
//! * **Every change comes back** (R7): an INSERT or UPDATE returns whole new rows, a DELETE returns keys, after what the user
//!   asked for; an UPDATE cannot change a key (R15).
//!
//! | module | what it does |
//! |---|---|
//! | `parse`, `refuse`, `statement` | text to one statement over one table; what is refused as a whole |
//! | `names`, `types`, `functions`, `syntax` | what PostgreSQL knows about identifiers, types, functions, expressions |
//! | `expr`, `calls` | write expressions again |
//! | `operand`, `narrow`, `region` | constants, what a condition says about keys, sets of keys |
//! | `select`, `dml`, `create` | bind each kind of statement |
//! | `settings` | `SET` and `SHOW` of what a session chooses for its answers |
//! | `plan` | the result |
//!
//! `testscripts/` shows by example what each kind of statement becomes.

mod calls;
mod constant;
mod create;
pub mod definition;
mod dml;
mod expr;
mod functions;
mod names;
mod narrow;
mod operand;
mod parse;
mod plan;
mod refuse;
mod region;
mod select;
mod settings;
mod statement;
mod syntax;
mod types;

pub use plan::{Capture, LimitExpr, Plan, PlanKind, RowEffect, Scan, Touches};
pub use settings::{Setting, SettingCommand, SettingName};

use evenkeel_protocol::error::{SqlError, codes};
use evenkeel_protocol::schema::TableSchema;
use evenkeel_protocol::shard::TransactionOptions;
use statement::Body;

/// The longest SQL text, in bytes.
pub const MAX_SQL_BYTES: usize = 1 << 20;

/// What one SQL text asks for.
#[derive(Debug, Clone)]
pub enum Command {
    /// A SELECT, INSERT, UPDATE or DELETE; bind it to its table to know what it touches.
    Statement(Parsed),
    /// `CREATE TABLE`.
    CreateTable {
        /// The table, with id 0 and a definition in our own words.
        schema: TableSchema,
        /// Whether it is fine if the table exists.
        if_not_exists: bool,
    },
    /// `BEGIN`.
    Begin(TransactionOptions),
    /// `COMMIT`.
    Commit,
    /// `ROLLBACK`.
    Rollback,
    /// `SET`, `RESET` or `SHOW` of one of Evenkeel's own settings.
    Setting(SettingCommand),
}

/// A statement, not yet bound to its table.
#[derive(Debug, Clone)]
pub struct Parsed {
    body: statement::Body,
}

/// Reads exactly one statement; a semicolon after it is fine.
///
/// # Errors
///
/// The text is no SQL (42601), is too long or nested too deeply (54000), or asks for what the store cannot do correctly
/// (0A000, with a hint what to do instead).
pub fn parse(sql: &str) -> Result<Command, SqlError> {
    parse::parse(sql)
}

impl Parsed {
    fn new(body: statement::Body) -> Parsed {
        Parsed { body }
    }

    /// The name of its table; `None` for a SELECT without FROM.
    pub fn table_name(&self) -> Option<&str> {
        self.body.table().map(|table| table.name.as_str())
    }

    /// Resolves it against its table's schema: `None` only if it has no table.
    ///
    /// # Errors
    ///
    /// There is no such table (42P01) or column (42703), or the statement asks for what the store cannot do correctly
    /// (0A000).
    pub fn bind(&self, schema: Option<&TableSchema>) -> Result<Plan, SqlError> {
        let Some(table) = self.body.table() else {
            return match &self.body {
                Body::Select(body) => select::bind(body, None),
                _ => Err(SqlError::new(codes::INTERNAL, "a statement that writes has no table")),
            };
        };
        let Some(schema) = schema.filter(|schema| schema.name == table.name) else {
            return Err(SqlError::new(codes::UNDEFINED_TABLE, format!("relation {:?} does not exist", table.name)));
        };
        match &self.body {
            Body::Select(body) => select::bind(body, Some(schema)),
            Body::Insert(body) => dml::bind_insert(body, schema),
            Body::Update(body) => dml::bind_update(body, schema),
            Body::Delete(body) => dml::bind_delete(body, schema),
        }
    }
}

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod property_tests;
