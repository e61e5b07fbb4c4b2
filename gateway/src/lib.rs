//! The gateway: any PostgreSQL client connects to it and finds one PostgreSQL.
//!
//! It speaks PostgreSQL's protocol, finds out what a statement touches, and passes the user's text
//! to the shard that owns it. It has no state of its own: any number of gateways serve one store.
//!
//! | module | content |
//! |---|---|
//! | `config` | the configuration |
//! | `server` | accepting connections, and ending in order |
//! | `door` | TLS, authentication, who may connect |
//! | `wire` | PostgreSQL's protocol |
//! | `grammar` | PostgreSQL's grammar: the kinds of statements |
//! | `front` | the gateway's own PostgreSQL, which has the schema and no rows |
//! | `session` | a client's session |
//! | `remote` | rows of shards as tables of the gateway's own PostgreSQL |
//!
//! A statement passes `wire`, `session`, `grammar` (what kind it is), `front` (what it touches),
//! and the client crate (which shard has it). Its rows come back as a shard's PostgreSQL sent them.
//! One that reads several shards is executed by `front`, which reads them through `remote`.
//!
//! Not done: statements and transactions that write to several shards; roles made by SQL; LISTEN
//! and NOTIFY; temporary tables; materialized views.

mod config;
mod door;
mod front;
mod grammar;
mod remote;
mod server;
mod session;
mod wire;

pub use config::{GatewayConfig, TlsConfig};
pub use door::rules::{Method, Rule};
pub use server::run;
