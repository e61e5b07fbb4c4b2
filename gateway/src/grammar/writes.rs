//! Statements that write, cut into the parts that are executed at different places. Pure.
//!
//! The rows of an INSERT or a COPY are computed in one place, into a table with the columns and
//! checks of the user's; their effect follows at their shards. An UPDATE or DELETE
//! is executed at each shard, restricted to the rows that the shard owns.

use super::calls::scan;
use super::deparse::{quote, text_of, written};
use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use pg_query::NodeEnum;
use pg_query::protobuf::{self, Node, RangeVar, ScanToken, Token};

/// The table that computed rows are put into; each session has its own.
pub const COMPUTED: &str = "evenkeel_computed_rows";
/// Where the restriction is put.
const MARK: &str = "evenkeel_restriction_goes_here";

/// A statement that writes.
#[derive(Debug, Clone, PartialEq)]
pub enum WriteForm {
    /// INSERT.
    Insert(InsertForm),
    /// UPDATE, DELETE.
    Change(ChangeForm),
    /// `COPY … FROM STDIN`: the text that puts the rows into [`COMPUTED`].
    Copy(String),
    /// TRUNCATE.
    Truncate,
}

/// An INSERT.
#[derive(Debug, Clone, PartialEq)]
pub struct InsertForm {
    /// The table as written.
    pub table: String,
    /// The text that puts the rows into [`COMPUTED`].
    pub rows: String,
    /// The table and its alias.
    pub target: String,
    /// What follows the rows: ON CONFLICT and RETURNING.
    pub behind: String,
    /// Whether rows that are there are updated.
    pub updates: bool,
    /// Whether each row is returned, in the order of the rows, unless the statement fails.
    pub in_order: bool,
    /// Whether the rows come from tables.
    pub reads: bool,
    /// Whether the table itself may be among them.
    pub reads_itself: bool,
}

/// An UPDATE or DELETE.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangeForm {
    /// Its text up to where the restriction goes, an expression.
    pub before: String,
    /// And behind it.
    pub behind: String,
    /// The columns that are assigned to.
    pub assigned: Vec<String>,
    /// The command's tag without the count.
    pub tag: &'static str,
}

/// The form of a text of one statement.
///
/// # Errors
/// 0A000: it cannot be executed at several shards.
pub fn write_form(text: &str) -> Result<WriteForm, SqlError> {
    let parsed = pg_query::parse(text, pg_query::ParserOptions::default())
        .map_err(|error| SqlError::new(codes::SYNTAX_ERROR, error.to_string()))?;
    let node = parsed.protobuf.stmts.into_iter().next().and_then(|raw| raw.stmt).and_then(|node| node.node);
    match node {
        Some(NodeEnum::InsertStmt(insert)) => Ok(WriteForm::Insert(insert_form(*insert)?)),
        Some(NodeEnum::UpdateStmt(update)) => update_form(*update).map(WriteForm::Change),
        Some(NodeEnum::DeleteStmt(delete)) => delete_form(*delete).map(WriteForm::Change),
        Some(NodeEnum::CopyStmt(copy)) if copy.is_from => {
            let copy = protobuf::CopyStmt { relation: Some(computed()), ..*copy };
            text_of(&NodeEnum::CopyStmt(Box::new(copy))).map(WriteForm::Copy)
        }
        Some(NodeEnum::TruncateStmt(_)) => Ok(WriteForm::Truncate),
        _ => Err(SqlError::unsupported(
            "this statement, where it writes to several shards or locks rows there, is not supported",
            "Use INSERT, UPDATE or DELETE, or one statement for each shard's keys.",
        )),
    }
}

fn insert_form(insert: protobuf::InsertStmt) -> Result<InsertForm, SqlError> {
    let Some(relation) = insert.relation.clone() else { return Err(internal("an INSERT without a table")) };
    let ctes = insert.with_clause.iter().flat_map(|with| &with.ctes);
    let writes = ctes.filter_map(|cte| match &cte.node {
        Some(NodeEnum::CommonTableExpr(cte)) => cte.ctequery.as_deref(),
        _ => None,
    });
    if writes.into_iter().any(|query| !matches!(query.node, Some(NodeEnum::SelectStmt(_)))) {
        return Err(refused("a WITH that writes"));
    }
    let conflict = insert.on_conflict_clause.as_ref().map_or(0, |clause| clause.action);
    let updates = conflict == protobuf::OnConflictAction::OnconflictUpdate as i32;
    let filtered = insert.on_conflict_clause.as_ref().is_some_and(|clause| clause.where_clause.is_some());
    let behind = text_of(&NodeEnum::InsertStmt(Box::new(protobuf::InsertStmt {
        relation: Some(computed()),
        on_conflict_clause: insert.on_conflict_clause.clone(),
        returning_clause: insert.returning_clause.clone(),
        r#override: protobuf::OverridingKind::OverridingNotSet as i32,
        ..protobuf::InsertStmt::default()
    })))?;
    let behind = match behind.split_once("DEFAULT VALUES") {
        Some((_, behind)) => behind.to_string(),
        None => return Err(internal("an INSERT that is not written as expected")),
    };
    if has(&scan(&behind).unwrap_or_default(), &[Token::Select, Token::Table]) {
        return Err(refused("a subquery in ON CONFLICT or RETURNING"));
    }
    let rows = text_of(&NodeEnum::InsertStmt(Box::new(protobuf::InsertStmt {
        relation: Some(computed()),
        on_conflict_clause: None,
        returning_clause: None,
        ..insert
    })))?;
    let tokens = scan(&rows).unwrap_or_default();
    Ok(InsertForm {
        table: written(&RangeVar { alias: None, ..relation.clone() }),
        target: with_alias(&relation),
        behind,
        updates,
        in_order: conflict != protobuf::OnConflictAction::OnconflictNothing as i32 && !filtered,
        reads: has(&tokens, &[Token::From, Token::Table]),
        reads_itself: names(&rows, &tokens, &relation.relname),
        rows,
    })
}

fn update_form(update: protobuf::UpdateStmt) -> Result<ChangeForm, SqlError> {
    if !update.from_clause.is_empty() {
        return Err(refused("UPDATE … FROM"));
    }
    let assigned = update.target_list.iter().filter_map(|target| match &target.node {
        Some(NodeEnum::ResTarget(target)) => Some(target.name.clone()),
        _ => None,
    });
    let assigned = assigned.collect();
    let restricted = protobuf::UpdateStmt { where_clause: Some(restricted(update.where_clause)?), ..update };
    change_form(&NodeEnum::UpdateStmt(Box::new(restricted)), assigned, "UPDATE")
}

fn delete_form(delete: protobuf::DeleteStmt) -> Result<ChangeForm, SqlError> {
    if !delete.using_clause.is_empty() {
        return Err(refused("DELETE … USING"));
    }
    let restricted = protobuf::DeleteStmt { where_clause: Some(restricted(delete.where_clause)?), ..delete };
    change_form(&NodeEnum::DeleteStmt(Box::new(restricted)), Vec::new(), "DELETE")
}

/// A condition with the mark.
fn restricted(condition: Option<Box<Node>>) -> Result<Box<Node>, SqlError> {
    let name = protobuf::String { sval: MARK.into() };
    let fields = vec![Node { node: Some(NodeEnum::String(name)) }];
    let mark = Node { node: Some(NodeEnum::ColumnRef(protobuf::ColumnRef { fields, location: 0 })) };
    let Some(condition) = condition else { return Ok(Box::new(mark)) };
    if matches!(condition.node, Some(NodeEnum::CurrentOfExpr(_))) {
        return Err(refused("WHERE CURRENT OF"));
    }
    let boolop = protobuf::BoolExprType::AndExpr as i32;
    let both = protobuf::BoolExpr { boolop, args: vec![*condition, mark], ..protobuf::BoolExpr::default() };
    Ok(Box::new(Node { node: Some(NodeEnum::BoolExpr(Box::new(both))) }))
}

fn change_form(statement: &NodeEnum, assigned: Vec<String>, tag: &'static str) -> Result<ChangeForm, SqlError> {
    let text = text_of(statement)?;
    if has(&scan(&text).unwrap_or_default(), &[Token::Select, Token::Table, Token::With]) {
        return Err(refused("a subquery in an UPDATE or DELETE"));
    }
    let mut parts = text.split(MARK);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(before), Some(behind), None) => {
            Ok(ChangeForm { before: before.into(), behind: behind.into(), assigned, tag })
        }
        _ => Err(internal("a statement that names what it cannot know")),
    }
}

fn computed() -> RangeVar {
    RangeVar {
        schemaname: "pg_temp".into(),
        relname: COMPUTED.into(),
        inh: true,
        relpersistence: "p".into(),
        ..RangeVar::default()
    }
}

fn with_alias(relation: &RangeVar) -> String {
    match &relation.alias {
        Some(alias) => format!("{} AS {}", written(relation), quote(&alias.aliasname)),
        None => written(relation),
    }
}

fn has(tokens: &[ScanToken], any: &[Token]) -> bool {
    tokens.iter().any(|token| Token::try_from(token.token).is_ok_and(|kind| any.contains(&kind)))
}

/// Whether a token is this name.
fn names(text: &str, tokens: &[ScanToken], name: &str) -> bool {
    tokens.iter().any(|token| {
        let (Ok(start), Ok(end)) = (usize::try_from(token.start), usize::try_from(token.end)) else { return true };
        let word = text.get(start..end).unwrap_or_default();
        word == quote(name) || word.eq_ignore_ascii_case(name)
    })
}

fn refused(what: &str) -> SqlError {
    let message = format!("{what}, where several shards are written to, is not supported");
    SqlError::unsupported(message, "Use one statement for each shard's keys, or read the rows first.")
}

fn internal(message: &str) -> SqlError {
    SqlError::new(codes::INTERNAL, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn insert(text: &str) -> InsertForm {
        let WriteForm::Insert(form) = write_form(text).unwrap() else { panic!() };
        form
    }

    fn change(text: &str) -> ChangeForm {
        let WriteForm::Change(form) = write_form(text).unwrap() else { panic!() };
        form
    }

    #[test]
    fn rows_are_computed_apart_from_their_effect() {
        let form = insert(
            "INSERT INTO s.t AS x (a, b) VALUES ($1, DEFAULT), (2, now()) ON CONFLICT (a) DO UPDATE SET b = x.b + $2 RETURNING a",
        );
        assert_eq!(form.rows, format!("INSERT INTO pg_temp.{COMPUTED} (a, b) VALUES ($1, DEFAULT), (2, now())"));
        assert_eq!(form.target, "\"s\".\"t\" AS \"x\"");
        assert_eq!(form.behind.trim(), "ON CONFLICT (a) DO UPDATE SET b = x.b + $2 RETURNING a");
        assert!(form.updates && form.in_order && !form.reads);
        let form = insert("INSERT INTO t SELECT * FROM t WHERE a > 1 ON CONFLICT DO NOTHING");
        assert!(form.reads && form.reads_itself && !form.in_order && !form.updates);
        let form = insert("WITH q AS (SELECT 1 FROM u) INSERT INTO t SELECT * FROM q");
        assert!(form.reads && !form.reads_itself && form.behind.is_empty());
        for text in [
            "WITH q AS (DELETE FROM u RETURNING *) INSERT INTO t SELECT * FROM q",
            "INSERT INTO t VALUES (1), (2) RETURNING (SELECT count(*) FROM t)",
        ] {
            assert_eq!(write_form(text).unwrap_err().code, codes::FEATURE_NOT_SUPPORTED, "{text}");
        }
    }

    #[test]
    fn a_change_is_restricted_to_rows() {
        let form = change("UPDATE t x SET a = 1, (b, c) = ROW(2, 3) WHERE a = 1 OR b = $1 RETURNING *");
        assert_eq!((form.behind.trim(), form.assigned), ("RETURNING *", vec!["a".into(), "b".into(), "c".into()]));
        assert!(form.before.contains("(a = 1 OR b = $1) AND"), "{}", form.before);
        let form = change("DELETE FROM ONLY t");
        assert_eq!((form.before.as_str(), form.behind.as_str()), ("DELETE FROM ONLY t WHERE ", ""));
        for text in [
            "UPDATE t SET a = 1 FROM u WHERE u.a = t.a",
            "DELETE FROM t USING u WHERE u.a = t.a",
            "UPDATE t SET a = (SELECT max(a) FROM t)",
            "DELETE FROM t WHERE a IN (TABLE u)",
            "DELETE FROM t WHERE CURRENT OF c",
            "MERGE INTO t USING u ON t.a = u.a WHEN MATCHED THEN DELETE",
            "SELECT * FROM t FOR UPDATE",
        ] {
            assert_eq!(write_form(text).unwrap_err().code, codes::FEATURE_NOT_SUPPORTED, "{text}");
        }
    }

    #[test]
    fn a_copy_keeps_its_options() {
        let WriteForm::Copy(text) = write_form("COPY t (a, b) FROM STDIN (FORMAT csv, HEADER, DELIMITER ';')").unwrap()
        else {
            panic!()
        };
        assert!(text.starts_with(&format!("COPY pg_temp.{COMPUTED}(a, b) FROM STDIN")), "{text}");
        assert!(text.contains("CSV") && text.contains("';'"), "{text}");
    }
}
