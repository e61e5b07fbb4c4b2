//! The result of a scenario.

use evenkeel_client::ClientError;
use evenkeel_client::admin::AdminError;
use evenkeel_local_cluster::ClusterError;
use std::fmt;

/// Why a scenario failed, or why it was skipped, in words.
#[derive(Debug)]
pub struct ScenarioFailure {
    why: String,
    skipped: bool,
}

impl ScenarioFailure {
    /// A failure with this reason.
    pub fn new(why: impl Into<String>) -> ScenarioFailure {
        ScenarioFailure { why: why.into(), skipped: false }
    }

    /// The scenario was skipped, because this machine lacks something that it needs. It counts as
    /// ignored.
    pub fn skipped(why: impl Into<String>) -> ScenarioFailure {
        ScenarioFailure { why: why.into(), skipped: true }
    }

    /// Whether the scenario was skipped.
    pub fn is_skipped(&self) -> bool {
        self.skipped
    }
}

impl fmt::Display for ScenarioFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

macro_rules! failure_from {
    ($($error:ty),*) => {
        $(impl From<$error> for ScenarioFailure {
            fn from(error: $error) -> ScenarioFailure {
                ScenarioFailure::new(error.to_string())
            }
        })*
    };
}

failure_from!(ClusterError, AdminError, ClientError, String, reqwest::Error);

/// The result of a scenario, and of its steps.
pub type ScenarioResult = Result<(), ScenarioFailure>;
