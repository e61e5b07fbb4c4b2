//! The parts of a function call, in the order in which they are written again.
//!
//! The module reads calls, and forms that SQL gives a syntax of their own (EXTRACT, SUBSTRING, …).
//! It checks names, classes and shapes, and leaves the expressions inside to the writer.

use super::functions::{self, Class};
use super::refuse::syntax;
use super::scope::Purpose;
use super::syntax::{peel, shortened, string_value};
use super::{names, refuse};
use evenkeel_protocol::error::SqlError;
use sqlparser::ast::{
    CeilFloorKind, DateTimeField, DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArgumentClause, FunctionArgumentList, FunctionArguments, Interval, OrderByExpr, OrderBySort,
    TrimWhereField, Value as Literal,
};

/// A call, ready to be written.
#[derive(Debug)]
pub(super) struct Call<'a> {
    /// Its parts, in order.
    pub pieces: Vec<Piece<'a>>,
    /// Whether it calls an aggregate.
    pub is_aggregate: bool,
}

/// A part of a call.
#[derive(Debug)]
pub(super) enum Piece<'a> {
    /// SQL, as it is.
    Text(String),
    /// An expression.
    Expr(&'a Expr),
    /// An expression beside an operator: in parentheses unless it needs none.
    Operand(&'a Expr),
    /// A literal.
    Literal(&'a Literal),
    /// The rest of the call is refused. Errors of the expressions before it come first.
    Refused(SqlError),
}

impl<'a> Call<'a> {
    fn new() -> Call<'a> {
        Call { pieces: Vec::new(), is_aggregate: false }
    }

    fn of(pieces: Vec<Piece<'a>>) -> Call<'a> {
        Call { pieces, is_aggregate: false }
    }

    fn push(&mut self, text: &str) {
        self.pieces.push(Piece::Text(text.into()));
    }

    fn expr(&mut self, expr: &'a Expr) {
        self.pieces.push(Piece::Expr(expr));
    }

    /// Ends the call with an error that comes after those of the expressions before it.
    fn refused(mut self, error: SqlError) -> Call<'a> {
        self.pieces.push(Piece::Refused(error));
        self
    }
}

fn text<'a>(text: &str) -> Piece<'a> {
    Piece::Text(text.into())
}

/// Reads a call or a form with a syntax of its own; refuses every other expression.
pub(super) fn call(expr: &Expr, purpose: Purpose) -> Result<Call<'_>, SqlError> {
    match expr {
        Expr::Function(function) => function_call(function, purpose),
        Expr::Extract { field, syntax: _, expr } => extract(field, expr),
        Expr::Ceil { expr, field: CeilFloorKind::DateTimeField(DateTimeField::NoDateTime) } => {
            plain_call("ceil", &[expr], purpose)
        }
        Expr::Floor { expr, field: CeilFloorKind::DateTimeField(DateTimeField::NoDateTime) } => {
            plain_call("floor", &[expr], purpose)
        }
        Expr::Position { expr, r#in } => {
            Ok(Call::of(vec![text("position("), Piece::Operand(expr), text(" IN "), Piece::Operand(r#in), text(")")]))
        }
        Expr::Substring { expr, substring_from, substring_for, special: _, shorthand } => {
            let name = if *shorthand { "substr" } else { "substring" };
            match (substring_from, substring_for) {
                (Some(from), Some(length)) => plain_call(name, &[expr, from, length], purpose),
                (Some(from), None) => plain_call(name, &[expr, from], purpose),
                _ => Err(SqlError::unsupported("SUBSTRING without FROM is not supported", "use left(text, length)")),
            }
        }
        Expr::Trim { trim_where, trim_what, expr, trim_characters: None } => {
            let name = match trim_where {
                None | Some(TrimWhereField::Both) => "btrim",
                Some(TrimWhereField::Leading) => "ltrim",
                Some(TrimWhereField::Trailing) => "rtrim",
            };
            match trim_what {
                Some(what) => plain_call(name, &[expr, what], purpose),
                None => plain_call(name, &[expr], purpose),
            }
        }
        Expr::AtTimeZone { timestamp, time_zone } => {
            Ok(Call::of(vec![Piece::Operand(timestamp), text(" AT TIME ZONE "), Piece::Operand(time_zone)]))
        }
        Expr::Interval(interval) => read_interval(interval),
        other => Err(refused(other)),
    }
}

/// Refuses an expression that is no call.
fn refused(expr: &Expr) -> SqlError {
    match expr {
        Expr::InSubquery { .. } | Expr::Exists { .. } | Expr::Subquery(_) => refuse::subquery(),
        Expr::AnyOp { .. } | Expr::AllOp { .. } | Expr::InUnnest { .. } => SqlError::unsupported(
            "ANY and ALL over an array are not supported yet",
            "use IN (…) with one parameter for each value",
        ),
        Expr::Array(_) => SqlError::unsupported("arrays are not supported yet", "use jsonb, or IN (…)"),
        Expr::Tuple(_) => SqlError::unsupported(
            "a row as a value is not supported except in comparisons",
            "compare the columns one by one",
        ),
        Expr::CompoundFieldAccess { .. } | Expr::JsonAccess { .. } => {
            SqlError::unsupported("subscripts and field access are not supported", "use -> and ->> on jsonb")
        }
        other => SqlError::unsupported(
            format!("the expression {} is not supported", shortened(&other.to_string())),
            "compute it in the application",
        ),
    }
}

fn extract<'a>(field: &DateTimeField, expr: &'a Expr) -> Result<Call<'a>, SqlError> {
    let name = field.to_string().to_ascii_lowercase();
    let name = name.trim_matches('\'');
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
        return Err(SqlError::unsupported(format!("EXTRACT of {field} is not supported"), "use a field such as day"));
    }
    Ok(Call::of(vec![text("extract("), text(name), text(" FROM "), Piece::Expr(expr), text(")")]))
}

fn read_interval(interval: &Interval) -> Result<Call<'_>, SqlError> {
    let plain = interval.leading_field.is_none()
        && interval.leading_precision.is_none()
        && interval.last_field.is_none()
        && interval.fractional_seconds_precision.is_none();
    match &*interval.value {
        Expr::Value(value) if plain && string_value(&value.value).is_some() => {
            Ok(Call::of(vec![Piece::Literal(&value.value), text("::interval")]))
        }
        _ => Err(SqlError::unsupported("this form of INTERVAL is not supported", "write INTERVAL '1 day'")),
    }
}

fn plain_call<'a>(name: &str, arguments: &[&'a Expr], purpose: Purpose) -> Result<Call<'a>, SqlError> {
    let class = functions::class(name)?;
    check_class(class, name, purpose)?;
    let mut call = Call { is_aggregate: class == Class::Aggregate, ..Call::new() };
    call.push(name);
    call.push("(");
    for (i, argument) in arguments.iter().enumerate() {
        call.push(if i > 0 { ", " } else { "" });
        call.expr(argument);
    }
    call.push(")");
    Ok(call)
}

fn check_class(class: Class, name: &str, purpose: Purpose) -> Result<(), SqlError> {
    match class {
        Class::Moving if purpose == Purpose::Check => Err(SqlError::unsupported(
            format!("a CHECK cannot call {name}, because every replica evaluates it at another time"),
            "check it in the application, or with a WHERE clause",
        )),
        Class::Aggregate if purpose != Purpose::Statement => Err(syntax("an aggregate is not possible here")),
        _ => Ok(()),
    }
}

fn function_call(function: &Function, purpose: Purpose) -> Result<Call<'_>, SqlError> {
    let Function { name, uses_odbc_syntax, parameters, args, within_group, filter, null_treatment, over } = function;
    let name = names::function(name)?;
    if over.is_some() || null_treatment.is_some() {
        return Err(SqlError::unsupported("window functions are not supported yet", "compute it in the application"));
    }
    let class = functions::class(&name)?;
    check_class(class, &name, purpose)?;
    let plain = !uses_odbc_syntax && *parameters == FunctionArguments::None && within_group.is_empty();
    if !plain || (filter.is_some() && class != Class::Aggregate) {
        return Err(SqlError::unsupported(format!("this form of {name} is not supported"), "use name(arguments)"));
    }
    let mut call = Call { is_aggregate: class == Class::Aggregate, ..Call::new() };
    call.push(&name);
    match args {
        FunctionArguments::None if functions::is_bare(&name) => {}
        FunctionArguments::List(list) => {
            if let Err(error) = arguments(&mut call, &name, class, list) {
                return Ok(call.refused(error));
            }
        }
        FunctionArguments::Subquery(_) => return Err(refuse::subquery()),
        FunctionArguments::None => return Err(syntax(format!("{name} is called with parentheses"))),
    }
    if let Some(filter) = filter {
        call.push(" FILTER (WHERE ");
        call.expr(filter);
        call.push(")");
    }
    Ok(call)
}

fn arguments<'a>(
    call: &mut Call<'a>,
    name: &str,
    class: Class,
    list: &'a FunctionArgumentList,
) -> Result<(), SqlError> {
    let FunctionArgumentList { duplicate_treatment, args, clauses } = list;
    if class == Class::Sized {
        check_size(name, args)?;
    }
    call.push("(");
    match duplicate_treatment {
        Some(DuplicateTreatment::Distinct) => call.push("DISTINCT "),
        None | Some(DuplicateTreatment::All) => {}
    }
    for (i, arg) in args.iter().enumerate() {
        call.push(if i > 0 { ", " } else { "" });
        match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => call.expr(expr),
            FunctionArg::Unnamed(FunctionArgExpr::Wildcard) if name == "count" => call.push("*"),
            _ => {
                let what = format!("this argument of {name} is not supported");
                return Err(SqlError::unsupported(what, "give the arguments by position"));
            }
        }
    }
    for clause in clauses {
        match clause {
            FunctionArgumentClause::OrderBy(order) if class == Class::Aggregate => {
                call.push(" ORDER BY ");
                for (i, item) in order.iter().enumerate() {
                    call.push(if i > 0 { ", " } else { "" });
                    call.expr(&item.expr);
                    order_options(item)?.into_iter().for_each(|option| call.push(option));
                }
            }
            _ => {
                return Err(SqlError::unsupported(
                    format!("this form of {name} is not supported"),
                    "use name(arguments)",
                ));
            }
        }
    }
    call.push(")");
    Ok(())
}

/// Direction and place of nulls of one item of ORDER BY, as SQL.
pub(super) fn order_options(item: &OrderByExpr) -> Result<[&'static str; 2], SqlError> {
    if item.with_fill.is_some() {
        return Err(refuse::clause("WITH FILL"));
    }
    let direction = match &item.options.sort {
        None => "",
        Some(OrderBySort::Asc) => " ASC",
        Some(OrderBySort::Desc) => " DESC",
        Some(OrderBySort::Using(_)) => return Err(refuse::clause("ORDER BY … USING")),
    };
    let nulls = match item.options.nulls_first {
        None => "",
        Some(true) => " NULLS FIRST",
        Some(false) => " NULLS LAST",
    };
    Ok([direction, nulls])
}

/// Bounds the size of results of `repeat` and padding, since a replica has to hold them in memory.
fn check_size(name: &str, args: &[FunctionArg]) -> Result<(), SqlError> {
    let unbounded = || {
        SqlError::unsupported(
            format!("{name} is supported only with a constant length of at most {}", functions::MAX_SIZED_CHARS),
            "build the text in the application",
        )
    };
    let [text, FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(size))), ..] = args else {
        return Err(unbounded());
    };
    let FunctionArg::Unnamed(FunctionArgExpr::Expr(text)) = text else { return Err(unbounded()) };
    // The repeated text is a column, a parameter or a literal: sizes must not multiply.
    let simple =
        matches!(peel(text), Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Value(_) | Expr::Cast { .. });
    match &size.value {
        Literal::Number(digits, _) if simple && digits.parse().is_ok_and(|n: u64| n <= functions::MAX_SIZED_CHARS) => {
            Ok(())
        }
        _ => Err(unbounded()),
    }
}
