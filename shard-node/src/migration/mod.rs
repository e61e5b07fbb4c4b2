//! Moves of ranges from one shard to another, without a lost write and without a failed statement.
//!
//! | step | what happens | module |
//! |---|---|---|
//! | copy | a replica of the source streams chunks of rows; the destination's leader logs them | [`source`], [`destination`] |
//! | catch up | the same replica streams the changes of the range since then | [`source`], [`destination`] |
//! | switch | the source's leader blocks the range and logs the fence; the destination logs `Adopt` | [`fence`], [`destination`] |
//! | clean up | the side that must not keep the rows deletes them, in bounded pieces | [`cleanup`] |
//!
//! The destination's leader drives the move. After any failure, the next leader starts a new
//! attempt from the state in the two logs (R21, R23).
//!
//! The position of a chunk is noted *before* its snapshot is taken, so a chunk may contain later
//! changes than its position says. This is harmless. Every later change of the range follows in the
//! change stream, in order. Nobody reads the rows before `Adopt`, and by then every change up to
//! the fence has been applied over them.
//!
//! Not done: finding the leader of another shard is done here ([`peers`]) and not by the RPC crate.

pub mod cleanup;
pub mod destination;
pub mod fence;
mod pace;
pub mod peers;
mod pending_changes;
mod readiness;
pub mod source;
