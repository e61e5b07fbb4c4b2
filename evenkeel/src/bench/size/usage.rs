//! Bytes written to disk and peak memory of processes, by `/proc`.
//!
//! The bytes of a process include those of its ended children, so the sum over a tree of live
//! processes is complete. Only data that the page cache has written to the disk counts; [`flush`]
//! makes it write the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The interval between two readings of memory.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The resources that processes and their descendants have used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes written to disk.
    pub written_bytes: u64,
}

/// `roots` and their descendants.
pub fn tree(roots: &[u32]) -> BTreeSet<u32> {
    descendants(roots, &parents())
}

/// The sums over `roots` and their descendants.
pub fn of_tree(roots: &[u32]) -> Usage {
    let written_bytes = tree(roots).into_iter().filter_map(written_bytes).sum();
    Usage { written_bytes }
}

/// The peak memory of a process, in bytes; `None` if it has ended.
pub fn peak_memory_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    field(&status, "VmHWM:").map(|kib| kib * 1024)
}

/// The peak memory of any process of a group. An ended process has no reading, so memory is read
/// repeatedly.
#[derive(Debug, Default)]
pub struct Peak(AtomicU64);

impl Peak {
    /// Reads the memory of the processes that `pids` returns, until the future is dropped.
    pub async fn watch(&self, pids: impl Fn() -> Vec<u32>) -> std::convert::Infallible {
        loop {
            let most = pids().into_iter().filter_map(peak_memory_bytes).max().unwrap_or(0);
            self.0.fetch_max(most, Ordering::Relaxed);
            evenkeel_host::sleep(LOOK_EVERY).await;
        }
    }

    /// The peak so far, in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Makes the kernel write its dirty pages, so that they are counted.
pub fn flush() {
    rustix::fs::sync();
}

fn written_bytes(pid: u32) -> Option<u64> {
    field(&fs::read_to_string(format!("/proc/{pid}/io")).ok()?, "write_bytes:")
}

/// The number after `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Each process's parent.
fn parents() -> BTreeMap<u32, u32> {
    let Ok(folder) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, parent(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// The parent in a line of `/proc/PID/stat`: the second field after the name, which is in brackets
/// and may contain any character.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn descendants(roots: &[u32], parents: &BTreeMap<u32, u32>) -> BTreeSet<u32> {
    let mut found: BTreeSet<u32> = roots.iter().copied().collect();
    loop {
        let more: Vec<u32> = parents
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|(p, _)| *p)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn children_of_children_count() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 9), (5, 3)]);
        assert_eq!(descendants(&[2], &parents), BTreeSet::from([2, 3, 5]));
    }

    #[test]
    fn names_may_contain_brackets_and_spaces() {
        assert_eq!(parent("17 (a) b (c) S 4 17 17 0"), Some(4));
        assert_eq!(parent("nonsense"), None);
    }

    #[test]
    fn this_process_has_memory_and_its_writes_are_counted() {
        let me = std::process::id();
        assert!(peak_memory_bytes(me).unwrap() > 100_000);
        assert_eq!(peak_memory_bytes(0), None);
        assert!(tree(&[me]).contains(&me));
        assert_eq!(field("a: 1\nwrite_bytes: 42\n", "write_bytes:"), Some(42));
    }
}
