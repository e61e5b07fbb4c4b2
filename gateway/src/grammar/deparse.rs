//! Parts of a parsed statement as text again. Pure.

use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use pg_query::NodeEnum;
use pg_query::protobuf::{self, Node, RangeVar};

/// A table's name as SQL.
pub(super) fn written(table: &RangeVar) -> String {
    match table.schemaname.as_str() {
        "" => quote(&table.relname),
        schema => format!("{}.{}", quote(schema), quote(&table.relname)),
    }
}

/// A name, quoted.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The text of a part of a statement.
pub(super) fn inner(node: Option<&Node>) -> Result<Option<String>, SqlError> {
    node.and_then(|node| node.node.as_ref()).map(text_of).transpose()
}

/// The text of a statement or a part of one.
pub(super) fn text_of(node: &NodeEnum) -> Result<String, SqlError> {
    node.deparse(pg_query::DeparseOptions::default()).map_err(|error| SqlError::new(codes::INTERNAL, complaint(&error)))
}

/// The text of an expression, by way of a SELECT that has nothing else.
pub(super) fn expression_text(node: &Node) -> Result<String, SqlError> {
    let target = protobuf::ResTarget { val: Some(Box::new(node.clone())), ..protobuf::ResTarget::default() };
    let target_list = vec![Node { node: Some(NodeEnum::ResTarget(Box::new(target))) }];
    let select = protobuf::SelectStmt { target_list, limit_option: 1, op: 1, ..protobuf::SelectStmt::default() };
    let text = text_of(&NodeEnum::SelectStmt(Box::new(select)))?;
    Ok(text.strip_prefix("SELECT ").unwrap_or(&text).to_string())
}

/// The text of a type, by way of a cast.
pub(super) fn type_text(node: &Node) -> Result<String, SqlError> {
    let Some(NodeEnum::TypeName(name)) = &node.node else {
        return Err(SqlError::new(codes::INTERNAL, "a type that is none"));
    };
    let null = protobuf::AConst { isnull: true, ..protobuf::AConst::default() };
    let cast = protobuf::TypeCast {
        arg: Some(Box::new(Node { node: Some(NodeEnum::AConst(null)) })),
        type_name: Some(name.clone()),
        location: 0,
    };
    let text = expression_text(&Node { node: Some(NodeEnum::TypeCast(Box::new(cast))) })?;
    Ok(text.trim_start_matches("NULL::").to_string())
}

/// The parser's own words.
pub(super) fn complaint(error: &pg_query::Error) -> String {
    match error {
        pg_query::Error::Parse(message) => message.clone(),
        other => other.to_string(),
    }
}
