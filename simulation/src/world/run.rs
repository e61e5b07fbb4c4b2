//! A whole run: setting up, faults, healing, recovery, and the verdict.

use super::cluster::{Cluster, trace};
use super::fault_effects;
use super::options::{Options, RunReport};
use super::restoration::{DiskCopy, Restoration, RestorationStep, restore};
use super::verdict::judge;
use crate::checkers;
use crate::checkers::scrubbed::Scrubbed;
use crate::clients;
use crate::fault_injector::{FaultChange, FaultInjector, Targets};
use crate::hardware::Hardware;
use crate::membership_model::MembershipModel;
use crate::process;
use crate::topology::CLIENTS;
use rand::seq::SliceRandom;
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

/// Until when the cluster must be set up, in milliseconds.
const SET_UP_MS: u64 = 30_000;
/// How long after the last fault everything must work again, in milliseconds.
const RECOVERY_MS: u64 = 30_000;
/// There are payments between shards in one run of this many.
const PAYMENTS_IN: u64 = 3;
/// One of this many runs has three shards.
const THREE_SHARDS_IN: u64 = 4;
/// The balancer is on in one of this many runs.
const BALANCER_IN: u64 = 3;
/// Between two looks at the comparisons that leaders report, in milliseconds: shorter than between
/// their reports.
const LOOK_AT_SCRUBS_MS: u64 = 50;
/// All disks are slow in one of this many runs.
const SLOW_RUNS: u64 = 4;
/// By how much then at most, in milliseconds.
const SLOW_DISK_MS: u64 = 30;
/// Part of the message of a replica that ends because it is no longer a member.
const NO_MEMBER: &str = "is no longer a member";

/// A cluster with its clients, and the time that passes there.
pub struct World {
    cluster: Cluster,
    options: Options,
    restoration: Restoration,
    shards: u32,
    fingerprint: u64,
    report: RunReport,
    scrubbed: Scrubbed,
}

impl World {
    /// A cluster that is switched off. `folder` takes the few real files there are.
    pub fn new(options: Options, folder: PathBuf) -> World {
        let hardware = Hardware::with_bug(options.bug);
        let shards = options.shards.unwrap_or_else(|| if process::once_in(THREE_SHARDS_IN) { 3 } else { 2 });
        let mut membership = MembershipModel::new(
            shards,
            process::once_in(BALANCER_IN),
            clients::load_spike::drawn(),
            process::once_in(clients::large_values::LARGE_IN),
        );
        // By the seed alone, so that the runs without payments are as they were.
        membership.payments = options.seed.is_multiple_of(PAYMENTS_IN);
        let restoration = Restoration::new(&options, shards, &mut membership);
        World {
            cluster: Cluster::new(hardware, Rc::new(RefCell::new(membership)), folder),
            options,
            restoration,
            shards,
            fingerprint: 0,
            report: RunReport::default(),
            scrubbed: Scrubbed::default(),
        }
    }

    /// The hardware of its machines.
    pub fn hardware(&self) -> &Hardware {
        &self.cluster.hardware
    }

    /// Runs all of it.
    pub fn run(mut self) -> RunReport {
        for part in self.cluster.parts.clone() {
            self.cluster.start(part);
        }
        self.start_clients();
        self.until(SET_UP_MS, "the cluster is not set up", |cluster| cluster.history.borrow().set_up);
        let mut injector = FaultInjector::new();
        if self.options.faults && process::once_in(SLOW_RUNS) {
            self.slow_disks();
        }
        if self.options.faults {
            self.cluster.hardware.net.lose_answers_to(Some(CLIENTS));
        }
        let hurt_until_ms = process::now_ms() + self.options.hurt_ms;
        while process::now_ms() < hurt_until_ms && self.cluster.wrong.is_empty() {
            if self.options.faults {
                self.inject_faults(&mut injector);
            }
            self.step();
        }
        if self.restoration.is_pending() {
            self.restore();
        }
        self.cluster.hardware.net.lose_answers_to(None);
        for fault in injector.end_all() {
            fault_effects::end(&mut self.cluster, fault);
        }
        fault_effects::heal(&mut self.cluster);
        self.cluster.history.borrow_mut().healed_ms = Some(process::now_ms());
        self.until(RECOVERY_MS, "not everything recovered", |cluster| cluster.history.borrow().recovered);
        self.cluster.history.borrow_mut().stop = true;
        self.until(RECOVERY_MS, "the last look was not taken", |cluster| cluster.history.borrow().last.is_some());
        if self.cluster.wrong.is_empty() {
            self.until(RECOVERY_MS, "replicas of a shard differ", |cluster| {
                checkers::replicas_equal::check(&cluster.hardware, &cluster.membership.borrow()).is_empty()
            });
            self.until(RECOVERY_MS, "placement drivers differ", |cluster| {
                checkers::placement_drivers_equal::check(&cluster.registry, &cluster.membership.borrow()).is_empty()
            });
        }
        self.report.wrong = std::mem::take(&mut self.cluster.wrong);
        judge(&self.cluster, self.shards, &self.scrubbed, &mut self.report);
        self.report.simulated_ms = process::now_ms();
        self.report.fingerprint = self.fingerprint;
        self.report
    }

    /// All disks are slow until the end, so that entries are in memory long before they are on disk
    /// (R28).
    fn slow_disks(&mut self) {
        for part in &self.cluster.parts {
            self.cluster.hardware.slow_disk(part.machine(), 2 + process::below(SLOW_DISK_MS));
        }
    }

    fn inject_faults(&mut self, injector: &mut FaultInjector) {
        let machines: Vec<u32> = self.cluster.machines.keys().copied().collect();
        loop {
            let change = {
                let membership = self.cluster.membership.borrow();
                injector.next(&Targets { parts: &self.cluster.parts, machines: &machines, membership: &membership })
            };
            let Some(change) = change else { return };
            match change {
                FaultChange::End(fault) => fault_effects::end(&mut self.cluster, fault),
                FaultChange::Cut(from, to) => self.cluster.hardware.net.cut(from, to),
                FaultChange::Restore(from, to) => self.cluster.hardware.net.restore(from, to),
                FaultChange::Begin(fault, lasts_ms) => {
                    if fault_effects::begin(&mut self.cluster, fault) {
                        injector.began(fault, lasts_ms);
                        *self.report.faults.entry(fault.name()).or_default() += 1;
                        trace(&fault);
                    }
                    // At most one fault begins in a step.
                    return;
                }
            }
        }
    }

    fn until(&mut self, bound_ms: u64, otherwise: &str, done: impl Fn(&Cluster) -> bool) {
        let deadline_ms = process::now_ms() + bound_ms;
        while self.cluster.wrong.is_empty() && !done(&self.cluster) {
            if process::now_ms() >= deadline_ms {
                let why = self.cluster.history.borrow().waiting_for.clone();
                self.cluster.wrong.push(format!("{otherwise} within {bound_ms} ms {why}"));
                return;
            }
            self.step();
        }
    }

    /// One millisecond.
    fn step(&mut self) {
        let now_ms = process::now_ms() + 1;
        process::set_now_ms(now_ms);
        self.cluster.hardware.net.deliver();
        self.cluster.execute_commands();
        self.proceed_with_restoration();
        let mut order = std::mem::take(&mut self.cluster.order);
        process::draw(|rng| order.shuffle(rng));
        let mut ended = Vec::new();
        for number in &order {
            let machine = self.cluster.machines.get_mut(number).filter(|m| m.frozen_until_ms <= now_ms);
            let Some(machine) = machine else { continue };
            ended.extend(machine.step().map(|why| (*number, why)));
        }
        self.cluster.order = order;
        ended.into_iter().for_each(|(machine, why)| self.ended(machine, &why));
        if now_ms.is_multiple_of(LOOK_AT_SCRUBS_MS) {
            self.look_at_scrubs();
        }
        let state = self.cluster.hardware.net.carried() ^ process::below(u64::MAX);
        self.fingerprint = (self.fingerprint ^ state).wrapping_mul(0x0100_0000_01b3);
    }

    fn proceed_with_restoration(&mut self) {
        let set_up = self.cluster.history.borrow().set_up;
        for step in self.restoration.due(set_up, &self.cluster.registry) {
            match step {
                RestorationStep::Copy => self.restoration.keep(DiskCopy::take(&self.cluster)),
                RestorationStep::Restore => self.restore(),
            }
        }
    }

    fn restore(&mut self) {
        let copy = self.restoration.begin();
        self.cluster.incarnation = self.restoration.incarnation();
        if let Some(copy) = copy {
            restore(&mut self.cluster, copy);
        }
    }

    /// Checks the comparisons of replicas that leaders report.
    fn look_at_scrubs(&mut self) {
        for shared in self.cluster.registry.read().values() {
            let leading = shared.leading();
            let views = leading.iter().flat_map(|leading| leading.balancer.load.shards.values());
            self.cluster.wrong.extend(views.filter_map(|view| self.scrubbed.look(&view.report)));
        }
    }

    /// A process has ended by itself. Only a replica that has found out that it is no longer a
    /// member may do that.
    fn ended(&mut self, machine: u32, why: &str) {
        let part = self.cluster.parts.iter().copied().find(|part| part.machine() == machine);
        match part.filter(|part| why.contains(NO_MEMBER) && self.cluster.membership.borrow().is_leaving(*part)) {
            Some(part) => {
                self.cluster.membership.borrow_mut().count("replicas that left and found out");
                self.cluster.switch_off(part);
            }
            None => self.cluster.wrong.push(format!("the process on machine {machine} ended by itself: {why}")),
        }
    }

    fn start_clients(&mut self) {
        let cluster = &mut self.cluster;
        let (registry, history) = (cluster.registry.clone(), cluster.history.clone());
        let membership = cluster.membership.clone();
        if let Some(machine) = cluster.machines.get_mut(&CLIENTS) {
            machine.start(clients::run(registry, history, membership, self.shards));
        }
    }
}
