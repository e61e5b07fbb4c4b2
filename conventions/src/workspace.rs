//! The workspace on disk: its crates and its text files.
//!
//! A [`Crate`] is one member of the workspace. Paths in results are relative to the workspace's
//! root, so that messages can be followed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use toml::Table;

/// Why the tree could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A manifest is no TOML, or lacks a part.
    #[error("{0}: not a manifest that is understood: {1}")]
    Manifest(PathBuf, String),
    /// A source file is no Rust.
    #[error("{0}: {1}")]
    Syntax(PathBuf, String),
}

/// One member of the workspace.
#[derive(Debug)]
pub struct Crate {
    /// The name that other crates import it by, with underscores.
    pub import_name: String,
    /// Its folder, relative to the root.
    pub folder: PathBuf,
    /// Names of its dependencies as code imports them.
    pub dependencies: BTreeSet<String>,
    /// Names of what only its tests, examples and benchmarks use.
    pub dev_dependencies: BTreeSet<String>,
}

/// The root of the workspace this crate is part of, as cargo gives it to a running test: a binary
/// that was built in another checkout reads the one it runs in.
pub fn root() -> PathBuf {
    let folder = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("conventions"), PathBuf::from);
    folder.parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Reads a file as text.
///
/// # Errors
///
/// It cannot be read, or is no UTF-8.
pub fn read(path: &Path) -> Result<String, ReadError> {
    std::fs::read_to_string(path).map_err(|source| ReadError::Io { path: path.to_path_buf(), source })
}

/// All members of the workspace at `root`, in the order of its manifest.
///
/// # Errors
///
/// A manifest cannot be read or understood.
pub fn crates(root: &Path) -> Result<Vec<Crate>, ReadError> {
    let manifest = manifest(&root.join("Cargo.toml"))?;
    let members = manifest.get("workspace").and_then(|workspace| workspace.get("members")).and_then(|m| m.as_array());
    let members = members.ok_or_else(|| ReadError::Manifest(root.join("Cargo.toml"), "no members".into()))?;
    members.iter().filter_map(|member| member.as_str()).map(|member| one(root, Path::new(member))).collect()
}

fn one(root: &Path, folder: &Path) -> Result<Crate, ReadError> {
    let path = root.join(folder).join("Cargo.toml");
    let manifest = manifest(&path)?;
    let name = manifest.get("package").and_then(|package| package.get("name")).and_then(|name| name.as_str());
    let name = name.ok_or_else(|| ReadError::Manifest(path, "no package.name".into()))?;
    Ok(Crate {
        import_name: name.replace('-', "_"),
        folder: folder.to_path_buf(),
        dependencies: names(&manifest, "dependencies"),
        dev_dependencies: names(&manifest, "dev-dependencies"),
    })
}

fn manifest(path: &Path) -> Result<Table, ReadError> {
    read(path)?.parse().map_err(|error: toml::de::Error| ReadError::Manifest(path.to_path_buf(), error.to_string()))
}

fn names(manifest: &Table, section: &str) -> BTreeSet<String> {
    let table = manifest.get(section).and_then(|section| section.as_table());
    table.into_iter().flat_map(|table| table.keys()).map(|name| name.replace('-', "_")).collect()
}

/// All files below `folder` whose name ends in one of `endings`, sorted; folders of builds and of
/// version control are left out.
///
/// # Errors
///
/// A folder cannot be read.
pub fn files(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, ReadError> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let failed = |source| ReadError::Io { path: folder.clone(), source };
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
