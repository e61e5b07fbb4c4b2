//! The size and the ports of a cluster, saved in its folder, so that the cluster can be started
//! again from there.
//!
//! Replicas have each other's addresses in their logs. A cluster that is started again must
//! therefore have the same ports. Its gateway has the same port, too, for the sake of those who
//! connect; a cluster that had none gets one.

use crate::error::{ClusterError, InvalidSetting};
use crate::options::ClusterOptions;
use crate::process_id::ProcessId;
use evenkeel_host::ports;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// The name of the file in the cluster's folder.
const FILE: &str = "cluster.json";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedCluster {
    shards: u32,
    replicas: u64,
    placement_drivers: u64,
    ports: Vec<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<u16>,
}

/// The ports of the cluster in `root`: the saved ones, or `wanted` new ones, which are then saved.
/// The gateway's, if it has one, is behind them.
pub fn ports(options: &ClusterOptions, root: &Path, wanted: usize) -> Result<Vec<u16>, ClusterError> {
    let path = root.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return reserve_and_save(options, root, wanted),
        Err(error) => return Err(ClusterError::io(format!("reading {}", path.display()))(error)),
    };
    let refuse = |accepted: String| InvalidSetting::new("data_dir", root.display(), accepted);
    let mut saved: SavedCluster = serde_json::from_str(&text)
        .map_err(|e| refuse(format!("another folder: the {FILE} in this one cannot be read: {e}")))?;
    let (shards, replicas, placement_drivers) = (options.shards, options.replicas, options.placement_drivers);
    if (saved.shards, saved.replicas, saved.placement_drivers, saved.ports.len())
        != (shards, replicas, placement_drivers, wanted)
    {
        return Err(refuse(format!(
            "the folder of a cluster of {shards} shards of {replicas} replicas; in this one is a cluster of {} shards of {} replicas",
            saved.shards, saved.replicas
        ))
        .into());
    }
    if options.gateway && saved.gateway.is_none() {
        saved.gateway = reserve(1)?.pop();
        save(root, &saved)?;
    }
    let mut ports = saved.ports;
    ports.extend(saved.gateway.filter(|_| options.gateway));
    match ports::taken(&ports) {
        Some(port) => Err(ClusterError::PortTaken { port, root: root.to_path_buf() }),
        None => Ok(ports),
    }
}

fn reserve(count: usize) -> Result<Vec<u16>, ClusterError> {
    ports::reserve(count).map_err(ClusterError::io("finding free ports"))
}

fn reserve_and_save(options: &ClusterOptions, root: &Path, wanted: usize) -> Result<Vec<u16>, ClusterError> {
    if root.join(ProcessId::PlacementDriver(1).to_string()).exists() {
        let accepted =
            format!("another folder: in this one is a cluster whose ports are not known, as there is no {FILE}");
        return Err(InvalidSetting::new("data_dir", root.display(), accepted).into());
    }
    let mut ports = reserve(wanted + usize::from(options.gateway))?;
    let all = ports.clone();
    let gateway = if options.gateway { ports.pop() } else { None };
    let saved = SavedCluster {
        shards: options.shards,
        replicas: options.replicas,
        placement_drivers: options.placement_drivers,
        ports,
        gateway,
    };
    save(root, &saved)?;
    Ok(all)
}

fn save(root: &Path, saved: &SavedCluster) -> Result<(), ClusterError> {
    let text = serde_json::to_string(saved).map_err(|e| ClusterError::Text(e.to_string()))? + "\n";
    // Written atomically: a part of the file would prevent the next start.
    let (path, partial) = (root.join(FILE), root.join(format!("{FILE}.partial")));
    let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, &path));
    written.map_err(ClusterError::io(format!("writing {}", path.display())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_cluster_that_comes_back_has_its_ports_or_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let options = ClusterOptions::new("/bin/true");
        let first = ports(&options, folder.path(), 27).unwrap();
        assert_eq!(ports(&options, folder.path(), 27).unwrap(), first);

        let with_gateway = ClusterOptions { gateway: true, ..options.clone() };
        let all = ports(&with_gateway, folder.path(), 27).unwrap();
        assert_eq!((all.len(), &all[..27]), (28, &first[..]), "a gateway is added to it");
        assert_eq!(ports(&with_gateway, folder.path(), 27).unwrap(), all);
        assert_eq!(ports(&options, folder.path(), 27).unwrap(), first);

        let other = ClusterOptions { shards: 4, ..options.clone() };
        let error = ports(&other, folder.path(), 33).unwrap_err().to_string();
        assert!(
            error.ends_with("of 4 shards of 3 replicas; in this one is a cluster of 3 shards of 3 replicas"),
            "{error}"
        );

        let holder = TcpListener::bind(("127.0.0.1", first[5])).unwrap();
        let error = ports(&options, folder.path(), 27).unwrap_err().to_string();
        assert!(error.starts_with(&format!("port {} ", first[5])) && !error.contains('\n'), "{error}");
        drop(holder);

        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(ports(&options, folder.path(), 27).unwrap_err().to_string().contains("cannot be read"));
        std::fs::remove_file(folder.path().join(FILE)).unwrap();
        std::fs::create_dir(folder.path().join("placement-driver-1")).unwrap();
        let error = ports(&options, folder.path(), 27).unwrap_err().to_string();
        assert!(error.contains("a cluster whose ports are not known"), "{error}");
    }
}
