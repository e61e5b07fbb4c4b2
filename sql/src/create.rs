//! CREATE TABLE: the schema that every process keeps, and the rewritten definition that every shard
//! runs.
//!
//! A shard runs the definition when it first owns a range of the table, and all shards must get the
//! same table (R19). A definition that could differ between servers is refused: user-defined types,
//! sequences, other collations, and checks that depend on the time.

use super::command::Command;
use super::expr::Writer;
use super::scope::{Purpose, Scope};
use super::types::{BuiltIn, built_in};
use super::{names, refuse};
use evenkeel_protocol::error::{SqlError, codes};
use evenkeel_protocol::ids::TableId;
use evenkeel_protocol::key::KeyType;
use evenkeel_protocol::schema::{ColumnSchema, MAX_COLUMNS, TableSchema};
use sqlparser::ast::helpers::stmt_create_table::CreateTableBuilder;
use sqlparser::ast::{
    CheckConstraint, ColumnDef, ColumnOption, CreateTable, Expr, Ident, PrimaryKeyConstraint, TableConstraint,
};

/// The most columns of a primary key; PostgreSQL's limit for an index.
const MAX_KEY_COLUMNS: usize = 32;

/// A column as it is being read.
struct Draft<'a> {
    name: String,
    built_in: BuiltIn,
    not_null: bool,
    nullable: bool,
    default: Option<&'a Expr>,
    collated: bool,
}

/// A CHECK as it is being read.
struct Check<'a> {
    name: Option<String>,
    expr: &'a Expr,
}

/// Everything of a definition.
#[derive(Default)]
struct Definition<'a> {
    columns: Vec<Draft<'a>>,
    key: Option<Vec<String>>,
    checks: Vec<Check<'a>>,
}

/// Reads a CREATE TABLE.
pub(super) fn create_table(table: CreateTable) -> Result<Command, SqlError> {
    let name = names::table(&table.name)?;
    check_table_name(&name)?;
    check_clauses(&table)?;
    let mut definition = Definition::default();
    for column in &table.columns {
        definition.add_column(column)?;
    }
    for constraint in &table.constraints {
        definition.add_constraint(constraint)?;
    }
    Ok(Command::CreateTable { schema: definition.finish(name)?, if_not_exists: table.if_not_exists })
}

/// Names that the store or PostgreSQL keeps for itself.
fn check_table_name(name: &str) -> Result<(), SqlError> {
    if name.starts_with("evenkeel_") {
        return Err(SqlError::new("42939", "table names that begin with evenkeel_ are the store's own")
            .hint("choose another name"));
    }
    // The index of a primary key is a relation too: on a shard that has table t, a table t_pkey
    // could not be created.
    if name.trim_end_matches(|c: char| c.is_ascii_digit()).ends_with("_pkey") {
        return Err(SqlError::new("42939", "table names that end with _pkey are kept for the indexes of primary keys")
            .hint("choose another name"));
    }
    Ok(())
}

/// Refuses every clause but the columns and the constraints. The statement must equal the bare
/// statement with the same columns and constraints, so that a clause which this code does not name
/// is refused too.
fn check_clauses(table: &CreateTable) -> Result<(), SqlError> {
    if table.temporary || table.unlogged {
        return Err(refuse::clause(if table.temporary { "TEMPORARY" } else { "UNLOGGED" }));
    }
    if table.query.is_some() {
        return Err(SqlError::unsupported(
            "CREATE TABLE … AS is not supported",
            "create the table, then insert its rows",
        ));
    }
    if table.like.is_some() {
        return Err(SqlError::unsupported("LIKE is not supported", "write the columns out"));
    }
    if table.partition_by.is_some() || table.partition_of.is_some() {
        return Err(SqlError::unsupported(
            "PARTITION is not supported",
            "leave it out: every table is cut into ranges by itself",
        ));
    }
    if table.inherits.is_some() {
        return Err(SqlError::unsupported("INHERITS is not supported", "write the columns out"));
    }
    let bare = CreateTableBuilder::new(table.name.clone())
        .if_not_exists(table.if_not_exists)
        .columns(table.columns.clone())
        .constraints(table.constraints.clone())
        .build();
    if bare == *table {
        Ok(())
    } else {
        Err(SqlError::unsupported(
            "a clause of this CREATE TABLE is not supported",
            "give columns, PRIMARY KEY, NOT NULL, DEFAULT and CHECK only",
        ))
    }
}

fn named(name: Option<&Ident>) -> Result<Option<String>, SqlError> {
    name.map(names::identifier).transpose()
}

impl<'a> Definition<'a> {
    fn add_column(&mut self, column: &'a ColumnDef) -> Result<(), SqlError> {
        let name = names::identifier(&column.name)?;
        if names::is_system_column(&name) {
            let message = format!("column name {name:?} conflicts with a system column name");
            return Err(SqlError::new("42701", message));
        }
        if self.columns.iter().any(|other| other.name == name) {
            return Err(SqlError::new("42701", format!("column {name:?} specified more than once")));
        }
        if self.columns.len() == MAX_COLUMNS {
            return Err(SqlError::new("54011", format!("tables can have at most {MAX_COLUMNS} columns")));
        }
        let mut draft = Draft {
            built_in: built_in(&column.data_type)?,
            name,
            not_null: false,
            nullable: false,
            default: None,
            collated: false,
        };
        for option in &column.options {
            self.add_option(&mut draft, &option.option, option.name.as_ref())?;
        }
        if draft.not_null && draft.nullable {
            return Err(refuse::syntax(format!("conflicting NULL/NOT NULL declarations for column {:?}", draft.name)));
        }
        self.columns.push(draft);
        Ok(())
    }

    fn add_option(
        &mut self,
        draft: &mut Draft<'a>,
        option: &'a ColumnOption,
        name: Option<&Ident>,
    ) -> Result<(), SqlError> {
        match option {
            ColumnOption::Null => draft.nullable = true,
            ColumnOption::NotNull => draft.not_null = true,
            ColumnOption::Default(expr) => {
                if draft.default.replace(expr).is_some() {
                    return Err(refuse::syntax(format!(
                        "multiple default values specified for column {:?}",
                        draft.name
                    )));
                }
            }
            ColumnOption::PrimaryKey(constraint) => {
                check_key_clauses(constraint, name)?;
                let column = draft.name.clone();
                self.set_key(vec![column])?;
            }
            ColumnOption::Check(check) => self.add_check(check, name)?,
            ColumnOption::Collation(collation) => {
                if names::function(collation)? != "C" {
                    return Err(SqlError::unsupported(
                        format!("the collation {collation} is not supported"),
                        "leave COLLATE out; texts compare bytewise, as with COLLATE \"C\"",
                    ));
                }
                draft.collated = true;
            }
            ColumnOption::Unique(_) => return Err(unique()),
            ColumnOption::ForeignKey(_) => return Err(references()),
            ColumnOption::Generated { .. } | ColumnOption::Identity(_) => {
                return Err(SqlError::unsupported(
                    "generated and identity columns are not supported yet",
                    "compute the value in the client, or draw a uuid there",
                ));
            }
            other => return Err(refuse::clause(&other.to_string())),
        }
        Ok(())
    }

    fn add_constraint(&mut self, constraint: &'a TableConstraint) -> Result<(), SqlError> {
        match constraint {
            TableConstraint::PrimaryKey(key) => {
                check_key_clauses(key, key.name.as_ref())?;
                let mut columns = Vec::new();
                for column in &key.columns {
                    match &column.column.expr {
                        Expr::Identifier(ident)
                            if column.operator_class.is_none() && column.column.options == Default::default() =>
                        {
                            columns.push(names::identifier(ident)?);
                        }
                        _ => return Err(refuse::syntax("PRIMARY KEY takes names of columns")),
                    }
                }
                self.set_key(columns)
            }
            TableConstraint::Check(check) => self.add_check(check, check.name.as_ref()),
            TableConstraint::Unique(_) | TableConstraint::UniqueUsingIndex(_) => Err(unique()),
            TableConstraint::ForeignKey(_) => Err(references()),
            TableConstraint::Exclude(_) => Err(refuse::clause("EXCLUDE")),
            other => Err(refuse::clause(&other.to_string())),
        }
    }

    fn add_check(&mut self, check: &'a CheckConstraint, name: Option<&Ident>) -> Result<(), SqlError> {
        let CheckConstraint { name: inner, expr, no_inherit, enforced } = check;
        if *no_inherit || enforced.is_some() {
            return Err(refuse::clause("NO INHERIT or ENFORCED"));
        }
        self.checks.push(Check { name: named(name.or(inner.as_ref()))?, expr });
        Ok(())
    }

    fn set_key(&mut self, columns: Vec<String>) -> Result<(), SqlError> {
        if self.key.replace(columns).is_some() {
            return Err(SqlError::new(codes::INVALID_TABLE, "multiple primary keys are not possible"));
        }
        Ok(())
    }

    /// The positions of the key's columns, each of a type that can be encoded.
    fn key_positions(&self) -> Result<Vec<usize>, SqlError> {
        let Some(key) = &self.key else {
            // R18: tables without a key are not there yet.
            return Err(SqlError::new(
                codes::INVALID_TABLE,
                "a table needs a primary key: its rows are cut into ranges by it",
            )
            .hint("add PRIMARY KEY"));
        };
        if key.len() > MAX_KEY_COLUMNS {
            return Err(SqlError::new("54011", format!("a primary key has at most {MAX_KEY_COLUMNS} columns")));
        }
        let mut positions = Vec::with_capacity(key.len());
        for name in key {
            let Some(position) = self.columns.iter().position(|column| column.name == *name) else {
                return Err(SqlError::new(
                    codes::UNDEFINED_COLUMN,
                    format!("column {name:?} named in key does not exist"),
                ));
            };
            if positions.contains(&position) {
                return Err(SqlError::new("42701", format!("column {name:?} appears twice in primary key constraint")));
            }
            let column = &self.columns[position];
            if column.nullable {
                return Err(SqlError::new(codes::INVALID_TABLE, format!("the key column {name:?} cannot be NULL")));
            }
            if column.built_in.limited || KeyType::from_oid(column.built_in.oid).is_none() {
                return Err(SqlError::unsupported(
                    format!("a key column of type {} is not supported", column.built_in.sql),
                    "use smallint, integer, bigint, text, uuid, bytea or timestamptz",
                ));
            }
            positions.push(position);
        }
        Ok(positions)
    }

    fn finish(self, name: String) -> Result<TableSchema, SqlError> {
        let key = self.key_positions()?;
        let columns = self.columns.iter().map(|column| ColumnSchema {
            name: column.name.clone(),
            type_name: column.built_in.sql.clone(),
            type_oid: column.built_in.oid,
        });
        let mut schema = TableSchema {
            id: TableId(0),
            name,
            columns: columns.collect(),
            key,
            create_sql: String::new(),
            ..TableSchema::default()
        };
        schema.create_sql = self.create_sql(&schema)?;
        Ok(schema)
    }

    /// The definition in our words. Creating what exists already is no error, so that a shard can
    /// run it again.
    fn create_sql(&self, schema: &TableSchema) -> Result<String, SqlError> {
        let mut lines = Vec::new();
        for (i, column) in self.columns.iter().enumerate() {
            lines.push(column_sql(column, schema.key.contains(&i))?);
        }
        let key: Vec<String> = schema.key_columns().map(|column| TableSchema::quote(&column.name)).collect();
        lines.push(format!("PRIMARY KEY ({})", key.join(", ")));
        for check in &self.checks {
            let mut writer = Writer::new(Scope { table: Some(schema), alias: None, excluded: false }, Purpose::Check);
            writer.expr(check.expr)?;
            let name = check.name.as_ref().map(|name| format!("CONSTRAINT {} ", TableSchema::quote(name)));
            lines.push(format!("{}CHECK ({})", name.unwrap_or_default(), writer.out));
        }
        Ok(format!("CREATE TABLE IF NOT EXISTS {} ({})", TableSchema::quote(&schema.name), lines.join(", ")))
    }
}

fn column_sql(column: &Draft<'_>, in_key: bool) -> Result<String, SqlError> {
    let mut sql = format!("{} {}", TableSchema::quote(&column.name), column.built_in.sql);
    let is_text = matches!(column.built_in.oid, 25 | 1042 | 1043);
    if column.collated && !is_text {
        return Err(SqlError::new(
            codes::DATATYPE_MISMATCH,
            format!("collations are not supported by type {}", column.built_in.sql),
        ));
    }
    // Keys are encoded so that their bytes compare as the values do.
    if column.collated || (in_key && is_text) {
        sql.push_str(" COLLATE \"C\"");
    }
    if column.not_null || in_key {
        sql.push_str(" NOT NULL");
    }
    if let Some(default) = column.default {
        let mut writer = Writer::new(Scope { table: None, alias: None, excluded: false }, Purpose::Default);
        writer.expr(default)?;
        sql.push_str(&format!(" DEFAULT {}", default_text(default, writer.out)));
    }
    Ok(sql)
}

/// A default is a b_expr in PostgreSQL's grammar: what has an operator goes in parentheses.
fn default_text(expr: &Expr, text: String) -> String {
    match expr {
        Expr::Value(_) | Expr::Nested(_) | Expr::Function(_) | Expr::Cast { .. } => text,
        _ => format!("({text})"),
    }
}

fn check_key_clauses(key: &PrimaryKeyConstraint, name: Option<&Ident>) -> Result<(), SqlError> {
    let PrimaryKeyConstraint {
        name: inner,
        index_name,
        index_type,
        columns: _,
        include,
        index_options,
        characteristics,
    } = key;
    if name.or(inner.as_ref()).is_some() {
        // Its index is a relation of that name, which could be taken on another shard.
        return Err(SqlError::unsupported(
            "a name for the primary key is not supported",
            "leave CONSTRAINT and its name out",
        ));
    }
    // R15: a deferrable key can be violated until COMMIT.
    if characteristics.is_some() {
        return Err(SqlError::unsupported("a deferrable primary key is not supported", "leave DEFERRABLE out"));
    }
    if index_name.is_some() || index_type.is_some() || !include.is_empty() || !index_options.is_empty() {
        return Err(refuse::clause("an index option of the primary key"));
    }
    Ok(())
}

fn unique() -> SqlError {
    SqlError::unsupported(
        "UNIQUE is not supported yet: only the primary key is checked across shards",
        "make the column the primary key, or keep a second table with it as its key",
    )
}

fn references() -> SqlError {
    SqlError::unsupported(
        "REFERENCES is not supported yet: the row referred to can be on another shard",
        "check it in the application",
    )
}
