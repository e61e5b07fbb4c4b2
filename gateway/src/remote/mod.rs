//! The endpoint that postgres_fdw connects to: tables of the engine database, read at the shards.
//!
//! A statement that reads rows of several shards is executed in the gateway's own PostgreSQL, in a
//! database whose tables have one foreign table for each shard below them. Each of these connects
//! to the gateway itself, which reads the rows at the shard, within the statement's transaction.
//!
//! | module | content |
//! |---|---|
//! | `dialogue` | what postgres_fdw sends (pure) |
//! | `clip` | a scan's text, clipped to the keys that its shard has been asked for (pure) |
//! | `reads` | what the statement of a session may read, and how much it has read |
//! | `sessions` | the statements that sessions execute now |
//! | `cursor` | one scan at one shard |
//! | `connection` | a connection of a foreign table's server |
//! | `endpoint` | the socket |
//!
//! It promises that a scan gives each row of the keys that its shard was asked for once, none of
//! other keys, and none for a statement that has ended. A connection holds one fetch of rows at a
//! time, up to a limit behind which they pass through in pieces. Only the gateway's own PostgreSQL
//! can reach it.

pub mod clip;
pub mod connection;
pub mod cursor;
pub mod dialogue;
pub mod endpoint;
pub mod reads;
pub mod sessions;
