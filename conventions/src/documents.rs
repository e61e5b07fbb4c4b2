//! References of documents to the tree: links, paths of files, names of tests.
//!
//! Only text between backquotes, and link targets, are read. A reference is what ends like a file
//! or a folder of this tree; anything else between backquotes (commands, SQL, placeholders) is left
//! alone.

use std::path::Path;

/// Endings that make a quoted word the path of a file.
const ENDINGS: [&str; 7] = [".rs", ".md", ".txt", ".toml", ".yml", ".sh", "/"];

/// One reference, as written.
#[derive(Debug, PartialEq, Eq)]
pub struct Reference {
    /// Line of the document, from 1.
    pub line: usize,
    /// A path, from the root of the tree or (of a link) from the document's folder.
    pub path: String,
    /// The functions that the file is said to hold.
    pub functions: Vec<String>,
    /// Whether the path is relative to the document.
    pub relative: bool,
}

/// All references of a document.
pub fn references(text: &str) -> Vec<Reference> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            links(line, number + 1, &mut found);
            quoted(line, number + 1, &mut found);
        }
    }
    found
}

fn links(line: &str, number: usize, found: &mut Vec<Reference>) {
    for part in line.split("](").skip(1) {
        let target = part.split(')').next().unwrap_or_default();
        let path = target.split('#').next().unwrap_or_default();
        if !path.is_empty() && !path.contains("://") {
            found.push(Reference { line: number, path: path.into(), functions: Vec::new(), relative: true });
        }
    }
}

fn quoted(line: &str, number: usize, found: &mut Vec<Reference>) {
    let mut last: Option<usize> = None;
    let mut in_list = false;
    let pieces: Vec<&str> = line.split('`').collect();
    for (place, word) in pieces.iter().enumerate().filter(|(place, _)| place % 2 == 1) {
        let (path, function) = match word.split_once("::") {
            Some((path, function)) if path.ends_with(".rs") => (path, Some(function)),
            Some(("", function)) => ("", Some(function)),
            _ => (*word, None),
        };
        // `file.rs`::{`one`, `two`} names functions of the file before it.
        let between = pieces[place - 1].trim();
        in_list = between == "::{" || between == "," && in_list;
        let listed = in_list && last.is_some() && !path.contains(['/', '.']);
        if listed || path.is_empty() {
            let functions = last.and_then(|last| found.get_mut(last)).map(|reference| &mut reference.functions);
            if let Some(functions) = functions.filter(|_| listed || function.is_some()) {
                functions.extend(function.or(Some(path)).filter(|name| !name.is_empty()).map(str::to_string));
            }
            continue;
        }
        let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
        let inside = path.contains('/') && !path.starts_with(['/', '.', '~']);
        last = None;
        if plain && inside && ENDINGS.iter().any(|ending| path.ends_with(ending)) {
            let functions = function.map(str::to_string).into_iter().collect();
            last = Some(found.len());
            found.push(Reference { line: number, path: path.to_string(), functions, relative: false });
        }
    }
}

/// Names of modules that a document gives as `crate::module` and that are not there; `crates` are
/// the folders of all crates.
pub fn lost_modules(root: &Path, crates: &[String], text: &str) -> Vec<String> {
    let mut lost = Vec::new();
    let mut in_code = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        for word in line.split('`').skip(1).step_by(2).filter(|_| !in_code) {
            let Some((first, rest)) = word.split_once("::") else { continue };
            if !crates.iter().any(|name| name == first) {
                continue;
            }
            // `crate::{a::b, c}` names several modules, `crate::a::{B, C}` one.
            let parts = match rest.strip_prefix('{') {
                Some(several) => several.trim_end_matches('}').split(',').collect(),
                None => vec![rest],
            };
            let modules = parts.iter().filter_map(|part| part.trim().split("::").next());
            let is_lost = |module: &&str| !has_module(&root.join(first).join("src"), module);
            lost.extend(modules.filter(is_lost).map(|module| format!("{}: {first} has no {module}", number + 1)));
        }
    }
    lost
}

/// Whether a crate has a module of this name at its top, or mentions the name in its root file.
fn has_module(source: &Path, name: &str) -> bool {
    let root_file = std::fs::read_to_string(source.join("lib.rs")).unwrap_or_default();
    source.join(format!("{name}.rs")).exists() || source.join(name).is_dir() || root_file.contains(name)
}

/// The fault of a reference, if it has one: `document` is the file it stands in.
pub fn wrong(root: &Path, document: &Path, reference: &Reference) -> Option<String> {
    let base = if reference.relative { document.parent().unwrap_or(root) } else { root };
    let target = base.join(&reference.path);
    if !target.exists() {
        return Some(format!("there is no {}", reference.path));
    }
    let text = std::fs::read_to_string(&target).unwrap_or_default();
    let lost = reference.functions.iter().find(|name| {
        let last = name.rsplit("::").next().unwrap_or(name);
        !text.contains(&format!("fn {last}("))
    });
    lost.map(|name| format!("{} has no {name}", reference.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<(String, Vec<String>)> {
        references(text).into_iter().map(|reference| (reference.path, reference.functions)).collect()
    }

    #[test]
    fn paths_tests_and_links_are_found() {
        assert_eq!(
            paths("see `a/b.rs::holds` and [c](c.md#part)"),
            [("c.md".to_string(), vec![]), ("a/b.rs".to_string(), vec!["holds".to_string()]),]
        );
        assert_eq!(paths("| `a/b.rs`::{`one`, `two`} |"), [("a/b.rs".into(), vec!["one".into(), "two".into()])]);
        assert_eq!(paths("`a/b.rs::one`, `::two`"), [("a/b.rs".into(), vec!["one".into(), "two".into()])]);
    }

    #[test]
    fn commands_and_placeholders_are_left_alone() {
        assert!(paths("`make test`, `/v1/kv/`, `DATA_DIR/log`, `pg_control`, `x.rs`").is_empty());
    }

    #[test]
    fn modules_are_looked_for_in_their_crate() {
        let crates = ["conventions".to_string()];
        let text = "`conventions::documents`, `conventions::{circles::circles, nothing}`, `other::nothing`";
        assert_eq!(lost_modules(&crate::workspace::root(), &crates, text), ["1: conventions has no nothing"]);
    }

    #[test]
    fn a_file_that_is_not_there_is_wrong() {
        let root = crate::workspace::root();
        let reference = |path: &str, function: &str| Reference {
            line: 1,
            path: path.into(),
            functions: vec![function.into()],
            relative: false,
        };
        assert!(wrong(&root, &root.join("README.md"), &reference("conventions/src/nothing.rs", "x")).is_some());
        assert!(wrong(&root, &root.join("README.md"), &reference("conventions/src/documents.rs", "no_such")).is_some());
        assert!(wrong(&root, &root.join("README.md"), &reference("conventions/src/documents.rs", "wrong")).is_none());
    }
}
