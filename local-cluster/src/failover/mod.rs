//! Trials that measure for how long the failure of a leader stops writes. `evenkeel bench failover`
//! and the integration tests use them.
//!
//! A trial injects one fault into a leader while writers write at a constant rate, waits until all
//! of them write again, and removes the fault. The measure is what a client observes: the time
//! between two acknowledgements, and the time of the slowest write. [`trials::FailoverTrials`] owns
//! the writers and leaves the cluster whole after each trial.
//!
//! | module | what it holds |
//! |---|---|
//! | [`acknowledgements`] | pauses and percentiles of acknowledged writes (pure) |
//! | [`writers`] | the writers, and the record of their acknowledgements |
//! | [`trials`] | the trials |

pub mod acknowledgements;
pub mod trials;
pub mod writers;
