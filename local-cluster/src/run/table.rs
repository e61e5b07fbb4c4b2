//! The table of a run.

use evenkeel_protocol::TableSchema;
use evenkeel_sql as sql;
use evenkeel_workloads::target_sql::COLUMNS;

/// The schema of a run's table of this name. The error says why the name cannot be used.
pub fn run_table(name: &str) -> Result<TableSchema, String> {
    let text = format!("CREATE TABLE {} {COLUMNS}", TableSchema::quote(name));
    match sql::parse(&text) {
        Ok(sql::Command::CreateTable { schema, .. }) => Ok(schema),
        Ok(_) => Err("makes no table".into()),
        Err(error) => Err(error.to_string()),
    }
}
