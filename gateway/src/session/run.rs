//! What a statement is executed with, and how it ends. Values.

use super::planner::Plan;
use super::prepared::Values;
use bytes::Bytes;

/// How a statement ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEnd {
    /// With this command tag.
    Complete(String),
    /// The text is empty.
    Empty,
    /// The portal has given as many rows as were asked for.
    Suspended,
}

/// What a statement is executed with.
pub struct Run<'a> {
    /// The statement.
    pub plan: &'a Plan,
    /// Its parameters.
    pub values: &'a Values,
    /// At most this many rows; 0 for all.
    pub max_rows: u32,
    /// Whether a RowDescription comes first.
    pub describe: bool,
    /// The data of a COPY into a table.
    pub copy_data: Option<Bytes>,
}
