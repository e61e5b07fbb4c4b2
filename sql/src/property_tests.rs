//! Random conditions and statements.
//!
//! A condition over a table with the key (k1 integer, k2 text) is built as a tree, written as SQL,
//! and evaluated by a tiny interpreter with SQL's three truth values. R9 holds if each row for
//! which it is true lies in what the plan touches.

#![allow(clippy::unwrap_used)]
use super::*;
use evenkeel_protocol::error::{SqlError, codes};
use evenkeel_protocol::key::{KeyType, KeyValue};
use evenkeel_protocol::schema::TableSchema;
use evenkeel_protocol::value::Value;
use proptest::prelude::*;
use std::cmp::Ordering;

const TABLE: &str = "CREATE TABLE t (v integer, k2 text, k1 integer, PRIMARY KEY (k1, k2))";

fn schema_of(sql: &str) -> TableSchema {
    match parse(sql) {
        Ok(Command::CreateTable { schema, .. }) => schema,
        other => panic!("{other:?}"),
    }
}

fn plan_of(schema: &TableSchema, sql: &str) -> Result<Plan, SqlError> {
    match parse(sql)? {
        Command::Statement(parsed) => parsed.bind(Some(schema)),
        other => panic!("{other:?}"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Op {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Same,
}

impl Op {
    fn sql(self) -> &'static str {
        match self {
            Op::Equal => "=",
            Op::NotEqual => "<>",
            Op::Less => "<",
            Op::LessOrEqual => "<=",
            Op::Greater => ">",
            Op::GreaterOrEqual => ">=",
            Op::Same => "IS NOT DISTINCT FROM",
        }
    }

    fn holds(self, order: Ordering) -> bool {
        match self {
            Op::Equal | Op::Same => order.is_eq(),
            Op::NotEqual => order.is_ne(),
            Op::Less => order.is_lt(),
            Op::LessOrEqual => order.is_le(),
            Op::Greater => order.is_gt(),
            Op::GreaterOrEqual => order.is_ge(),
        }
    }
}

/// How a constant is written.
#[derive(Debug, Clone, Copy)]
enum Form {
    Literal,
    Quoted,
    Cast,
    Parameter,
    CastParameter,
}

#[derive(Debug, Clone)]
struct Number(Option<i64>, Form);

#[derive(Debug, Clone)]
struct Text(Option<String>, Form);

#[derive(Debug, Clone)]
enum Condition {
    K1(Op, Number, bool),
    K2(Op, Text, bool),
    K1In(Vec<Number>, bool),
    K2In(Vec<Text>),
    K1Between(Number, Number, bool),
    Row(Op, Number, Text, bool),
    RowWithV(Op, Number, i64),
    RowIn(Vec<(Number, Text)>),
    V(Op, i64),
    K1Plus(Op, i64),
    IsNull(&'static str, bool),
    Constant(&'static str),
    And(Box<Condition>, Box<Condition>),
    Or(Box<Condition>, Box<Condition>),
    Not(Box<Condition>),
}

fn op() -> impl Strategy<Value = Op> {
    use Op::*;
    prop::sample::select(vec![Equal, Equal, Equal, NotEqual, Less, LessOrEqual, Greater, GreaterOrEqual, Same])
}

fn row_op() -> impl Strategy<Value = Op> {
    use Op::*;
    prop::sample::select(vec![Equal, NotEqual, Less, LessOrEqual, Greater, GreaterOrEqual])
}

fn form() -> impl Strategy<Value = Form> {
    use Form::*;
    prop::sample::select(vec![Literal, Quoted, Cast, Parameter, CastParameter])
}

fn number() -> impl Strategy<Value = Number> {
    let edge = prop::sample::select(vec![
        i64::from(i32::MIN),
        i64::from(i32::MAX),
        i64::from(i32::MAX) + 1,
        i64::from(i32::MIN) - 1,
        i64::MIN + 1,
        i64::MAX,
    ]);
    let value = prop_oneof![8 => (-3i64..4).prop_map(Some), 2 => edge.prop_map(Some), 1 => Just(None)];
    (value, form()).prop_map(|(value, form)| Number(value, form))
}

fn text() -> impl Strategy<Value = Text> {
    let value = prop::sample::select(vec!["", "a", "aa", "b", "it's\\", "é", "\u{1}", "a\u{1}"]);
    (prop_oneof![9 => value.prop_map(|v| Some(v.to_string())), 1 => Just(None)], form()).prop_map(|(v, f)| Text(v, f))
}

fn condition() -> impl Strategy<Value = Condition> {
    use Condition::*;
    let leaf = prop_oneof![
        6 => (op(), number(), any::<bool>()).prop_map(|(o, n, f)| K1(o, n, f)),
        6 => (op(), text(), any::<bool>()).prop_map(|(o, t, f)| K2(o, t, f)),
        2 => (prop::collection::vec(number(), 1..4), any::<bool>()).prop_map(|(n, not)| K1In(n, not)),
        2 => prop::collection::vec(text(), 1..4).prop_map(K2In),
        2 => (number(), number(), any::<bool>()).prop_map(|(a, b, not)| K1Between(a, b, not)),
        4 => (row_op(), number(), text(), any::<bool>()).prop_map(|(o, n, t, f)| Row(o, n, t, f)),
        3 => (row_op(), number(), -1i64..3).prop_map(|(o, n, v)| RowWithV(o, n, v)),
        1 => prop::collection::vec((number(), text()), 1..3).prop_map(RowIn),
        1 => (op(), -1i64..3).prop_map(|(o, v)| V(o, v)),
        1 => (op(), -1i64..3).prop_map(|(o, v)| K1Plus(o, v)),
        1 => (prop::sample::select(vec!["k1", "k2", "v"]), any::<bool>()).prop_map(|(c, not)| IsNull(c, not)),
        1 => prop::sample::select(vec!["true", "false", "NULL"]).prop_map(Constant),
    ];
    // Most mistakes show best in short conditions.
    let leaf = leaf.boxed();
    let tree = leaf.clone().prop_recursive(3, 8, 2, |inner| {
        let pair = (inner.clone(), inner.clone());
        prop_oneof![
            3 => pair.clone().prop_map(|(a, b)| And(Box::new(a), Box::new(b))),
            2 => pair.prop_map(|(a, b)| Or(Box::new(a), Box::new(b))),
            1 => inner.prop_map(|a| Not(Box::new(a))),
        ]
    });
    prop_oneof![leaf, tree]
}

/// Writes conditions as SQL and collects the parameters.
#[derive(Default)]
struct Sql {
    params: Vec<Value>,
    /// Write every parameter as a literal instead.
    literals: bool,
}

impl Sql {
    fn parameter(&mut self, value: Value) -> String {
        self.params.push(value);
        format!("${}", self.params.len())
    }

    fn number(&mut self, number: &Number) -> String {
        let Number(value, form) = number;
        let in_range = value.is_none_or(|v| i32::try_from(v).is_ok());
        let parameter = value.map_or(Value::Null, Value::Int);
        match (value, form) {
            (Some(v), Form::Literal) => v.to_string(),
            (Some(v), Form::Quoted) if in_range => format!("('{v}')"),
            (Some(v), Form::Parameter | Form::CastParameter) if self.literals && in_range => format!("'{v}'::int"),
            (Some(v), _) if self.literals => format!("'{v}'::bigint"),
            // PostgreSQL would refuse a parameter that does not fit the column's type.
            (_, Form::Parameter) if in_range && !self.literals => self.parameter(parameter),
            (_, Form::Parameter | Form::CastParameter) if !self.literals => {
                format!("{}::bigint", self.parameter(parameter))
            }
            (Some(v), _) => format!("'{v}'::bigint"),
            (None, _) => "NULL".into(),
        }
    }

    fn text(&mut self, text: &Text) -> String {
        let Text(value, form) = text;
        match (value, form) {
            (_, Form::Parameter) if !self.literals => self.parameter(value.clone().map_or(Value::Null, Value::Text)),
            (_, Form::CastParameter) if !self.literals => {
                format!("{}::text", self.parameter(value.clone().map_or(Value::Null, Value::Text)))
            }
            (None, _) => "NULL".into(),
            (Some(v), Form::Cast) => format!("CAST('{}' AS varchar)", v.replace('\'', "''")),
            (Some(v), _) => format!("'{}'", v.replace('\'', "''")),
        }
    }

    fn list<T>(&mut self, items: &[T], write: impl Fn(&mut Self, &T) -> String) -> String {
        items.iter().map(|item| write(self, item)).collect::<Vec<_>>().join(", ")
    }

    fn condition(&mut self, condition: &Condition) -> String {
        use Condition::*;
        let flip = |column: &str, op: Op, value: String, flipped: bool| match (flipped, op) {
            (true, Op::Less) => format!("{value} > {column}"),
            (true, Op::LessOrEqual) => format!("{value} >= {column}"),
            (true, Op::Greater) => format!("{value} < {column}"),
            (true, Op::GreaterOrEqual) => format!("{value} <= {column}"),
            (true, _) => format!("{value} {} {column}", op.sql()),
            (false, _) => format!("{column} {} {value}", op.sql()),
        };
        let not = |negated: &bool| if *negated { "NOT " } else { "" };
        match condition {
            K1(op, n, flipped) => flip("k1", *op, self.number(n), *flipped),
            K2(op, t, flipped) => flip("t.K2", *op, self.text(t), *flipped),
            K1In(list, negated) => format!("k1 {}IN ({})", not(negated), self.list(list, Sql::number)),
            K2In(list) => format!("k2 IN ({})", self.list(list, Sql::text)),
            K1Between(low, high, negated) => {
                let (low, high) = (self.number(low), self.number(high));
                format!("k1 {}BETWEEN {low} AND {high}", not(negated))
            }
            Row(op, n, t, flipped) => {
                let value = format!("({}, {})", self.number(n), self.text(t));
                flip("(k1, k2)", *op, value, *flipped)
            }
            RowWithV(op, n, v) => format!("(k1, v) {} ({}, {v})", op.sql(), self.number(n)),
            RowIn(list) => {
                let rows = self.list(list, |sql, (n, t)| format!("({}, {})", sql.number(n), sql.text(t)));
                format!("(k1, k2) IN ({rows})")
            }
            V(op, v) => format!("v {} {v}", op.sql()),
            K1Plus(op, v) => format!("k1 + 1 {} {v}", op.sql()),
            IsNull(column, negated) => format!("{column} IS {}NULL", not(negated)),
            Constant(word) => word.to_string(),
            And(a, b) => format!("({}) AND ({})", self.condition(a), self.condition(b)),
            Or(a, b) => format!("({} OR {})", self.condition(a), self.condition(b)),
            Not(a) => format!("NOT ({})", self.condition(a)),
        }
    }
}

#[derive(Debug, Clone)]
struct Row {
    k1: i64,
    k2: String,
    v: Option<i64>,
}

/// Rows around all of the constants above.
fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for k1 in (-4..5).chain([i64::from(i32::MIN), i64::from(i32::MAX)]) {
        for k2 in ["", "a", "aa", "ab", "b", "c", "it's\\", "é", "\u{1}", "a\u{1}", "a\u{2}"] {
            for v in [None, Some(0), Some(1), Some(2)] {
                rows.push(Row { k1, k2: k2.to_string(), v });
            }
        }
    }
    rows
}

fn compare<T: Ord>(op: Op, left: Option<&T>, right: Option<&T>) -> Option<bool> {
    match (op, left, right) {
        (_, Some(left), Some(right)) => Some(op.holds(left.cmp(right))),
        (Op::Same, left, right) => Some(left.is_none() && right.is_none()),
        _ => None,
    }
}

fn and(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    match (a, b) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

fn or(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    and(a.map(|a| !a), b.map(|b| !b)).map(|both| !both)
}

/// A row comparison as PostgreSQL does it: the first pair that is not equal decides; a null there
/// leaves it open.
fn compare_rows(op: Op, first: Option<Ordering>, second: Option<Ordering>) -> Option<bool> {
    match op {
        Op::Equal => and(first.map(Ordering::is_eq), second.map(Ordering::is_eq)),
        Op::NotEqual => or(first.map(Ordering::is_ne), second.map(Ordering::is_ne)),
        _ => match first {
            Some(Ordering::Equal) => second.map(|order| op.holds(order)),
            other => other.map(|order| op.holds(order)),
        },
    }
}

fn evaluate(condition: &Condition, row: &Row) -> Option<bool> {
    use Condition::*;
    let order_k1 = |n: &Number| n.0.map(|n| row.k1.cmp(&n));
    let order_k2 = |t: &Text| t.0.as_ref().map(|t| row.k2.cmp(t));
    let any = |items: Vec<Option<bool>>| items.into_iter().fold(Some(false), or);
    match condition {
        K1(op, n, _) => compare(*op, Some(&row.k1), n.0.as_ref()),
        K2(op, t, _) => compare(*op, Some(&row.k2), t.0.as_ref()),
        K1In(list, negated) => {
            let found = any(list.iter().map(|n| compare(Op::Equal, Some(&row.k1), n.0.as_ref())).collect());
            if *negated { found.map(|found| !found) } else { found }
        }
        K2In(list) => any(list.iter().map(|t| compare(Op::Equal, Some(&row.k2), t.0.as_ref())).collect()),
        K1Between(low, high, negated) => {
            let above = compare(Op::GreaterOrEqual, Some(&row.k1), low.0.as_ref());
            let between = and(above, compare(Op::LessOrEqual, Some(&row.k1), high.0.as_ref()));
            if *negated { between.map(|between| !between) } else { between }
        }
        Row(op, n, t, _) => compare_rows(*op, order_k1(n), order_k2(t)),
        RowWithV(op, n, v) => compare_rows(*op, order_k1(n), row.v.map(|mine| mine.cmp(v))),
        RowIn(list) => any(list.iter().map(|(n, t)| compare_rows(Op::Equal, order_k1(n), order_k2(t))).collect()),
        V(op, v) => compare(*op, row.v.as_ref(), Some(v)),
        K1Plus(op, v) => compare(*op, Some(&(row.k1 + 1)), Some(v)),
        IsNull(column, negated) => Some((*column == "v" && row.v.is_none()) != *negated),
        Constant(word) => match *word {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        },
        And(a, b) => and(evaluate(a, row), evaluate(b, row)),
        Or(a, b) => or(evaluate(a, row), evaluate(b, row)),
        Not(a) => evaluate(a, row).map(|a| !a),
    }
}

fn contains(touches: &Touches, key: &evenkeel_protocol::key::Key) -> bool {
    match touches {
        Touches::Nothing => false,
        Touches::Keys(keys) => keys.binary_search(key).is_ok(),
        Touches::Intervals(intervals) => intervals.iter().any(|interval| interval.contains(key)),
    }
}

/// Sorted, disjoint, nothing empty.
fn is_tidy(touches: &Touches) -> bool {
    match touches {
        Touches::Nothing => true,
        Touches::Keys(keys) => !keys.is_empty() && keys.windows(2).all(|pair| pair[0] < pair[1]),
        Touches::Intervals(list) => {
            !list.is_empty()
                && list.iter().all(|interval| !interval.is_empty())
                && list.windows(2).all(|pair| pair[0].end.as_ref().is_some_and(|end| *end < pair[1].start))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    // R9
    #[test]
    fn a_row_that_satisfies_the_condition_lies_in_the_touched_keys(condition in condition()) {
        let schema = schema_of(TABLE);
        let mut sql = Sql::default();
        let text = format!("SELECT * FROM t WHERE {}", sql.condition(&condition));
        let plan = plan_of(&schema, &text).map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?;
        let touches = plan.touches(&sql.params).map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?;
        prop_assert!(is_tidy(&touches), "{text}: {touches:?}");
        let codec = schema.codec();
        for row in rows() {
            let key = codec.encode(&[KeyValue::Int(row.k1), KeyValue::Text(row.k2.clone())]).unwrap();
            if evaluate(&condition, &row) == Some(true) {
                prop_assert!(contains(&touches, &key), "{text} with {:?} holds for {row:?}, touches {touches:?}", sql.params);
            }
        }
        // Whether a constant is a parameter or a literal makes no difference.
        let mut literal = Sql { literals: true, ..Sql::default() };
        let literal_text = format!("SELECT * FROM t WHERE {}", literal.condition(&condition));
        let same = plan_of(&schema, &literal_text).and_then(|plan| plan.touches(&[]));
        prop_assert_eq!(Ok(touches), same, "{} and {}", text, literal_text);
    }

    #[test]
    fn what_we_write_reads_back_as_the_same(condition in condition()) {
        let schema = schema_of(TABLE);
        let mut sql = Sql::default();
        let text = format!("SELECT v FROM t WHERE {} ORDER BY k1", sql.condition(&condition));
        let plan = plan_of(&schema, &text).map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?;
        let again = plan_of(&schema, plan.sql()).map_err(|e| TestCaseError::fail(format!("{}: {e}", plan.sql())))?;
        prop_assert_eq!(again.sql(), plan.sql());
        prop_assert_eq!(again.touches(&sql.params), plan.touches(&sql.params));
        prop_assert_eq!(again.scan(), plan.scan());
    }

    // Text comes from outside: whatever it is, it gets an answer.
    #[test]
    fn no_text_can_make_it_panic(words in prop::collection::vec(prop::sample::select(WORDS.to_vec()), 1..30)) {
        let schema = schema_of(TABLE);
        for start in ["", "SELECT ", "SELECT * FROM t WHERE ", "INSERT INTO t (k1, k2) VALUES (", "CREATE TABLE x (k1 int "] {
            let text = format!("{start}{}", words.join(" "));
            if let Ok(Command::Statement(parsed)) = parse(&text)
                && let Ok(plan) = parsed.bind(parsed.table_name().map(|_| &schema))
            {
                let params = vec![Value::Int(1); plan.parameters().min(100)];
                let _ = plan.touches(&params);
                let _ = plan.row_limit(&params);
                let _ = plan.clipped_sql(true, true, true);
            }
        }
    }
}

const WORDS: &[&str] = &[
    "SELECT",
    "FROM",
    "t",
    "k1",
    "k2",
    "v",
    "WHERE",
    "AND",
    "OR",
    "NOT",
    "=",
    "<",
    ">=",
    "<>",
    "(",
    ")",
    ",",
    "*",
    "1",
    "-",
    "'a'",
    "$1",
    "$2",
    "$99999",
    "NULL",
    "IN",
    "BETWEEN",
    "IS",
    "LIKE",
    "::",
    "int",
    "bigint",
    "text",
    "ORDER",
    "BY",
    "GROUP",
    "LIMIT",
    "OFFSET",
    "count",
    "lower",
    "INSERT",
    "INTO",
    "VALUES",
    "UPDATE",
    "SET",
    "DELETE",
    "RETURNING",
    "ON",
    "CONFLICT",
    "DO",
    "NOTHING",
    "CASE",
    "WHEN",
    "THEN",
    "END",
    "AS",
    "x",
    ".",
    "[",
    "]",
    "||",
    "DEFAULT",
    "PRIMARY",
    "KEY",
    "CREATE",
    "TABLE",
    "CHECK",
    "CAST",
    "EXTRACT",
    "INTERVAL",
    "ROW",
    "DISTINCT",
    "FOR",
    "excluded",
    "ARRAY",
    "ANY",
    "\"",
    "'",
    "$$",
    "/*",
    "--",
    ";",
    "99999999999999999999999999",
    "1e400",
    "é",
    "E'\\",
    "^",
    "~",
    "@>",
    "->>",
    "?",
];

/// Test threads have the 2 MiB of stack that a server's threads have.
#[test]
fn deep_statements_are_refused_and_not_overflowed() {
    let schema = schema_of(TABLE);
    let deep = [
        format!("SELECT {}1", "1 + ".repeat(100_000)),
        format!("SELECT {}1{}", "(".repeat(100_000), ")".repeat(100_000)),
        format!("SELECT {} 1", "NOT ".repeat(100_000)),
        format!("SELECT {} 1", "- ".repeat(100_000)),
        format!("SELECT 1{}", "::int".repeat(100_000)),
        format!("SELECT 1{}", " IS NULL".repeat(50_000)),
        format!("SELECT {}1{}", "CASE WHEN ".repeat(10_000), " THEN 1 END".repeat(10_000)),
        format!("SELECT * FROM t WHERE k1 = 1{}", " OR k1 = 1".repeat(50_000)),
        format!("SELECT 1{}", " UNION SELECT 1".repeat(50_000)),
        format!("SELECT {}", "f(1, ".repeat(100_000)),
        format!("SELECT {}", "[".repeat(100_000)),
        "x".repeat(MAX_SQL_BYTES + 1),
    ];
    for text in deep {
        let error = parse(&text).unwrap_err();
        assert_eq!(error.code, codes::PROGRAM_LIMIT, "{} … {error}", &text[..20]);
    }
    // Just below the limits, all of it runs.
    for text in [
        format!("SELECT * FROM t WHERE k1 = 1{}", " OR v = 1".repeat(240)),
        format!("SELECT * FROM t WHERE v = {}1", "1 + ".repeat(490)),
        format!("SELECT * FROM t WHERE v = 1{}", "::int".repeat(490)),
        format!("SELECT * FROM t WHERE k1 IN (1{})", ", 2".repeat(100_000)),
    ] {
        let plan = plan_of(&schema, &text).unwrap_or_else(|error| panic!("{} … {error}", &text[..30]));
        assert!(plan.touches(&[]).is_ok());
    }
}

#[test]
fn a_list_with_too_many_keys_is_widened() {
    let schema = schema_of(TABLE);
    let list = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
    let texts = (0..200).map(|i| format!("'{i:03}'")).collect::<Vec<_>>().join(", ");
    let plan = plan_of(&schema, &format!("SELECT * FROM t WHERE k1 IN ({}) AND k2 IN ({texts})", list(100))).unwrap();
    let Touches::Intervals(intervals) = plan.touches(&[]).unwrap() else { panic!("{:?}", plan.touches(&[])) };
    assert_eq!(intervals.len(), 100);
    let key = |k1, k2: &str| schema.codec().encode(&[KeyValue::Int(k1), KeyValue::Text(k2.into())]).unwrap();
    assert!(intervals[7].contains(&key(7, "000")) && intervals[7].contains(&key(7, "199")));
    assert!(!intervals[7].contains(&key(7, "2")));
}

/// Each key type takes its literal, its parameter as text, and its own kind of parameter, and all
/// name the same key.
#[test]
fn every_key_type_is_understood() {
    let uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    let raw = *uuid::Uuid::parse_str(uuid).unwrap().as_bytes();
    for (kind, literal, own) in [
        (KeyType::SmallInt, "-7", Value::Int(-7)),
        (KeyType::Integer, "7", Value::Int(7)),
        (KeyType::BigInt, "9000000000", Value::Int(9_000_000_000)),
        (KeyType::Text, "a\u{1}b", Value::Text("a\u{1}b".into())),
        (KeyType::Uuid, uuid, Value::Uuid(raw)),
        (KeyType::Bytea, "\\x00ff", Value::Bytes(bytes::Bytes::from_static(&[0, 255]))),
        (KeyType::TimestampTz, "2000-01-01T00:00:01Z", Value::Timestamp(1_000_000)),
    ] {
        let schema = schema_of(&format!("CREATE TABLE t (k {} PRIMARY KEY)", kind.sql_name()));
        let key = schema.codec().encode(&[own.to_key_value(1, kind).unwrap()]).unwrap();
        let expected = Ok(Touches::Keys(vec![key]));
        let text = Value::Text(literal.into());
        for (sql, params) in [
            ("SELECT * FROM t WHERE k = $1".to_string(), vec![own.clone()]),
            ("SELECT * FROM t WHERE k = $1".to_string(), vec![text.clone()]),
            (format!("SELECT * FROM t WHERE k = $1::{}", kind.sql_name()), vec![own.clone()]),
            (format!("SELECT * FROM t WHERE k = '{literal}'"), vec![]),
            (format!("SELECT * FROM t WHERE '{literal}'::{} = k", kind.sql_name()), vec![]),
            (format!("INSERT INTO t VALUES ('{literal}')"), vec![]),
            ("INSERT INTO t VALUES ($1)".to_string(), vec![text]),
            (format!("DELETE FROM t WHERE k IN ('{literal}')"), vec![]),
        ] {
            let plan = plan_of(&schema, &sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
            assert_eq!(plan.touches(&params), expected, "{sql}");
        }
    }
}

/// Prints, and does not judge, what the hot path costs: run with `--release -- --nocapture`.
#[test]
#[allow(clippy::disallowed_methods, reason = "it measures; this crate does not need `host` otherwise")]
fn touches_of_a_point_statement_is_cheap() {
    let schema = schema_of("CREATE TABLE t (id bigint PRIMARY KEY, v text)");
    let composite = schema_of(TABLE);
    for (schema, sql, params) in [
        (&schema, "SELECT * FROM t WHERE id = $1", vec![Value::Int(42)]),
        (&schema, "INSERT INTO t (id, v) VALUES ($1, $2)", vec![Value::Int(42), Value::Text("x".into())]),
        (
            &composite,
            "UPDATE t SET v = 1 WHERE k1 = $1 AND k2 = $2",
            vec![Value::Int(42), Value::Text("user42".into())],
        ),
        (&schema, "SELECT * FROM t WHERE id BETWEEN $1 AND $2", vec![Value::Int(42), Value::Int(52)]),
    ] {
        let plan = plan_of(schema, sql).unwrap();
        let rounds = 20_000;
        let start = std::time::Instant::now();
        for _ in 0..rounds {
            std::hint::black_box(plan.touches(std::hint::black_box(&params)).unwrap());
        }
        let touch = start.elapsed() / rounds;
        let start = std::time::Instant::now();
        for _ in 0..200 {
            std::hint::black_box(plan_of(schema, sql).unwrap());
        }
        println!("{sql}: touches {touch:?}, parse and bind {:?}", start.elapsed() / 200);
    }
}
