//! What must hold, one per file, named by what it checks. Pure.

pub mod counters;
pub mod moves_verified;
pub mod one_owner;
pub mod replicas_equal;
pub mod transfers;
