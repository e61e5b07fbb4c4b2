//! The `--endpoints` file, by which another process finds a running cluster.
//!
//! It holds the URLs of the placement driver's replicas and of the gateway, and one entry per
//! process. It is written again whenever a process is started again.

use evenkeel_client::admin::parse_url;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// The URLs of a cluster and its processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// URLs of the placement driver's replicas.
    pub rest: Vec<String>,
    /// The gateway's URL for PostgreSQL clients, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The processes.
    #[serde(default)]
    pub processes: Vec<EndpointProcess>,
}

/// One process of the `--endpoints` file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointProcess {
    /// `placement-driver`, `shard-node` or `gateway`.
    pub role: String,
    /// `placement-driver-REPLICA`, `shard-SHARD-REPLICA` or `gateway`.
    pub name: String,
    /// Its process id; absent while it is down.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Its data folder.
    pub data: PathBuf,
}

impl Endpoints {
    /// Writes the file atomically: a reader never sees a part of it.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let partial = Endpoints::partial(path);
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(&partial, text)?;
        std::fs::rename(&partial, path)
    }

    /// The path of the file while it is being written.
    pub fn partial(path: &Path) -> PathBuf {
        path.with_extension("partial")
    }

    /// Reads a file written by [`Endpoints::write`]. The error is one sentence.
    pub fn read(path: &Path) -> Result<Endpoints, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let endpoints: Endpoints =
            serde_json::from_str(&text).map_err(|e| format!("{} is no endpoints file: {e}", path.display()))?;
        if endpoints.rest.is_empty() {
            return Err(format!("{} names no REST endpoint", path.display()));
        }
        if let Some(bad) = endpoints.rest.iter().find(|url| parse_url(url).is_err()) {
            return Err(format!("{} names {bad:?}, which is no URL", path.display()));
        }
        Ok(endpoints)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_written_file_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("endpoints.json");
        let process = EndpointProcess {
            role: "shard-node".into(),
            name: "shard-1-2".into(),
            pid: Some(7),
            data: folder.path().join("shard-1-2"),
        };
        let endpoints = Endpoints {
            rest: vec!["http://127.0.0.1:1".into()],
            gateway: Some("postgresql://app@127.0.0.1:2/postgres".into()),
            processes: vec![process],
        };
        for endpoints in [endpoints.clone(), Endpoints { gateway: None, ..endpoints }] {
            endpoints.write(&path).unwrap();
            assert_eq!(Endpoints::read(&path).unwrap(), endpoints);
        }
        std::fs::write(&path, "{\"rest\": []}").unwrap();
        assert!(Endpoints::read(&path).unwrap_err().contains("names no REST endpoint"));
        std::fs::write(&path, "{\"rest\": [\"localhost:1\"]}").unwrap();
        assert!(Endpoints::read(&path).unwrap_err().contains("names \"localhost:1\", which is no URL"));
        std::fs::write(&path, "[]").unwrap();
        assert!(Endpoints::read(&path).unwrap_err().contains("is no endpoints file"));
    }
}
