//! Schema changes: SQL that each shard's PostgreSQL executes, and what it makes of tables and
//! sequences.
//!
//! A change is planned by a gateway, which knows the SQL, and gets its version and the numbers of
//! its relations from the placement driver. A [`SchemaDelta`] is the result: everything that a
//! shard needs to bring its PostgreSQL and its state from one version of the schema to the next
//! (R34).

use crate::ids::TableId;
use crate::schema::TableSchema;
use serde::{Deserialize, Serialize};

/// The settings that a change can depend on. None of them touches what a replica relies on.
pub const CHANGE_SETTINGS: [&str; 16] = [
    "search_path",
    "standard_conforming_strings",
    "backslash_quote",
    "escape_string_warning",
    "array_nulls",
    "check_function_bodies",
    "default_toast_compression",
    "default_text_search_config",
    "transform_null_equals",
    "xmloption",
    "datestyle",
    "intervalstyle",
    "timezone",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
];

/// A table or sequence after a schema change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangedRelation {
    /// Its name before; absent for a new one.
    #[serde(default)]
    pub was: Option<String>,
    /// What it is afterwards. The id is given by the placement driver, which also fills
    /// [`TableSchema::sequences`] from `sequences`.
    pub schema: TableSchema,
    /// The names of the sequences that belong to its columns.
    #[serde(default)]
    pub sequences: Vec<String>,
}

/// A schema change that was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaChange {
    /// The version of the schema after it, from 1.
    pub version: u64,
    /// Its statements.
    pub sql: String,
    /// The settings they depend on.
    pub settings: Vec<(String, String)>,
}

/// A schema change with the tables and sequences that it makes and drops, as shards execute it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaDelta {
    /// The change.
    pub change: SchemaChange,
    /// The tables and sequences that are new or different, as they are afterwards.
    pub relations: Vec<TableSchema>,
    /// The tables and sequences that are gone afterwards.
    pub dropped: Vec<TableId>,
}

/// What a shard's leader reports of its schema.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaReport {
    /// The version that its PostgreSQL has.
    pub version: u64,
    /// The operator whose change is prepared here: the tables that it changes are held until the
    /// change is made or given up.
    pub prepared: Option<crate::ids::OperatorId>,
}
