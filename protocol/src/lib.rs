//! Vocabulary of Evenkeel: keys, ranges, the routing table, and the messages that processes
//! exchange over RPC and REST.
//!
//! It owns no socket, no clock and no task. Every item is a value or a pure function of values, so
//! that each rule of order, ownership and routing can be tested with thousands of random cases. The
//! encodings of its types are formats of logs, disks and the wire: the order of fields and variants
//! must not change.
//!
//! | module | contents |
//! |---|---|
//! | [`ids`] | identifiers: shards, tables, ranges, epochs, operators, statements |
//! | [`key`] | order-preserving key encoding |
//! | [`levels`] | read levels and durability levels of answers |
//! | [`interval`] | arithmetic of `[start, end)` over keys |
//! | [`value`] | parameters and key values, and their JSON form |
//! | [`rows`] | result rows, packed as PostgreSQL packs them |
//! | [`schema`] | a table's columns and key |
//! | [`schema_change`] | schema changes, as they are planned, made and executed |
//! | [`routing`] | the routing table, its versions and changes |
//! | [`error`] | SQL errors, and failures by the client's next action |
//! | [`shard`] | requests to a shard's replicas |
//! | [`pass_through`] | statements that a shard's PostgreSQL runs as the user wrote them |
//! | [`report`] | load reports of shard leaders to the placement driver |
//! | [`scrub`] | messages of the comparison of replicas |
//! | [`placement`] | requests to the placement driver over RPC |
//! | [`api`] | the placement driver's REST types |
//! | [`coordination`] | the coordination store's REST types and limits |

pub mod api;
pub mod coordination;
pub mod error;
pub mod ids;
pub mod interval;
pub mod key;
pub mod levels;
pub mod pass_through;
pub mod placement;
pub mod report;
pub mod routing;
pub mod rows;
pub mod schema;
pub mod schema_change;
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
pub use schema_change::SchemaDelta;
pub use value::Value;
