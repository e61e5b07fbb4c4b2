//! Binding INSERT, UPDATE and DELETE: their keys, and RETURNING rewritten so that every change comes back (R7).
//!
//! After the columns that the user asked for come the columns that the log needs: the whole new row for INSERT and UPDATE,
//! the key for DELETE. An UPDATE cannot change a key, because its row could then belong to another range and RETURNING
//! does not show the old key (R15).

use super::expr::{Purpose, Scope, Writer};
use super::operand::{Operand, operand};
use super::plan::{Capture, Keys, Pieces, Plan, PlanKind, RowEffect, Scan};
use super::region::KeyShape;
use super::select::{condition_keys, key_names, key_types, write_items, write_table};
use super::statement::{DeleteBody, InsertBody, TableRef, UpdateBody};
use super::types::Family;
use super::{names, parse};
use crate::error::{SqlError, codes};
use crate::key::{KeyCodec, KeyType};
use crate::schema::TableSchema;
use sqlparser::ast::{
    Assignment, AssignmentTarget, ConflictTarget, DoUpdate, Expr, OnConflict, OnConflictAction, SelectItem,
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

/// Writes `"column" = value` for each assignment. Keys stay as they are.
fn write_assignments(
    writer: &mut Writer<'_>,
    assignments: &[Assignment],
    schema: &TableSchema,
) -> Result<(), SqlError> {
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
    }
    Ok(())
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
        Keys::Rows(rows) => rows.len() == 1,
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
        effect,
        scan: if single { Scan::Single } else { Scan::Whole },
        limit: None,
        keys,
        shape: KeyShape::new(KeyCodec::new(types))?,
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
    write_assignments(&mut writer, &body.assignments, schema)?;
    pieces.head = writer.take();
    if let Some(filter) = &body.filter {
        writer.expr(filter)?;
        pieces.filter = Some(writer.take());
    }
    let returned = write_returning(&mut writer, &body.returning, all_columns(schema))?;
    pieces.tail = writer.take();
    let keys = condition_keys(body.filter.as_ref(), &writer, schema, &types)?;
    plan(PlanKind::Update, schema, &writer, pieces, returned, keys, types)
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
    let mut rows = Vec::with_capacity(body.rows.len());
    for (i, row) in body.rows.iter().enumerate() {
        if row.len() != positions.len() {
            let more = if row.len() > positions.len() {
                "expressions than target columns"
            } else {
                "target columns than expressions"
            };
            return Err(parse::syntax(format!("INSERT has more {more}")));
        }
        writer.push(if i > 0 { ", " } else { "" });
        write_row(&mut writer, row, &positions, schema)?;
        rows.push(row_key(row, &key_places, schema, &types)?);
    }
    let mut effect = RowEffect::Inserts;
    if let Some(conflict) = &body.conflict {
        effect = write_conflict(&mut writer, conflict, schema)?;
    }
    let returned = write_returning(&mut writer, &body.returning, all_columns(schema))?;
    for (index, family) in rows.iter().flatten().filter_map(Operand::parameter) {
        writer.check_key_parameter(index, family)?;
    }
    let pieces = Pieces { head: writer.take(), ..Pieces::default() };
    let plan = plan(PlanKind::Insert, schema, &writer, pieces, returned, Keys::Rows(rows), types)?;
    Ok(Plan { effect, ..plan })
}

/// Which column each value of a row is for. Without a list of columns, values are for the first ones.
fn insert_columns(body: &InsertBody, schema: &TableSchema) -> Result<Vec<usize>, SqlError> {
    if body.columns.is_empty() {
        let width = body.rows.first().map_or(0, Vec::len);
        if width > schema.columns.len() {
            return Err(parse::syntax("INSERT has more expressions than target columns"));
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
            SqlError::unsupported(
                format!("an INSERT without a value for the key column {name:?} is not supported, because the key decides where the row goes"),
                "give the key its value; draw one in the client if need be",
            )
        })
    };
    schema.key.iter().map(place).collect()
}

fn write_row(writer: &mut Writer<'_>, row: &[Expr], positions: &[usize], schema: &TableSchema) -> Result<(), SqlError> {
    // A value of a new row cannot name columns.
    let scope = std::mem::replace(&mut writer.scope, Scope { table: None, alias: None, excluded: false });
    for (i, (value, position)) in row.iter().zip(positions).enumerate() {
        writer.push(if i > 0 { ", " } else { "(" });
        write_value(writer, value, family(schema, *position))?;
    }
    writer.push(")");
    writer.scope = scope;
    Ok(())
}

fn row_key(row: &[Expr], places: &[usize], schema: &TableSchema, types: &[KeyType]) -> Result<Vec<Operand>, SqlError> {
    let key = places.iter().zip(types).enumerate().map(|(i, (place, kind))| {
        operand(&row[*place], i + 1, *kind)?.ok_or_else(|| {
            let name = schema.columns.get(schema.key[i]).map_or("", |column| &column.name);
            SqlError::unsupported(
                format!(
                    "the key column {name:?} needs a literal or a parameter, because the key decides where the row goes"
                ),
                "compute the key in the client, for example draw a uuid there",
            )
        })
    });
    key.collect()
}

fn write_conflict(writer: &mut Writer<'_>, conflict: &OnConflict, schema: &TableSchema) -> Result<RowEffect, SqlError> {
    writer.push(" ON CONFLICT");
    match &conflict.conflict_target {
        None => {}
        Some(ConflictTarget::Columns(columns)) => {
            let mut positions = Vec::new();
            for (i, name) in columns.iter().enumerate() {
                let name = names::fold(name)?;
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
                return Err(parse::syntax("ON CONFLICT DO UPDATE requires the columns of the primary key"));
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
