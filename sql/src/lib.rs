//! SQL analyser: parses one statement, binds it to its table, and computes the primary keys that it
//! touches.
//!
//! Clients use it to route a statement. Shards use it again, since a client's routing table can be
//! stale, to latch the keys (R9) and to capture the changes (R7). Both run this code and get the
//! same result. The crate owns no state: a text and a schema yield a [`Plan`], and a plan with
//! parameters yields [`Touches`], cheaply enough for every statement.
//!
//! It promises three things.
//!
//! * **The analysed statement is the one that runs.** PostgreSQL never sees the user's text. It
//!   sees SQL that was written again from the parsed tree: names are quoted and checked against the
//!   schema, functions come from an allow-list, operands are in parentheses. A statement that is
//!   not understood, or that PostgreSQL would read differently, is refused with SQLSTATE 0A000 and
//!   a hint.
//! * **A statement reads and writes only rows whose keys it touches** (R9). A condition narrows the
//!   keys only as far as it is understood; a constant is understood only where PostgreSQL reads it
//!   as the same value of the key's type.
//! * **Every change is returned** (R7), after the columns that the user asked for: an INSERT
//!   returns whole new rows, an UPDATE the key and the assigned columns, a DELETE the key. An
//!   UPDATE cannot change a key (R15).
//!
//! | module | task |
//! |---|---|
//! | `parse`, `refuse`, `statement` | text to one statement over one table; refusals |
//! | `command`, `parsed`, `plan` | the results: a command, a statement, a statement bound to its table |
//! | `names`, `types`, `functions`, `syntax` | PostgreSQL's identifiers, types, functions and operators |
//! | `scope`, `expr`, `calls` | write expressions again |
//! | `constant`, `cast`, `operand`, `narrow`, `region` | constants, keys that a condition lets through, sets of keys |
//! | `select`, `dml`, `create` | bind each kind of statement |
//! | `settings` | `SET`, `RESET` and `SHOW` of a session's levels |
//!
//! `testscripts/` shows the result of each kind of statement by example.
//!
//! Not done: joins, subqueries, WITH, set operations and statements over several tables.

mod calls;
mod cast;
mod command;
mod constant;
mod create;
pub mod definition;
mod dml;
mod expr;
mod functions;
mod limits;
mod names;
mod narrow;
mod operand;
mod parse;
mod parsed;
mod plan;
mod refuse;
mod region;
mod scope;
mod select;
mod settings;
mod statement;
mod syntax;
mod types;

pub use command::Command;
pub use limits::MAX_SQL_BYTES;
pub use parse::parse;
pub use parsed::Parsed;
pub use plan::{Capture, LimitExpr, Plan, PlanKind, RowEffect, Scan, Touches};
pub use settings::{Setting, SettingCommand, SettingName};

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod property_tests;
