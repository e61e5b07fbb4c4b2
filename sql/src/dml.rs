//! Binding INSERT, UPDATE and DELETE: their keys, and RETURNING rewritten so that every change
//! comes back (R7).
//!
//! The columns that the log needs follow the columns of the user: the whole new row for INSERT, the
//! key and the assigned columns for UPDATE, the key for DELETE. An UPDATE does not read the columns
//! that it does not assign, however large they are. An UPDATE cannot change a key, because its row
//! could then belong to another range, and RETURNING does not show the old key (R15).

use super::cast::integer_limits;
use super::constant::assigned_integer;
use super::expr::Writer;
use super::operand::{Operand, integer_operand, operand};
use super::plan::{Capture, Keys, Pieces, Plan, PlanKind, RowEffect, Scan};
use super::region::KeyShape;
use super::scope::{Purpose, Scope};
use super::select::{condition_keys, key_names, key_types, write_items, write_table};
use super::statement::{DeleteBody, InsertBody, TableRef, UpdateBody};
use super::syntax::peel;
use super::types::Family;
use super::{names, refuse};
use evenkeel_protocol::error::{SqlError, codes};
use evenkeel_protocol::key::{KeyCodec, KeyType};
use evenkeel_protocol::schema::{ColumnSchema, TableSchema};
use sqlparser::ast::{
    Assignment, AssignmentTarget, ConflictTarget, DoUpdate, Expr, OnConflict, OnConflictAction, SelectItem,
    Value as Literal,
};

fn scope<'a>(schema: &'a TableSchema, table: &'a TableRef) -> Scope<'a> {
    Scope { table: Some(schema), alias: table.alias.as_deref(), excluded: false }
}

fn column(schema: &TableSchema, name: &str) -> Result<usize, SqlError> {
    schema.columns.iter().position(|column| column.name == name).ok_or_else(|| {
        let message = format!("column {name:?} of relation {:?} does not exist", schema.name);
        SqlError::new(codes::UNDEFINED_COLUMN, message)
    })
}

fn family(schema: &TableSchema, position: usize) -> Family {
    schema.columns.get(position).map_or(Family::Unknown, |column| Family::of(column.type_oid))
}

fn is_default(expr: &Expr) -> bool {
    matches!(expr, Expr::Identifier(ident) if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default"))
}

/// Writes a value for a column; DEFAULT is possible.
fn write_value(writer: &mut Writer<'_>, expr: &Expr, family: Family) -> Result<(), SqlError> {
    if is_default(expr) {
        writer.push("DEFAULT");
        return Ok(());
    }
    writer.typed(expr, family)
}

/// Writes `"column" = value` for each assignment, and gives the columns' positions, ascending. Keys
/// stay as they are.
fn write_assignments(
    writer: &mut Writer<'_>,
    assignments: &[Assignment],
    schema: &TableSchema,
) -> Result<Vec<usize>, SqlError> {
    let mut assigned = Vec::with_capacity(assignments.len());
    for (i, Assignment { target, value }) in assignments.iter().enumerate() {
        let AssignmentTarget::ColumnName(name) = target else {
            return Err(SqlError::unsupported(
                "assigning several columns at once is not supported",
                "assign each column by itself",
            ));
        };
        let position = column(schema, &names::column(name)?)?;
        let name = &schema.columns[position].name;
        if schema.key.contains(&position) {
            return Err(SqlError::unsupported(
                format!(
                    "changing the key column {name:?} is not supported, because the row may belong on another shard then"
                ),
                "delete the row and insert it with its new key",
            ));
        }
        writer.push(if i > 0 { ", " } else { "" });
        writer.push(&TableSchema::quote(name));
        writer.push(" = ");
        write_value(writer, value, family(schema, position))?;
        assigned.push(position);
    }
    assigned.sort_unstable();
    // PostgreSQL refuses a column that is assigned twice.
    assigned.dedup();
    Ok(assigned)
}

/// Writes RETURNING with the user's columns first; returns how many those are.
fn write_returning(
    writer: &mut Writer<'_>,
    items: &[SelectItem],
    captured: impl Iterator<Item = String>,
) -> Result<usize, SqlError> {
    writer.push(" RETURNING ");
    let returned = write_items(writer, items)?;
    for (i, name) in captured.enumerate() {
        writer.push(if i > 0 || returned > 0 { ", " } else { "" });
        writer.push(&TableSchema::quote(&name));
    }
    Ok(returned)
}

fn all_columns(schema: &TableSchema) -> impl Iterator<Item = String> {
    schema.columns.iter().map(|column| column.name.clone())
}

/// What the three kinds have in common.
fn plan(
    kind: PlanKind,
    schema: &TableSchema,
    writer: &Writer<'_>,
    pieces: Pieces,
    returned: usize,
    keys: Keys,
    types: Vec<KeyType>,
) -> Result<Plan, SqlError> {
    let (capture, effect) = match kind {
        PlanKind::Delete => (Capture::Keys, RowEffect::Deletes),
        PlanKind::Update => (Capture::Rows, RowEffect::Updates),
        _ => (Capture::Rows, RowEffect::Inserts),
    };
    let single = match &keys {
        Keys::Point(_) => true,
        Keys::Rows { rows, .. } => rows.len() == 1,
        _ => false,
    };
    Ok(Plan {
        kind,
        table: Some(schema.id),
        parameters: writer.parameters(),
        locks: false,
        sql: pieces.assemble(&[], None),
        pieces,
        returned,
        capture,
        assigned: Vec::new(),
        effect,
        scan: if single { Scan::Single } else { Scan::Whole },
        descending: false,
        limit: None,
        keys,
        shape: KeyShape::new(KeyCodec::new(types))?,
        plain_insert: false,
    })
}

/// Binds an UPDATE.
pub(super) fn bind_update(body: &UpdateBody, schema: &TableSchema) -> Result<Plan, SqlError> {
    let types = key_types(schema)?;
    let mut writer = Writer::new(scope(schema, &body.table), Purpose::Statement);
    let mut pieces = Pieces { key: key_names(schema, &body.table), ..Pieces::default() };
    writer.push("UPDATE ");
    write_table(&mut writer, &body.table);
    writer.push(" SET ");
    let assigned = write_assignments(&mut writer, &body.assignments, schema)?;
    pieces.head = writer.take();
    if let Some(filter) = &body.filter {
        writer.expr(filter)?;
        pieces.filter = Some(writer.take());
    }
    // If nothing is left alone, the image is the row, which needs no row to be applied to.
    let whole = assigned.len() + schema.key.len() == schema.columns.len();
    let name = |column: &ColumnSchema| column.name.clone();
    let captured: Vec<String> = if whole {
        all_columns(schema).collect()
    } else {
        schema.key_columns().chain(assigned.iter().map(|&position| &schema.columns[position])).map(name).collect()
    };
    let returned = write_returning(&mut writer, &body.returning, captured.into_iter())?;
    pieces.tail = writer.take();
    let keys = condition_keys(body.filter.as_ref(), &writer, schema, &types)?;
    let plan = plan(PlanKind::Update, schema, &writer, pieces, returned, keys, types)?;
    let capture = if whole { Capture::Rows } else { Capture::Assigned };
    Ok(Plan { capture, assigned, ..plan })
}

/// Binds a DELETE.
pub(super) fn bind_delete(body: &DeleteBody, schema: &TableSchema) -> Result<Plan, SqlError> {
    let types = key_types(schema)?;
    let mut writer = Writer::new(scope(schema, &body.table), Purpose::Statement);
    let mut pieces = Pieces { key: key_names(schema, &body.table), ..Pieces::default() };
    writer.push("DELETE FROM ");
    write_table(&mut writer, &body.table);
    pieces.head = writer.take();
    if let Some(filter) = &body.filter {
        writer.expr(filter)?;
        pieces.filter = Some(writer.take());
    }
    let captured = schema.key_columns().map(|column| column.name.clone()).collect::<Vec<_>>();
    let returned = write_returning(&mut writer, &body.returning, captured.into_iter())?;
    pieces.tail = writer.take();
    let keys = condition_keys(body.filter.as_ref(), &writer, schema, &types)?;
    plan(PlanKind::Delete, schema, &writer, pieces, returned, keys, types)
}

/// Binds an INSERT.
pub(super) fn bind_insert(body: &InsertBody, schema: &TableSchema) -> Result<Plan, SqlError> {
    let types = key_types(schema)?;
    let mut writer = Writer::new(scope(schema, &body.table), Purpose::Statement);
    writer.push("INSERT INTO ");
    write_table(&mut writer, &body.table);
    let positions = insert_columns(body, schema)?;
    for (i, position) in positions.iter().enumerate() {
        writer.push(if i > 0 { ", " } else { " (" });
        writer.push(&TableSchema::quote(&schema.columns[*position].name));
    }
    writer.push(") VALUES ");
    let key_places = key_places(schema, &positions)?;
    let mut nulls = Vec::with_capacity(schema.key.len());
    nulls.extend(schema.key_columns().map(|column| not_null(schema, &column.name)));
    let mut rows = Vec::with_capacity(body.rows.len());
    for (i, row) in body.rows.iter().enumerate() {
        if row.len() != positions.len() {
            let more = if row.len() > positions.len() {
                "expressions than target columns"
            } else {
                "target columns than expressions"
            };
            return Err(refuse::syntax(format!("INSERT has more {more}")));
        }
        writer.push(if i > 0 { ", " } else { "" });
        let (key, computed) = row_key(row, &key_places, schema, &types)?;
        write_row(&mut writer, row, &positions, schema, &computed)?;
        rows.push(key);
    }
    let mut effect = RowEffect::Inserts;
    if let Some(conflict) = &body.conflict {
        effect = write_conflict(&mut writer, conflict, schema)?;
    }
    let head = writer.take();
    // Whether a row was there is not to be seen by its values.
    let found = (effect == RowEffect::Upserts).then(|| "xmax".to_string());
    let returned = write_returning(&mut writer, &body.returning, all_columns(schema).chain(found))?;
    for (index, family) in rows.iter().flatten().filter_map(Operand::parameter) {
        writer.check_key_parameter(index, family)?;
    }
    let pieces = Pieces { head, tail: writer.take(), ..Pieces::default() };
    let plain_insert = rows.len() == 1 && body.conflict.is_none();
    let plan = plan(PlanKind::Insert, schema, &writer, pieces, returned, Keys::Rows { rows, nulls }, types)?;
    Ok(Plan { effect, plain_insert, ..plan })
}

/// Which column each value of a row is for. Without a list of columns, values are for the first
/// ones.
fn insert_columns(body: &InsertBody, schema: &TableSchema) -> Result<Vec<usize>, SqlError> {
    if body.columns.is_empty() {
        let width = body.rows.first().map_or(0, Vec::len);
        if width > schema.columns.len() {
            return Err(refuse::syntax("INSERT has more expressions than target columns"));
        }
        return Ok((0..width).collect());
    }
    let mut positions: Vec<usize> = Vec::with_capacity(body.columns.len());
    for name in &body.columns {
        let position = column(schema, name)?;
        if positions.contains(&position) {
            return Err(SqlError::new("42701", format!("column {name:?} specified more than once")));
        }
        positions.push(position);
    }
    Ok(positions)
}

/// Where in a row of values each key column is.
fn key_places(schema: &TableSchema, positions: &[usize]) -> Result<Vec<usize>, SqlError> {
    let place = |key: &usize| {
        positions.iter().position(|position| position == key).ok_or_else(|| {
            let name = schema.columns.get(*key).map_or("", |column| &column.name);
            defaulted(schema, *key).unwrap_or_else(|| not_null(schema, name))
        })
    };
    schema.key.iter().map(place).collect()
}

/// 23502, as PostgreSQL says it.
fn not_null(schema: &TableSchema, column: &str) -> SqlError {
    let message = format!("null value in column {column:?} of relation {:?} violates not-null constraint", schema.name);
    SqlError::new(codes::NOT_NULL, message)
}

/// The refusal of a key that is left to its column's default; `None` if it has none, and so is
/// null.
fn defaulted(schema: &TableSchema, position: usize) -> Option<SqlError> {
    let column = schema.columns.get(position)?;
    let begins = |collation: &str| {
        format!("{} {}{collation} NOT NULL DEFAULT ", TableSchema::quote(&column.name), column.type_name)
    };
    let has_default = ["", " COLLATE \"C\""].iter().any(|collation| schema.create_sql.contains(&begins(collation)));
    has_default.then(|| {
        let name = &column.name;
        SqlError::unsupported(
            format!("an INSERT that leaves the key column {name:?} to its default is not supported, because the key decides where the row goes"),
            "give the key its value; draw one in the client if need be",
        )
    })
}

/// Writes a row; for the places in `computed` the integers there.
fn write_row(
    writer: &mut Writer<'_>,
    row: &[Expr],
    positions: &[usize],
    schema: &TableSchema,
    computed: &[(usize, i128)],
) -> Result<(), SqlError> {
    // A value of a new row cannot name columns.
    let scope = std::mem::replace(&mut writer.scope, Scope { table: None, alias: None, excluded: false });
    for (i, (value, position)) in row.iter().zip(positions).enumerate() {
        writer.push(if i > 0 { ", " } else { "(" });
        match computed.iter().find(|(place, _)| *place == i) {
            Some((_, value)) => writer.push(&value.to_string()),
            None => write_value(writer, value, family(schema, *position))?,
        }
    }
    writer.push(")");
    writer.scope = scope;
    Ok(())
}

/// A new row's key, and of it what was computed here: where in the row, and the value.
type RowKey = (Vec<Operand>, Vec<(usize, i128)>);

fn row_key(row: &[Expr], places: &[usize], schema: &TableSchema, types: &[KeyType]) -> Result<RowKey, SqlError> {
    let (mut key, mut computed) = (Vec::with_capacity(places.len()), Vec::new());
    for (i, (place, kind)) in places.iter().zip(types).enumerate() {
        let value = &row[*place];
        let name = schema.columns.get(schema.key[i]).map_or("", |column| &column.name);
        if is_default(value) {
            return Err(defaulted(schema, schema.key[i]).unwrap_or_else(|| not_null(schema, name)));
        }
        if integer_limits(*kind).is_some()
            && is_computed(value)
            && let Some(integer) = assigned_integer(value)?
        {
            computed.push((*place, integer));
            key.push(integer_operand(integer, *kind));
            continue;
        }
        let Some(operand) = operand(value, i + 1, *kind)? else {
            // An expression that is not supported anywhere has a better message of its own.
            let nothing = Scope { table: None, alias: None, excluded: false };
            write_value(&mut Writer::new(nothing, Purpose::Statement), value, family(schema, schema.key[i]))?;
            return Err(SqlError::unsupported(
                format!(
                    "the key column {name:?} needs a constant or a parameter, because the key decides where the row goes"
                ),
                "compute the key in the client, for example draw a uuid there",
            ));
        };
        key.push(operand);
    }
    Ok((key, computed))
}

/// Whether it is more than a literal, a parameter or a cast of one.
fn is_computed(expr: &Expr) -> bool {
    match peel(expr) {
        Expr::BinaryOp { .. } => true,
        Expr::Value(value) => matches!(&value.value, Literal::Number(digits, _) if digits.contains(['.', 'e', 'E'])),
        Expr::UnaryOp { expr, .. } | Expr::Cast { expr, .. } => is_computed(expr),
        _ => false,
    }
}

fn write_conflict(writer: &mut Writer<'_>, conflict: &OnConflict, schema: &TableSchema) -> Result<RowEffect, SqlError> {
    writer.push(" ON CONFLICT");
    match &conflict.conflict_target {
        None => {}
        Some(ConflictTarget::Columns(columns)) => {
            let mut positions = Vec::new();
            for (i, name) in columns.iter().enumerate() {
                let name = names::identifier(name)?;
                positions.push(column(schema, &name)?);
                writer.push(if i > 0 { ", " } else { " (" });
                writer.push(&TableSchema::quote(&name));
            }
            writer.push(")");
            let mut key = schema.key.clone();
            key.sort_unstable();
            positions.sort_unstable();
            if positions != key {
                let message = "there is no unique or exclusion constraint matching the ON CONFLICT specification";
                return Err(SqlError::new("42P10", message).hint("name the columns of the primary key"));
            }
        }
        Some(ConflictTarget::OnConstraint(_)) => return Err(super::refuse::clause("ON CONSTRAINT")),
    }
    match &conflict.action {
        OnConflictAction::DoNothing => {
            writer.push(" DO NOTHING");
            Ok(RowEffect::Inserts)
        }
        OnConflictAction::DoUpdate(DoUpdate { assignments, selection }) => {
            if conflict.conflict_target.is_none() {
                return Err(refuse::syntax("ON CONFLICT DO UPDATE requires the columns of the primary key"));
            }
            let outer = writer.scope;
            writer.scope.excluded = true;
            writer.push(" DO UPDATE SET ");
            write_assignments(writer, assignments, schema)?;
            if let Some(selection) = selection {
                writer.push(" WHERE ");
                writer.expr(selection)?;
            }
            writer.scope = outer;
            Ok(RowEffect::Upserts)
        }
    }
}
