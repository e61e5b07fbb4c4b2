//! The cluster, and the passing of time.

mod configs;
mod restore;

use crate::clients::{self, Told};
use crate::engine::Engine;
use crate::machine::Machine;
use crate::net::{self, Net};
use crate::oracles;
use crate::process;
use crate::site::{self, Errand, Group, Site};
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

/// Where a machine listens for requests.
pub const RPC: u16 = 1;
/// Where it listens for the other replicas.
pub const LOG: u16 = 2;
/// Where a placement driver would listen for REST.
pub const REST: u16 = 3;
/// Replicas that each group begins with.
pub const REPLICAS: u64 = 3;
/// The machine of the clients.
pub const CLIENTS: u32 = 90;
/// Until when the cluster must be set up, in milliseconds.
const SET_UP_MS: u64 = 30_000;
/// How long after the last fault everything must work again, in milliseconds.
const RECOVERY_MS: u64 = 30_000;
/// One run in so many has three shards.
const THREE_SHARDS_IN: u64 = 4;
/// In one run in so many the balancer is on.
const BALANCER_IN: u64 = 3;
/// How often it is looked at what leaders have found by comparing their replicas, in milliseconds: more often than they report.
const LOOK_AT_SCRUBS_MS: u64 = 50;
/// In one of so many runs all disks are slow.
const SLOW_RUNS: u64 = 4;
/// By how much then at most, in milliseconds.
const SLOW_DISK_MS: u64 = 30;
/// By how much a clock runs fast or slow at most, in thousandths.
const DRIFT: i64 = 20;
/// What a replica says that ends because it is no longer a member.
const NO_MEMBER: &str = "is no longer a member";
/// Zeros that a new segment of a log comes with, in bytes.
const PREPARED_BYTES: usize = 4 << 10;

/// How big a simulation is and how long it hurts.
#[derive(Debug, Clone)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// The bug that is in, if one is.
    pub bug: Option<Bug>,
    /// Shards; `None` if the seed says.
    pub shards: Option<u32>,
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
    /// What else happened, by kind.
    pub counts: BTreeMap<&'static str, u64>,
    /// Milliseconds simulated.
    pub simulated_ms: u64,
    /// Differs if two runs differ in a byte sent, in its time to the millisecond, or in a number drawn.
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
    /// What replicas of shards said of the time.
    times: Arc<Mutex<oracles::times::Times>>,
}

impl Hardware {
    /// What replicas said of the time.
    pub fn times(&self) -> MutexGuard<'_, oracles::times::Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

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

    fn told_time(&self, unix_ms: u64) {
        self.times().told(process::machine(), unix_ms, process::true_unix_ms(), process::now_ms());
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

    /// Its group.
    pub fn group(self) -> Group {
        match self {
            Part::PlacementDriver(_) => Group::PlacementDriver,
            Part::Shard(shard, _) => Group::Shard(shard),
        }
    }

    /// Its number in its group.
    pub fn replica(self) -> u64 {
        match self {
            Part::PlacementDriver(replica) | Part::Shard(_, replica) => replica,
        }
    }
}

/// What is known to everyone without a message: which placement drivers run in this process and have not left. Its routing table is a hint, and its
/// REST API is a way to give orders; both are reached here directly.
pub type Registry = Rc<RefCell<BTreeMap<u64, Arc<placement_driver::server::Shared>>>>;

/// A whole cluster.
pub struct World {
    /// What machines are made of.
    pub hardware: Hardware,
    /// The parts that are not switched off for good.
    pub parts: Vec<Part>,
    /// The machines, the clients' included.
    pub machines: BTreeMap<u32, Machine>,
    /// The placement drivers that run.
    pub registry: Registry,
    /// Who is a member, who comes and goes.
    pub site: site::Shared,
    options: Options,
    restore: restore::Restore,
    shards: u32,
    folder: PathBuf,
    told: Rc<RefCell<Told>>,
    order: Vec<u32>,
    fingerprint: u64,
    report: Report,
    scrubbed: oracles::scrubbed::Scrubbed,
}

/// Addresses of the replicas that a shard begins with.
pub fn shard_info(shard: u32) -> ShardInfo {
    ShardInfo { id: ShardId(shard), replicas: addresses(Group::Shard(ShardId(shard)), 1..=REPLICAS, RPC) }
}

fn addresses(group: Group, replicas: impl IntoIterator<Item = u64>, port: u16) -> BTreeMap<u64, SocketAddr> {
    let address = |replica| (replica, net::address(group.part(replica).machine(), port));
    replicas.into_iter().map(address).collect()
}

fn drift() -> i64 {
    process::below(2 * DRIFT as u64 + 1) as i64 - DRIFT
}

impl World {
    /// A cluster that is switched off. `folder` takes the few real files there are.
    pub fn new(options: Options, folder: PathBuf) -> World {
        let hardware = Hardware { bug: options.bug, ..Hardware::default() };
        let shards = options.shards.unwrap_or_else(|| if process::once_in(THREE_SHARDS_IN) { 3 } else { 2 });
        let mut site = Site::new(
            shards,
            process::once_in(BALANCER_IN),
            clients::crowd::drawn(),
            process::once_in(clients::large::LARGE_IN),
        );
        let restore = restore::Restore::of(&options, &mut site);
        let parts: Vec<Part> = site.members().collect();
        let machine = |part: &Part| (part.machine(), Machine::new(part.machine(), drift()));
        let mut machines: BTreeMap<u32, Machine> = parts.iter().map(machine).collect();
        machines.insert(CLIENTS, Machine::new(CLIENTS, 0));
        let order = machines.keys().copied().collect();
        World {
            hardware,
            parts,
            machines,
            registry: Registry::default(),
            site: Rc::new(RefCell::new(site)),
            options,
            restore,
            shards,
            folder,
            told: Rc::default(),
            order,
            fingerprint: 0,
            report: Report::default(),
            scrubbed: Default::default(),
        }
    }

    /// Runs all of it.
    pub fn run(mut self) -> Report {
        for part in self.parts.clone() {
            self.start(part);
        }
        self.start_clients();
        self.until(SET_UP_MS, "the cluster is not set up", |world| world.told.borrow().set_up);
        let mut weather = Weather::over_a_cluster();
        if self.options.faults && process::once_in(SLOW_RUNS) {
            self.slow_disks();
        }
        let hurt_until_ms = process::now_ms() + self.options.hurt_ms;
        while process::now_ms() < hurt_until_ms && self.report.wrong.is_empty() {
            if self.options.faults {
                weather.blow(&mut self);
            }
            self.step();
        }
        self.restore_at_last();
        weather.calm(&mut self);
        self.told.borrow_mut().healed_ms = Some(process::now_ms());
        self.until(RECOVERY_MS, "not everything recovered", |world| world.told.borrow().recovered);
        self.told.borrow_mut().stop = true;
        self.until(RECOVERY_MS, "the last look was not taken", |world| world.told.borrow().last.is_some());
        if self.report.wrong.is_empty() {
            self.until(RECOVERY_MS, "replicas of a shard differ", |world| {
                oracles::replicas_equal::check(&world.hardware, &world.site.borrow()).is_empty()
            });
            self.until(RECOVERY_MS, "placement drivers differ", |world| {
                oracles::drivers_equal::check(&world.registry, &world.site.borrow()).is_empty()
            });
        }
        self.judge()
    }

    /// All disks are slow until the end: what is in memory is there long before it is on disk (R28).
    fn slow_disks(&mut self) {
        for part in &self.parts {
            self.hardware.slow_disk(part.machine(), 2 + process::below(SLOW_DISK_MS));
        }
    }

    fn judge(mut self) -> Report {
        let told = self.told.borrow();
        let wrong = &mut self.report.wrong;
        if let Some(sentence) = &told.trouble {
            wrong.push(sentence.clone());
        }
        wrong.extend(oracles::counters::check(&told.history, told.last.as_ref()));
        wrong.extend(oracles::transfers::check(told.last.as_ref()));
        wrong.extend(oracles::levels::losses(&told.losses, &told.crashes, &told.denials, &told.history));
        wrong.extend(oracles::levels::leader_reads(&told.history, &told.denials));
        wrong.extend(oracles::replicas_equal::check(&self.hardware, &self.site.borrow()));
        let state = self.registry.borrow().values().map(|shared| shared.applied().clone()).max_by_key(|a| a.index);
        if let Some(applied) = &state {
            wrong.extend(oracles::moves_verified::check(&applied.state));
            if !self.site.borrow().restored {
                wrong.extend(oracles::kv::check(&told.kv, &applied.state.kv));
            }
            wrong.extend(oracles::drained::check(&applied.state, &told.owners));
            for operator in applied.state.operators.values() {
                let kind = format!("{:?}", operator.work);
                let kind = kind.split(' ').next().unwrap_or_default().to_string();
                *self.report.operators.entry(format!("{kind} {:?}", operator.status)).or_default() += 1;
            }
        }
        wrong.extend(self.hardware.times().wrong());
        wrong.extend(oracles::one_owner::check(&told.owners));
        wrong.extend(told.overload.iter().flat_map(oracles::overload::check));
        for machine in self.machines.keys() {
            if let Some(sql) = self.hardware.engine(*machine).unknown() {
                wrong.push(format!("the simulated server does not know the statement {sql}"));
            }
        }
        self.report.counts.clone_from(&self.site.borrow().counts);
        if let Some(applied) = &state {
            let gone = u64::from(self.shards) - (applied.state.shards.len() as u64).min(self.shards.into());
            self.report.counts.insert("shards drained and gone in the end", gone);
        }
        let (rounds, pieces) = self.scrubbed.done();
        self.report.counts.insert("rounds of comparing replicas", rounds);
        self.report.counts.insert("pieces of ranges compared", pieces);
        self.report.operations = told.history.len() + told.kv.writes.len() + told.kv.reads.len();
        self.report.counts.extend(&told.counts);
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
        self.run_errands();
        self.look_after_copy();
        let mut order = std::mem::take(&mut self.order);
        process::draw(|rng| order.shuffle(rng));
        let mut ended = Vec::new();
        for number in &order {
            let Some(machine) = self.machines.get_mut(number).filter(|m| m.frozen_until_ms <= now_ms) else { continue };
            ended.extend(machine.step().map(|why| (*number, why)));
        }
        self.order = order;
        ended.into_iter().for_each(|(machine, why)| self.ended(machine, &why));
        if now_ms.is_multiple_of(LOOK_AT_SCRUBS_MS) {
            self.look_at_scrubs();
        }
        let state = self.hardware.net.carried() ^ process::below(u64::MAX);
        self.fingerprint = (self.fingerprint ^ state).wrapping_mul(0x0100_0000_01b3);
    }

    /// What leaders have found by comparing their replicas, as they report it.
    fn look_at_scrubs(&mut self) {
        for shared in self.registry.borrow().values() {
            let leading = shared.leading();
            let views = leading.iter().flat_map(|leading| leading.balancer.load.shards.values());
            self.report.wrong.extend(views.filter_map(|view| self.scrubbed.look(&view.report)));
        }
    }

    /// A process has ended by itself. Only a replica that has found out that it is no longer a member may do that.
    fn ended(&mut self, machine: u32, why: &str) {
        let part = self.parts.iter().copied().find(|part| part.machine() == machine);
        match part.filter(|part| why.contains(NO_MEMBER) && self.site.borrow().is_leaving(*part)) {
            Some(part) => {
                self.site.borrow_mut().count("replicas that left and found out");
                self.switch_off(part);
            }
            None => self.report.wrong.push(format!("the process on machine {machine} ended by itself: {why}")),
        }
    }

    fn switch_off(&mut self, part: Part) {
        self.kill(part, true);
        self.parts.retain(|other| *other != part);
        self.site.borrow_mut().switched_off(part);
    }

    fn run_errands(&mut self) {
        let errands = self.site.borrow_mut().take_errands();
        for errand in errands {
            self.trace(&errand);
            match errand {
                Errand::SwitchOn(part) => {
                    self.machines.insert(part.machine(), Machine::new(part.machine(), drift()));
                    self.order.push(part.machine());
                    self.parts.push(part);
                    self.start(part);
                }
                Errand::SwitchOff(part) => self.switch_off(part),
                Errand::Freeze(part, for_ms) => {
                    if let Some(machine) = self.machines.get_mut(&part.machine()) {
                        machine.frozen_until_ms = process::now_ms() + for_ms;
                    }
                }
                Errand::CutOff(part) => self.links_of(part, Net::cut),
                Errand::Mend(part) => self.links_of(part, Net::mend),
                Errand::SlowServers(ms) => {
                    let shards = self.parts.iter().filter(|part| matches!(part, Part::Shard(..)));
                    shards.for_each(|part| self.hardware.engine(part.machine()).slow(ms));
                }
            }
        }
    }

    /// Does something to the links between a part's machine and the others of the cluster.
    fn links_of(&self, part: Part, what: impl Fn(&Net, u32, u32)) {
        let me = part.machine();
        for other in self.machines.keys().filter(|other| **other != me && **other != CLIENTS) {
            what(&self.hardware.net, me, *other);
            what(&self.hardware.net, *other, me);
        }
    }

    /// Starts a part's process, unless it is switched off for good.
    pub fn start(&mut self, part: Part) {
        if !self.parts.contains(&part) {
            return;
        }
        match part {
            Part::PlacementDriver(replica) => {
                let config = self.driver_config(part);
                let (registry, site) = (self.registry.clone(), self.site.clone());
                let front = move |shared, _| {
                    if !site.borrow().has_left(part) {
                        registry.borrow_mut().insert(replica, shared);
                    }
                    std::future::pending()
                };
                let run = placement_driver::server::serve(config, front, std::future::pending());
                self.run_process(part, async { run.await.err().map(|why| why.to_string()) });
            }
            Part::Shard(shard, _) => {
                let run = evenkeel_shard_node::run(self.shard_config(shard, part), std::future::pending());
                self.run_process(part, async { run.await.err().map(|why| why.to_string()) });
            }
        }
    }

    fn run_process(&mut self, part: Part, process: impl Future<Output = Option<String>> + 'static) {
        if let Some(machine) = self.machines.get_mut(&part.machine()) {
            self.hardware.times().started(part.machine(), machine.clocks.wall_ms);
            machine.start(async { process.await.unwrap_or_else(|| "nobody told it to".into()) });
        }
    }

    fn start_clients(&mut self) {
        let (registry, told, site) = (self.registry.clone(), self.told.clone(), self.site.clone());
        if let Some(machine) = self.machines.get_mut(&CLIENTS) {
            machine.start(clients::run(registry, told, site, self.shards));
        }
    }

    /// A part's process is killed; with `power` its machine loses power too.
    pub fn kill(&mut self, part: Part, power: bool) {
        let number = part.machine();
        self.told.borrow_mut().crashes.push((process::now_ms(), part));
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
        self.site.borrow_mut().disk_lost(part.group());
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
        self.trace(&fault);
    }

    fn trace(&self, what: &impl std::fmt::Debug) {
        if std::env::var_os("EVENKEEL_SIMULATION_TRACE").is_some() {
            eprintln!("{} ms: {what:?}", process::now_ms());
        }
    }
}
