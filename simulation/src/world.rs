//! The cluster, and the passing of time.

use crate::clients::{self, Told};
use crate::engine::Engine;
use crate::machine::Machine;
use crate::net::{self, Net};
use crate::oracles;
use crate::process;
use crate::weather::{Fault, Weather};
use evenkeel_host::{Accept, Bug, Connecting, Disk, ForgetfulDisk, Server, Simulation};
use evenkeel_placement_driver as placement_driver;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::routing::ShardInfo;
use rand::seq::SliceRandom;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Ports of a machine.
const RPC: u16 = 1;
const LOG: u16 = 2;
const REST: u16 = 3;
/// Replicas of each group.
pub const REPLICAS: u64 = 3;
/// The machine of the clients.
pub const CLIENTS: u32 = 90;
/// Until when the cluster must be set up, in milliseconds.
const SET_UP_MS: u64 = 30_000;
/// How long after the last fault everything must work again, in milliseconds.
const RECOVERY_MS: u64 = 30_000;
/// By how much a clock runs fast or slow at most, in thousandths.
const DRIFT: i64 = 20;
/// Zeros that a new segment of a log comes with, in bytes.
const PREPARED_BYTES: usize = 4 << 10;

/// How big a simulation is and how long it hurts.
#[derive(Debug, Clone)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// The bug that is in, if one is.
    pub bug: Option<Bug>,
    /// Shards.
    pub shards: u32,
    /// For how long faults come, in milliseconds.
    pub hurt_ms: u64,
    /// Whether faults come at all.
    pub faults: bool,
}

/// What a run was like.
#[derive(Debug, Default)]
pub struct Report {
    /// What was wrong, one sentence each; empty if all is well.
    pub wrong: Vec<String>,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Operations in the history.
    pub operations: usize,
    /// Operators that ended, by kind and end.
    pub operators: BTreeMap<String, u64>,
    /// Milliseconds simulated.
    pub simulated_ms: u64,
    /// Differs if two runs differ in anything.
    pub fingerprint: u64,
}

/// What machines are made of, and what outlives their processes.
#[derive(Clone, Default)]
pub struct Hardware {
    /// The network.
    pub net: Net,
    disks: Arc<Mutex<BTreeMap<(u32, PathBuf), ForgetfulDisk>>>,
    engines: Arc<Mutex<BTreeMap<u32, Engine>>>,
    /// Machines whose disks are slow, and by how many milliseconds per write at most.
    slow_disks: Arc<Mutex<BTreeMap<u32, u64>>>,
    bug: Option<Bug>,
}

impl Hardware {
    fn slow_disks(&self) -> MutexGuard<'_, BTreeMap<u32, u64>> {
        self.slow_disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A machine's disk takes up to so long for each write; 0: it is as fast as ever.
    pub fn slow_disk(&self, machine: u32, ms: u64) {
        match ms {
            0 => _ = self.slow_disks().remove(&machine),
            ms => _ = self.slow_disks().insert(machine, ms),
        }
    }

    /// A machine has a new, empty disk, and nothing of its database.
    fn lose_disk(&self, machine: u32) {
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        disks.retain(|(of, _), _| *of != machine);
        drop(disks);
        self.engine(machine).discard();
    }

    /// A machine's database server.
    pub fn engine(&self, machine: u32) -> Engine {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner).entry(machine).or_default().clone()
    }

    /// A machine's disks lose what was not synced.
    fn forget(&self, machine: u32) {
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
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
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        let disk = disks.entry((process::machine(), folder.to_owned()));
        Ok(Box::new(disk.or_insert_with(|| ForgetfulDisk::new(skip_every, PREPARED_BYTES)).clone()))
    }

    fn server(&self, _: &Path) -> Arc<dyn Server> {
        Arc::new(self.engine(process::machine()))
    }

    fn boot_ms(&self) -> u64 {
        process::boot_ms()
    }

    fn unix_ms(&self) -> u64 {
        process::unix_ms()
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

/// What a machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A replica of the placement driver.
    PlacementDriver(u64),
    /// A replica of a shard.
    Shard(ShardId, u64),
}

impl Part {
    /// Its machine.
    pub fn machine(self) -> u32 {
        match self {
            Part::PlacementDriver(replica) => replica as u32,
            Part::Shard(shard, replica) => shard.0 * 10 + replica as u32,
        }
    }
}

/// What is known to everyone without a message: which placement drivers run in this process. Its routing table is a hint, and its
/// REST API is a way to give orders; both are reached here directly.
pub type Registry = Rc<RefCell<BTreeMap<u64, Arc<placement_driver::server::Shared>>>>;

/// A whole cluster.
pub struct World {
    /// What machines are made of.
    pub hardware: Hardware,
    /// The parts.
    pub parts: Vec<Part>,
    /// The machines, the clients' included.
    pub machines: BTreeMap<u32, Machine>,
    /// The placement drivers that run.
    pub registry: Registry,
    options: Options,
    folder: PathBuf,
    told: Rc<RefCell<Told>>,
    order: Vec<u32>,
    fingerprint: u64,
    report: Report,
}

/// Addresses of a shard's replicas.
pub fn shard_info(shard: u32) -> ShardInfo {
    ShardInfo { id: ShardId(shard), replicas: addresses(|replica| Part::Shard(ShardId(shard), replica), RPC) }
}

fn addresses(part: impl Fn(u64) -> Part, port: u16) -> BTreeMap<u64, SocketAddr> {
    (1..=REPLICAS).map(|replica| (replica, net::address(part(replica).machine(), port))).collect()
}

impl World {
    /// A cluster that is switched off. `folder` takes the few real files there are.
    pub fn new(options: Options, folder: PathBuf) -> World {
        let hardware = Hardware { bug: options.bug, ..Hardware::default() };
        let shards = (1..=options.shards)
            .flat_map(|shard| (1..=REPLICAS).map(move |replica| Part::Shard(ShardId(shard), replica)));
        let parts: Vec<Part> = (1..=REPLICAS).map(Part::PlacementDriver).chain(shards).collect();
        let mut machines = BTreeMap::new();
        for part in &parts {
            let drift = process::below(2 * DRIFT as u64 + 1) as i64 - DRIFT;
            machines.insert(part.machine(), Machine::new(part.machine(), drift));
        }
        machines.insert(CLIENTS, Machine::new(CLIENTS, 0));
        let order = machines.keys().copied().collect();
        World {
            hardware,
            parts,
            machines,
            registry: Registry::default(),
            options,
            folder,
            told: Rc::default(),
            order,
            fingerprint: 0,
            report: Report::default(),
        }
    }

    /// Runs all of it.
    pub fn run(mut self) -> Report {
        for part in self.parts.clone() {
            self.start(part);
        }
        self.start_clients();
        self.until(SET_UP_MS, "the cluster is not set up", |world| world.told.borrow().set_up);
        let mut weather = Weather::new(&self);
        let hurt_until_ms = process::now_ms() + self.options.hurt_ms;
        while process::now_ms() < hurt_until_ms && self.report.wrong.is_empty() {
            if self.options.faults {
                weather.blow(&mut self);
            }
            self.step();
        }
        weather.calm(&mut self);
        self.told.borrow_mut().healed_ms = Some(process::now_ms());
        self.until(RECOVERY_MS, "not everything recovered", |world| world.told.borrow().recovered);
        self.told.borrow_mut().stop = true;
        self.until(RECOVERY_MS, "the last look was not taken", |world| world.told.borrow().last.is_some());
        if self.report.wrong.is_empty() {
            let shards = self.options.shards;
            self.until(RECOVERY_MS, "replicas of a shard differ", |world| {
                oracles::replicas_equal::check(&world.hardware, shards).is_empty()
            });
        }
        self.judge()
    }

    fn judge(mut self) -> Report {
        let told = self.told.borrow();
        let wrong = &mut self.report.wrong;
        if let Some(sentence) = &told.trouble {
            wrong.push(sentence.clone());
        }
        wrong.extend(oracles::counters::check(&told.history, told.last.as_ref()));
        wrong.extend(oracles::transfers::check(told.last.as_ref()));
        wrong.extend(oracles::replicas_equal::check(&self.hardware, self.options.shards));
        let state = self.registry.borrow().values().map(|shared| shared.applied().clone()).max_by_key(|a| a.index);
        if let Some(applied) = &state {
            wrong.extend(oracles::moves_verified::check(&applied.state));
            for operator in applied.state.operators.values() {
                let kind = format!("{:?}", operator.work);
                let kind = kind.split(' ').next().unwrap_or_default().to_string();
                *self.report.operators.entry(format!("{kind} {:?}", operator.status)).or_default() += 1;
            }
        }
        wrong.extend(oracles::one_owner::check(&told.owners));
        for part in &self.parts {
            if let Some(sql) = self.hardware.engine(part.machine()).unknown() {
                wrong.push(format!("the simulated server does not know the statement {sql}"));
            }
        }
        self.report.operations = told.history.len();
        self.report.simulated_ms = process::now_ms();
        self.report.fingerprint = self.fingerprint;
        drop(told);
        self.report
    }

    fn until(&mut self, bound_ms: u64, otherwise: &str, done: impl Fn(&World) -> bool) {
        let deadline_ms = process::now_ms() + bound_ms;
        while self.report.wrong.is_empty() && !done(self) {
            if process::now_ms() >= deadline_ms {
                let why = self.told.borrow().waiting_for.clone();
                self.report.wrong.push(format!("{otherwise} within {bound_ms} ms {why}"));
                return;
            }
            self.step();
        }
    }

    /// One millisecond.
    fn step(&mut self) {
        let now_ms = process::now_ms() + 1;
        process::set_now_ms(now_ms);
        self.hardware.net.deliver();
        let mut order = std::mem::take(&mut self.order);
        process::draw(|rng| order.shuffle(rng));
        for number in &order {
            let Some(machine) = self.machines.get_mut(number).filter(|m| m.frozen_until_ms <= now_ms) else { continue };
            if let Some(why) = machine.step() {
                self.report.wrong.push(format!("the process on machine {number} ended by itself: {why}"));
            }
        }
        self.order = order;
        let state = self.hardware.net.carried_bytes() ^ process::below(u64::MAX);
        self.fingerprint = (self.fingerprint ^ state).wrapping_mul(0x0100_0000_01b3);
    }

    /// Starts a part's process.
    pub fn start(&mut self, part: Part) {
        let placement_drivers = |port| addresses(Part::PlacementDriver, port);
        let number = part.machine();
        let Some(machine) = self.machines.get_mut(&number) else { return };
        match part {
            Part::PlacementDriver(replica) => {
                let config = placement_driver::Config {
                    replica,
                    join: false,
                    data_dir: self.folder.join(number.to_string()),
                    rest: placement_drivers(REST),
                    rpc: placement_drivers(RPC),
                    log: placement_drivers(LOG),
                    listen_rest: None,
                    listen_rpc: None,
                    listen_log: None,
                    balancer: placement_driver::BalancerConfig { enabled: false, ..Default::default() },
                    snapshot_every_entries: 20 + process::below(200),
                    log_retention_bytes: 64 << 10,
                    log_cap_bytes: 1 << 20,
                    incarnation: None,
                };
                let registry = self.registry.clone();
                machine.start(async move {
                    let front = |shared, _| {
                        registry.borrow_mut().insert(replica, shared);
                        std::future::pending()
                    };
                    let ended = placement_driver::server::serve(config, front, std::future::pending()).await;
                    format!("{:?}", ended.err())
                });
            }
            Part::Shard(shard, replica) => {
                let replicas = |port| addresses(|replica| Part::Shard(shard, replica), port);
                let config = evenkeel_shard_node::Config {
                    shard,
                    replica,
                    join: false,
                    data_dir: PathBuf::from("/simulated"),
                    rpc: replicas(RPC),
                    log: replicas(LOG),
                    listen_rpc: None,
                    listen_log: None,
                    placement_drivers: placement_drivers(RPC),
                    capacity_per_s: None,
                    postgres_bin: None,
                    shared_buffers_mib: 1,
                    write_lanes: 2,
                    read_lanes: 1,
                    max_transactions: 8,
                    log_cap_bytes: 1 << 20,
                };
                machine.start(async move {
                    let ended = evenkeel_shard_node::run(config, std::future::pending()).await;
                    format!("{:?}", ended.err())
                });
            }
        }
    }

    fn start_clients(&mut self) {
        let (registry, told, shards) = (self.registry.clone(), self.told.clone(), self.options.shards);
        if let Some(machine) = self.machines.get_mut(&CLIENTS) {
            machine.start(clients::run(registry, told, shards));
        }
    }

    /// A part's process is killed; with `power` its machine loses power too.
    pub fn kill(&mut self, part: Part, power: bool) {
        let number = part.machine();
        // Before the process goes: its own ends of connections have no say any more.
        self.hardware.net.dies(number, power && process::once_in(2));
        if let Part::PlacementDriver(replica) = part {
            self.registry.borrow_mut().remove(&replica);
        }
        if let Some(machine) = self.machines.get_mut(&number) {
            machine.die();
        }
        self.hardware.forget(number);
        if power {
            self.hardware.engine(number).power_cut();
        }
    }

    /// A part's machine is gone, and comes back with an empty disk.
    pub fn lose_disk(&mut self, part: Part) {
        self.kill(part, true);
        self.hardware.lose_disk(part.machine());
        let folder = self.folder.join(part.machine().to_string());
        if let Err(error) = std::fs::remove_dir_all(&folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            self.report.wrong.push(format!("{} cannot be emptied: {error}", folder.display()));
        }
    }

    /// Notes a fault.
    pub fn note(&mut self, fault: Fault) {
        *self.report.faults.entry(fault.name()).or_default() += 1;
        if std::env::var_os("EVENKEEL_SIMULATION_TRACE").is_some() {
            eprintln!("{} ms: {fault:?}", process::now_ms());
        }
    }
}
