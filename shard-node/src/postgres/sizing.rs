//! Sizing of a server: its memory and the length of its write-ahead log.
//!
//! Shards share machines, so a server's share is the machine divided by the servers on it.
//! Configured values are used as they are. The choice is pure; the machine's memory and disk are
//! read once per start of the server.

use std::path::Path;

/// The share of a server's memory that becomes `shared_buffers`: the rest is for the system's page
/// cache, which holds what the log's replay and large values are read from, and for sessions.
const SHARED_BUFFERS_PART: u64 = 4;
/// The least and the most `shared_buffers` chosen, in MiB. A server writes its dirty buffers when
/// it is stopped, and that is waited for.
const SHARED_BUFFERS_MIB: (u64, u64) = (32, 4096);
/// The memory taken for a machine that does not tell, in MiB.
const UNKNOWN_MEMORY_MIB: u64 = 2048;
/// The part of `shared_buffers` that holds PostgreSQL's log until it is written, and the most of
/// it, in MiB. PostgreSQL itself chooses 16 MiB at most; where they are full, the committing
/// session writes and syncs the log itself. With this much a disk may stand still for a second
/// under 60 MB/s without that.
const WAL_BUFFERS_PART: u64 = 10;
const MOST_WAL_BUFFERS_MIB: u64 = 64;
/// The least and the most `max_wal_size` chosen, in MiB. The least is PostgreSQL's own minimum with
/// room for one checkpoint under load. The most bounds what a start after a crash replays: a
/// replica must serve within ten seconds. Longer intervals between checkpoints save full pages, but
/// less and less.
const MAX_WAL_MIB: (u64, u64) = (128, 1024);
/// The part of the free disk, divided by the servers on the machine, that `max_wal_size` may take.
const WAL_DISK_PART: u64 = 16;

/// The configured share of a server in its machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resources {
    /// Servers that share the machine's memory and disk; 0 counts as 1.
    pub servers: u32,
    /// The memory of this server, in MiB; absent: the machine's, divided by the servers.
    pub memory_mib: Option<u32>,
    /// `shared_buffers`, in MiB; absent: a quarter of its memory.
    pub shared_buffers_mib: Option<u32>,
    /// `max_wal_size`, in MiB; absent: by the free disk.
    pub max_wal_mib: Option<u32>,
}

impl Resources {
    /// `shared_buffers` and `max_wal_size`, in MiB, that a server with its data on a disk with
    /// `free_disk_bytes` left would get on this machine: what another server is given that is to be
    /// compared with it.
    pub fn chosen_mib(&self, free_disk_bytes: Option<u64>) -> (u64, u64) {
        let sizing = Sizing::choose(self, Machine::here(free_disk_bytes));
        (sizing.shared_buffers_mib, sizing.max_wal_mib)
    }
}

/// The memory and disk of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine {
    /// Memory, in MiB; absent if unknown.
    pub memory_mib: Option<u64>,
    /// Free on the data's disk, in MiB; absent if unknown.
    pub free_disk_mib: Option<u64>,
}

/// The settings chosen, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizing {
    pub shared_buffers_mib: u64,
    /// What the planner may count on: buffers and page cache.
    pub effective_cache_mib: u64,
    pub maintenance_work_mib: u64,
    /// Log that is not written yet.
    pub wal_buffers_mib: u64,
    pub max_wal_mib: u64,
    pub min_wal_mib: u64,
}

impl Sizing {
    /// By the configured values and, beyond these, by the machine.
    pub fn choose(resources: &Resources, machine: Machine) -> Sizing {
        let servers = u64::from(resources.servers.max(1));
        let share = |total: u64| (total / servers).max(1);
        let memory = resources
            .memory_mib
            .map_or_else(|| share(machine.memory_mib.unwrap_or(UNKNOWN_MEMORY_MIB)), u64::from)
            .max(1);
        let (least, most) = SHARED_BUFFERS_MIB;
        let buffers =
            resources.shared_buffers_mib.map_or((memory / SHARED_BUFFERS_PART).clamp(least, most), u64::from).max(1);
        let (least, most) = MAX_WAL_MIB;
        let by_disk = machine.free_disk_mib.map_or(least, |free| share(free) / WAL_DISK_PART);
        // PostgreSQL refuses less than two segments.
        let max_wal = resources.max_wal_mib.map_or(by_disk.clamp(least, most), u64::from).max(32);
        Sizing {
            shared_buffers_mib: buffers,
            effective_cache_mib: (memory * 3 / 4).max(buffers),
            maintenance_work_mib: (memory / 32).clamp(16, 256),
            wal_buffers_mib: (buffers / WAL_BUFFERS_PART).clamp(1, MOST_WAL_BUFFERS_MIB),
            max_wal_mib: max_wal,
            // Segments kept for use again: making and filling new ones competes with the log's
            // fsync.
            min_wal_mib: (max_wal / 4).clamp(32, 256),
        }
    }
}

impl Machine {
    /// This machine, with the disk that has `free_disk_bytes` left.
    pub fn here(free_disk_bytes: Option<u64>) -> Machine {
        let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_memory_mib(&text));
        let limit = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
            .iter()
            .find_map(|file| limit_mib(&std::fs::read_to_string(Path::new(file)).ok()?));
        let memory_mib = match (memory, limit) {
            (Some(memory), Some(limit)) => Some(memory.min(limit)),
            (memory, limit) => memory.or(limit),
        };
        Machine { memory_mib, free_disk_mib: free_disk_bytes.map(|bytes| bytes >> 20) }
    }
}

/// `MemTotal` of `/proc/meminfo`, in MiB.
fn total_memory_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? >> 10)
}

/// A control group's limit of memory, in MiB; `None` for none.
fn limit_mib(text: &str) -> Option<u64> {
    Some(text.trim().parse::<u64>().ok()? >> 20)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn machine(memory_mib: u64, free_disk_mib: u64) -> Machine {
        Machine { memory_mib: Some(memory_mib), free_disk_mib: Some(free_disk_mib) }
    }

    // E23: a large machine's server is not configured for a small database.
    #[test]
    fn a_server_takes_its_share_of_the_machine() {
        let alone = Sizing::choose(&Resources::default(), machine(8192, 400_000));
        assert_eq!((alone.shared_buffers_mib, alone.effective_cache_mib, alone.max_wal_mib), (2048, 6144, 1024));
        let one_of_nine =
            Sizing::choose(&Resources { servers: 9, ..Resources::default() }, machine(24 * 1024, 90 * 1024));
        assert_eq!((one_of_nine.shared_buffers_mib, one_of_nine.max_wal_mib), (682, 640));
        let told = Resources { memory_mib: Some(400), ..Resources::default() };
        assert_eq!(Sizing::choose(&told, machine(8192, 400_000)).shared_buffers_mib, 100);
    }

    #[test]
    fn small_machines_and_full_disks_bound_it() {
        let small = Sizing::choose(&Resources { servers: 9, ..Resources::default() }, machine(512, 200));
        assert_eq!((small.shared_buffers_mib, small.max_wal_mib, small.min_wal_mib), (32, 128, 32));
        let large = Sizing::choose(&Resources::default(), machine(1 << 20, 1 << 30));
        assert_eq!((large.shared_buffers_mib, large.max_wal_mib), (4096, 1024));
        let silent = Sizing::choose(&Resources::default(), Machine { memory_mib: None, free_disk_mib: None });
        assert_eq!((silent.shared_buffers_mib, silent.max_wal_mib), (512, 128));
    }

    #[test]
    fn configured_values_are_used_as_they_are() {
        let set = Resources { servers: 3, memory_mib: None, shared_buffers_mib: Some(7), max_wal_mib: Some(4096) };
        let sizing = Sizing::choose(&set, machine(8192, 1000));
        assert_eq!((sizing.shared_buffers_mib, sizing.max_wal_mib), (7, 4096));
    }

    #[test]
    fn what_the_system_says_is_read() {
        assert_eq!(total_memory_mib("MemFree: 1 kB\nMemTotal:       24684544 kB\n"), Some(24_106));
        assert_eq!(total_memory_mib("nothing"), None);
        assert_eq!((limit_mib("max\n"), limit_mib("1073741824\n")), (None, Some(1024)));
    }
}
