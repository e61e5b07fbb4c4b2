//! Place of the capture triggers, which report what statements passed through have written.

use evenkeel_protocol::TableSchema;

/// The SQL that makes the capture triggers of a table. There are none yet.
pub(super) fn capture_triggers(_schema: &TableSchema) -> String {
    String::new()
}
