//! The cluster harness: scenarios against a real cluster of real processes, whose members can be started, killed, paused and
//! started again.
//!
//! The cluster itself is `evenkeel::cluster`, the same that `evenkeel demo` starts. What is added here is what a test needs: a runner
//! whose scenarios share one cluster ([`runner`]), a world to act in ([`world`]), its replicas from inside ([`replica`]), and
//! histories that prove or disprove that nothing was lost, applied twice or read stale: counters ([`history`], [`counters`]),
//! registers ([`linear`], [`registers`]) and transactions ([`transactions`]).
//!
//! Scenarios wait for conditions, never for time. Each leaves the cluster whole; one that fails gets its successor a new one.

pub mod counters;
pub mod history;
pub mod linear;
pub mod registers;
pub mod replica;
pub mod runner;
pub mod transactions;
pub mod world;

pub use replica::Replica;
pub use runner::{Scenario, run};
pub use world::{Failure, Outcome, World};

/// Ends a scenario with an error unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::Failure::new(format!($($message)+)));
        }
    };
}

/// Scenarios by their names.
#[macro_export]
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        &[$($crate::Scenario { name: stringify!($name), run: |world| Box::pin($name(world)) }),*]
    };
}
