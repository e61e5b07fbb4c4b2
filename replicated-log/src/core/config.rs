//! Settings of the core.

#[cfg(not(test))]
use evenkeel_host::{Bug, deliberate};

use crate::config::{Limits, Timing};

use super::fault::Fault;

/// Settings of one replica's core; times are milliseconds as in [`Timing`].
#[derive(Clone, Debug)]
pub(crate) struct CoreConfig {
    pub(crate) me: u64,
    /// The wall clock at the time 0 of the clock passed in, in milliseconds since the Unix epoch.
    pub(crate) unix_at_boot_ms: u64,
    pub(crate) timing: Timing,
    pub(crate) limits: Limits,
    #[cfg(test)]
    pub(crate) faults: Vec<Fault>,
}

impl CoreConfig {
    /// Whether this rule is left out on purpose.
    pub(super) fn fault(&self, fault: Fault) -> bool {
        #[cfg(test)]
        return self.faults.contains(&fault);
        #[cfg(not(test))]
        {
            fault == Fault::PassBarrier && deliberate(Bug::PassesBarrier)
        }
    }
}
