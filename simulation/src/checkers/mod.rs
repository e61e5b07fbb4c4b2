//! Checkers: each file judges one property of a finished run and returns violations as sentences.
//! Pure.

pub mod clocks;
pub mod coordination_store;
pub mod counters;
pub mod drained;
pub mod levels;
pub mod moves_verified;
pub mod one_owner;
pub mod overload;
pub mod placement_drivers_equal;
pub mod replicas_equal;
pub mod scrubbed;
pub mod transfers;
