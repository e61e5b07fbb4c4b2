//! PostgreSQL's grammar: a text becomes statements, and each statement says who has to deal with
//! it.
//!
//! The parser is PostgreSQL's own (libpg_query). It decides only what kind a statement is. Which
//! tables a statement touches is asked of a PostgreSQL that has the schema ([`crate::front`]),
//! because only name resolution, views and rules can tell.
//!
//! | module | content |
//! |---|---|
//! | `statement` | the kinds of statements (values) |
//! | `calls` | the functions that a statement calls (pure) |
//! | `classify` | from the parser's tree to a kind (pure) |
//! | `settings` | SET, RESET and transaction modes (pure) |
//! | `deparse` | parts of a parsed statement as text (pure) |
//! | `mask` | a text without its constants (pure) |
//! | `parents` | texts for a database in which tables are parents of others (pure) |
//! | `writes` | statements that write, cut into their parts (pure) |
//! | `parser` | the threads on which the parser runs, and its limits |

mod calls;
pub mod classify;
mod deparse;
mod mask;
pub mod parents;
pub mod parser;
pub mod settings;
pub mod statement;
pub mod writes;
