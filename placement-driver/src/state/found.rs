//! What shards report to a placement driver that was restored from an old copy (R30).

use evenkeel_protocol::report::HighestNumbers;
use evenkeel_protocol::routing::Route;
use evenkeel_protocol::{ShardId, TableSchema};
use serde::{Deserialize, Serialize};

/// The numbers of operators and of ranges that are skipped if not every shard has reported: more
/// than the silent shards can have seen beyond what the others have.
pub const SKIPPED_NUMBERS: u64 = 1 << 20;
/// The numbers of tables that are skipped in that case.
pub const SKIPPED_TABLES: u32 = 1 << 12;

/// What shards hold and a restored state may lack.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The highest numbers that any shard has seen.
    pub highest: HighestNumbers,
    /// Tables that the state does not have.
    pub tables: Vec<TableSchema>,
    /// What the shards own, where that is later than the state; of `tables` every range.
    pub routes: Vec<Route>,
    /// Shards that have not reported what they hold.
    pub silent: Vec<ShardId>,
}
