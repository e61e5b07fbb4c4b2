//! Which file of a crate needs which other one.
//!
//! A file needs the file that *defines* what it mentions: re-exports are followed to their end, and
//! the parent that only passes a name on is not needed. A `mod` line is no need; a `pub use` is one
//! of the file that it stands in.

use crate::circles::Graph;
use crate::modules::{Module, ModulePath};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Re-exports that are followed one after the other before a path is given up: longer chains would
/// be circular.
const MOST_STEPS: usize = 24;

/// For each file of the crate, the files of it that it needs.
pub fn file_graph(modules: &BTreeMap<ModulePath, Module>) -> Graph<PathBuf> {
    let mut graph: Graph<PathBuf> = modules.values().map(|module| (module.file.clone(), BTreeSet::new())).collect();
    for (path, module) in modules {
        let needed = module.mentions.iter().filter_map(|mention| definer(modules, path, mention, MOST_STEPS));
        let needed = needed.filter(|file| *file != module.file);
        graph.entry(module.file.clone()).or_default().extend(needed);
    }
    graph
}

/// The file that defines what `mention`, read in the module `from`, names; `None` if it is no item
/// of this crate.
fn definer(
    modules: &BTreeMap<ModulePath, Module>,
    from: &ModulePath,
    mention: &[String],
    steps: usize,
) -> Option<PathBuf> {
    let steps = steps.checked_sub(1)?;
    let mut at = from.clone();
    let mut rest = mention;
    let mut anchored = false;
    while let Some((first, others)) = rest.split_first() {
        match first.as_str() {
            "crate" => at.clear(),
            "super" => drop(at.pop()),
            "self" => {}
            _ => break,
        }
        anchored = true;
        rest = others;
    }
    loop {
        let module = modules.get(&at)?;
        let (first, others) = rest.split_first()?;
        if module.children.contains(first) {
            at.push(first.clone());
            rest = others;
            anchored = true;
            continue;
        }
        if module.defines.contains(first) {
            return Some(module.file.clone());
        }
        if let Some(to) = module.imports.get(first) {
            // `use x::y` inside of a crate named x is not followed into itself.
            if to.as_slice() == rest && !anchored {
                return None;
            }
            let whole: Vec<String> = to.iter().chain(others).cloned().collect();
            return definer(modules, &at, &whole, steps);
        }
        return module.globs.iter().find_map(|glob| {
            let whole: Vec<String> = glob.iter().chain(rest).cloned().collect();
            definer(modules, &at, &whole, steps)
        });
    }
}
