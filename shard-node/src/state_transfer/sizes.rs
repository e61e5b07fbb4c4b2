//! Sizes of pieces and messages of a state transfer.

/// Rows of one piece, and its bytes as packed rows. One row may be larger. Each piece costs
/// requests, a snapshot, a transaction: that is little beside megabytes, and much beside kilobytes.
pub(super) const PIECE_ROWS: usize = 16_384;
pub(super) const PIECE_BYTES: usize = 2 << 20;
/// Bytes of one message of a stream.
pub(super) const MESSAGE_BYTES: usize = 1 << 20;
/// The same in a simulation, where tables are small: they must come in pieces all the same.
pub(super) const SIMULATED_PIECE_ROWS: usize = 3;
/// Pieces that a replica holds in memory at most: asked for, or waiting to be stored.
pub const MAX_PIECES: usize = 8;
