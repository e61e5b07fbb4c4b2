//! Prepared statements of the apply session, per table.

use super::StoreError;
use super::pipeline::Pipeline;
use super::statements::{self, Shape, Source};
use crate::log_entry::image::Columns;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::{KeyType, SqlError, TableSchema};
use postgres_types::Type;
use std::collections::HashMap;
use std::sync::Arc;
use tokio_postgres::{Client, Statement};

/// The most tables whose statements are kept prepared.
const MAX_TABLES: usize = 256;

/// The statements a table can need.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Of rows; with `true`, over rows that may be there.
    Insert(Source, bool),
    /// Of rows that are not there, many.
    CopyIn,
    /// Of these columns.
    Update(Source, Columns),
    /// By keys.
    Delete(Source),
    /// Of one row of a table without a key.
    Remove,
    /// Of a sequence.
    SetSequence,
    /// Of all rows.
    Truncate,
    /// By an interval.
    DeleteInterval(Shape),
    /// Of an interval's rows.
    Checksum(Shape),
}

impl Kind {
    /// Its text and its parameters' types.
    pub(super) fn describe(
        &self,
        schema: &TableSchema,
        arrays: &HashMap<u32, Option<Type>>,
    ) -> Result<(String, Vec<Type>), StoreError> {
        let of = |source: Source, oid: u32| match source {
            Source::One => scalar_type(oid),
            Source::Many if oid == 0 => Some(Type::TEXT_ARRAY),
            Source::Many => arrays.get(&oid).cloned().flatten().or_else(|| array_of_key_type(oid)),
        };
        let all = |source| schema.columns.iter().map(|c| of(source, c.type_oid)).collect::<Option<Vec<Type>>>();
        let (sql, types) = match *self {
            Kind::Insert(source, upsert) => (statements::insert(schema, source, upsert), all(source)),
            Kind::CopyIn => (statements::copy_in(schema), Some(Vec::new())),
            Kind::Update(source, ref columns) => {
                let assigned = columns.positions().filter_map(|at| schema.columns.get(at));
                let types = schema.key_columns().chain(assigned).map(|column| of(source, column.type_oid)).collect();
                (statements::update(schema, columns, source), types)
            }
            Kind::Delete(source) => {
                let types = schema.key_columns().map(|column| of(source, column.type_oid)).collect();
                (statements::delete(schema, source), types)
            }
            Kind::Remove => (statements::remove(schema), all(Source::One)),
            Kind::SetSequence => (statements::set_sequence(schema), Some(vec![Type::INT8, Type::BOOL, Type::BOOL])),
            Kind::Truncate => (format!("DELETE FROM {}", statements::table_name(schema)), Some(Vec::new())),
            Kind::DeleteInterval(shape) => {
                let sql =
                    format!("DELETE FROM {}{}", statements::table_name(schema), statements::where_in(schema, shape));
                (sql, statements::where_types(schema, shape).map(scalar_type).collect())
            }
            Kind::Checksum(shape) => {
                let types = statements::where_types(schema, shape).map(scalar_type).collect();
                (statements::checksum(schema, shape), types)
            }
        };
        let unknown =
            || SqlError::new(codes::INTERNAL, format!("table {} has a column of an unknown type", schema.name));
        Ok((sql, types.ok_or_else(|| StoreError::Refused(unknown()))?))
    }
}

/// The type that values of a column travel as.
pub(super) fn scalar_type(oid: u32) -> Option<Type> {
    if oid == 0 { Some(Type::TEXT) } else { Type::from_oid(oid) }
}

/// The array types of the types a key can have.
fn array_of_key_type(oid: u32) -> Option<Type> {
    Some(match KeyType::from_oid(oid)? {
        KeyType::SmallInt => Type::INT2_ARRAY,
        KeyType::Integer => Type::INT4_ARRAY,
        KeyType::BigInt => Type::INT8_ARRAY,
        KeyType::Text => Type::TEXT_ARRAY,
        KeyType::Uuid => Type::UUID_ARRAY,
        KeyType::Bytea => Type::BYTEA_ARRAY,
        KeyType::TimestampTz => Type::TIMESTAMPTZ_ARRAY,
        KeyType::Opaque => return None,
    })
}

/// Prepared statements, per table.
#[derive(Debug, Default)]
pub(super) struct PreparedTables {
    known: HashMap<String, Table>,
    /// By a type's object id: the type of its arrays. `None` for a type without one; an array, for
    /// example.
    array_types: HashMap<u32, Option<Type>>,
}

#[derive(Debug)]
struct Table {
    schema: Arc<TableSchema>,
    statements: HashMap<Kind, Statement>,
}

impl PreparedTables {
    fn table(&mut self, schema: &Arc<TableSchema>) -> &mut Table {
        let same = |known: &Table| Arc::ptr_eq(&known.schema, schema) || known.schema == *schema;
        if !self.known.get(&schema.name).is_some_and(same) {
            if self.known.len() >= MAX_TABLES {
                self.known.clear();
            }
            self.known.remove(&schema.name);
        }
        self.known
            .entry(schema.name.clone())
            .or_insert_with(|| Table { schema: schema.clone(), statements: HashMap::new() })
    }

    /// A statement, if it is prepared.
    pub(super) fn statement(&mut self, schema: &Arc<TableSchema>, kind: &Kind) -> Option<Statement> {
        self.table(schema).statements.get(kind).cloned()
    }

    /// Keeps a prepared statement.
    pub(super) fn keep(&mut self, schema: &Arc<TableSchema>, kind: Kind, statement: Statement) {
        self.table(schema).statements.insert(kind, statement);
    }

    /// Forgets all statements, and which types have arrays.
    pub(super) fn forget_all(&mut self) {
        *self = PreparedTables::default();
    }

    /// Forgets the statements of a table that is dropped or created.
    pub(super) fn forget(&mut self, name: &str) {
        self.known.remove(name);
    }

    /// The array types known so far, by the object id of their elements' type.
    pub(super) fn array_types(&self) -> &HashMap<u32, Option<Type>> {
        &self.array_types
    }

    /// Whether every column's type has an array type, so that rows can be given as arrays; learns
    /// the types not seen before. (R15: of an array column that is not so, since `unnest` would
    /// flatten it.)
    pub(super) async fn has_arrays(
        &mut self,
        client: &Client,
        pipeline: &mut Pipeline<'_>,
        schema: &TableSchema,
    ) -> Result<bool, StoreError> {
        self.have_arrays(client, pipeline, schema.columns.iter()).await
    }

    /// The same of some columns.
    pub(super) async fn have_arrays<'c>(
        &mut self,
        client: &Client,
        pipeline: &mut Pipeline<'_>,
        columns: impl Iterator<Item = &'c ColumnSchema>,
    ) -> Result<bool, StoreError> {
        // Those of users' types travel as text.
        let types: Vec<u32> = columns.map(|column| column.type_oid).filter(|oid| *oid != 0).collect();
        let unseen: Vec<u32> = types.iter().copied().filter(|oid| !self.array_types.contains_key(oid)).collect();
        if !unseen.is_empty() {
            pipeline.drain().await?;
            let found = client.query("SELECT oid, typarray FROM pg_type WHERE oid = ANY($1)", &[&unseen]).await?;
            for row in found {
                self.array_types.insert(row.try_get(0)?, Type::from_oid(row.try_get(1)?));
            }
            unseen.into_iter().for_each(|oid| _ = self.array_types.entry(oid).or_insert(None));
        }
        let has = |oid: &u32| matches!(self.array_types.get(oid), Some(Some(_)));
        Ok(types.iter().all(has))
    }
}
