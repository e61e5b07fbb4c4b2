//! Files that a command writes when its work is done. Their paths are checked before the work
//! starts, so that a missing folder does not discard its results.

use crate::config::ConfigError;
use std::fs::{self, File};
use std::path::Path;

/// Checks that `path` can be written, and leaves it unchanged. `key` is the setting that names it.
pub fn check(key: &str, path: &Path) -> Result<(), ConfigError> {
    let existed = path.exists();
    let opened = File::options().write(true).create(true).truncate(false).open(path);
    let cannot = |e: std::io::Error| {
        ConfigError::value(key, path.display(), "configuration", format!("a file that can be written; this one: {e}"))
    };
    opened.map_err(cannot)?;
    if existed { Ok(()) } else { fs::remove_file(path).map_err(cannot) }
}

/// Writes the file. The error is one sentence.
pub fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{} could not be written: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_path_that_cannot_be_written_is_refused_and_a_checked_file_stays_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        check("report", &path).unwrap();
        assert!(!path.exists());
        fs::write(&path, "old").unwrap();
        check("report", &path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        for bad in [folder.path().to_path_buf(), folder.path().join("no/report.json")] {
            let error = check("report", &bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("report = {}", bad.display())), "{error}");
            assert!(write(&bad, "new").is_err());
        }
    }
}
