//! The shape of the source tree: no circles, declarations in `mod.rs` only, one file of `impl` for
//! each type, arrows that point down.

use evenkeel_conventions::circles::circles;
use evenkeel_conventions::exports::exported_types;
use evenkeel_conventions::imports::file_graph;
use evenkeel_conventions::modules::{Module, ModulePath, Scope, read_modules};
use evenkeel_conventions::workspace::{Crate, crates, files, read, root};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What no crate may depend on, with why.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("evenkeel_protocol", "tokio", "the vocabulary does no I/O"),
    ("evenkeel_sql", "tokio", "the analyser does no I/O"),
    ("evenkeel_placement_driver", "evenkeel_sql", "placement stores schemas and reads no SQL"),
    ("evenkeel_placement_driver", "evenkeel_shard_node", "they speak over RPC only"),
    ("evenkeel_client", "evenkeel_shard_node", "they speak over RPC only"),
    ("evenkeel_client", "evenkeel_placement_driver", "they speak over REST only"),
    ("evenkeel_tests", "evenkeel", "scenarios start the program as a user does"),
];

/// Names that several types have, with why.
const SAME_NAME: &[(&str, &str)] = &[
    ("Config", "what a process of that crate is configured with"),
    ("RunError", "why the `run` of that crate has ended"),
    ("ReplicaHandles", "what the tasks of one replica of that crate share"),
    ("Session", "of a PostgreSQL server, and of the store's client: both are PostgreSQL's word"),
    ("Requests", "to a PostgreSQL server, and of a YCSB workload: both are the field's word"),
    ("Command", "of a SQL text, and of the placement log: the placement driver reads no SQL"),
];

fn workspace() -> Vec<Crate> {
    crates(&root()).unwrap_or_else(|error| panic!("{error}"))
}

fn modules(of: &Crate, scope: Scope) -> BTreeMap<ModulePath, Module> {
    let source = root().join(&of.folder).join("src");
    let [lib, main] = ["lib.rs", "main.rs"].map(|name| source.join(name));
    let start = if lib.exists() { lib } else { main };
    read_modules(&start, scope).unwrap_or_else(|error| panic!("{error}"))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn none_of(wrong: Vec<String>, what: &str) {
    assert!(wrong.is_empty(), "{} {what}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn no_files_need_each_other() {
    let mut wrong = Vec::new();
    for of in workspace() {
        let graph = file_graph(&modules(&of, Scope::WithTests));
        for circle in circles(&graph) {
            let inside = |file: &&PathBuf| circle.contains(file);
            let arrows = circle.iter().map(|file| {
                let to: Vec<String> = graph[file].iter().filter(inside).map(|file| shown(file)).collect();
                format!("    {} needs {}", shown(file), to.join(", "))
            });
            wrong.push(format!("  {} files:\n{}", circle.len(), arrows.collect::<Vec<_>>().join("\n")));
        }
    }
    none_of(wrong, "circles of files");
}

#[test]
fn parents_only_declare() {
    let mut wrong = Vec::new();
    for of in workspace() {
        for (path, module) in modules(&of, Scope::Product) {
            let name = module.file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let parent = name == "mod.rs" || name == "lib.rs";
            if parent && !module.other_items.is_empty() {
                let path = if path.is_empty() { of.import_name.clone() } else { path.join("::") };
                wrong.push(format!("  {} ({path}): {}", shown(&module.file), module.other_items.join(", ")));
            }
        }
    }
    none_of(wrong, "mod.rs or lib.rs that define something");
}

#[test]
fn a_type_has_one_file_of_impl() {
    let mut wrong = Vec::new();
    for of in workspace() {
        let modules = modules(&of, Scope::Product);
        let graph = file_graph(&modules);
        let mut by_type: BTreeMap<(PathBuf, String), BTreeSet<String>> = BTreeMap::new();
        for module in modules.values() {
            for name in &module.inherent_impls {
                let here = modules.values().any(|other| other.file == module.file && other.defines.contains(name));
                // Of types of the same name the one that this file can see.
                let sees = |other: &&Module| graph[&module.file].contains(&other.file) && other.defines.contains(name);
                let home = if here { Some(module) } else { modules.values().find(sees) };
                if let Some(home) = home {
                    by_type.entry((home.file.clone(), name.clone())).or_default().insert(shown(&module.file));
                }
            }
        }
        let spread = by_type.into_iter().filter(|((home, _), files)| files.iter().any(|file| *file != shown(home)));
        wrong.extend(spread.map(|((home, name), files)| {
            let files: Vec<String> = files.into_iter().collect();
            format!("  {name} of {}: {}", shown(&home), files.join(", "))
        }));
    }
    none_of(wrong, "types whose impl is spread over files");
}

#[test]
fn arrows_between_crates_point_down() {
    let workspace = workspace();
    let find = |name: &str| workspace.iter().find(|of| of.import_name == name);
    let mut wrong = Vec::new();
    for (from, to, why) in FORBIDDEN {
        let from = find(from).unwrap_or_else(|| panic!("there is no crate {from}"));
        let known = find(to).is_some() || workspace.iter().any(|of| of.dependencies.contains(*to));
        assert!(known, "nothing is called {to}");
        if from.dependencies.contains(*to) {
            wrong.push(format!("  {} depends on {to}: {why}", from.folder.display()));
        }
    }
    none_of(wrong, "arrows that point up");
}

/// Of the crates that others use: there a reader meets a name without its crate.
#[test]
fn a_name_of_a_public_type_means_one_thing() {
    let workspace = workspace();
    let is_library = |of: &&Crate| workspace.iter().any(|other| other.dependencies.contains(&of.import_name));
    let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for of in workspace.iter().filter(is_library) {
        for (name, module) in exported_types(&modules(of, Scope::Product)) {
            by_name.entry(name).or_default().push(format!("{}::{}", of.import_name, module.join("::")));
        }
    }
    for (name, _) in SAME_NAME {
        assert!(by_name.get(*name).is_some_and(|of| of.len() > 1), "{name} needs no exception");
    }
    let excepted = |name: &str| SAME_NAME.iter().any(|(same, _)| *same == name);
    let twice = by_name.iter().filter(|(name, of)| of.len() > 1 && !excepted(name));
    none_of(twice.map(|(name, of)| format!("  {name}: {}", of.join(", "))).collect(), "names that several types have");
}

#[test]
fn every_dependency_is_used() {
    let mut wrong = Vec::new();
    for of in workspace() {
        let folder = root().join(&of.folder);
        let source = folder.join("src");
        let text = |from: &Path| -> String {
            let files = files(from, &[".rs"]).unwrap_or_else(|error| panic!("{error}"));
            files.iter().map(|file| read(file).unwrap_or_else(|error| panic!("{error}"))).collect()
        };
        let (product, everything) = (text(&source), text(&folder));
        let used =
            |name: &str, text: &str| text.contains(&format!("{name}::")) || text.contains(&format!("use {name}"));
        let idle = of.dependencies.iter().filter(|name| !used(name, &product));
        wrong.extend(idle.map(|name| format!("  {}: {name}", of.folder.display())));
        let idle = of.dev_dependencies.iter().filter(|name| !used(name, &everything));
        wrong.extend(idle.map(|name| format!("  {}: {name} (for tests)", of.folder.display())));
    }
    none_of(wrong, "dependencies that nothing uses");
}

#[test]
fn comments_wrap_at_100_columns() {
    let mut wrong = Vec::new();
    for file in files(&root(), &[".rs"]).unwrap_or_else(|error| panic!("{error}")) {
        let text = read(&file).unwrap_or_else(|error| panic!("{error}"));
        let mut in_code = false;
        for (number, line) in text.lines().enumerate() {
            let Some(comment) = line.trim_start().strip_prefix("//") else { continue };
            in_code ^= comment.contains("```");
            // Tables, drawings and addresses cannot be wrapped.
            let whole = in_code || comment.contains('|') || comment.contains("   ") || comment.contains("://");
            if !whole && line.chars().count() > 100 {
                wrong.push(format!("  {}:{}", shown(&file), number + 1));
            }
        }
    }
    none_of(wrong, "comments longer than 100 columns");
}
