//! The gateway's own PostgreSQL ("front PostgreSQL"): a server that has the database's schema and
//! none of its rows.
//!
//! It answers what needs the schema alone: the types of a statement's parameters and columns, the
//! tables that a statement touches, the catalog, and statements without tables. It plans changes of
//! the schema. Everything in it can be made again from the placement driver's log of schema
//! changes, so the gateway has no state to lose.
//!
//! | module | content |
//! |---|---|
//! | `server` | the server process, and the schema in it |
//! | `database` | its databases, and the way into each |
//! | `engine` | the database that executes what reads several shards |
//! | `children` | the foreign tables in it |
//! | `sessions` | its sessions for users' statements |
//! | `analysis` | what a statement touches and returns |
//! | `relations` | the tables and sequences of the catalog, and what a change did to them |
//! | `settings` | users' settings in a session |
//!
//! It promises that a user's statement on it writes nothing, and reads no table that is empty here:
//! a table's rows are elsewhere, and an empty table would be a wrong answer. In the engine database
//! tables have the shards' rows.

pub mod analysis;
pub mod children;
pub mod database;
pub mod engine;
pub mod relations;
pub mod server;
pub mod sessions;
pub mod settings;
