//! Writes expressions again from the parsed tree.
//!
//! PostgreSQL sees the text that this module writes and never the text of the user. The analysed
//! statement is therefore the one that runs, and an expression that the analyser does not
//! understand is refused. Names are quoted, columns are checked against the schema, and functions
//! against the allow-list. Operands that are not simple are put in parentheses, so that the result
//! does not depend on both parsers agreeing about precedence.

use super::calls::{self, Call, Piece};
use super::names;
use super::refuse::syntax;
use super::scope::{Purpose, Scope};
use super::syntax::{
    comparison_operator, is_atomic, is_condition, is_excluded, is_negative_number, is_plain_number, is_regex,
    other_operator, parameter_index, peel, quote_text, says_when, shortened, string_value,
};
use super::types::{Family, built_in};
use evenkeel_protocol::error::{SqlError, codes};
use evenkeel_protocol::schema::TableSchema;
use sqlparser::ast::{BinaryOperator, CaseWhen, CastKind, DataType, Expr, Ident, UnaryOperator, Value as Literal};

/// Writes expressions and remembers what it saw in them.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    pub scope: Scope<'a>,
    pub purpose: Purpose,
    /// What has been written.
    pub out: String,
    /// Whether an aggregate was called.
    pub aggregates: bool,
    /// Each use of a parameter (from 0) and the type PostgreSQL gives it there.
    uses: Vec<(usize, Family)>,
}

impl<'a> Writer<'a> {
    pub fn new(scope: Scope<'a>, purpose: Purpose) -> Writer<'a> {
        Writer { scope, purpose, out: String::new(), aggregates: false, uses: Vec::new() }
    }

    /// Takes what was written so far.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.out)
    }

    pub fn push(&mut self, text: &str) {
        self.out.push_str(text);
    }

    /// How many parameters there are: the highest number used.
    pub fn parameters(&self) -> usize {
        self.uses.iter().map(|(index, _)| index + 1).max().unwrap_or(0)
    }

    /// Checks that a parameter which decides where a statement goes is read as the same value
    /// everywhere. PostgreSQL gives a parameter one type, taken from where it sees it first; as
    /// `double precision`, for example, a large key would be rounded there and not here.
    pub fn check_key_parameter(&self, index: usize, family: Family) -> Result<(), SqlError> {
        if self.uses.iter().all(|(used, other)| *used != index || *other == family) {
            return Ok(());
        }
        Err(SqlError::unsupported(
            format!("the parameter ${} stands for a key and for a value of another type", index + 1),
            "pass the value as two parameters, or cast each use to the key's type",
        ))
    }

    /// The position of a column in the schema.
    pub fn column(&self, idents: &[Ident]) -> Result<usize, SqlError> {
        let (column, qualifier) = match idents {
            [column] => (column, None),
            [table, column] => (column, Some(names::identifier(table)?)),
            [schema, table, column] if names::identifier(schema)? == "public" && self.scope.alias.is_none() => {
                (column, Some(names::identifier(table)?))
            }
            _ => return Err(syntax("a column's name is expected")),
        };
        let name = names::identifier(column)?;
        let Some(table) = self.scope.table else {
            let message = if self.purpose == Purpose::Default {
                format!("a default cannot use the column {name:?}")
            } else {
                format!("column {name:?} does not exist")
            };
            return Err(SqlError::new(codes::UNDEFINED_COLUMN, message));
        };
        if let Some(qualifier) = qualifier {
            let called = self.scope.alias.unwrap_or(&table.name);
            if qualifier != called && !(self.scope.excluded && qualifier == "excluded") {
                return Err(SqlError::new(
                    codes::UNDEFINED_TABLE,
                    format!("missing FROM-clause entry for table {qualifier:?}"),
                ));
            }
        }
        if let Some(position) = table.columns.iter().position(|c| c.name == name) {
            return Ok(position);
        }
        if names::is_system_column(&name) {
            return Err(SqlError::unsupported(
                format!("the system column {name} is not supported: it differs from replica to replica"),
                "name the primary key",
            ));
        }
        if name == self.scope.alias.unwrap_or(&table.name) {
            return Err(SqlError::unsupported("a whole row as a value is not supported", "name the columns"));
        }
        Err(SqlError::new(codes::UNDEFINED_COLUMN, format!("column {name:?} does not exist in table {:?}", table.name)))
    }

    /// The column that an expression is, without its parentheses.
    pub fn as_column(&self, expr: &Expr) -> Option<usize> {
        match peel(expr) {
            Expr::Identifier(ident) if !names::is_value_word(ident) => self.column(std::slice::from_ref(ident)).ok(),
            // `excluded` is another row.
            Expr::CompoundIdentifier(idents) if !(self.scope.excluded && is_excluded(idents)) => {
                self.column(idents).ok()
            }
            _ => None,
        }
    }

    fn family(&self, expr: &Expr) -> Family {
        let position = match peel(expr) {
            Expr::Identifier(ident) if !names::is_value_word(ident) => self.column(std::slice::from_ref(ident)).ok(),
            Expr::CompoundIdentifier(idents) => self.column(idents).ok(),
            _ => None,
        };
        let column = position.and_then(|i| self.scope.table?.columns.get(i));
        column.map_or(Family::Unknown, |column| Family::of(column.type_oid))
    }

    fn write_column(&mut self, idents: &[Ident]) -> Result<(), SqlError> {
        let position = self.column(idents)?;
        let name = self.scope.table.and_then(|t| t.columns.get(position)).map(|c| TableSchema::quote(&c.name));
        if let [.., qualifier, _] = idents {
            let qualifier = TableSchema::quote(&names::identifier(qualifier)?);
            self.push(&qualifier);
            self.push(".");
        }
        self.push(&name.unwrap_or_default());
        Ok(())
    }

    /// Writes an expression.
    pub fn expr(&mut self, expr: &Expr) -> Result<(), SqlError> {
        match expr {
            Expr::Identifier(ident) if names::is_value_word(ident) => Err(SqlError::unsupported(
                format!("{} is not supported", ident.value),
                "all clients share one role; pass what you need as a parameter",
            )),
            Expr::Identifier(ident) => self.write_column(std::slice::from_ref(ident)),
            Expr::CompoundIdentifier(idents) => self.write_column(idents),
            Expr::Value(value) => self.literal(&value.value, Family::Unknown),
            Expr::Nested(inner) => self.parenthesised(inner),
            Expr::UnaryOp { op, expr } => self.unary(*op, expr),
            Expr::BinaryOp { left, op, right } => self.binary(left, op, right),
            Expr::IsNull(e) => self.postfix(e, " IS NULL"),
            Expr::IsNotNull(e) => self.postfix(e, " IS NOT NULL"),
            Expr::IsTrue(e) => self.postfix(e, " IS TRUE"),
            Expr::IsNotTrue(e) => self.postfix(e, " IS NOT TRUE"),
            Expr::IsFalse(e) => self.postfix(e, " IS FALSE"),
            Expr::IsNotFalse(e) => self.postfix(e, " IS NOT FALSE"),
            Expr::IsUnknown(e) => self.postfix(e, " IS UNKNOWN"),
            Expr::IsNotUnknown(e) => self.postfix(e, " IS NOT UNKNOWN"),
            Expr::IsDistinctFrom(left, right) => self.comparison(left, " IS DISTINCT FROM ", right),
            Expr::IsNotDistinctFrom(left, right) => self.comparison(left, " IS NOT DISTINCT FROM ", right),
            Expr::InList { expr, list, negated } => self.in_list(expr, list, *negated),
            Expr::Between { expr, negated, low, high } => self.between(expr, *negated, low, high),
            Expr::Like { negated, any: false, expr, pattern, escape_char } => {
                self.like(expr, if *negated { " NOT LIKE " } else { " LIKE " }, pattern, escape_char.as_deref())
            }
            Expr::ILike { negated, any: false, expr, pattern, escape_char } => {
                self.like(expr, if *negated { " NOT ILIKE " } else { " ILIKE " }, pattern, escape_char.as_deref())
            }
            Expr::SimilarTo { negated, expr, pattern, escape_char } => {
                let operator = if *negated { " NOT SIMILAR TO " } else { " SIMILAR TO " };
                self.like(expr, operator, pattern, escape_char.as_deref())
            }
            // -3 COLLATE "C"::text: again the sign, which PostgreSQL binds tightest.
            Expr::Cast { kind: CastKind::DoubleColon, expr, .. }
                if matches!(**expr, Expr::Collate { .. } | Expr::AtTimeZone { .. }) =>
            {
                Err(ambiguous("::"))
            }
            Expr::Cast { kind: CastKind::Cast | CastKind::DoubleColon, expr, data_type, format: None } => {
                self.cast(expr, data_type)
            }
            Expr::TypedString(typed) if !typed.uses_odbc_syntax => {
                let value = Expr::Value(typed.value.clone());
                self.cast(&value, &typed.data_type)
            }
            Expr::Collate { expr, collation } => self.collate(expr, collation),
            Expr::Case { case_token: _, end_token: _, operand, conditions, else_result } => {
                self.case(operand.as_deref(), conditions, else_result.as_deref())
            }
            other => self.call(calls::call(other, self.purpose)?),
        }
    }

    fn call(&mut self, call: Call<'_>) -> Result<(), SqlError> {
        self.aggregates |= call.is_aggregate;
        for piece in call.pieces {
            match piece {
                Piece::Text(text) => self.push(&text),
                Piece::Expr(expr) => self.expr(expr)?,
                Piece::Operand(expr) => self.operand(expr)?,
                Piece::Literal(literal) => self.literal(literal, Family::Unknown)?,
                Piece::Refused(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn parenthesised(&mut self, expr: &Expr) -> Result<(), SqlError> {
        self.push("(");
        self.expr(expr)?;
        self.push(")");
        Ok(())
    }

    /// An operand of something that binds tighter than most operators: in parentheses unless it
    /// needs none.
    fn operand(&mut self, expr: &Expr) -> Result<(), SqlError> {
        if is_atomic(expr) {
            return self.expr(expr);
        }
        match expr {
            Expr::BinaryOp { op, .. } if is_regex(op) => Err(ambiguous_regex()),
            // The tree does not say whether the user wrote ~a + b (PostgreSQL: ~(a + b)) or (~a) +
            // b.
            Expr::UnaryOp { op: UnaryOperator::BitwiseNot, .. } => Err(ambiguous("~")),
            _ => self.parenthesised(expr),
        }
    }

    /// The same with a placeholder that PostgreSQL gives the type `family` there.
    fn typed_operand(&mut self, expr: &Expr, family: Family) -> Result<(), SqlError> {
        if is_atomic(expr) || is_negative_number(expr) {
            return self.typed(expr, family);
        }
        self.operand(expr)
    }

    /// An expression that, if it is a parameter, PostgreSQL gives the type `family`.
    pub fn typed(&mut self, expr: &Expr, family: Family) -> Result<(), SqlError> {
        match peel(expr) {
            Expr::Value(value) if matches!(value.value, Literal::Placeholder(_)) => self.literal(&value.value, family),
            _ => self.expr(expr),
        }
    }

    fn postfix(&mut self, expr: &Expr, suffix: &str) -> Result<(), SqlError> {
        self.operand(expr)?;
        self.push(suffix);
        Ok(())
    }

    fn unary(&mut self, op: UnaryOperator, expr: &Expr) -> Result<(), SqlError> {
        match op {
            UnaryOperator::Not => {
                self.push("NOT ");
                if is_condition(expr) { self.expr(expr) } else { self.operand(expr) }
            }
            UnaryOperator::Minus | UnaryOperator::Plus => {
                // PostgreSQL binds the sign tighter than these, this parser looser.
                let looser = matches!(
                    expr,
                    Expr::BinaryOp { op: BinaryOperator::PGExp, .. } | Expr::Collate { .. } | Expr::AtTimeZone { .. }
                );
                if looser {
                    return Err(ambiguous("a sign"));
                }
                self.push(if op == UnaryOperator::Minus { "-" } else { "+" });
                // "--" would begin a comment.
                self.operand(expr)
            }
            UnaryOperator::BitwiseNot if is_atomic(expr) => {
                self.push("~");
                self.operand(expr)
            }
            _ => Err(SqlError::unsupported(
                format!("the operator {op} is not supported here"),
                "use a function, or parentheses",
            )),
        }
    }

    fn binary(&mut self, left: &Expr, op: &BinaryOperator, right: &Expr) -> Result<(), SqlError> {
        use BinaryOperator as B;
        if matches!(op, B::And | B::Or) {
            self.logical(left, op)?;
            self.push(if *op == B::And { " AND " } else { " OR " });
            return self.logical(right, op);
        }
        if let Some(operator) = comparison_operator(op) {
            return self.comparison(left, operator, right);
        }
        if is_regex(op) && !(is_atomic(left) && is_atomic(right)) {
            return Err(ambiguous_regex());
        }
        let operator = other_operator(op).ok_or_else(|| {
            SqlError::unsupported(
                format!("the operator {op} is not supported"),
                "use a function, or compute it in the application",
            )
        })?;
        self.operand(left)?;
        self.push(operator);
        self.operand(right)
    }

    /// An operand of AND or OR.
    fn logical(&mut self, expr: &Expr, op: &BinaryOperator) -> Result<(), SqlError> {
        let same = matches!(expr, Expr::BinaryOp { op: inner, .. } if inner == op);
        let and_in_or = *op == BinaryOperator::Or && matches!(expr, Expr::BinaryOp { op: BinaryOperator::And, .. });
        if same || and_in_or || is_condition(expr) { self.expr(expr) } else { self.operand(expr) }
    }

    fn comparison(&mut self, left: &Expr, operator: &str, right: &Expr) -> Result<(), SqlError> {
        if let (Expr::Tuple(lefts), Expr::Tuple(rights)) = (peel(left), peel(right)) {
            if lefts.len() != rights.len() {
                return Err(syntax("unequal number of entries in row expressions"));
            }
            self.row(lefts, rights)?;
            self.push(operator);
            return self.row(rights, lefts);
        }
        // a < b < c has no meaning in PostgreSQL.
        if [left, right].iter().any(|e| matches!(e, Expr::BinaryOp { op, .. } if comparison_operator(op).is_some())) {
            return Err(syntax("comparisons cannot be chained").hint("put one of them in parentheses"));
        }
        self.typed_operand(left, self.family(right))?;
        self.push(operator);
        self.typed_operand(right, self.family(left))
    }

    /// A row of a comparison, beside the row it is compared with.
    fn row(&mut self, values: &[Expr], others: &[Expr]) -> Result<(), SqlError> {
        self.push("(");
        for (i, (value, other)) in values.iter().zip(others).enumerate() {
            self.push(if i > 0 { ", " } else { "" });
            self.typed(value, self.family(other))?;
        }
        self.push(")");
        Ok(())
    }

    fn in_list(&mut self, expr: &Expr, list: &[Expr], negated: bool) -> Result<(), SqlError> {
        let operator = if negated { " NOT IN (" } else { " IN (" };
        if let Expr::Tuple(columns) = peel(expr) {
            self.row(columns, columns)?;
            self.push(operator);
            for (i, item) in list.iter().enumerate() {
                self.push(if i > 0 { ", " } else { "" });
                match peel(item) {
                    Expr::Tuple(values) if values.len() == columns.len() => self.row(values, columns)?,
                    _ => return Err(syntax("a row is expected in this list")),
                }
            }
        } else {
            let family = self.family(expr);
            // The whole list gets one type; it is the column's only if nothing in the list pulls it
            // elsewhere.
            let pulls = list.iter().any(|item| !self.has_family(item, family));
            self.operand(expr)?;
            self.push(operator);
            for (i, item) in list.iter().enumerate() {
                self.push(if i > 0 { ", " } else { "" });
                self.typed(item, if pulls { Family::Unknown } else { family })?;
            }
        }
        self.push(")");
        Ok(())
    }

    /// Whether an item of a list is a constant that takes, or has, a type of this family.
    fn has_family(&self, item: &Expr, family: Family) -> bool {
        match peel(item) {
            Expr::Value(value) => match &value.value {
                Literal::Number(digits, _) => family == Family::Integer && digits.parse::<i64>().is_ok(),
                Literal::Placeholder(_) | Literal::Null => true,
                literal => string_value(literal).is_some(),
            },
            Expr::UnaryOp { op: UnaryOperator::Minus, expr } => {
                family == Family::Integer && self.has_family(expr, family)
            }
            Expr::Cast { data_type, .. } => built_in(data_type).is_ok_and(|t| Family::of(t.oid) == family),
            Expr::TypedString(typed) => built_in(&typed.data_type).is_ok_and(|t| Family::of(t.oid) == family),
            _ => false,
        }
    }

    fn between(&mut self, expr: &Expr, negated: bool, low: &Expr, high: &Expr) -> Result<(), SqlError> {
        if matches!(peel(expr), Expr::Tuple(_)) {
            return Err(SqlError::unsupported("BETWEEN on rows is not supported", "use >= and <="));
        }
        let family = self.family(expr);
        self.operand(expr)?;
        self.push(if negated { " NOT BETWEEN " } else { " BETWEEN " });
        self.typed_operand(low, family)?;
        self.push(" AND ");
        self.typed_operand(high, family)
    }

    fn like(&mut self, expr: &Expr, operator: &str, pattern: &Expr, escape: Option<&Expr>) -> Result<(), SqlError> {
        self.operand(expr)?;
        self.push(operator);
        self.operand(pattern)?;
        if let Some(escape) = escape {
            self.push(" ESCAPE ");
            self.operand(escape)?;
        }
        Ok(())
    }

    fn cast(&mut self, expr: &Expr, data_type: &DataType) -> Result<(), SqlError> {
        let target = built_in(data_type)?;
        // A text that says "today" is another day on a replica that evaluates it tomorrow.
        if self.purpose == Purpose::Check && matches!(target.oid, 1082 | 1083 | 1114 | 1184) {
            let timely = |oid| !matches!(oid, 25 | 1042 | 1043);
            let column = self.as_column(expr).and_then(|i| self.scope.table?.columns.get(i));
            if !column.is_some_and(|c| timely(c.type_oid)) && !matches!(peel(expr), Expr::Value(_)) {
                return Err(SqlError::unsupported(
                    format!(
                        "a CHECK cannot cast this to {}: what a text means as a time can depend on the day",
                        target.sql
                    ),
                    "give the column the type it is cast to",
                ));
            }
        }
        let simple = matches!(expr, Expr::Value(_));
        self.push(if simple { "" } else { "CAST(" });
        self.typed(expr, Family::of(target.oid))?;
        self.push(if simple { "::" } else { " AS " });
        self.push(&target.sql);
        self.push(if simple { "" } else { ")" });
        Ok(())
    }

    fn collate(&mut self, expr: &Expr, collation: &sqlparser::ast::ObjectName) -> Result<(), SqlError> {
        if names::function(collation)? != "C" {
            return Err(SqlError::unsupported(
                format!("the collation {collation} is not supported"),
                "use COLLATE \"C\"",
            ));
        }
        self.operand(expr)?;
        self.push(" COLLATE \"C\"");
        Ok(())
    }

    fn case(
        &mut self,
        operand: Option<&Expr>,
        conditions: &[CaseWhen],
        otherwise: Option<&Expr>,
    ) -> Result<(), SqlError> {
        self.push("CASE");
        if let Some(operand) = operand {
            self.push(" ");
            self.operand(operand)?;
        }
        for CaseWhen { condition, result } in conditions {
            self.push(" WHEN ");
            self.expr(condition)?;
            self.push(" THEN ");
            self.expr(result)?;
        }
        if let Some(otherwise) = otherwise {
            self.push(" ELSE ");
            self.expr(otherwise)?;
        }
        self.push(" END");
        Ok(())
    }

    fn literal(&mut self, literal: &Literal, family: Family) -> Result<(), SqlError> {
        match literal {
            Literal::Number(digits, false) if is_plain_number(digits) => self.push(digits),
            Literal::Boolean(true) => self.push("true"),
            Literal::Boolean(false) => self.push("false"),
            Literal::Null => self.push("NULL"),
            Literal::Placeholder(name) => {
                let index = parameter_index(name)?;
                if self.purpose != Purpose::Statement {
                    return Err(SqlError::new(
                        codes::UNDEFINED_PARAMETER,
                        "a table's definition cannot have parameters",
                    ));
                }
                self.uses.push((index, family));
                self.push(name);
            }
            other => match string_value(other) {
                Some(text) => {
                    if self.purpose == Purpose::Check && says_when(text) {
                        return Err(SqlError::unsupported(
                            format!(
                                "a CHECK cannot contain {text:?}, because it can mean another time on every replica"
                            ),
                            "write the time out",
                        ));
                    }
                    let quoted = quote_text(text);
                    self.push(&quoted);
                }
                None => {
                    return Err(SqlError::unsupported(
                        format!("the literal {} is not supported", shortened(&other.to_string())),
                        "use a decimal number, a text in single quotes, or a parameter",
                    ));
                }
            },
        }
        Ok(())
    }
}

fn ambiguous(what: &str) -> SqlError {
    let message = format!("{what} beside another operator is not supported without parentheses");
    SqlError::unsupported(message, "put parentheses around what belongs together")
}

fn ambiguous_regex() -> SqlError {
    ambiguous("a match with ~, or what it matches,")
}
