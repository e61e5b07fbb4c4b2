//! Binding a SELECT: its text in our words, its keys, and whether it can be answered range by
//! range.

use super::calls::order_options;
use super::expr::Writer;
use super::narrow::{Narrow, Reader};
use super::plan::{Capture, Keys, LimitExpr, Pieces, Plan, PlanKind, RowEffect, Scan};
use super::region::KeyShape;
use super::scope::{Purpose, Scope};
use super::statement::{SelectBody, TableRef};
use super::syntax::{parameter_index, peel};
use super::types::Family;
use super::{names, refuse};
use evenkeel_protocol::error::{SqlError, codes};
use evenkeel_protocol::key::{KeyCodec, KeyType};
use evenkeel_protocol::schema::TableSchema;
use sqlparser::ast::{
    CastKind, Distinct, Expr, LockClause, LockType, NonBlock, OrderByExpr, OrderBySort, SelectItem,
    SelectItemQualifiedWildcardKind, Value as Literal, WildcardAdditionalOptions,
};

/// A table's key, checked to be encodable.
pub(super) fn key_types(schema: &TableSchema) -> Result<Vec<KeyType>, SqlError> {
    let types = schema.key_types();
    if !schema.is_ordered() || types.len() != schema.key.len() {
        return Err(SqlError::new(codes::INTERNAL, format!("the key of table {:?} cannot be encoded", schema.name)));
    }
    Ok(types)
}

/// The key columns as a statement can name them beyond doubt, with their types.
pub(super) fn key_names(schema: &TableSchema, table: &TableRef) -> Vec<(String, &'static str)> {
    let called = TableSchema::quote(table.alias.as_ref().unwrap_or(&table.name));
    let name = |column: &str| format!("{called}.{}", TableSchema::quote(column));
    let types = schema.key_types();
    schema.key_columns().zip(types).map(|(column, kind)| (name(&column.name), kind.sql_name())).collect()
}

/// Where the keys of a statement with this condition lie; checks the parameters that decide it.
pub(super) fn condition_keys(
    filter: Option<&Expr>,
    writer: &Writer<'_>,
    schema: &TableSchema,
    types: &[KeyType],
) -> Result<Keys, SqlError> {
    let narrow = match filter {
        Some(filter) => Reader { writer, schema, types }.read(filter)?,
        None => Narrow::Everything,
    };
    let mut parameters = Vec::new();
    narrow.operands(&mut |operand| parameters.extend(operand.parameter()));
    for (index, family) in parameters {
        writer.check_key_parameter(index, family)?;
    }
    // The hot path: each key column equals one constant. Further conditions can only narrow, so
    // they are left out.
    let point: Option<Vec<_>> = (0..types.len()).map(|column| narrow.fixed_column(column).cloned()).collect();
    Ok(point.map_or(Keys::Condition(narrow), Keys::Point))
}

/// `"table" AS "alias"`.
pub(super) fn write_table(writer: &mut Writer<'_>, table: &TableRef) {
    writer.push(&TableSchema::quote(&table.name));
    if let Some(alias) = &table.alias {
        writer.push(" AS ");
        writer.push(&TableSchema::quote(alias));
    }
}

/// Writes a SELECT or RETURNING list; returns how many columns it makes.
pub(super) fn write_items(writer: &mut Writer<'_>, items: &[SelectItem]) -> Result<usize, SqlError> {
    let mut columns = 0;
    for (i, item) in items.iter().enumerate() {
        writer.push(if i > 0 { ", " } else { "" });
        match item {
            SelectItem::UnnamedExpr(expr) => {
                writer.expr(expr)?;
                columns += 1;
            }
            SelectItem::ExprWithAlias { expr, alias } => {
                writer.expr(expr)?;
                writer.push(" AS ");
                writer.push(&TableSchema::quote(&names::identifier(alias)?));
                columns += 1;
            }
            SelectItem::Wildcard(options) => {
                check_wildcard(options)?;
                writer.push("*");
                columns += table_columns(writer)?;
            }
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), options) => {
                check_wildcard(options)?;
                let called = names::column(name)?;
                let table = writer.scope.alias.or(writer.scope.table.map(|table| table.name.as_str()));
                if table != Some(called.as_str()) {
                    let message = format!("missing FROM-clause entry for table {called:?}");
                    return Err(SqlError::new(codes::UNDEFINED_TABLE, message));
                }
                writer.push(&TableSchema::quote(&called));
                writer.push(".*");
                columns += table_columns(writer)?;
            }
            SelectItem::QualifiedWildcard(..) | SelectItem::ExprWithAliases { .. } => {
                return Err(refuse::clause("this form of a column list"));
            }
        }
    }
    Ok(columns)
}

fn check_wildcard(options: &WildcardAdditionalOptions) -> Result<(), SqlError> {
    let WildcardAdditionalOptions {
        wildcard_token: _,
        opt_ilike,
        opt_exclude,
        opt_except,
        opt_replace,
        opt_rename,
        opt_alias,
    } = options;
    let plain = opt_ilike.is_none()
        && opt_exclude.is_none()
        && opt_except.is_none()
        && opt_replace.is_none()
        && opt_rename.is_none()
        && opt_alias.is_none();
    if plain { Ok(()) } else { Err(refuse::clause("an option after *")) }
}

fn table_columns(writer: &Writer<'_>) -> Result<usize, SqlError> {
    let table = writer.scope.table.ok_or_else(|| super::refuse::syntax("SELECT * needs a table"))?;
    Ok(table.columns.len())
}

/// Binds a SELECT.
pub(super) fn bind(body: &SelectBody, schema: Option<&TableSchema>) -> Result<Plan, SqlError> {
    let scope =
        Scope { table: schema, alias: body.table.as_ref().and_then(|table| table.alias.as_deref()), excluded: false };
    let types = schema.map(key_types).transpose()?.unwrap_or_default();
    let mut writer = Writer::new(scope, Purpose::Statement);
    let mut pieces = Pieces::default();
    let returned;
    (returned, pieces.columns_end) = write_head(&mut writer, body)?;
    pieces.head = writer.take();
    if let Some(filter) = &body.filter {
        writer.expr(filter)?;
        pieces.filter = Some(writer.take());
    }
    write_groups(&mut writer, body)?;
    let limit = body.limit.as_ref().map(|limit| write_count(&mut writer, limit, "LIMIT")).transpose()?;
    let (limit_text, limit) = limit.unzip();
    let limit = limit.flatten();
    pieces.limit = limit_text;
    if let Some(offset) = &body.offset {
        pieces.offset = Some(write_count(&mut writer, offset, "OFFSET")?.0);
    }
    let keys = match schema {
        Some(schema) => condition_keys(body.filter.as_ref(), &writer, schema, &types)?,
        None => Keys::NoTable,
    };
    let by_key = schema.and_then(|schema| ordered_by_key(body, &writer, schema, &keys));
    let whole = body.distinct.is_some()
        || writer.aggregates
        || !body.group_by.is_empty()
        || body.having.is_some()
        || body.offset.is_some()
        || !(body.order_by.is_empty() || by_key.is_some());
    let scan = match &keys {
        Keys::Point(_) | Keys::NoTable => Scan::Single,
        _ if whole => Scan::Whole,
        _ => Scan::RangeByRange { limit: limit.clone() },
    };
    write_order(&mut writer, body)?;
    pieces.tail = writer.take();
    pieces.lock = lock_text(&body.locks, body.table.as_ref())?;
    if let (Some(schema), Some(table)) = (schema, &body.table) {
        pieces.key = key_names(schema, table);
    }
    Ok(Plan {
        kind: PlanKind::Select,
        table: schema.map(|schema| schema.id),
        parameters: writer.parameters(),
        locks: !body.locks.is_empty(),
        sql: pieces.assemble(&[], None),
        pieces,
        returned,
        descending: by_key == Some(Direction::Descending) && matches!(scan, Scan::RangeByRange { .. }),
        capture: Capture::None,
        assigned: Vec::new(),
        effect: RowEffect::None,
        scan,
        limit,
        keys,
        shape: KeyShape::new(KeyCodec::new(types))?,
        plain_insert: false,
    })
}

/// Writes everything before WHERE; returns how many columns are asked for, and where they end.
fn write_head(writer: &mut Writer<'_>, body: &SelectBody) -> Result<(usize, usize), SqlError> {
    writer.push("SELECT ");
    match &body.distinct {
        None | Some(Distinct::All) => {}
        Some(Distinct::Distinct) => writer.push("DISTINCT "),
        Some(Distinct::On(list)) => {
            writer.push("DISTINCT ON (");
            for (i, expr) in list.iter().enumerate() {
                writer.push(if i > 0 { ", " } else { "" });
                write_sorted(writer, expr, body)?;
            }
            writer.push(") ");
        }
    }
    let returned = write_items(writer, &body.items)?;
    let columns_end = writer.out.len();
    if let Some(table) = &body.table {
        writer.push(" FROM ");
        write_table(writer, table);
    }
    Ok((returned, columns_end))
}

fn write_groups(writer: &mut Writer<'_>, body: &SelectBody) -> Result<(), SqlError> {
    for (i, expr) in body.group_by.iter().enumerate() {
        writer.push(if i > 0 { ", " } else { " GROUP BY " });
        write_sorted(writer, expr, body)?;
    }
    if let Some(having) = &body.having {
        writer.push(" HAVING ");
        writer.expr(having)?;
    }
    Ok(())
}

fn write_order(writer: &mut Writer<'_>, body: &SelectBody) -> Result<(), SqlError> {
    for (i, item) in body.order_by.iter().enumerate() {
        writer.push(if i > 0 { ", " } else { " ORDER BY " });
        write_sorted(writer, &item.expr, body)?;
        for option in order_options(item)? {
            writer.push(option);
        }
    }
    Ok(())
}

/// Writes an expression of ORDER BY, GROUP BY or DISTINCT ON, where a bare name can be that of an
/// output column.
fn write_sorted(writer: &mut Writer<'_>, expr: &Expr, body: &SelectBody) -> Result<(), SqlError> {
    if let Expr::Identifier(ident) = expr
        && !names::is_value_word(ident)
    {
        let name = names::identifier(ident)?;
        let aliased = body.items.iter().any(|item| is_alias(item, &name));
        if aliased {
            writer.push(&TableSchema::quote(&name));
            return Ok(());
        }
    }
    writer.expr(expr)
}

fn is_alias(item: &SelectItem, name: &str) -> bool {
    matches!(item, SelectItem::ExprWithAlias { alias, .. } if names::identifier(alias).is_ok_and(|alias| alias == name))
}

/// A LIMIT or OFFSET: its text and, if it bounds anything, its value.
fn write_count(writer: &mut Writer<'_>, expr: &Expr, clause: &str) -> Result<(String, Option<LimitExpr>), SqlError> {
    let before = std::mem::take(&mut writer.out);
    writer.typed(expr, Family::Integer)?;
    let text = std::mem::replace(&mut writer.out, before);
    let inner = match peel(expr) {
        Expr::Cast { kind: CastKind::Cast | CastKind::DoubleColon, expr, .. } => peel(expr),
        other => other,
    };
    let unsupported =
        || SqlError::unsupported(format!("this {clause} is not supported"), "give a number of rows, or a parameter");
    let Expr::Value(value) = inner else { return Err(unsupported()) };
    match &value.value {
        Literal::Null => Ok((text, None)),
        Literal::Placeholder(name) => Ok((text, Some(LimitExpr::Parameter(parameter_index(name)?)))),
        Literal::Number(digits, false) => match digits.parse::<i64>() {
            Ok(rows) => Ok((text, Some(LimitExpr::Rows(rows.unsigned_abs())))),
            Err(_) => Err(unsupported()),
        },
        _ => Err(unsupported()),
    }
}

/// Which way through the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ascending,
    Descending,
}

/// The direction in which the order asked for is that of the keys, so that ranges one after the
/// other give it; `None` if it is another order.
///
/// A prefix of the key suffices: ranges follow one another in key order, so rows of an earlier
/// range never sort after those of a later one. Columns that the condition fixes, and columns after
/// the whole key, order nothing.
fn ordered_by_key(body: &SelectBody, writer: &Writer<'_>, schema: &TableSchema, keys: &Keys) -> Option<Direction> {
    let fixed = |column: usize| matches!(keys, Keys::Condition(narrow) if narrow.fixed_column(column).is_some());
    let mut next = 0;
    let mut so_far = None;
    for item in &body.order_by {
        while next < schema.key.len() && fixed(next) {
            next += 1;
        }
        if next == schema.key.len() {
            break;
        }
        let position = sort_column(item, body, writer)?;
        match schema.key.iter().position(|key| *key == position) {
            // All columns must go the same way: rows of one range never sort between those of
            // another only then.
            Some(column) if column == next && *so_far.get_or_insert(direction(item)?) == direction(item)? => next += 1,
            // Sorted by already, or constant.
            Some(column) if column < next || fixed(column) => {}
            _ => return None,
        }
    }
    Some(so_far.unwrap_or(Direction::Ascending))
}

/// Which way an item of ORDER BY sorts; key columns have no nulls, so where those go is all the
/// same.
fn direction(item: &OrderByExpr) -> Option<Direction> {
    match item.options.sort {
        None | Some(OrderBySort::Asc) => Some(Direction::Ascending),
        Some(OrderBySort::Desc) => Some(Direction::Descending),
        Some(_) => None,
    }
}

/// The table's column that an item of ORDER BY sorts by.
fn sort_column(item: &OrderByExpr, body: &SelectBody, writer: &Writer<'_>) -> Option<usize> {
    // PostgreSQL looks for the name among the output columns first.
    if let Expr::Identifier(ident) = &item.expr {
        let name = names::identifier(ident).ok()?;
        for output in &body.items {
            match output {
                SelectItem::ExprWithAlias { expr, .. } if is_alias(output, &name) => return writer.as_column(expr),
                SelectItem::UnnamedExpr(expr) if writer.as_column(expr).is_none() && may_be_called(expr, &name) => {
                    return None;
                }
                _ => {}
            }
        }
    }
    writer.as_column(&item.expr)
}

/// Whether PostgreSQL may call the column that an expression makes `name`.
fn may_be_called(expr: &Expr, name: &str) -> bool {
    match peel(expr) {
        Expr::BinaryOp { .. } | Expr::UnaryOp { .. } | Expr::InList { .. } | Expr::Between { .. } | Expr::IsNull(_) => {
            false
        }
        Expr::Value(_) | Expr::IsNotNull(_) | Expr::Like { .. } | Expr::ILike { .. } => false,
        Expr::Function(function) => names::function(&function.name).is_ok_and(|function| function == name),
        _ => true,
    }
}

fn lock_text(locks: &[LockClause], table: Option<&TableRef>) -> Result<String, SqlError> {
    let mut text = String::new();
    for LockClause { lock_type, of, nonblock } in locks {
        let Some(table) = table else { return Err(super::refuse::syntax("FOR UPDATE needs a table")) };
        text.push_str(match lock_type {
            LockType::Share => " FOR SHARE",
            LockType::Update => " FOR UPDATE",
        });
        if let Some(of) = of {
            let called = table.alias.as_ref().unwrap_or(&table.name);
            if names::column(of)? != *called {
                let message = format!("relation {of} in FOR UPDATE clause not found in FROM clause");
                return Err(SqlError::new(codes::UNDEFINED_TABLE, message));
            }
        }
        text.push_str(match nonblock {
            None => "",
            Some(NonBlock::Nowait) => " NOWAIT",
            Some(NonBlock::SkipLocked) => " SKIP LOCKED",
        });
    }
    Ok(text)
}
