//! Where an expression stands: the names it may use, and its purpose.

use evenkeel_protocol::schema::TableSchema;

/// Which names an expression may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    /// The table, if there is one.
    pub table: Option<&'a TableSchema>,
    /// What the statement calls the table instead of its name.
    pub alias: Option<&'a str>,
    /// Whether `excluded` is the row that was to be inserted.
    pub excluded: bool,
}

/// What an expression is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Part of a statement: only the leader evaluates it.
    Statement,
    /// A column's default: only the leader evaluates it, and there are no parameters.
    Default,
    /// A CHECK: every replica evaluates it, at different times, and it must come out the same.
    Check,
}
