//! A database server in memory that speaks PostgreSQL's protocol, as far as a replica and the
//! simulation's clients use it.
//!
//! It has the properties of PostgreSQL that replicas depend on: transactions with row locks and a
//! lock timeout, snapshots, asynchronous commits (a crash takes the latest ones back, unless a
//! synchronous one came later), sessions that end by themselves or with the server, and COMMITs
//! that are still under way when their session has ended. An unknown statement fails the run
//! instead of passing for executed.
//!
//! | module | contents |
//! |---|---|
//! | `statement`, `tokens`, `parser` | the few shapes of statements, parsed (pure) |
//! | `data` | tables and rows (pure) |
//! | `values`, `evaluate` | values, and expressions over rows (pure) |
//! | `server` | the state that all sessions share: tables, locks, commits, faults |
//! | `execute` | running a statement in a transaction |
//! | `wire` | PostgreSQL's protocol, from the server's side |
//! | `listener` | the server as a replica starts it and connects to it |

mod data;
mod evaluate;
mod execute;
mod listener;
mod parser;
mod server;
mod statement;
mod tokens;
mod values;
mod wire;

pub use data::{Row, Table, Tables};
pub use server::SimulatedPostgres;
