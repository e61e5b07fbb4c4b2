//! Hardware of a simulation: the network, disks and database servers, which outlive the processes
//! of their machines.
//!
//! It implements [`Simulation`], so that the product's code finds it wherever it would use the
//! network, a disk, a clock or PostgreSQL.

use crate::checkers::clocks::ClockChecker;
use crate::net::Net;
use crate::postgres::SimulatedPostgres;
use crate::process;
use evenkeel_host::{Accept, Bug, Connecting, Disk, ForgetfulDisk, Server, Simulation};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Zeros that a new segment of a log comes with, in bytes.
const PREPARED_BYTES: usize = 4 << 10;

/// Disks by machine and folder.
pub type Disks = BTreeMap<(u32, PathBuf), ForgetfulDisk>;

/// See the module. Clones are the same hardware.
#[derive(Clone, Default)]
pub struct Hardware {
    /// The network.
    pub net: Net,
    disks: Arc<Mutex<Disks>>,
    servers: Arc<Mutex<BTreeMap<u32, SimulatedPostgres>>>,
    /// Machines whose disks are slow, and by how many milliseconds per write at most.
    slow_disks: Arc<Mutex<BTreeMap<u32, u64>>>,
    bug: Option<Bug>,
    /// Checks the time that replicas of shards stamp.
    times: Arc<Mutex<ClockChecker>>,
}

impl Hardware {
    /// The check of the time that replicas stamp.
    pub fn times(&self) -> MutexGuard<'_, ClockChecker> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slow_disks(&self) -> MutexGuard<'_, BTreeMap<u32, u64>> {
        self.slow_disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A machine's disk takes up to `ms` milliseconds for each write; 0 is full speed.
    pub fn slow_disk(&self, machine: u32, ms: u64) {
        match ms {
            0 => _ = self.slow_disks().remove(&machine),
            ms => _ = self.slow_disks().insert(machine, ms),
        }
    }

    /// Hardware of a run in which a deliberate bug may be active.
    pub fn with_bug(bug: Option<Bug>) -> Hardware {
        Hardware { bug, ..Hardware::default() }
    }

    fn disks(&self) -> MutexGuard<'_, Disks> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies of the disks of these machines, as they are now.
    pub fn copy_disks(&self, machines: &[u32]) -> Disks {
        let disks = self.disks();
        let disks = disks.iter().filter(|((machine, _), _)| machines.contains(machine));
        disks.map(|(at, disk)| (at.clone(), disk.copy())).collect()
    }

    /// Puts disks in the place of those with the same names.
    pub fn put_disks(&self, disks: Disks) {
        self.disks().extend(disks);
    }

    /// A machine has a new, empty disk, and an empty database.
    pub fn lose_disk(&self, machine: u32) {
        let mut disks = self.disks();
        disks.retain(|(of, _), _| *of != machine);
        drop(disks);
        self.postgres(machine).discard();
    }

    /// A machine's database server.
    pub fn postgres(&self, machine: u32) -> SimulatedPostgres {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).entry(machine).or_default().clone()
    }

    /// The disks of a machine lose everything that was not synced.
    pub fn forget(&self, machine: u32) {
        let disks = self.disks();
        for (_, disk) in disks.iter().filter(|((of, _), _)| *of == machine) {
            disk.crash(&mut |below| process::below(below as u64) as usize);
        }
    }
}

impl Simulation for Hardware {
    fn connect(&self, to: SocketAddr) -> Connecting {
        self.net.connect(to)
    }

    fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Accept>> {
        self.net.listen(at)
    }

    fn disk(&self, folder: &Path, _: u64) -> io::Result<Box<dyn Disk>> {
        let skip_every = u64::from(self.has(Bug::NoFsync));
        let mut disks = self.disks();
        let disk = disks.entry((process::machine(), folder.to_owned()));
        Ok(Box::new(disk.or_insert_with(|| ForgetfulDisk::new(skip_every, PREPARED_BYTES)).clone()))
    }

    fn server(&self, _: &Path) -> Arc<dyn Server> {
        Arc::new(self.postgres(process::machine()))
    }

    fn boot_ms(&self) -> u64 {
        process::boot_ms()
    }

    fn unix_ms(&self) -> u64 {
        process::unix_ms()
    }

    fn report_group_time(&self, unix_ms: u64) {
        self.times().stamped(process::machine(), unix_ms, process::true_unix_ms(), process::now_ms());
    }

    fn disk_ms(&self) -> u64 {
        match self.slow_disks().get(&process::machine()) {
            Some(most_ms) => process::below(*most_ms),
            None => 0,
        }
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}
