//! Calls of `set_config`, which changes a session's settings from within a SELECT. Pure.
//!
//! Sessions with PostgreSQL are shared, so the gateway has to keep the settings itself.

use super::settings::constant;
use pg_query::{NodeEnum, NodeRef};

/// The settings that a statement makes: names, values, and whether they hold for the transaction
/// only. `None` if they are not constants.
pub(super) fn calls(node: &NodeEnum) -> Option<Vec<(String, String, bool)>> {
    let mut found = Vec::new();
    for (node, ..) in node.nodes() {
        let NodeRef::FuncCall(call) = node else { continue };
        if call.funcname.last().and_then(constant).is_none_or(|name| name != "set_config") {
            continue;
        }
        let [name, value, local] = &call.args[..] else { return None };
        let local = match constant(local)?.as_str() {
            "true" | "t" | "on" | "1" => true,
            "false" | "f" | "off" | "0" => false,
            _ => return None,
        };
        found.push((constant(name)?.to_lowercase(), constant(value)?, local));
    }
    Some(found)
}
