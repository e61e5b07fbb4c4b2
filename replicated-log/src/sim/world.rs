//! The world of a run: the replicas, the network between them, and the knowledge of their log.
//!
//! It holds the state and the steps that everything else is made of. `fault_injector`, `changes`,
//! `turn` and `run` decide which of them happen.

use std::collections::{BTreeMap, VecDeque};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::core::{CoreConfig, Input, Send};
use crate::ids::ReplicaId;
use crate::membership::{Members, Membership};
use crate::wire::Wire;

use super::clocks;
use super::options::{FaultRates, Options, Stats, settings};
use super::oracle::{AppState, Checked, Oracle, Violation};
use super::simulated_replica::{Frozen, Node, Process, members};
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

    pub(super) fn newest(&self) -> &Members {
        self.oracle.configurations.last().map_or(&self.founding.members, |(_, members)| members)
    }

    pub(super) fn newest_configuration(&self) -> u32 {
        self.oracle.configurations.len() as u32 + 1
    }

    pub(super) fn is_member(&self, id: u64) -> bool {
        self.newest().contains_key(&ReplicaId(id))
    }

    pub(super) fn node(&mut self, id: u64) -> Checked<&mut Node> {
        self.nodes.get_mut(&id).ok_or_else(|| Violation(format!("no replica {id}")))
    }

    pub(super) fn process(&mut self, id: u64) -> Checked<&mut Process> {
        self.node(id)?.process.as_mut().ok_or_else(|| Violation(format!("replica {id} is down")))
    }

    pub(super) fn any(&mut self) -> u64 {
        self.rng.random_range(1..=self.nodes.len() as u64)
    }

    pub(super) fn start(&mut self, id: u64) -> Checked<()> {
        let now_ms = self.now_ms;
        self.node(id)?.start(now_ms)
    }

    pub(super) fn retire(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.process = None;
        }
    }

    pub(super) fn crash(&mut self, id: u64, when: &'static str) -> Checked<()> {
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

    /// Ends a session and loses a random suffix of its messages. The ends learn it at different
    /// times.
    pub(super) fn lose_session(&mut self, key: (u64, u64)) {
        if let Some(mut session) = self.sessions.remove(&key) {
            self.stats.count("sessions lost", 1);
            for end in 0..2 {
                let (me, peer) = if end == 0 { key } else { (key.1, key.0) };
                if !session.reported[end] {
                    continue;
                }
                // Messages in the receiver's buffers may still arrive.
                let kept = self.rng.random_range(0..=session.to[end].len());
                let rest = std::mem::take(&mut session.to[end]);
                let Some(node) = self.nodes.get_mut(&me) else { continue };
                let now_ms = node.clock_ms(self.now_ms);
                if let Some(p) = &mut node.process {
                    for (_, wire) in rest.into_iter().take(kept) {
                        let message = Input::Message { peer, session: session.number, wire };
                        match &mut p.frozen {
                            Some(Frozen::Before(inputs) | Frozen::Syncing { inputs, .. }) => {
                                inputs.push_back((now_ms, message));
                            }
                            _ => p.core.feed(now_ms, message),
                        }
                    }
                }
                if self.rng.random_bool(0.7) {
                    self.ends.push_back((me, peer, session.number));
                }
            }
        }
    }

    pub(super) fn tell(&mut self, id: u64, input: Input) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.told.push_back(input);
        }
    }

    /// The configuration in which two replicas may have a session. If one is in a newer
    /// configuration, the other learns it instead.
    pub(super) fn common_configuration(&mut self, low: u64, high: u64) -> Option<u32> {
        let (a, b) = (self.nodes[&low].membership()?.clone(), self.nodes[&high].membership()?.clone());
        if a.configuration == b.configuration {
            let both = a.has(ReplicaId(high)) && b.has(ReplicaId(low));
            return both.then_some(a.configuration);
        }
        let (older, newer, known) = if a.configuration < b.configuration { (low, high, b) } else { (high, low, a) };
        let store_id = self.nodes[&older].store;
        self.tell(newer, Input::Seen { replica: older, store_id });
        self.tell(older, Input::NewerConfiguration(known));
        None
    }

    /// Opens sessions where both ends are up and not cut; a cut session is lost after a while.
    pub(super) fn connect(&mut self) {
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

    pub(super) fn send(&mut self, from: u64, sends: Vec<Send>) {
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
}

pub(super) fn pairs(n: u64) -> impl Iterator<Item = (u64, u64)> {
    (1..=n).flat_map(move |a| (1..=n).filter(move |b| *b != a).map(move |b| (a, b)))
}
