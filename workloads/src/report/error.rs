//! The error of a report.

use serde::Serialize;

/// A record that no run can have produced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct ReportError {
    /// A stable word for the kind of error.
    pub code: &'static str,
    /// The contradiction, with the figure.
    pub message: String,
}

impl ReportError {
    /// The error as it is written where a report was asked for.
    pub fn to_json(&self) -> String {
        let body = serde_json::json!({ "error": self });
        format!("{body:#}\n")
    }
}
