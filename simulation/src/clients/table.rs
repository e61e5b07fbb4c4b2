//! The table of the clients: its keys and the statements on it.

use crate::process::{below, once_in};
use std::ops::Range;

/// Keys that are counters.
pub const COUNTERS: Range<i64> = 0..40;
/// Keys that are accounts, between which money is moved.
pub const ACCOUNTS: Range<i64> = 50..54;
/// The counter of transfers, in the same transactions.
pub const TALLY: i64 = 55;
/// Accounts that splits come between.
pub const DISTANT_ACCOUNTS: [i64; 3] = [-1, 45, 58];
/// The counter of payments between them, in the same transactions.
pub const DISTANT_TALLY: i64 = 46;
/// Counters of a load spike. No split comes between them, unless it is the balancer's.
pub const SPIKE_KEYS: Range<i64> = 60..90;
/// Clients that work on counters.
pub(crate) const CLIENTS: u64 = 6;
/// The table.
pub const CREATE: &str = "CREATE TABLE counters (id bigint PRIMARY KEY, v bigint, kept text)";
pub(super) const PUT: &str = "INSERT INTO counters (id, v) VALUES ($1, 0) ON CONFLICT (id) DO NOTHING";
/// Its name.
pub const NAME: &str = "counters";
pub(super) const READ: &str = "SELECT v FROM counters WHERE id = $1";
pub(super) const ADD: &str = "INSERT INTO counters AS c (id, v, kept) VALUES ($1, 1, 'made') ON CONFLICT (id) DO UPDATE SET v = c.v + 1 RETURNING c.v";
pub(super) const UPDATE: &str = "UPDATE counters SET v = v + $2 WHERE id = $1 RETURNING v";
pub(super) const SCAN: &str = "SELECT id, v FROM counters WHERE id >= $1 AND id < $2";

/// Draws a counter; four of them are drawn more often than the others.
pub(super) fn wanted() -> i64 {
    if once_in(2) { COUNTERS.start + below(4) as i64 * 10 } else { below(COUNTERS.end as u64) as i64 }
}
