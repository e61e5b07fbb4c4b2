//! How a command fails, and the exit status that follows.

use crate::config::ConfigError;
use crate::roles::RoleError;
use evenkeel_client::causes::with_causes;
use evenkeel_local_cluster::ClusterError;
use evenkeel_local_cluster::run::RunError;

/// Why a command failed.
#[derive(Debug)]
pub enum CommandError {
    /// A wrong configuration: exit status 2.
    Config(ConfigError),
    /// Any other reason, in one line: exit status 1.
    Failed(String),
    /// A signal ended the command: exit status 130.
    Interrupted,
}

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> CommandError {
        CommandError::Config(error)
    }
}

impl From<RoleError> for CommandError {
    fn from(error: RoleError) -> CommandError {
        match error {
            RoleError::Config(error) => CommandError::Config(error),
            RoleError::Run(line) => CommandError::Failed(line),
        }
    }
}

impl From<ClusterError> for CommandError {
    fn from(error: ClusterError) -> CommandError {
        match error {
            ClusterError::InvalidSetting(error) => CommandError::Config(error.into()),
            error => CommandError::failed(error),
        }
    }
}

impl From<RunError> for CommandError {
    fn from(error: RunError) -> CommandError {
        match error {
            RunError::InvalidSetting(error) => CommandError::Config(error.into()),
            RunError::Failed(line) => CommandError::Failed(line),
        }
    }
}

impl CommandError {
    /// A failure with this error's text and causes.
    pub fn failed(error: impl std::error::Error) -> CommandError {
        CommandError::Failed(with_causes(&error))
    }
}
