//! The types that other crates can name.
//!
//! A `pub` type counts if a path of `pub` modules leads to it, or a `pub use` in such a module.
//! What a crate passes on from another one is that crate's.

use crate::modules::{Module, ModulePath};
use std::collections::{BTreeMap, BTreeSet};

/// The types and traits of a crate that other crates can name: the name, and the module that
/// defines it.
pub fn exported_types(modules: &BTreeMap<ModulePath, Module>) -> BTreeSet<(String, ModulePath)> {
    let mut exported = BTreeSet::new();
    for (path, module) in modules.iter().filter(|(path, _)| is_reachable(path, modules)) {
        exported.extend(module.public_types.iter().map(|name| (name.clone(), path.clone())));
        let passed_on =
            module.public_imports.iter().filter_map(|name| defined_at(path, &module.imports[name], modules));
        exported.extend(passed_on);
    }
    exported
}

/// Whether every module of a path is `pub`.
fn is_reachable(path: &ModulePath, modules: &BTreeMap<ModulePath, Module>) -> bool {
    let is_public =
        |at: usize| modules.get(&path[..at]).is_some_and(|parent| parent.public_children.contains(&path[at]));
    (0..path.len()).all(is_public)
}

/// The public type of this crate that a path leads to, as it is called where it is defined.
fn defined_at(
    from: &ModulePath,
    to: &[String],
    modules: &BTreeMap<ModulePath, Module>,
) -> Option<(String, ModulePath)> {
    let (name, way) = to.split_last()?;
    let mut at = from.clone();
    for segment in way {
        match segment.as_str() {
            "crate" => at.clear(),
            "self" => {}
            "super" => drop(at.pop()),
            child if modules.get(&at)?.children.contains(child) => at.push(child.to_string()),
            // Another crate, or a type.
            _ => return None,
        }
    }
    let module = modules.get(&at)?;
    if module.public_types.contains(name) {
        return Some((name.clone(), at));
    }
    // That module passes it on from another.
    let next = module.imports.get(name).filter(|_| at != *from)?;
    defined_at(&at, next, modules)
}
