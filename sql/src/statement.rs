//! The shape of a statement: its one table and its supported clauses.
//!
//! Every field of the parser's structures is named here, without `..`. A clause that the parser
//! knows and that this code does not write again would be dropped silently, and the statement would
//! mean something else.

use super::refuse::syntax;
use super::{names, refuse};
use evenkeel_protocol::error::SqlError;
use sqlparser::ast::{
    Assignment, ConflictTarget, Delete, Distinct, Expr, FromTable, GroupByExpr, Insert, LimitClause, LockClause,
    ObjectName, OnConflict, OnInsert, OrderBy, OrderByExpr, OrderByKind, Query, Select, SelectFlavor, SelectItem,
    SetExpr, TableFactor, TableObject, TableWithJoins, Update,
};

/// The table that a statement is about.
#[derive(Debug, Clone)]
pub(super) struct TableRef {
    pub name: String,
    pub alias: Option<String>,
}

/// A SELECT, reduced to the supported clauses.
#[derive(Debug, Clone)]
pub(super) struct SelectBody {
    pub table: Option<TableRef>,
    pub distinct: Option<Distinct>,
    pub items: Vec<SelectItem>,
    pub filter: Option<Expr>,
    pub group_by: Vec<Expr>,
    pub having: Option<Expr>,
    pub order_by: Vec<OrderByExpr>,
    pub limit: Option<Expr>,
    pub offset: Option<Expr>,
    pub locks: Vec<LockClause>,
}

/// An INSERT, reduced to the supported clauses.
#[derive(Debug, Clone)]
pub(super) struct InsertBody {
    pub table: TableRef,
    /// Empty if the statement names none.
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Expr>>,
    pub conflict: Option<OnConflict>,
    pub returning: Vec<SelectItem>,
}

/// An UPDATE, reduced to the supported clauses.
#[derive(Debug, Clone)]
pub(super) struct UpdateBody {
    pub table: TableRef,
    pub assignments: Vec<Assignment>,
    pub filter: Option<Expr>,
    pub returning: Vec<SelectItem>,
}

/// A DELETE, reduced to the supported clauses.
#[derive(Debug, Clone)]
pub(super) struct DeleteBody {
    pub table: TableRef,
    pub filter: Option<Expr>,
    pub returning: Vec<SelectItem>,
}

/// A statement, reduced to the supported clauses.
#[derive(Debug, Clone)]
pub(super) enum Body {
    Select(Box<SelectBody>),
    Insert(Box<InsertBody>),
    Update(Box<UpdateBody>),
    Delete(Box<DeleteBody>),
}

impl Body {
    pub fn table(&self) -> Option<&TableRef> {
        match self {
            Body::Select(body) => body.table.as_ref(),
            Body::Insert(body) => Some(&body.table),
            Body::Update(body) => Some(&body.table),
            Body::Delete(body) => Some(&body.table),
        }
    }
}

fn refuse_if(present: bool, clause: &str) -> Result<(), SqlError> {
    if present { Err(refuse::clause(clause)) } else { Ok(()) }
}

pub(super) fn query(query: Box<Query>) -> Result<Body, SqlError> {
    let Query { with, body, order_by, limit_clause, fetch, locks, for_clause, settings, format_clause, pipe_operators } =
        *query;
    refuse_if(with.is_some(), "WITH")?;
    refuse_if(for_clause.is_some(), "FOR XML")?;
    refuse_if(settings.is_some(), "SETTINGS")?;
    refuse_if(format_clause.is_some(), "FORMAT")?;
    refuse_if(!pipe_operators.is_empty(), "|>")?;
    let mut select = match *body {
        SetExpr::Select(select) => select_body(*select)?,
        SetExpr::SetOperation { .. } => {
            return Err(SqlError::unsupported(
                "UNION, INTERSECT and EXCEPT are not supported yet",
                "send one SELECT for each part",
            ));
        }
        SetExpr::Query(_) => {
            return Err(SqlError::unsupported("a SELECT in parentheses is not supported", "leave the parentheses out"));
        }
        _ => return Err(SqlError::unsupported("this kind of query is not supported", "use SELECT")),
    };
    if let Some(OrderBy { kind, interpolate }) = order_by {
        refuse_if(interpolate.is_some(), "INTERPOLATE")?;
        match kind {
            OrderByKind::All(_) => return Err(refuse::clause("ORDER BY ALL")),
            OrderByKind::Expressions(list) => select.order_by = list,
        }
    }
    match limit_clause {
        None => {}
        Some(LimitClause::LimitOffset { limit, offset, limit_by }) => {
            refuse_if(!limit_by.is_empty(), "LIMIT BY")?;
            select.limit = limit;
            select.offset = offset.map(|offset| offset.value);
        }
        Some(LimitClause::OffsetCommaLimit { .. }) => {
            return Err(SqlError::unsupported("LIMIT with a comma is not supported", "use LIMIT … OFFSET …"));
        }
    }
    if let Some(fetch) = fetch {
        refuse_if(fetch.with_ties, "WITH TIES")?;
        refuse_if(fetch.percent, "PERCENT")?;
        if select.limit.is_some() {
            return Err(syntax("LIMIT and FETCH cannot both be given"));
        }
        // FETCH FIRST ROW ONLY, without a number, is one row.
        select.limit =
            Some(fetch.quantity.unwrap_or_else(|| Expr::value(sqlparser::ast::Value::Number("1".into(), false))));
    }
    select.locks = locks;
    Ok(Body::Select(Box::new(select)))
}

fn select_body(select: Select) -> Result<SelectBody, SqlError> {
    let Select {
        select_token: _,
        optimizer_hints: _, // comments
        distinct,
        select_modifiers,
        top,
        top_before_distinct: _,
        projection,
        exclude,
        into,
        from,
        lateral_views,
        prewhere,
        selection,
        connect_by,
        group_by,
        cluster_by,
        distribute_by,
        sort_by,
        having,
        named_window,
        qualify,
        window_before_qualify: _,
        value_table_mode,
        flavor,
    } = select;
    if into.is_some() {
        return Err(SqlError::unsupported("SELECT INTO is not supported", "use CREATE TABLE, then INSERT"));
    }
    refuse_if(select_modifiers.is_some(), "a SELECT modifier")?;
    refuse_if(top.is_some(), "TOP")?;
    refuse_if(exclude.is_some(), "EXCLUDE")?;
    refuse_if(!lateral_views.is_empty(), "LATERAL VIEW")?;
    refuse_if(prewhere.is_some(), "PREWHERE")?;
    refuse_if(!connect_by.is_empty(), "CONNECT BY")?;
    refuse_if(!cluster_by.is_empty(), "CLUSTER BY")?;
    refuse_if(!distribute_by.is_empty(), "DISTRIBUTE BY")?;
    refuse_if(!sort_by.is_empty(), "SORT BY")?;
    refuse_if(!named_window.is_empty(), "WINDOW")?;
    refuse_if(qualify.is_some(), "QUALIFY")?;
    refuse_if(value_table_mode.is_some(), "AS STRUCT")?;
    refuse_if(flavor != SelectFlavor::Standard, "FROM before SELECT")?;
    let group_by = match group_by {
        GroupByExpr::Expressions(list, modifiers) if modifiers.is_empty() => list,
        _ => return Err(refuse::clause("this GROUP BY")),
    };
    if projection.is_empty() {
        return Err(SqlError::unsupported("a SELECT without columns is not supported", "select a constant, such as 1"));
    }
    Ok(SelectBody {
        table: if from.is_empty() { None } else { Some(single_table(from)?) },
        distinct,
        items: projection,
        filter: selection,
        group_by,
        having,
        order_by: Vec::new(),
        limit: None,
        offset: None,
        locks: Vec::new(),
    })
}

/// The one table of a FROM list.
fn single_table(mut from: Vec<TableWithJoins>) -> Result<TableRef, SqlError> {
    let Some(TableWithJoins { relation, joins }) = from.pop() else { return Err(syntax("FROM names no table")) };
    if !from.is_empty() || !joins.is_empty() {
        return Err(refuse::join());
    }
    match relation {
        TableFactor::Table {
            name,
            alias,
            args,
            with_hints,
            version,
            with_ordinality,
            partitions,
            json_path,
            sample,
            index_hints,
        } => {
            if args.is_some() || with_ordinality {
                return Err(set_returning());
            }
            refuse_if(!with_hints.is_empty(), "a table hint")?;
            refuse_if(version.is_some(), "a table version")?;
            refuse_if(!partitions.is_empty(), "PARTITION")?;
            refuse_if(json_path.is_some(), "a path after a table")?;
            refuse_if(sample.is_some(), "TABLESAMPLE")?;
            refuse_if(!index_hints.is_empty(), "an index hint")?;
            let alias = match alias {
                None => None,
                Some(alias) if alias.columns.is_empty() && alias.at.is_none() => Some(names::identifier(&alias.name)?),
                Some(_) => return Err(refuse::clause("a list of columns after a table's alias")),
            };
            Ok(TableRef { name: names::table(&name)?, alias })
        }
        TableFactor::Derived { .. } => Err(refuse::subquery()),
        TableFactor::NestedJoin { .. } => Err(refuse::join()),
        _ => Err(set_returning()),
    }
}

fn set_returning() -> SqlError {
    SqlError::unsupported("a function in FROM is not supported", "name a table in FROM, or leave FROM out")
}

pub(super) fn insert(insert: Insert) -> Result<Body, SqlError> {
    let Insert {
        insert_token: _,
        optimizer_hints: _, // comments
        or,
        ignore,
        into,
        table,
        table_alias,
        columns,
        overwrite,
        source,
        assignments,
        partitioned,
        after_columns,
        has_table_keyword,
        on,
        returning,
        output,
        replace_into,
        priority,
        insert_alias,
        settings,
        format_clause,
        multi_table_insert_type,
        multi_table_into_clauses,
        multi_table_when_clauses,
        multi_table_else_clause,
    } = insert;
    let foreign = or.is_some()
        || ignore
        || !into
        || overwrite
        || !assignments.is_empty()
        || partitioned.is_some()
        || !after_columns.is_empty()
        || has_table_keyword
        || output.is_some()
        || replace_into
        || priority.is_some()
        || insert_alias.is_some()
        || settings.is_some()
        || format_clause.is_some()
        || multi_table_insert_type.is_some()
        || !multi_table_into_clauses.is_empty()
        || !multi_table_when_clauses.is_empty()
        || multi_table_else_clause.is_some();
    if foreign {
        return Err(syntax("this is not PostgreSQL's INSERT").hint("use INSERT INTO table (columns) VALUES (…)"));
    }
    let TableObject::TableName(name) = table else { return Err(refuse::subquery()) };
    let alias = table_alias.map(|alias| names::identifier(&alias.alias)).transpose()?;
    let columns = columns.iter().map(names::column).collect::<Result<Vec<_>, _>>()?;
    let Some(source) = source else {
        return Err(SqlError::unsupported(
            "INSERT … DEFAULT VALUES is not supported, because a row's key decides where it goes",
            "give the key columns their values",
        ));
    };
    let conflict = match on {
        None => None,
        Some(OnInsert::OnConflict(conflict)) => Some(checked_conflict(conflict)?),
        Some(_) => return Err(refuse::clause("ON DUPLICATE KEY UPDATE")),
    };
    Ok(Body::Insert(Box::new(InsertBody {
        table: TableRef { name: names::table(&name)?, alias },
        columns,
        rows: value_rows(*source)?,
        conflict,
        returning: returning.unwrap_or_default(),
    })))
}

fn checked_conflict(conflict: OnConflict) -> Result<OnConflict, SqlError> {
    match conflict.conflict_target {
        Some(ConflictTarget::OnConstraint(_)) => Err(SqlError::unsupported(
            "ON CONFLICT ON CONSTRAINT is not supported",
            "name the primary key's columns: ON CONFLICT (…)",
        )),
        _ => Ok(conflict),
    }
}

fn value_rows(query: Query) -> Result<Vec<Vec<Expr>>, SqlError> {
    let Query { with, body, order_by, limit_clause, fetch, locks, for_clause, settings, format_clause, pipe_operators } =
        query;
    let SetExpr::Values(values) = *body else {
        return Err(SqlError::unsupported(
            "INSERT … SELECT is not supported yet, because its rows can go to other shards",
            "read the rows first and insert them with VALUES",
        ));
    };
    let plain = with.is_none()
        && order_by.is_none()
        && limit_clause.is_none()
        && fetch.is_none()
        && locks.is_empty()
        && for_clause.is_none()
        && settings.is_none()
        && format_clause.is_none()
        && pipe_operators.is_empty()
        && !values.explicit_row
        && !values.value_keyword;
    if !plain {
        return Err(SqlError::unsupported("VALUES with further clauses is not supported", "use VALUES (…), (…)"));
    }
    Ok(values.rows.into_iter().map(|row| row.content).collect())
}

pub(super) fn update(update: Update) -> Result<Body, SqlError> {
    let Update {
        update_token: _,
        optimizer_hints: _, // comments
        table,
        assignments,
        from,
        selection,
        returning,
        output,
        or,
        order_by,
        limit,
    } = update;
    if from.is_some() {
        return Err(SqlError::unsupported(
            "UPDATE … FROM is not supported yet",
            "read the other table first and pass its values as parameters",
        ));
    }
    refuse_if(output.is_some(), "OUTPUT")?;
    refuse_if(or.is_some(), "UPDATE OR")?;
    refuse_if(!order_by.is_empty(), "ORDER BY in UPDATE")?;
    refuse_if(limit.is_some(), "LIMIT in UPDATE")?;
    Ok(Body::Update(Box::new(UpdateBody {
        table: single_table(vec![table])?,
        assignments,
        filter: selection,
        returning: returning.unwrap_or_default(),
    })))
}

pub(super) fn delete(delete: Delete) -> Result<Body, SqlError> {
    let Delete {
        delete_token: _,
        optimizer_hints: _, // comments
        tables,
        from,
        using,
        selection,
        returning,
        output,
        order_by,
        limit,
    } = delete;
    let (FromTable::WithFromKeyword(from), []) = (from, &tables[..] as &[ObjectName]) else {
        return Err(syntax("this is not PostgreSQL's DELETE").hint("use DELETE FROM table WHERE …"));
    };
    if using.is_some() {
        return Err(SqlError::unsupported(
            "DELETE … USING is not supported yet",
            "read the other table first and pass its values as parameters",
        ));
    }
    refuse_if(output.is_some(), "OUTPUT")?;
    refuse_if(!order_by.is_empty(), "ORDER BY in DELETE")?;
    refuse_if(limit.is_some(), "LIMIT in DELETE")?;
    Ok(Body::Delete(Box::new(DeleteBody {
        table: single_table(from)?,
        filter: selection,
        returning: returning.unwrap_or_default(),
    })))
}
