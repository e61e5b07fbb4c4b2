//! A piece of rows that a peer gives to a replica that is re-seeded.

use super::limit::Held;
use evenkeel_protocol::{KeyInterval, RowBatch, TableId};
use tokio::sync::OwnedSemaphorePermit;

/// Rows that a peer has given.
#[derive(Debug)]
pub struct SeedPiece {
    /// Their table.
    pub table: TableId,
    /// The keys that they are all there is of.
    pub covered: KeyInterval,
    /// The rows.
    pub rows: RowBatch,
    /// They hold everything up to this position.
    pub position: u64,
    /// They hold nothing behind this position.
    pub holds_to: u64,
    /// The version of the schema that they are of.
    pub schema: u64,
    /// Ends when it is known whether the piece is taken.
    pub held: Held,
    /// Ends when it has been stored.
    pub room: OwnedSemaphorePermit,
}
