//! State transfer: how a replica whose log no longer reaches back far enough is re-seeded by its peers (log rule 10).
//!
//! 1. **Beginning** ([`begin`]). The replica drops what it has and takes a peer's state machine and retry window, at one position P of
//!    the log. In the same transaction it records P, empty tables, and that all rows are missing ([`Missing`]).
//! 2. **Following.** From then on it is an ordinary follower: it applies its log from P + 1 on. Changes of rows that are still
//!    missing are left out. So its log is compacted as ever, and nobody has to keep a log for the length of the transfer.
//! 3. **Rows** (`fetch`). Beside that it asks peers for the missing rows, a piece of about 2 MiB at a time. Each piece is read from a short
//!    snapshot of its own and carries the position that it holds everything up to. It replaces its interval and is taken off
//!    what is missing in one transaction. What is missing is written with every position, so a replica that dies goes on from there,
//!    with any peer.
//! 4. **Whole.** The replica is whole when nothing is missing and it has applied everything that any piece may hold. Until then it
//!    votes, and neither serves nor leads, nor gives anybody its state.
//!
//! Several parts are fetched at once, cut at keys that a sample of the leader's rows gives, and the next piece of a part is asked for while the last
//! is stored. A peer that lags behind its log gives less ([`Pacer`]).
//!
//! **A piece must not be older than what is applied** (R32). Let F be the last position applied when a piece of position Q
//! comes. Changes up to F in the piece's interval have been left out; those behind F will be applied. So the piece must
//! hold everything up to F: Q ≥ F. It may hold more, since an image that is applied again ends at the same row. A piece with Q < F is thrown away and
//! asked for again. So that this is rare, a piece is asked for with a position that it must reach at least, and the replica applies nothing
//! behind that while the request is under way ([`Limit`]).
//!
//! Nothing grows with the size of the shard: a snapshot lives for one piece, at most [`MAX_PIECES`] pieces are in memory.

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
pub use piece::Piece;
pub use serve::{serve_rows, serve_state};
pub use sizes::MAX_PIECES;
pub use transfer_error::TransferError;
