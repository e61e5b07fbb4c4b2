//! Finding PostgreSQL's programs.
//!
//! Distributions put the server's programs in a folder per major version that is not on `PATH`.
//! This module knows the usual places and picks one, or says every place it looked in: a newcomer
//! whose PostgreSQL is somewhere else learns which setting to make.
//!
//! Which folders are candidates, and in which order, is a pure function ([`candidates`]) of what
//! the edge has collected.

use super::config::MIN_MAJOR;
use super::error::PostgresError;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// PostgreSQL's programs, all of one installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// The folder they lie in.
    pub folder: PathBuf,
    /// Their major version.
    pub major: u32,
}

impl Binaries {
    /// The path of one of them.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// What the environment offers.
#[derive(Debug, Default)]
struct Surroundings {
    /// The folders on `PATH`.
    path: Vec<PathBuf>,
    /// What `pg_config --bindir` said.
    pg_config: Option<PathBuf>,
    /// Folders of the usual places that exist: (major version, folder).
    usual: Vec<(u32, PathBuf)>,
}

/// Finds PostgreSQL's programs: in `bin_dir` alone if that is set, else in the first suitable
/// folder of `PATH`, of `pg_config --bindir`, or of the usual places, newest first. With `wanted`,
/// the major version of existing data, only that version will do.
///
/// # Errors
/// [`PostgresError::NotFound`], listing each place and what was wrong with it.
pub fn find(bin_dir: Option<&Path>, wanted: Option<u32>) -> Result<Binaries, PostgresError> {
    let folders = match bin_dir {
        Some(dir) => vec![dir.to_path_buf()],
        None => candidates(&look_around()),
    };
    let mut looked = Vec::with_capacity(folders.len());
    for folder in folders {
        match examine(&folder, wanted) {
            Ok(major) => return Ok(Binaries { folder, major }),
            Err(reason) => looked.push((folder, reason)),
        }
    }
    Err(PostgresError::NotFound { looked })
}

/// The folders to try, in order and each once.
fn candidates(around: &Surroundings) -> Vec<PathBuf> {
    let mut usual = around.usual.clone();
    usual.sort_by(|a, b| b.cmp(a));
    let mut seen = BTreeSet::new();
    (around.path.iter().cloned())
        .chain(around.pg_config.clone())
        .chain(usual.into_iter().map(|(_, folder)| folder))
        .filter(|folder| folder.is_absolute() && seen.insert(folder.clone()))
        .collect()
}

/// The major version of the programs in `folder`, or why they will not do.
fn examine(folder: &Path, wanted: Option<u32>) -> Result<u32, String> {
    for program in ["postgres", "initdb"] {
        if !folder.join(program).is_file() {
            return Err(format!("no {program}"));
        }
    }
    let version = output(&folder.join("postgres"), "--version").ok_or("postgres --version fails")?;
    let major = parse_major(&version).ok_or_else(|| format!("unreadable version {version:?}"))?;
    match wanted {
        _ if major < MIN_MAJOR => Err(format!("version {major}; {MIN_MAJOR} or newer is needed")),
        Some(wanted) if wanted != major => Err(format!("version {major}; the data here is of version {wanted}")),
        _ => Ok(major),
    }
}

/// `postgres (PostgreSQL) 15.4 (Debian …)`, `17beta1`, … → the major version.
fn parse_major(version: &str) -> Option<u32> {
    let number = version.split_whitespace().nth(2)?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn look_around() -> Surroundings {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let pg_config = output(Path::new("pg_config"), "--bindir").map(PathBuf::from);
    let mut usual = Vec::new();
    // Debian and Ubuntu; Red Hat and its kin; FreeBSD-like and source builds; Homebrew on both its
    // prefixes.
    usual.extend(versioned("/usr/lib/postgresql", "", "bin"));
    usual.extend(versioned("/usr", "pgsql-", "bin"));
    usual.extend(versioned("/usr/libexec", "postgresql", ""));
    usual.extend(versioned("/opt/homebrew/opt", "postgresql@", "bin"));
    usual.extend(versioned("/usr/local/opt", "postgresql@", "bin"));
    usual.extend(["/usr/local/pgsql/bin", "/usr/local/bin", "/usr/bin"].map(|dir| (0, PathBuf::from(dir))));
    Surroundings { path: std::env::split_paths(&path).collect(), pg_config, usual }
}

/// The folders `parent/prefix<major>/below` that exist.
fn versioned(parent: &str, prefix: &str, below: &str) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let major = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((major, entry.path().join(below)))
        })
        .collect()
}

/// What a program prints, without the white space around it; `None` if it cannot be run, fails, or
/// prints nothing.
fn output(program: &Path, argument: impl AsRef<OsStr>) -> Option<String> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_string();
    (output.status.success() && !text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn versions_are_read_as_postgres_prints_them() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.4 (Debian 15.4-0)"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(parse_major("postgres"), None);
    }

    #[test]
    fn what_the_user_chose_comes_first_and_the_newest_of_the_usual_places_next() {
        let usual = [(15, "/usr/lib/postgresql/15/bin"), (9, "/usr/lib/postgresql/9/bin"), (17, "/usr/pgsql-17/bin")];
        let around = Surroundings {
            path: ["/usr/local/bin", "relative", "/usr/bin"].map(PathBuf::from).into(),
            pg_config: Some("/usr/pgsql-17/bin".into()),
            usual: usual.map(|(major, dir)| (major, PathBuf::from(dir))).into(),
        };
        let found: Vec<_> = candidates(&around).into_iter().map(|p| p.display().to_string()).collect();
        let expected = [
            "/usr/local/bin",
            "/usr/bin",
            "/usr/pgsql-17/bin",
            "/usr/lib/postgresql/15/bin",
            "/usr/lib/postgresql/9/bin",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_folder_without_the_programs_is_named_in_the_error() {
        let empty = tempfile::tempdir().unwrap();
        let error = find(Some(empty.path()), None).unwrap_err();
        assert!(error.to_string().contains(&format!("{} (no postgres)", empty.path().display())), "{error}");
    }

    #[test]
    fn data_of_another_version_is_reported() {
        let error = find(None, Some(9)).unwrap_err();
        assert!(error.to_string().contains("the data here is of version 9"), "{error}");
    }
}
