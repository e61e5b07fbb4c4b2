//! Documents are true: the files, tests and folders that they name are there, and the map of the
//! tree is whole.

use evenkeel_conventions::documents::{lost_modules, references, wrong};
use evenkeel_conventions::workspace::{crates, files, read, root};
use std::collections::BTreeSet;

#[test]
fn what_documents_name_is_there() {
    let root = root();
    let crates = crates(&root).unwrap_or_else(|error| panic!("{error}"));
    let folders: Vec<String> = crates.iter().map(|of| of.folder.display().to_string()).collect();
    let mut lost = Vec::new();
    for document in files(&root, &[".md"]).unwrap_or_else(|error| panic!("{error}")) {
        let text = read(&document).unwrap_or_else(|error| panic!("{error}"));
        let name = document.strip_prefix(&root).unwrap_or(&document).display().to_string();
        if name == "CHANGELOG.md" {
            // It names what was there at the time.
            continue;
        }
        let modules = lost_modules(&root, &folders, &text);
        lost.extend(modules.into_iter().map(|why| format!("  {name}:{why}")));
        for reference in references(&text) {
            lost.extend(wrong(&root, &document, &reference).map(|why| format!("  {name}:{}: {why}", reference.line)));
        }
    }
    assert!(lost.is_empty(), "{} references lead nowhere:\n{}", lost.len(), lost.join("\n"));
}

#[test]
fn the_map_has_a_line_for_every_directory() {
    let root = root();
    let map = read(&root.join("docs/architecture.md")).unwrap_or_else(|error| panic!("{error}"));
    let mut missing = BTreeSet::new();
    for of in crates(&root).unwrap_or_else(|error| panic!("{error}")) {
        for file in files(&root.join(&of.folder), &[".rs"]).unwrap_or_else(|error| panic!("{error}")) {
            let folder =
                file.parent().and_then(|folder| folder.strip_prefix(&root).ok()).map(|f| f.display().to_string());
            missing.extend(folder.filter(|folder| !map.contains(&format!("| `{folder}/` |"))));
        }
    }
    let missing: Vec<String> = missing.into_iter().collect();
    assert!(missing.is_empty(), "docs/architecture.md has no line for:\n  {}", missing.join("\n  "));
}
