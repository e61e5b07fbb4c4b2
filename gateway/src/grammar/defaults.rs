//! Defaults of added columns that PostgreSQL would compute again on every replica. Pure.
//!
//! `ADD COLUMN at timestamptz DEFAULT now()` gives all rows that are there one value. Replicas make
//! the change at different times, so the value is computed once: the column is added with it, and
//! gets its default afterwards. That holds only for expressions whose functions are not volatile;
//! a volatile one gives each row a value of its own.

use super::deparse::{expression_text, quote, text_of, type_text, written};
use super::statement::AddedDefaults;
use evenkeel_protocol::SqlError;
use pg_query::protobuf::{self, AlterTableStmt, AlterTableType, ConstrType, Node};
use pg_query::{NodeEnum, NodeRef};

/// The defaults that have to be computed; `None` if there are none.
pub(super) fn added(alter: &AlterTableStmt) -> Result<Option<AddedDefaults>, SqlError> {
    let Some(table) = alter.relation.as_ref().map(written) else { return Ok(None) };
    let mut fixed = alter.clone();
    let (mut found, mut later) = (AddedDefaults::default(), String::new());
    for node in &mut fixed.cmds {
        let Some(NodeEnum::AlterTableCmd(command)) = &mut node.node else { continue };
        // With IF NOT EXISTS the column may be there, and keeps its default.
        if AlterTableType::try_from(command.subtype) != Ok(AlterTableType::AtAddColumn) || command.missing_ok {
            continue;
        }
        let Some(NodeEnum::ColumnDef(column)) = command.def.as_mut().and_then(|def| def.node.as_mut()) else {
            continue;
        };
        let Some(name) = column.type_name.clone() else { continue };
        let of_type = type_text(&Node { node: Some(NodeEnum::TypeName(name)) })?;
        for constraint in &mut column.constraints {
            let Some(NodeEnum::Constraint(constraint)) = &mut constraint.node else { continue };
            let default = ConstrType::try_from(constraint.contype) == Ok(ConstrType::ConstrDefault);
            let Some(expression) = constraint.raw_expr.as_mut().filter(|_| default) else { continue };
            let functions = functions(expression);
            if functions.is_empty() {
                continue;
            }
            let text = expression_text(expression)?;
            let column = quote(&column.colname);
            later.push_str(&format!("; ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT {text}"));
            **expression = place(found.expressions.len());
            found.expressions.push(format!("CAST(({text}) AS {of_type})::text"));
            found.functions.extend(functions);
        }
    }
    if found.expressions.is_empty() {
        return Ok(None);
    }
    let text = text_of(&NodeEnum::AlterTableStmt(fixed))? + &later;
    let mut rest = text.as_str();
    for number in 0..found.expressions.len() {
        let Some((before, after)) = rest.split_once(&format!("'{}'", marker(number))) else { return Ok(None) };
        found.pieces.push(before.to_string());
        rest = after;
    }
    found.pieces.push(rest.to_string());
    Ok(Some(found))
}

/// A constant that stands for the value with this number. No text has a zero byte or this one.
fn place(number: usize) -> Node {
    let value = protobuf::String { sval: marker(number) };
    let val = Some(protobuf::a_const::Val::Sval(value));
    Node { node: Some(NodeEnum::AConst(protobuf::AConst { isnull: false, location: 0, val })) }
}

fn marker(number: usize) -> String {
    format!("\u{1}{number}")
}

/// The functions that an expression calls, without their schemas; `now` for a keyword such as
/// CURRENT_TIMESTAMP, which is as stable as that.
fn functions(expression: &Node) -> Vec<String> {
    let Some(node) = &expression.node else { return Vec::new() };
    let name = |(node, ..): (NodeRef<'_>, i32, pg_query::Context, bool)| match node {
        NodeRef::FuncCall(call) => call.funcname.last().and_then(super::settings::constant),
        _ => None,
    };
    let mut found: Vec<String> = node.nodes().into_iter().filter_map(name).collect();
    if matches!(node, NodeEnum::SqlvalueFunction(_)) {
        found.push("now".into());
    }
    found
}
