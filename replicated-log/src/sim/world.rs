//! The world of a run: time, network, clients and faults around the simulated replicas.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::core::{AfterSync, BarrierAnswer, CoreConfig, Input, Ready, Send};
use crate::error::BarrierError;
use crate::ids::{LogIndex, Term};
use crate::item::Kind;
use crate::membership::Membership;
use crate::role::Role;
use crate::wire::Wire;

use super::changes::{self, members};
use super::clocks;
use super::fault_injector::{FaultRates, Options, Stats, pairs, settings};
use super::oracle::{AppState, Checked, Oracle, Violation, ensure};
use super::simulated_replica::{Frozen, Node, Process};
use evenkeel_host::ForgetfulDisk as SimDisk;

/// A connection between two replicas, `low < high`.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) number: u64,
    /// The configuration of both ends.
    pub(super) configuration: u32,
    /// Per end, whether its event loop has received it.
    pub(super) reported: [bool; 2],
    /// Messages on their way to `low` and to `high`, with their time of arrival.
    pub(super) to: [VecDeque<(u64, Wire)>; 2],
}

pub(super) struct World {
    pub(super) rng: StdRng,
    pub(super) now_ms: u64,
    pub(super) nodes: BTreeMap<u64, Node>,
    pub(super) sessions: BTreeMap<(u64, u64), Session>,
    /// Ends of lost sessions that have not been delivered yet: replica, peer, number.
    pub(super) ends: VecDeque<(u64, u64, u64)>,
    /// Links that deliver nothing: sender and receiver.
    pub(super) cut: BTreeMap<(u64, u64), ()>,
    pub(super) rates: FaultRates,
    pub(super) calm: bool,
    /// Time and replica of a crash that follows another one: a second replica must not lose what
    /// the first has lost.
    pub(super) aftershock: Option<(u64, u64)>,
    pub(super) next_session: u64,
    pub(super) next_id: u64,
    pub(super) oracle: Oracle,
    pub(super) stats: Stats,
    /// `(time, position)`: clients knew the position at that real time at the latest.
    pub(super) known_by: Vec<(u64, u64)>,
    pub(super) compaction: bool,
    pub(super) storm: bool,
    pub(super) leases: bool,
    /// The arguments of an empty disk.
    pub(super) disks: (u64, usize),
    pub(super) next_store: u64,
    pub(super) founding: Membership,
}

const STEP_MS: u64 = 2;
/// The time within which a healed group must recover: forty election timeouts, in milliseconds.
const RECOVERY_MS: u64 = 2_000;

impl World {
    pub(super) fn new(seed: u64, options: &Options) -> Checked<World> {
        let mut rng = StdRng::seed_from_u64(seed);
        let n = if rng.random_bool(0.3) && !options.storm { 5 } else { 3 };
        let rates = FaultRates::draw(&mut rng, options);
        let (timing, limits) = settings(&mut rng, options);
        let prepared_bytes = if rng.random_bool(0.5) { rng.random_range(0..4_000) } else { 0 };
        let mut nodes = BTreeMap::new();
        let founding = Membership { configuration: 1, members: members(1..=n), ..Membership::default() };
        for id in 1..=n {
            let config = CoreConfig {
                me: id,
                unix_at_boot_ms: clocks::drawn(seed, n, id),
                timing: timing.clone(),
                limits: limits.clone(),
                faults: options.fault.into_iter().collect(),
            };
            let founding = founding.clone();
            let disk = SimDisk::new(options.skip_sync_every, prepared_bytes);
            let drift_permille = rng.random_range(-options.drift_permille..=options.drift_permille);
            let durable = AppState::default();
            let node = Node {
                id,
                disk,
                config,
                founding,
                store: id,
                process: None,
                durable,
                up_at_ms: 0,
                drift_permille,
                told: VecDeque::new(),
            };
            nodes.insert(id, node);
        }
        Ok(World {
            rng,
            now_ms: 0,
            nodes,
            sessions: BTreeMap::new(),
            ends: VecDeque::new(),
            cut: BTreeMap::new(),
            rates,
            calm: false,
            aftershock: None,
            next_session: 1,
            next_id: 1,
            oracle: Oracle::default(),
            stats: Stats::default(),
            known_by: Vec::new(),
            compaction: options.compaction,
            storm: options.storm,
            leases: options.leases,
            disks: (options.skip_sync_every, prepared_bytes),
            next_store: 1_000,
            founding,
        })
    }

    pub(super) fn run(mut self) -> Checked<Stats> {
        while self.now_ms < self.rates.chaos_ms {
            self.step()?;
        }
        self.calm = true;
        self.cut.clear();
        if self.rates.lose_message > 0.0 {
            // Lost AcceptDecides are not sent again by themselves (log rule 3): only new sessions
            // bring them back.
            self.rates.lose_message = 0.0;
            let keys: Vec<_> = self.sessions.keys().copied().collect();
            keys.into_iter().for_each(|key| self.lose_session(key));
        }
        let healed_ms = self.now_ms;
        // Writes continue for a moment, then every replica must reach the same state.
        while self.now_ms < healed_ms + 200 || !self.recovered() {
            self.step()?;
            ensure(self.now_ms < healed_ms + RECOVERY_MS, || format!("not recovered: {}", self.describe()))?;
            if self.now_ms > healed_ms + 200 {
                self.rates.write = 0.01;
                self.rates.read = 0.0;
            }
        }
        self.stats.count("entries", self.oracle.len());
        self.stats.count("rejected entries", self.oracle.rejected_entries);
        self.stats.count("writes lost from memory", self.oracle.lost_from_memory()?);
        Ok(self.stats)
    }

    /// Whether one leader serves, all replicas have applied everything, none is behind, and no read
    /// waits.
    fn recovered(&self) -> bool {
        let mut leader = None;
        for node in self.nodes.values().filter(|node| self.is_member(node.id)) {
            let Some(process) = &node.process else {
                return false;
            };
            if process.core.membership().configuration != self.newest_configuration() {
                return false;
            }
            if let Some(term) = process.serves()
                && leader.replace(term).is_some()
            {
                return false;
            }
            // Nothing is on its way either: the outcome of every write is known.
            let resolved = process.core.status().accepted.0 == self.oracle.len();
            let whole = process.state.applied == self.oracle.len() && process.barriers.is_empty() && resolved;
            if !whole || matches!(process.role, Role::Behind { .. }) {
                return false;
            }
        }
        let last = self.oracle.state_at(self.oracle.len()).term;
        leader == Some(last)
    }

    fn describe(&self) -> String {
        let lines = self.nodes.values().map(|node| match &node.process {
            Some(p) => format!(
                "\n  {} in configuration {} of {}: {:?}, applied {} of {}, {} reads wait, {:?}",
                node.id,
                p.core.membership().configuration,
                self.newest_configuration(),
                p.role,
                p.state.applied,
                self.oracle.len(),
                p.barriers.len(),
                p.core.status()
            ),
            None => format!("\n  {}: down", node.id),
        });
        lines.collect()
    }

    fn step(&mut self) -> Checked<()> {
        self.now_ms += STEP_MS;
        if !self.calm {
            self.inject_faults();
            if self.rng.random_bool(self.rates.power_cut) {
                let up: Vec<u64> = self.nodes.values().filter(|n| n.process.is_some()).map(|n| n.id).collect();
                up.into_iter().try_for_each(|id| self.crash(id, "crashes in a power cut"))?;
            }
        }
        self.prepare_changes();
        self.connect();
        if self.known_by.last().is_none_or(|(_, known)| *known < self.oracle.known) {
            self.known_by.push((self.now_ms, self.oracle.known));
        }
        let mut ids: Vec<u64> = self.nodes.keys().copied().collect();
        ids.shuffle(&mut self.rng);
        for id in ids {
            let node = &self.nodes[&id];
            match &node.process {
                // A removed replica is stopped when the others do not need it any more.
                _ if self.calm && !self.is_member(id) => self.retire(id),
                None if self.now_ms >= node.up_at_ms || self.calm => self.start(id)?,
                Some(p) if self.now_ms >= p.paused_until_ms && self.rng.random_bool(0.8) => self.turn(id)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn start(&mut self, id: u64) -> Checked<()> {
        let now_ms = self.now_ms;
        self.node(id)?.start(now_ms)
    }

    fn node(&mut self, id: u64) -> Checked<&mut Node> {
        self.nodes.get_mut(&id).ok_or_else(|| Violation(format!("no replica {id}")))
    }

    pub(super) fn any(&mut self) -> u64 {
        self.rng.random_range(1..=self.nodes.len() as u64)
    }

    /// Opens sessions where both ends are up and not cut; a cut session is lost after a while.
    fn connect(&mut self) {
        let n = self.nodes.len() as u64;
        for (low, high) in pairs(n).filter(|(a, b)| a < b) {
            let key = (low, high);
            let cut = self.cut.contains_key(&(low, high)) || self.cut.contains_key(&(high, low));
            let up = |id: &u64| self.nodes[id].process.is_some();
            let both_up = up(&low) && up(&high);
            if self.sessions.contains_key(&key) {
                if cut && self.rng.random_bool(0.03) {
                    self.lose_session(key);
                }
            } else if both_up && !cut && self.rng.random_bool(0.2) {
                let Some(configuration) = self.common_configuration(low, high) else { continue };
                let number = self.next_session;
                self.next_session += 1;
                let session =
                    Session { number, configuration, reported: [false; 2], to: [VecDeque::new(), VecDeque::new()] };
                self.sessions.insert(key, session);
            }
        }
    }

    /// One turn of a replica's event loop. It may freeze or crash anywhere in it.
    fn turn(&mut self, id: u64) -> Checked<()> {
        // Readers run beside the event loop, which may have been frozen inside a turn.
        self.leased_reads(id)?;
        let frozen = self.process(id)?.frozen.take();
        let inputs = match frozen {
            Some(Frozen::Before(inputs)) => inputs,
            Some(Frozen::Fed) => return self.finish_turn(id),
            Some(Frozen::Syncing { ready, lost_role, inputs }) => {
                let point = self.crash_point(id);
                if point < 2 {
                    return self.crash(id, "crashes before the sync");
                }
                self.sync_and_send(id, *ready, lost_role, point)?;
                if let Some(process) = self.node(id)?.process.as_mut() {
                    inputs.into_iter().for_each(|(now_ms, input)| process.core.feed(now_ms, input));
                }
                return Ok(());
            }
            None => {
                let inputs = self.inputs(id);
                let now_ms = self.nodes[&id].clock_ms(self.now_ms);
                let inputs = inputs.into_iter().map(|input| (now_ms, input)).collect();
                if self.freezes() {
                    return self.freeze(id, Frozen::Before(inputs), "freezes before a turn");
                }
                inputs
            }
        };
        let process = self.process(id)?;
        for (now_ms, input) in inputs {
            process.core.feed(now_ms, input);
        }
        match self.freezes() {
            true => self.freeze(id, Frozen::Fed, "freezes inside a turn"),
            false => self.finish_turn(id),
        }
    }

    fn freezes(&mut self) -> bool {
        !self.calm && self.rng.random_bool(self.rates.freeze)
    }

    fn freeze(&mut self, id: u64, at: Frozen, what: &'static str) -> Checked<()> {
        self.stats.count(what, 1);
        let until_ms = self.now_ms + self.rng.random_range(10..500);
        let process = self.process(id)?;
        process.frozen = Some(at);
        process.paused_until_ms = until_ms;
        Ok(())
    }

    fn process(&mut self, id: u64) -> Checked<&mut Process> {
        self.node(id)?.process.as_mut().ok_or_else(|| Violation(format!("replica {id} is down")))
    }

    /// Log rule 9: reads answered without a message, while the published lease holds by the
    /// replica's clock.
    fn leased_reads(&mut self, id: u64) -> Checked<()> {
        let now_ms = self.nodes[&id].clock_ms(self.now_ms);
        let asked = self.rng.random_bool(self.rates.read);
        let known = self.oracle.known;
        let process = self.process(id)?;
        if !asked || now_ms >= process.read_lease.until_ms {
            return Ok(());
        }
        let index = process.shown_decided.max(process.read_lease.floor);
        process.reads.push(index);
        self.stats.count("reads by lease", 1);
        ensure(index >= known, || format!("replica {id}: a leased read at {index}, a client had already seen {known}"))
    }

    fn finish_turn(&mut self, id: u64) -> Checked<()> {
        let point = self.crash_point(id);
        let process = self.process(id)?;
        let mut ready = process.core.finish();
        let ordinary = ready.is_ordinary();
        let before = std::mem::take(&mut ready.before_sync);
        process.read_lease = before.lease;
        if point == 0 {
            return self.crash(id, "crashes before the sync");
        }
        self.send(id, before.sends);
        // R28: memory acknowledgements do not wait for the sync.
        self.acknowledged(id, before.acknowledged, before.unacknowledged)?;
        self.answered(id, before.barriers)?;
        if self.shown(id)? {
            self.stats.count("entries shown before a sync", 1);
        }
        // The runtime answers requests for old entries after the sync; that makes no difference
        // here.
        if ordinary && self.rng.random_bool(0.5) {
            self.apply(id)?;
        }
        if point == 1 {
            return self.crash(id, "crashes before the sync");
        }
        if !self.calm && self.rng.random_bool(self.rates.slow_sync) {
            let slow = Frozen::Syncing { ready: Box::new(ready), lost_role: before.role, inputs: VecDeque::new() };
            return self.freeze(id, slow, "slow syncs");
        }
        self.sync_and_send(id, ready, before.role, point)
    }

    /// The point of this turn at which the replica crashes: 0 and 1 before the sync, 2 and 3 after
    /// it, 4 not at all.
    fn crash_point(&mut self, id: u64) -> usize {
        let now_ms = self.now_ms;
        let doomed = self.aftershock.take_if(|(at_ms, who)| *at_ms <= now_ms && *who == id).is_some();
        let crash = !self.calm && (doomed || self.rng.random_bool(self.rates.crash));
        if crash && !doomed && self.rng.random_bool(0.5) {
            self.aftershock = Some((now_ms + self.rng.random_range(2..60), self.any()));
        }
        if crash { self.rng.random_range(if self.storm { 1..3 } else { 0..4 }) } else { 4 }
    }

    fn sync_and_send(&mut self, id: u64, ready: Ready, lost_role: Option<Role>, point: usize) -> Checked<()> {
        let synced = self.process(id)?.core.sync().map_err(|e| Violation(format!("replica {id}: {e}")))?;
        let mut after = ready.synced(synced);
        let late = std::mem::take(&mut after.sends);
        after.role = lost_role.or(after.role);
        if point < 4 {
            // Some of the messages get out.
            let sent = self.rng.random_range(0..=late.len());
            self.send(id, late.into_iter().take(sent).collect());
            return self.crash(id, "crashes after the sync");
        }
        self.send(id, late);
        self.outcomes(id, after)?;
        self.leased_reads(id)
    }

    fn acknowledged(&mut self, id: u64, acknowledged: Vec<u64>, unacknowledged: Vec<u64>) -> Checked<()> {
        let World { nodes, oracle, stats, .. } = self;
        let process = nodes.get_mut(&id).and_then(|n| n.process.as_mut());
        let process = process.ok_or_else(|| Violation("gone".to_owned()))?;
        for write in unacknowledged {
            process.tracked.remove(&write);
        }
        for write in acknowledged {
            ensure(process.tracked.remove(&write).is_some(), || format!("write {write} is acknowledged twice"))?;
            oracle.acknowledged_in_memory(write);
            stats.count("writes acknowledged in memory", 1);
        }
        Ok(())
    }

    fn crash(&mut self, id: u64, when: &'static str) -> Checked<()> {
        self.stats.count(when, 1);
        self.oracle.crashed(id);
        let up_at_ms = self.now_ms + self.rng.random_range(1..if self.leases { 20 } else { 600 });
        let mut rng = StdRng::seed_from_u64(self.rng.random());
        self.node(id)?.crash(up_at_ms, &mut rng);
        let keys: Vec<_> = self.sessions.keys().copied().filter(|(a, b)| *a == id || *b == id).collect();
        for key in keys {
            self.lose_session(key);
        }
        self.ends.retain(|(me, ..)| *me != id);
        Ok(())
    }

    /// The waiting inputs of the replica: ends and beginnings of sessions, arrived messages, the
    /// owner's calls and the clock, in a possible order.
    fn inputs(&mut self, id: u64) -> Vec<Input> {
        let mut inputs = Vec::new();
        let now_ms = self.now_ms;
        let (told, waiting): (VecDeque<_>, VecDeque<_>) = self.ends.drain(..).partition(|(me, ..)| *me == id);
        self.ends = waiting;
        inputs.extend(told.into_iter().map(|(_, peer, session)| Input::SessionDown { peer, session }));
        if let Some(node) = self.nodes.get_mut(&id) {
            inputs.extend(node.told.drain(..));
        }
        // The owner's calls come before, after or around the messages.
        if self.rng.random_bool(0.5) {
            self.owner_calls(id, &mut inputs);
        }
        for (key, session) in &mut self.sessions {
            let (end, peer) = match *key {
                (low, high) if low == id => (0, high),
                (low, high) if high == id => (1, low),
                _ => continue,
            };
            if !session.reported[end] {
                // The dialling end receives it after the accepting one.
                if (end == 0 && !session.reported[1]) || self.rng.random_bool(0.3) {
                    continue;
                }
                session.reported[end] = true;
                let (session, configuration, store_id) =
                    (session.number, session.configuration, self.nodes[&peer].store);
                inputs.push(Input::SessionUp { peer, session, configuration, store_id });
            }
            let most = self.rng.random_range(1..40);
            while inputs.len() < most + 40
                && session.to[end].front().is_some_and(|(at, _)| *at <= now_ms)
                && !self.cut.contains_key(&(peer, id))
                && let Some((_, wire)) = session.to[end].pop_front()
            {
                inputs.push(Input::Message { peer, session: session.number, wire });
            }
        }
        self.owner_calls(id, &mut inputs);
        let clock_ms = self.nodes[&id].clock_ms(now_ms);
        if let Some(process) = self.nodes.get_mut(&id).and_then(|n| n.process.as_mut())
            && clock_ms >= process.next_tick_ms
        {
            process.next_tick_ms = clock_ms + process.core.tick_ms();
            inputs.push(Input::Tick);
        }
        inputs
    }

    fn owner_calls(&mut self, id: u64, inputs: &mut Vec<Input>) {
        let World { rng, nodes, oracle, rates, next_id, calm, stats, .. } = self;
        let chance = |rng: &mut StdRng, p: f64| rng.random_bool(p);
        let Some(node) = nodes.get_mut(&id) else { return };
        let Some(process) = node.process.as_mut() else { return };
        if let Some(term) = process.serves() {
            while chance(rng, rates.write) {
                let write = *next_id;
                *next_id += 1;
                process.writes.insert(write, ());
                let tracked = chance(rng, 0.5).then_some(write);
                if tracked.is_some() {
                    process.tracked.insert(write, ());
                    oracle.tracked(write);
                }
                inputs.push(Input::Propose { kind: Kind::Data, term, payload: write_payload(write, rng), tracked });
            }
            let changing = if *calm { 0.0 } else { rates.change };
            if let Some(change) = changes::wanted(id, process, rng, changing) {
                stats.count("membership changes", 1);
                inputs.push(change);
            }
            if chance(rng, 0.004) {
                inputs.push(Input::NewLeadership { current: term });
                // Proposed by an owner that has not noticed the new leadership yet.
                inputs.push(Input::Propose { kind: Kind::Data, term, payload: write_payload(0, rng), tracked: None });
            }
            if chance(rng, 0.01) {
                // As a forwarded proposal of an ended leadership would come in; the log must reject
                // it.
                let old = Term(term.0.wrapping_sub(rng.random_range(1..1 << 26)));
                inputs.push(Input::Rogue { term: old, payload: write_payload(0, rng) });
            }
        }
        if matches!(process.role, Role::Leader { .. }) && chance(rng, rates.read) {
            let read = *next_id;
            *next_id += 1;
            process.barriers.insert(read, oracle.known);
            inputs.push(Input::Barrier { id: read });
        }
        if chance(rng, rates.read / 2.0) {
            inputs.push(Input::AskStalenessBound);
        }
        if !*calm && chance(rng, 0.002) {
            inputs.push(if rng.random_bool(0.5) { Input::TryLead } else { Input::YieldLeadership });
        }
        let ineligible = process.core.is_ineligible();
        if (ineligible && (*calm || chance(rng, 0.02))) || (!ineligible && !*calm && chance(rng, rates.ineligible)) {
            stats.count("ineligible replicas", u64::from(!ineligible));
            inputs.push(Input::SetIneligible(!ineligible));
        }
        inputs.push(Input::Applied(process.state.applied));
        if self.compaction && chance(rng, 0.05) {
            // R16: durable first, then permission to forget.
            node.durable = process.state;
            inputs.push(Input::Compact(LogIndex(process.state.applied)));
        }
        if chance(rng, 0.01) {
            let compacted = process.core.status().compacted.0;
            let lease = rng.random_bool(0.5).then_some(compacted + rng.random_range(1..50));
            process.lease = lease;
            inputs.push(Input::RetainFrom(lease.map(LogIndex)));
        }
    }

    fn send(&mut self, from: u64, sends: Vec<Send>) {
        for Send { peer, session, wire, .. } in sends {
            if self.rates.lose_message > 0.0 && self.rng.random_bool(self.rates.lose_message) {
                continue;
            }
            let key = (from.min(peer), from.max(peer));
            let latency_ms = self.rng.random_range(0..=self.rates.latency_ms);
            let arrival_ms = self.now_ms + latency_ms;
            if let Some(open) = self.sessions.get_mut(&key).filter(|s| s.number == session) {
                let queue = &mut open.to[usize::from(peer > from)];
                // First in, first out: nothing overtakes.
                let arrival_ms = arrival_ms.max(queue.back().map_or(0, |(at, _)| *at));
                queue.push_back((arrival_ms, wire));
            }
        }
    }

    fn outcomes(&mut self, id: u64, ready: AfterSync) -> Checked<()> {
        self.stats.count("leaderships", ready.counts.leaderships);
        self.stats.count("pieces of decided entries", ready.counts.learned);
        self.stats.count("candidates far behind", ready.counts.refusals);
        self.stats.count("dropped proposals", ready.counts.dropped);
        ensure(ready.overflowed.is_empty(), || format!("replica {id} gives up sessions: {:?}", ready.overflowed))?;
        self.end_sessions(id, &ready)?;
        if let Some(role) = ready.role {
            self.process(id)?.role = role;
        }
        self.answered(id, ready.barriers)?;
        let World { nodes, stats, known_by, .. } = self;
        let node = nodes.get_mut(&id).ok_or_else(|| Violation("gone".to_owned()))?;
        let process = node.process.as_mut().ok_or_else(|| Violation("gone".to_owned()))?;
        clocks::check(id, &process.core, self.now_ms)?;
        let leads = matches!(process.core.role(), Role::Leader { .. });
        ensure(!(leads && process.core.is_ineligible()), || format!("replica {id} leads while it is ineligible"))?;
        // R17: before what this turn decides, and hence what clients know by it, is added.
        let drift = node.drift_permille;
        for bound in ready.staleness_bounds {
            stats.count("staleness bounds", 1);
            let known = known_before(known_by, drift, bound.asked_ms);
            ensure(bound.index.0 >= known, || {
                format!("replica {id}: {bound:?}, but a client had already seen {known} by then")
            })?;
        }
        self.shown(id)?;
        let World { rng, nodes, stats, .. } = self;
        let node = nodes.get_mut(&id).ok_or_else(|| Violation("gone".to_owned()))?;
        let process = node.process.as_mut().ok_or_else(|| Violation("gone".to_owned()))?;
        let status = process.core.status();
        if status.compacted.0 > process.compacted {
            process.compacted = status.compacted.0;
            stats.count("compactions", 1);
        }
        if process.core.was_reset() {
            // The retained entries are gone with the whole log.
            process.lease = None;
        }
        ensure(process.lease.is_none_or(|lease| status.compacted.0 < lease), || {
            format!("replica {id} broke the retention {:?}: {status:?}", process.lease)
        })?;
        if rng.random_bool(0.7) {
            self.apply(id)?;
        }
        self.transfer(id)
    }

    /// Checks the entries that a replica shows as decided, before or after its sync. Returns
    /// whether there were any.
    fn shown(&mut self, id: u64) -> Checked<bool> {
        let World { nodes, oracle, .. } = self;
        let process = nodes.get_mut(&id).and_then(|n| n.process.as_mut());
        let process = process.ok_or_else(|| Violation("gone".to_owned()))?;
        let (entries, decided) = process.core.newly_decided();
        process.shown_decided = decided.0;
        for entry in &entries {
            if entry.index.0 <= oracle.len() + 1 {
                oracle.delivered(id, entry)?;
            }
        }
        Ok(!entries.is_empty())
    }

    fn apply(&mut self, id: u64) -> Checked<()> {
        let World { rng, nodes, oracle, .. } = self;
        nodes.get_mut(&id).ok_or_else(|| Violation("gone".to_owned()))?.apply(oracle, rng)
    }

    /// Reads that have been answered, before or after the sync.
    fn answered(&mut self, id: u64, answers: Vec<BarrierAnswer>) -> Checked<()> {
        let World { nodes, stats, .. } = self;
        let process = nodes.get_mut(&id).and_then(|n| n.process.as_mut());
        let process = process.ok_or_else(|| Violation("gone".to_owned()))?;
        for (read, answer) in answers {
            let known = process.barriers.remove(&read);
            let known = known.ok_or_else(|| Violation(format!("read {read} answered twice")))?;
            match answer {
                Ok(LogIndex(index)) => {
                    stats.count("reads", 1);
                    // Log rule 9: the state at `index` holds everything that anybody knew when the
                    // read began.
                    ensure(index >= known, || {
                        format!("replica {id}: a read at {index}, a client had already seen {known}")
                    })?;
                    process.reads.push(index);
                }
                Err(BarrierError::NotLeader { .. } | BarrierError::TimedOut) => stats.count("reads refused", 1),
                Err(BarrierError::Stopped) => return Err(Violation("a running log says it has stopped".to_owned())),
            }
        }
        Ok(())
    }

    /// The application of a replica that is behind fetches the state from another one, now and
    /// then.
    fn transfer(&mut self, id: u64) -> Checked<()> {
        let node = &self.nodes[&id];
        let Some(process) = &node.process else { return Ok(()) };
        let Role::Behind { trimmed, .. } = process.role else { return Ok(()) };
        if process.core.leads_behind() {
            self.stats.count("leaders behind", 1);
        }
        if !self.rng.random_bool(0.03) {
            return Ok(());
        }
        let mut state = node.durable;
        if state.applied < trimmed.0 {
            let source = self.any();
            match self.nodes[&source].process.as_ref().map(|p| p.state) {
                Some(fetched) if fetched.applied >= trimmed.0 => state = fetched,
                _ => return Ok(()),
            }
        }
        self.stats.count("state transfers", 1);
        let now_ms = self.nodes[&id].clock_ms(self.now_ms);
        let node = self.node(id)?;
        // The copy is durable before the log is notified.
        node.durable = state;
        if let Some(process) = &mut node.process {
            process.state = state;
            process.core.feed(now_ms, Input::Installed { index: LogIndex(state.applied), term: state.term });
        }
        Ok(())
    }
}

/// The position that clients knew before a clock with this drift first showed `clock_ms`.
fn known_before(known_by: &[(u64, u64)], drift_permille: i64, clock_ms: u64) -> u64 {
    // In whole milliseconds the clock shows it from this real time on.
    let since_ms = (clock_ms as i64 * 1_000).div_euclid(1_000 + drift_permille) as u64;
    let before = known_by.partition_point(|(at_ms, _)| *at_ms < since_ms);
    before.checked_sub(1).map_or(0, |last| known_by[last].1)
}

fn write_payload(id: u64, rng: &mut StdRng) -> Bytes {
    let mut payload = vec![0; 8 + rng.random_range(0..60)];
    payload[..8].copy_from_slice(&id.to_le_bytes());
    Bytes::from(payload)
}
