//! SET, RESET and transaction modes. Pure.

use super::statement::{Modes, SettingChange, TransactionCommand};
use pg_query::NodeEnum;
use pg_query::protobuf::{Node, VariableSetKind, VariableSetStmt, a_const};

/// The meaning of a SET or RESET: a change of settings, or the modes of the transaction.
pub fn setting(statement: &VariableSetStmt) -> Result<SettingChange, TransactionCommand> {
    let name = statement.name.to_ascii_lowercase();
    match VariableSetKind::try_from(statement.kind).unwrap_or(VariableSetKind::Undefined) {
        VariableSetKind::VarSetMulti if name == "transaction" => {
            Err(TransactionCommand::SetModes(modes(&statement.args)))
        }
        VariableSetKind::VarSetMulti => Ok(SettingChange::Characteristics(modes(&statement.args))),
        VariableSetKind::VarResetAll => Ok(SettingChange::ResetAll),
        VariableSetKind::VarSetValue => {
            Ok(SettingChange::Set { local: statement.is_local, value: Some(value(&name, &statement.args)), name })
        }
        _ => Ok(SettingChange::Set { local: statement.is_local, value: None, name }),
    }
}

/// The modes of a BEGIN or of SET TRANSACTION.
pub fn modes(options: &[Node]) -> Modes {
    let mut modes = Modes::default();
    for option in options {
        let Some(NodeEnum::DefElem(option)) = &option.node else { continue };
        let argument = option.arg.as_deref().and_then(constant);
        match option.defname.as_str() {
            "transaction_isolation" => modes.isolation = argument.map(|level| level.to_ascii_lowercase()),
            "transaction_read_only" => modes.read_only = argument.map(|value| value != "0" && value != "false"),
            _ => {}
        }
    }
    modes
}

/// Settings whose values are lists of names.
const LISTS: [&str; 4] = ["search_path", "temp_tablespaces", "session_preload_libraries", "local_preload_libraries"];

/// The value as `set_config` takes it.
fn value(name: &str, arguments: &[Node]) -> String {
    let each = arguments.iter().filter_map(constant);
    if LISTS.contains(&name) {
        let quoted = each.map(|name| format!("\"{}\"", name.replace('"', "\"\"")));
        return quoted.collect::<Vec<_>>().join(", ");
    }
    each.collect::<Vec<_>>().join(", ")
}

/// The text of a constant. A cast, as in `SET TIME ZONE INTERVAL '+02:00'`, keeps its value.
pub fn constant(node: &Node) -> Option<String> {
    match node.node.as_ref()? {
        NodeEnum::AConst(constant) => match constant.val.as_ref() {
            None => Some(if constant.isnull { "NULL".into() } else { "0".into() }),
            Some(a_const::Val::Ival(number)) => Some(number.ival.to_string()),
            Some(a_const::Val::Fval(number)) => Some(number.fval.clone()),
            Some(a_const::Val::Boolval(value)) => Some(value.boolval.to_string()),
            Some(a_const::Val::Sval(text)) => Some(text.sval.clone()),
            Some(a_const::Val::Bsval(bits)) => Some(bits.bsval.clone()),
        },
        NodeEnum::TypeCast(cast) => cast.arg.as_deref().and_then(constant),
        NodeEnum::String(text) => Some(text.sval.clone()),
        NodeEnum::Integer(number) => Some(number.ival.to_string()),
        NodeEnum::Boolean(value) => Some(value.boolval.to_string()),
        NodeEnum::Float(number) => Some(number.fval.clone()),
        _ => None,
    }
}
