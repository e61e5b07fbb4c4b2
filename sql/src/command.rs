//! The command that one SQL text holds.

use super::parsed::Parsed;
use super::settings::SettingCommand;
use evenkeel_protocol::schema::TableSchema;
use evenkeel_protocol::shard::TransactionOptions;

/// The command of one SQL text.
#[derive(Debug, Clone)]
pub enum Command {
    /// A SELECT, INSERT, UPDATE or DELETE; bind it to its table to know what it touches.
    Statement(Parsed),
    /// `CREATE TABLE`.
    CreateTable {
        /// The table, with id 0 and a definition in our own words.
        schema: TableSchema,
        /// Whether it is fine if the table exists.
        if_not_exists: bool,
    },
    /// `BEGIN`.
    Begin(TransactionOptions),
    /// `COMMIT`.
    Commit,
    /// `ROLLBACK`.
    Rollback,
    /// `SET`, `RESET` or `SHOW` of one of Evenkeel's own settings.
    Setting(SettingCommand),
}
