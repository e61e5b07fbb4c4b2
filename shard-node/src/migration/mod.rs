//! Moving a range from one shard to another, without a lost write and without a failed statement.
//!
//! | step | who | where |
//! |---|---|---|
//! | copy | a replica of the source streams chunks, the destination's leader logs them | [`source`], [`destination`] |
//! | catch up | the same replica streams what has happened in the range since | [`source`], [`destination`] |
//! | switch | the source's leader holds statements and logs the fence; the destination logs `Adopt` | [`fence`], [`destination`] |
//! | clean up | the side that must not keep the rows deletes them, a bounded piece at a time | [`cleanup`] |
//!
//! A chunk is read from a snapshot that is taken *after* its position was noted, so it may hold more than its position says.
//! That does no harm: every later change of the range follows in the tail, in order, as a whole row image, and nobody reads the rows before
//! `Adopt`, by which time every change up to the fence has been applied over them.
//!
//! The destination's leader drives the move; whatever dies, whoever leads next starts a new attempt from what the two logs
//! say (R21, R23).

pub mod cleanup;
pub mod destination;
pub mod fence;
mod pace;
pub mod peers;
mod readiness;
pub mod source;
mod tail;
