//! What must hold, one per file, named by what it checks. Pure.

pub mod counters;
pub mod drained;
pub mod drivers_equal;
pub mod kv;
pub mod levels;
pub mod moves_verified;
pub mod one_owner;
pub mod overload;
pub mod replicas_equal;
pub mod scrubbed;
pub mod times;
pub mod transfers;
