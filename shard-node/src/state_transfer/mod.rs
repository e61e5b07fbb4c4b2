//! State transfer: re-seeding a replica from its peers when its log no longer reaches back far
//! enough (log rule 10).
//!
//! 1. **Beginning** ([`begin`]). The replica drops its state and takes a peer's state machine and
//!    retry window, at one position P of the log. In the same transaction it records P, empty
//!    tables, and that all rows are missing ([`Missing`]).
//! 2. **Following.** From then on it is an ordinary follower: it applies its log from P + 1 on.
//!    Changes of missing rows are left out. Its log is compacted as usual, and no replica has to
//!    keep a log for the length of the transfer.
//! 3. **Rows** (`fetch`). Meanwhile it asks peers for the missing rows, in pieces of about 2 MiB.
//!    Each piece is read from a short snapshot of its own and carries the position up to which it
//!    holds everything. One transaction replaces the piece's interval and removes it from the
//!    missing rows. The missing rows are recorded with every position, so that a replica that
//!    crashes continues from there, with any peer.
//! 4. **Whole.** The replica is whole when no row is missing and it has applied everything that any
//!    piece may hold. Until then it votes, but neither serves nor leads nor gives its state to
//!    others.
//!
//! Several parts are fetched at once, cut at keys from a sample of the leader's rows. The next
//! piece of a part is requested while the last one is stored. A peer that lags behind its log gives
//! less ([`Pacer`]).
//!
//! **A piece must not be older than the applied log** (R32). Let F be the last position applied
//! when a piece of position Q comes. Changes up to F in the piece's interval have been left out;
//! later changes will be applied. The piece must therefore hold everything up to F: Q ≥ F. It may
//! hold more, since an image that is applied again ends at the same row. A piece with Q < F is
//! dropped and requested again. To make this rare, a request names a position that the piece must
//! reach, and the replica applies nothing after that position while the request is under way
//! ([`Limit`]).
//!
//! Nothing grows with the size of the shard: a snapshot lives for one piece, and at most
//! [`MAX_PIECES`] pieces are in memory.

mod begin;
mod fetch;
mod limit;
mod missing;
mod pacer;
mod piece;
mod serve;
mod sizes;
mod source_peers;
mod transfer_error;

pub use begin::begin;
pub use fetch::fetch;
pub use limit::{Held, Limit};
pub use missing::Missing;
pub use pacer::Pacer;
pub use piece::SeedPiece;
pub use serve::{serve_rows, serve_state};
pub use sizes::MAX_PIECES;
pub use transfer_error::TransferError;
