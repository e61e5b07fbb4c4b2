//! The vocabulary every part of Evenkeel shares: keys, ranges, the routing table, statements and what they touch,
//! and the messages that parts exchange over RPC and REST.
//!
//! It owns no socket, no clock and no task: everything here is a value or a pure function of values, so that each rule
//! of order, ownership and routing can be tested by the thousand.
//!
//! | module | what it holds |
//! |---|---|
//! | [`ids`] | the numbers things are called by |
//! | [`key`] | order-preserving key encoding |
//! | [`levels`] | how fresh reads are, and how durable writes, when they are answered |
//! | [`interval`] | arithmetic of `[start, end)` over keys |
//! | [`value`] | parameters and key values, and their JSON form |
//! | [`rows`] | result rows, packed as PostgreSQL packs them |
//! | [`schema`] | a table's columns and key |
//! | [`routing`] | the routing table, its versions and changes |
//! | [`error`] | SQL errors and failures, by what must happen next |
//! | [`shard`] | requests to a shard's replicas |
//! | [`report`] | what shard leaders tell the placement driver |
//! | [`scrub`] | what is exchanged to compare replicas |
//! | [`placement`] | requests to the placement driver over RPC |
//! | [`rest`] | the placement driver's REST types |
//! | [`kv`] | the coordination store's REST types and limits |

pub mod error;
pub mod ids;
pub mod interval;
pub mod key;
pub mod kv;
pub mod levels;
pub mod placement;
pub mod report;
pub mod rest;
pub mod routing;
pub mod rows;
pub mod schema;
pub mod scrub;
pub mod shard;
pub mod value;

pub use error::{Failure, SqlError};
pub use ids::{Epoch, OperatorId, RangeId, ShardId, TableId, TxnId};
pub use interval::KeyInterval;
pub use key::{Key, KeyCodec, KeyType, KeyValue};
pub use levels::{Durability, ReadLevel};
pub use rows::{Column, RowBatch};
pub use schema::TableSchema;
pub use value::Value;
