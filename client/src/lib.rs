//! The client: one handle through which a program reads and writes the cluster as if it were one
//! PostgreSQL, while ranges split and move and replicas come and go.
//!
//! It owns a copy of the routing table, the analysis of SQL texts, connections to the shards, and
//! the rules of retrying. It promises:
//!
//! - A statement goes to the shard that owns its keys. Redirects are followed invisibly and correct
//!   the routing table.
//! - A write is never applied twice: all of its attempts carry the same id, and a new id is never
//!   used while the outcome of an old one is unknown (invariant 7, R14).
//! - A statement that cannot be executed correctly is refused with SQLSTATE 0A000 and a sentence on
//!   the alternative.
//! - An error says what must happen next ([`ClientError`]). No statement waits longer than the
//!   statement timeout.
//!
//! | module | content |
//! |---|---|
//! | `client`, `session`, `transaction`, `stream` | the public handles |
//! | `core` | the state that all handles share |
//! | `routing` | the routing table and the route of a statement |
//! | `retry` | the next step after a failed attempt (pure) |
//! | `prepare`, `execute`, `scan`, `pieces`, `create_table` | statements |
//! | `deliver`, `exchange`, `who_leads`, `payload`, `reply` | requests to a shard, from the route to one attempt |
//! | `leaders`, `inquiry` | hints about replicas |
//! | `link`, [`placement_driver`] | connections |
//! | `config`, `levels`, `answer`, `error`, `stats` | values in the interface |
//! | `observer` | a view of the replies of single replicas |
//!
//! A statement passes `client` or `session`, `execute`, `deliver`, `exchange` and `link`. Its reply
//! returns as a `ReplicaReply` (with its origin) to `deliver`, as `Acknowledged` (perhaps early) to
//! the handle, and as an [`Answer`] to the program.
//!
//! ```no_run
//! # async fn example() -> Result<(), evenkeel_client::ClientError> {
//! use evenkeel_client::{Client, ClientConfig};
//!
//! let client = Client::connect(ClientConfig::new(["http://127.0.0.1:7101"])).await?;
//! client.execute("CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL)",
//! &[]).await?; client.execute("INSERT INTO accounts VALUES ($1, $2)", &[1.into(),
//! 100.into()]).await?; let answer = client.execute("SELECT balance FROM accounts WHERE id = $1",
//! &[1.into()]).await?; assert_eq!(answer.rows.int(0, 0), Some(100));
//! # Ok(())
//! # }
//! ```
//!
//! Not done: writes to several shards in one transaction. What one statement reads at several
//! shards, the caller puts together, other than scans that can be read range by range.

mod answer;
mod client;
mod config;
mod core;
mod create_table;
mod deliver;
mod error;
mod exchange;
mod execute;
mod inquiry;
mod leaders;
mod levels;
mod link;
mod observer;
mod payload;
mod pieces;
pub mod placement_driver;
mod prepare;
mod reply;
mod retry;
mod routing;
mod scan;
mod session;
mod stats;
mod stream;
mod transaction;
mod who_leads;

pub use answer::Answer;
pub use client::Client;
pub use config::ClientConfig;
pub use error::ClientError;
pub use evenkeel_protocol::shard::TransactionOptions;
pub use evenkeel_protocol::{Durability, ReadLevel, SqlError, Value};
pub use levels::{Levels, StatementLevels};
pub use observer::ReplyObserver;
pub use placement_driver::{admin, causes};
pub use routing::ShardPart;
pub use session::Session;
pub use stats::ClientStats;
pub use stream::RowStream;
pub use transaction::{PassThroughReplies, PassThroughTransaction, ShardedTransaction, SharedTransaction, Transaction};
