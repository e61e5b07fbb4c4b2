//! The machines of a run and the processes on them: starting, killing, freezing, disks and links.

use super::configs::{placement_driver_config, shard_config};
use crate::hardware::Hardware;
use crate::history::SharedHistory;
use crate::machine::Machine;
use crate::membership_model::{MachineCommand, SharedMembership};
use crate::net::Net;
use crate::process;
use crate::registry::Registry;
use crate::topology::{CLIENTS, Group, Part};
use evenkeel_placement_driver as placement_driver;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

/// By how much a clock runs fast or slow at most, in thousandths.
const DRIFT: i64 = 20;

fn drift() -> i64 {
    process::below(2 * DRIFT as u64 + 1) as i64 - DRIFT
}

/// See the module.
pub(super) struct Cluster {
    /// The network, disks and database servers.
    pub hardware: Hardware,
    /// The replicas that are not switched off for good.
    pub parts: Vec<Part>,
    /// The machines, the clients' included.
    pub machines: BTreeMap<u32, Machine>,
    /// The numbers of the machines; each step shuffles them.
    pub order: Vec<u32>,
    /// The placement drivers that run.
    pub registry: Registry,
    /// The members of each group.
    pub membership: SharedMembership,
    /// The history of the run.
    pub history: SharedHistory,
    /// The restore generation that placement drivers are configured with.
    pub incarnation: Option<u32>,
    /// Violations found so far, one sentence each; the run ends with the first.
    pub wrong: Vec<String>,
    folder: PathBuf,
}

/// Prints what happens to the cluster, if `EVENKEEL_SIMULATION_TRACE` is set.
pub(super) fn trace(what: &impl std::fmt::Debug) {
    if std::env::var_os("EVENKEEL_SIMULATION_TRACE").is_some() {
        eprintln!("{} ms: {what:?}", process::now_ms());
    }
}

impl Cluster {
    /// A cluster that is switched off. `folder` takes the few real files there are.
    pub fn new(hardware: Hardware, membership: SharedMembership, folder: PathBuf) -> Cluster {
        let parts: Vec<Part> = membership.borrow().members().collect();
        let machine = |part: &Part| (part.machine(), Machine::new(part.machine(), drift()));
        let mut machines: BTreeMap<u32, Machine> = parts.iter().map(machine).collect();
        machines.insert(CLIENTS, Machine::new(CLIENTS, 0));
        Cluster {
            hardware,
            parts,
            order: machines.keys().copied().collect(),
            machines,
            registry: Registry::default(),
            membership,
            history: SharedHistory::default(),
            incarnation: None,
            wrong: Vec::new(),
            folder,
        }
    }

    /// The folder of a machine's real files.
    pub fn folder_of(&self, machine: u32) -> PathBuf {
        self.folder.join(machine.to_string())
    }

    /// The replicas of the placement driver that are not switched off for good.
    pub fn placement_drivers(&self) -> Vec<Part> {
        self.parts.iter().copied().filter(|part| part.group() == Group::PlacementDriver).collect()
    }

    /// Whether the process of a replica runs.
    pub fn is_up(&self, part: Part) -> bool {
        self.machines.get(&part.machine()).is_some_and(Machine::is_up)
    }

    /// Starts a replica's process, unless it is switched off for good.
    pub fn start(&mut self, part: Part) {
        if !self.parts.contains(&part) {
            return;
        }
        match part {
            Part::PlacementDriver(replica) => {
                let folder = self.folder_of(part.machine());
                let config = placement_driver_config(part, &self.membership.borrow(), folder, self.incarnation);
                let (registry, membership) = (self.registry.clone(), self.membership.clone());
                let front = move |shared, _| {
                    if !membership.borrow().has_left(part) {
                        registry.write().insert(replica, shared);
                    }
                    std::future::pending()
                };
                let run = placement_driver::replica::serve(config, front, std::future::pending());
                self.run_process(part, async { run.await.err().map(|why| why.to_string()) });
            }
            Part::Shard(shard, _) => {
                let config = shard_config(shard, part, &self.membership.borrow());
                let run = evenkeel_shard_node::run(config, std::future::pending());
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

    /// Kills a replica's process; with `power` its machine loses power too.
    pub fn kill(&mut self, part: Part, power: bool) {
        let number = part.machine();
        self.history.borrow_mut().crashes.push((process::now_ms(), part));
        // Before the process goes: its own ends of connections must not close in an orderly way.
        self.hardware.net.dies(number, power && process::once_in(2));
        if let Part::PlacementDriver(replica) = part {
            self.registry.write().remove(&replica);
        }
        if let Some(machine) = self.machines.get_mut(&number) {
            machine.die();
        }
        self.hardware.forget(number);
        if power {
            self.hardware.postgres(number).power_cut();
        }
    }

    /// A replica's machine is gone, and comes back with an empty disk.
    pub fn lose_disk(&mut self, part: Part) {
        self.membership.borrow_mut().disk_lost(part.group());
        self.kill(part, true);
        self.hardware.lose_disk(part.machine());
        let folder = self.folder_of(part.machine());
        if let Err(error) = std::fs::remove_dir_all(&folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            self.wrong.push(format!("{} cannot be emptied: {error}", folder.display()));
        }
    }

    /// A machine does nothing for this many milliseconds.
    pub fn freeze(&mut self, part: Part, for_ms: u64) {
        if let Some(machine) = self.machines.get_mut(&part.machine()) {
            machine.frozen_until_ms = process::now_ms() + for_ms;
        }
    }

    /// Switches a replica's machine off for good.
    pub fn switch_off(&mut self, part: Part) {
        self.kill(part, true);
        self.parts.retain(|other| *other != part);
        self.membership.borrow_mut().switched_off(part);
    }

    fn switch_on(&mut self, part: Part) {
        self.machines.insert(part.machine(), Machine::new(part.machine(), drift()));
        self.order.push(part.machine());
        self.parts.push(part);
        self.start(part);
    }

    /// Executes the commands that the clients have queued.
    pub fn execute_commands(&mut self) {
        let commands = self.membership.borrow_mut().take_commands();
        for command in commands {
            trace(&command);
            match command {
                MachineCommand::SwitchOn(part) => self.switch_on(part),
                MachineCommand::SwitchOff(part) => self.switch_off(part),
                MachineCommand::Freeze(part, for_ms) => self.freeze(part, for_ms),
                MachineCommand::Isolate(part) => self.each_link_of(part, Net::cut),
                MachineCommand::Reconnect(part) => self.each_link_of(part, Net::restore),
                MachineCommand::SlowServers(ms) => {
                    let shards = self.parts.iter().filter(|part| matches!(part, Part::Shard(..)));
                    shards.for_each(|part| self.hardware.postgres(part.machine()).slow(ms));
                }
            }
        }
    }

    /// Applies `change` to both directions of each link between a replica's machine and the others
    /// of the cluster.
    fn each_link_of(&self, part: Part, change: impl Fn(&Net, u32, u32)) {
        let me = part.machine();
        for other in self.machines.keys().filter(|other| **other != me && **other != CLIENTS) {
            change(&self.hardware.net, me, *other);
            change(&self.hardware.net, *other, me);
        }
    }
}
