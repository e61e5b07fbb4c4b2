//! Small questions about parsed expressions.

use super::limits::MAX_PARAMETERS;
use super::names;
use super::refuse::syntax;
use evenkeel_protocol::error::{SqlError, codes};
use sqlparser::ast::{BinaryOperator, Expr, Ident, UnaryOperator, Value as Literal};

/// An expression without the parentheses around it.
pub(super) fn peel(mut expr: &Expr) -> &Expr {
    while let Expr::Nested(inner) = expr {
        expr = inner;
    }
    expr
}

/// The text of a string literal, in any of PostgreSQL's notations that need no session setting.
pub(super) fn string_value(literal: &Literal) -> Option<&str> {
    match literal {
        Literal::SingleQuotedString(text) | Literal::EscapedStringLiteral(text) => Some(text),
        Literal::DollarQuotedString(quoted) => Some(&quoted.value),
        _ => None,
    }
}

/// A parameter's number, from 0.
pub(super) fn parameter_index(name: &str) -> Result<usize, SqlError> {
    match name.strip_prefix('$').and_then(|digits| digits.parse::<usize>().ok()) {
        Some(number @ 1..=MAX_PARAMETERS) => Ok(number - 1),
        Some(_) => Err(SqlError::new(codes::UNDEFINED_PARAMETER, format!("there is no parameter {name}"))
            .hint(format!("parameters are numbered from $1 to ${MAX_PARAMETERS}"))),
        None => Err(syntax(format!("{name:?} is not a parameter")).hint("write parameters as $1, $2, …")),
    }
}

/// A text as SQL: in quotes, whatever the session thinks of backslashes.
pub(super) fn quote_text(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", doubled.replace('\\', "\\\\")) } else { format!("'{doubled}'") }
}

pub(super) fn is_plain_number(digits: &str) -> bool {
    let exponent =
        |b: (usize, u8)| matches!(b.1, b'+' | b'-') && b.0 > 0 && matches!(digits.as_bytes()[b.0 - 1], b'e' | b'E');
    digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().enumerate().all(|b| b.1.is_ascii_digit() || matches!(b.1, b'.' | b'e' | b'E') || exponent(b))
}

pub(super) fn is_excluded(idents: &[Ident]) -> bool {
    matches!(idents, [table, _] if names::identifier(table).is_ok_and(|name| name == "excluded"))
}

/// Whether a text contains a word that PostgreSQL's date input takes for the current time.
pub(super) fn says_when(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphabetic())
        .any(|word| ["now", "today", "tomorrow", "yesterday"].iter().any(|when| when.eq_ignore_ascii_case(word)))
}

pub(super) fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

/// Whether an expression is one piece, whatever stands beside it.
pub(super) fn is_atomic(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::Identifier(_)
            | Expr::CompoundIdentifier(_)
            | Expr::Value(_)
            | Expr::Nested(_)
            | Expr::Function(_)
            | Expr::Cast { .. }
            | Expr::TypedString(_)
            | Expr::Interval(_)
            | Expr::Case { .. }
            | Expr::Extract { .. }
            | Expr::Substring { .. }
            | Expr::Trim { .. }
            | Expr::Position { .. }
            | Expr::Ceil { .. }
            | Expr::Floor { .. }
    )
}

pub(super) fn is_negative_number(expr: &Expr) -> bool {
    matches!(expr, Expr::UnaryOp { op: UnaryOperator::Minus, expr }
        if matches!(&**expr, Expr::Value(v) if matches!(v.value, Literal::Number(..))))
}

/// Whether an expression is a condition that binds tighter than NOT, AND and OR.
pub(super) fn is_condition(expr: &Expr) -> bool {
    match expr {
        Expr::BinaryOp { op, .. } => comparison_operator(op).is_some() || is_regex(op),
        Expr::IsNull(_)
        | Expr::IsNotNull(_)
        | Expr::IsTrue(_)
        | Expr::IsNotTrue(_)
        | Expr::IsFalse(_)
        | Expr::IsNotFalse(_)
        | Expr::IsUnknown(_)
        | Expr::IsNotUnknown(_)
        | Expr::IsDistinctFrom(..)
        | Expr::IsNotDistinctFrom(..)
        | Expr::InList { .. }
        | Expr::Between { .. }
        | Expr::Like { .. }
        | Expr::ILike { .. }
        | Expr::SimilarTo { .. } => true,
        Expr::UnaryOp { op: UnaryOperator::Not, .. } => true,
        _ => false,
    }
}

/// A match with a regular expression: PostgreSQL binds it as tightly as `||`, this parser as
/// loosely as `=`.
pub(super) fn is_regex(op: &BinaryOperator) -> bool {
    matches!(
        op,
        BinaryOperator::PGRegexMatch
            | BinaryOperator::PGRegexIMatch
            | BinaryOperator::PGRegexNotMatch
            | BinaryOperator::PGRegexNotIMatch
    )
}

pub(super) fn comparison_operator(op: &BinaryOperator) -> Option<&'static str> {
    Some(match op {
        BinaryOperator::Eq => " = ",
        BinaryOperator::NotEq => " <> ",
        BinaryOperator::Lt => " < ",
        BinaryOperator::LtEq => " <= ",
        BinaryOperator::Gt => " > ",
        BinaryOperator::GtEq => " >= ",
        _ => return None,
    })
}

pub(super) fn other_operator(op: &BinaryOperator) -> Option<&'static str> {
    use BinaryOperator as B;
    Some(match op {
        B::Plus => " + ",
        B::Minus => " - ",
        B::Multiply => " * ",
        B::Divide => " / ",
        B::Modulo => " % ",
        B::PGExp => " ^ ",
        B::StringConcat => " || ",
        B::BitwiseAnd => " & ",
        B::BitwiseOr => " | ",
        B::PGBitwiseXor => " # ",
        B::PGBitwiseShiftLeft => " << ",
        B::PGBitwiseShiftRight => " >> ",
        B::PGRegexMatch => " ~ ",
        B::PGRegexIMatch => " ~* ",
        B::PGRegexNotMatch => " !~ ",
        B::PGRegexNotIMatch => " !~* ",
        B::Arrow => " -> ",
        B::LongArrow => " ->> ",
        B::HashArrow => " #> ",
        B::HashLongArrow => " #>> ",
        B::HashMinus => " #- ",
        B::AtArrow => " @> ",
        B::ArrowAt => " <@ ",
        B::Question => " ? ",
        B::QuestionPipe => " ?| ",
        B::QuestionAnd => " ?& ",
        _ => return None,
    })
}
