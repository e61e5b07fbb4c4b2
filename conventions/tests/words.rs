//! Words that this project used where a standard term exists. `docs/glossary.md` has the terms.

use evenkeel_conventions::workspace::{files, read, root};
use regex::Regex;
use std::path::Path;

/// What is refused, as a regular expression that ignores case, and what is written instead.
const REFUSED: &[(&str, &str)] = &[
    (r"\b(?:re-?)?(reigns?|reigning)\b", "leadership"),
    (r"(?:^|[^.\w])folds?\b|\bfolded\b|\bfolding\b|\bunfold", "state machine; apply"),
    (r"\bkeepers?\b", "apply writer"),
    (r"\bgathered\b", "write batch; collected"),
    (r"\bupkeep\b", "checkpointing, maintenance"),
    (r"\btaps?\b|\btapped\b", "change stream"),
    (r"\blanes?\b", "write queue"),
    (r"\bpermit\b", "latch, range handle"),
    (r"\bgates?\b", "admission control"),
    (r"\bin the house\b|\bletting? in\b|\blets in\b|\b(?:be|is|are|was|were|waiting) let in\b", "in flight, admitted"),
    (r"\bspares\b", "warm sessions"),
    (r"\bstands? aside\b|\bstood aside\b|\baside\b", "ineligible to lead; moved away"),
    (r"\bvoid\b|\bas nothing\b", "rejected"),
    (r"\bmends?\b|\bmended\b|\bmending\b", "repair"),
    (r"\bsettles?\b|\bsettled\b|\bsettling\b|\bunsettled\b", "resolve, resolved"),
    (r"\bpictures?\b", "load model"),
    (r"\bboards?\b", "planning context"),
    (r"\bdealt\b|\bdeals? out\b", "scattered"),
    (r"\bweather\b", "fault injector"),
    (r"\berrands?\b", "machine command"),
    (r"\bcrowds?\b", "load spike"),
    (r"\bhindrances?\b", "fault hook"),
    (r"\banew\b", "again"),
    (r"\bso many\b", "up to N, N"),
    (r"\bwhat is\b", "the …"),
    (r"\bwho does\b|\bwho do not\b", "a client that …"),
    (r"\b(is|are|was|were|be|been) told\b", "is notified, learns"),
    (r"\bclient session\b", "Session"),
];

/// Where a refused word may stand: a file (any, if empty), a word of its line, and why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("", "SemaphorePermit", "tokio's name"),
    ("", "OwnedPermit", "tokio's name"),
    ("", "stream::unfold", "the futures crate's name"),
    ("", "write_lanes", "a key of the configuration, older than the term"),
    ("", "read_lanes", "a key of the configuration, older than the term"),
    ("", "\"settled\"", "the code of a refusal that shards and placement drivers exchange"),
    ("", "rejected: settled", "the same, in scripts"),
    ("CHANGELOG.md", "", "entries say what the names were"),
    ("docs/glossary.md", "", "the terms are explained there"),
    ("docs/decisions/glossary.md", "", "the renaming is decided there"),
    ("conventions/tests/words.rs", "", "this list"),
];

#[test]
fn standard_terms_are_used() {
    let root = root();
    let refused: Vec<(Regex, &str)> = REFUSED
        .iter()
        .map(|(pattern, instead)| {
            let pattern = Regex::new(&format!("(?i){pattern}")).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            (pattern, *instead)
        })
        .collect();
    let endings = [".rs", ".md", ".txt", ".toml", ".yml", "Makefile", "Dockerfile"];
    let found = files(&root, &endings).unwrap_or_else(|error| panic!("{error}"));
    let mut wrong = Vec::new();
    for file in found {
        let text = read(&file).unwrap_or_else(|error| panic!("{error}"));
        let name = file.strip_prefix(&root).unwrap_or(&file);
        for (number, line) in text.lines().enumerate() {
            // Names of code are words too: `gate_open` and `GateOpen` are read as they are spoken.
            let spoken = spoken(line);
            let hit = refused.iter().find(|(pattern, _)| pattern.is_match(&spoken));
            let Some((pattern, instead)) = hit.filter(|_| !excepted(name, line)) else { continue };
            let word = pattern.find(&spoken).map_or("", |found| found.as_str().trim());
            wrong.push(format!("  {}:{}: {word:?}: write {instead}", name.display(), number + 1));
        }
    }
    assert!(wrong.is_empty(), "{} lines with words of our own:\n{}", wrong.len(), wrong.join("\n"));
}

fn excepted(file: &Path, line: &str) -> bool {
    EXCEPTIONS.iter().any(|(path, word, _)| (path.is_empty() || file == Path::new(path)) && line.contains(word))
}

/// The line with the names in it taken apart: `load_model` and `LoadModel` become `load model`.
fn spoken(line: &str) -> String {
    let mut spoken = String::with_capacity(line.len() + 16);
    let mut before = ' ';
    for c in line.chars() {
        if c == '_' {
            spoken.push(' ');
        } else {
            if c.is_uppercase() && before.is_lowercase() {
                spoken.push(' ');
            }
            spoken.push(c);
        }
        before = c;
    }
    spoken
}

#[test]
fn names_are_taken_apart() {
    assert_eq!(spoken("let load_model = LoadModel::new();"), "let load model = Load Model::new();");
}
