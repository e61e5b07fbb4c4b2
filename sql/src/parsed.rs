//! A statement before and after it is bound to its table.

use super::plan::Plan;
use super::statement::Body;
use super::{dml, select};
use evenkeel_protocol::error::{SqlError, codes};
use evenkeel_protocol::schema::TableSchema;

/// A statement, not yet bound to its table.
#[derive(Debug, Clone)]
pub struct Parsed {
    body: Body,
}

impl Parsed {
    pub(super) fn new(body: Body) -> Parsed {
        Parsed { body }
    }

    /// The name of its table; `None` for a SELECT without FROM.
    pub fn table_name(&self) -> Option<&str> {
        self.body.table().map(|table| table.name.as_str())
    }

    /// Resolves it against its table's schema: `None` only if it has no table.
    ///
    /// # Errors
    ///
    /// There is no such table (42P01) or column (42703), or the statement asks for what the store
    /// cannot do correctly (0A000).
    pub fn bind(&self, schema: Option<&TableSchema>) -> Result<Plan, SqlError> {
        let Some(table) = self.body.table() else {
            return match &self.body {
                Body::Select(body) => select::bind(body, None),
                _ => Err(SqlError::new(codes::INTERNAL, "a statement that writes has no table")),
            };
        };
        let Some(schema) = schema.filter(|schema| schema.name == table.name) else {
            return Err(SqlError::new(codes::UNDEFINED_TABLE, format!("relation {:?} does not exist", table.name)));
        };
        match &self.body {
            Body::Select(body) => select::bind(body, Some(schema)),
            Body::Insert(body) => dml::bind_insert(body, schema),
            Body::Update(body) => dml::bind_update(body, schema),
            Body::Delete(body) => dml::bind_delete(body, schema),
        }
    }
}
