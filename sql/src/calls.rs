//! Writes function calls, and what SQL gives a syntax of its own (EXTRACT, SUBSTRING, …).

use super::expr::{Purpose, Writer};
use super::functions::{self, Class};
use super::parse::syntax;
use super::syntax::{peel, shortened, string_value};
use super::types::Family;
use super::{names, refuse};
use evenkeel_protocol::error::SqlError;
use sqlparser::ast::{
    CeilFloorKind, DateTimeField, DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArgumentClause, FunctionArgumentList, FunctionArguments, OrderByExpr, OrderBySort, TrimWhereField,
    Value as Literal,
};

impl Writer<'_> {
    /// Functions that SQL gives a syntax of their own.
    pub(super) fn special_syntax(&mut self, expr: &Expr) -> Result<(), SqlError> {
        match expr {
            Expr::Extract { field, syntax: _, expr } => self.extract(field, expr),
            Expr::Ceil { expr, field: CeilFloorKind::DateTimeField(DateTimeField::NoDateTime) } => {
                self.call("ceil", &[expr])
            }
            Expr::Floor { expr, field: CeilFloorKind::DateTimeField(DateTimeField::NoDateTime) } => {
                self.call("floor", &[expr])
            }
            Expr::Position { expr, r#in } => {
                self.push("position(");
                self.operand(expr)?;
                self.push(" IN ");
                self.operand(r#in)?;
                self.push(")");
                Ok(())
            }
            Expr::Substring { expr, substring_from, substring_for, special: _, shorthand } => {
                let name = if *shorthand { "substr" } else { "substring" };
                match (substring_from, substring_for) {
                    (Some(from), Some(length)) => self.call(name, &[expr, from, length]),
                    (Some(from), None) => self.call(name, &[expr, from]),
                    _ => {
                        Err(SqlError::unsupported("SUBSTRING without FROM is not supported", "use left(text, length)"))
                    }
                }
            }
            Expr::Trim { trim_where, trim_what, expr, trim_characters: None } => {
                let name = match trim_where {
                    None | Some(TrimWhereField::Both) => "btrim",
                    Some(TrimWhereField::Leading) => "ltrim",
                    Some(TrimWhereField::Trailing) => "rtrim",
                };
                match trim_what {
                    Some(what) => self.call(name, &[expr, what]),
                    None => self.call(name, &[expr]),
                }
            }
            Expr::AtTimeZone { timestamp, time_zone } => {
                self.operand(timestamp)?;
                self.push(" AT TIME ZONE ");
                self.operand(time_zone)
            }
            Expr::Interval(interval) => self.interval(interval),
            Expr::InSubquery { .. } | Expr::Exists { .. } | Expr::Subquery(_) => Err(refuse::subquery()),
            Expr::AnyOp { .. } | Expr::AllOp { .. } | Expr::InUnnest { .. } => Err(SqlError::unsupported(
                "ANY and ALL over an array are not supported yet",
                "use IN (…) with one parameter for each value",
            )),
            Expr::Array(_) => Err(SqlError::unsupported("arrays are not supported yet", "use jsonb, or IN (…)")),
            Expr::Tuple(_) => Err(SqlError::unsupported(
                "a row as a value is not supported except in comparisons",
                "compare the columns one by one",
            )),
            Expr::CompoundFieldAccess { .. } | Expr::JsonAccess { .. } => {
                Err(SqlError::unsupported("subscripts and field access are not supported", "use -> and ->> on jsonb"))
            }
            other => Err(SqlError::unsupported(
                format!("the expression {} is not supported", shortened(&other.to_string())),
                "compute it in the application",
            )),
        }
    }

    fn extract(&mut self, field: &DateTimeField, expr: &Expr) -> Result<(), SqlError> {
        let name = field.to_string().to_ascii_lowercase();
        let name = name.trim_matches('\'');
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            return Err(SqlError::unsupported(
                format!("EXTRACT of {field} is not supported"),
                "use a field such as day",
            ));
        }
        self.push("extract(");
        self.push(name);
        self.push(" FROM ");
        self.expr(expr)?;
        self.push(")");
        Ok(())
    }

    fn interval(&mut self, interval: &sqlparser::ast::Interval) -> Result<(), SqlError> {
        let plain = interval.leading_field.is_none()
            && interval.leading_precision.is_none()
            && interval.last_field.is_none()
            && interval.fractional_seconds_precision.is_none();
        match &*interval.value {
            Expr::Value(value) if plain && string_value(&value.value).is_some() => {
                self.literal(&value.value, Family::Unknown)?;
                self.push("::interval");
                Ok(())
            }
            _ => Err(SqlError::unsupported("this form of INTERVAL is not supported", "write INTERVAL '1 day'")),
        }
    }

    fn call(&mut self, name: &str, arguments: &[&Expr]) -> Result<(), SqlError> {
        self.check_class(functions::class(name)?, name)?;
        self.push(name);
        self.push("(");
        for (i, argument) in arguments.iter().enumerate() {
            self.push(if i > 0 { ", " } else { "" });
            self.expr(argument)?;
        }
        self.push(")");
        Ok(())
    }

    fn check_class(&mut self, class: Class, name: &str) -> Result<(), SqlError> {
        match class {
            Class::Moving if self.purpose == Purpose::Check => Err(SqlError::unsupported(
                format!("a CHECK cannot call {name}, because every replica evaluates it at another time"),
                "check it in the application, or with a WHERE clause",
            )),
            Class::Aggregate if self.purpose != Purpose::Statement => Err(syntax("an aggregate is not possible here")),
            _ => {
                self.aggregates |= class == Class::Aggregate;
                Ok(())
            }
        }
    }

    pub(super) fn function(&mut self, function: &Function) -> Result<(), SqlError> {
        let Function { name, uses_odbc_syntax, parameters, args, within_group, filter, null_treatment, over } =
            function;
        let name = names::function(name)?;
        if over.is_some() || null_treatment.is_some() {
            return Err(SqlError::unsupported(
                "window functions are not supported yet",
                "compute it in the application",
            ));
        }
        let class = functions::class(&name)?;
        self.check_class(class, &name)?;
        let plain = !uses_odbc_syntax && *parameters == FunctionArguments::None && within_group.is_empty();
        if !plain || (filter.is_some() && class != Class::Aggregate) {
            return Err(SqlError::unsupported(format!("this form of {name} is not supported"), "use name(arguments)"));
        }
        self.push(&name);
        match args {
            FunctionArguments::None if functions::is_bare(&name) => {}
            FunctionArguments::List(list) => self.arguments(&name, class, list)?,
            FunctionArguments::Subquery(_) => return Err(refuse::subquery()),
            FunctionArguments::None => return Err(syntax(format!("{name} is called with parentheses"))),
        }
        if let Some(filter) = filter {
            self.push(" FILTER (WHERE ");
            self.expr(filter)?;
            self.push(")");
        }
        Ok(())
    }

    fn arguments(&mut self, name: &str, class: Class, list: &FunctionArgumentList) -> Result<(), SqlError> {
        let FunctionArgumentList { duplicate_treatment, args, clauses } = list;
        if class == Class::Sized {
            check_size(name, args)?;
        }
        self.push("(");
        match duplicate_treatment {
            Some(DuplicateTreatment::Distinct) => self.push("DISTINCT "),
            None | Some(DuplicateTreatment::All) => {}
        }
        for (i, arg) in args.iter().enumerate() {
            self.push(if i > 0 { ", " } else { "" });
            match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => self.expr(expr)?,
                FunctionArg::Unnamed(FunctionArgExpr::Wildcard) if name == "count" => self.push("*"),
                _ => {
                    let what = format!("this argument of {name} is not supported");
                    return Err(SqlError::unsupported(what, "give the arguments by position"));
                }
            }
        }
        for clause in clauses {
            match clause {
                FunctionArgumentClause::OrderBy(order) if class == Class::Aggregate => {
                    self.push(" ORDER BY ");
                    for (i, item) in order.iter().enumerate() {
                        self.push(if i > 0 { ", " } else { "" });
                        self.expr(&item.expr)?;
                        self.order_options(item)?;
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
        self.push(")");
        Ok(())
    }

    /// Direction and place of nulls of one item of ORDER BY.
    pub fn order_options(&mut self, item: &OrderByExpr) -> Result<(), SqlError> {
        if item.with_fill.is_some() {
            return Err(refuse::clause("WITH FILL"));
        }
        match &item.options.sort {
            None => {}
            Some(OrderBySort::Asc) => self.push(" ASC"),
            Some(OrderBySort::Desc) => self.push(" DESC"),
            Some(OrderBySort::Using(_)) => return Err(refuse::clause("ORDER BY … USING")),
        }
        match item.options.nulls_first {
            None => {}
            Some(true) => self.push(" NULLS FIRST"),
            Some(false) => self.push(" NULLS LAST"),
        }
        Ok(())
    }
}

/// Bounds the result of `repeat` and padding: a replica's memory is at stake.
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
    // What is repeated is a column, a parameter or a literal: sizes must not multiply.
    let simple =
        matches!(peel(text), Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Value(_) | Expr::Cast { .. });
    match &size.value {
        Literal::Number(digits, _) if simple && digits.parse().is_ok_and(|n: u64| n <= functions::MAX_SIZED_CHARS) => {
            Ok(())
        }
        _ => Err(unbounded()),
    }
}
