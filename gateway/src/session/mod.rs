//! A client's session: from its messages to statements, and from their results to its messages.
//!
//! | module | content |
//! |---|---|
//! | `session` | the loop over a client's messages; the simple and the extended protocol |
//! | `planner` | what a text is, what it touches, who executes it; cached by text |
//! | `block` | the transaction of a session, and where it is open |
//! | `front_run` | statements without rows, in the gateway's own PostgreSQL |
//! | `engine_run` | statements that read several shards, in its engine database |
//! | `opening` | what such a statement reads, acquired at each shard |
//! | `write_run` | statements that write to several shards |
//! | `computed_rows` | the rows that such a statement writes, computed |
//! | `several` | what it does at each shard |
//! | `write_texts` | the statements that shards execute of it (pure) |
//! | `returned` | the rows that it returns |
//! | `relay` | what a shard's PostgreSQL sends, written for the client |
//! | `context` | what a session needs of its gateway |
//! | `run` | what a statement is executed with, and how it ends |
//! | `settings` | the session's settings, which follow its transactions (pure) |
//! | `declared` | the keys that a statement declares to a shard (pure) |
//! | `copy_rows` | whole rows out of the data of a COPY (pure) |
//! | `prepared` | prepared statements and portals |
//! | `trouble` | why a statement ended without a result |
//!
//! One task executes a session's statements, one after the other, while another one reads ahead.
//! Statements between two Syncs, and the statements of one simple query, are one implicit
//! transaction, as in PostgreSQL.

pub mod block;
pub mod computed_rows;
pub mod context;
pub mod copy_rows;
pub mod declared;
pub mod engine_run;
pub mod front_run;
pub mod opening;
pub mod planner;
pub mod prepared;
pub mod relay;
pub mod returned;
pub mod run;
#[expect(clippy::module_inception, reason = "the type of this name is the module's subject")]
pub mod session;
pub mod settings;
pub mod several;
pub mod trouble;
pub mod write_run;
pub mod write_texts;
