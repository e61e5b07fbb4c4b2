//! Membership changes and lost disks in the simulated world.
//!
//! Leaders propose memberships: one replica replaced, two more, fewer, or the same replicas with a
//! new disk of one of them. A disk is lost only where the group must survive that: for a minority
//! of the newest configuration's members, once that configuration has decided an entry (until then
//! the disks of the previous one are needed), and not during a change. In the founding
//! configuration every replica must have seen the disk before (see the notes on the membership in
//! `docs/decisions/replicated-log.md`).

use std::collections::BTreeSet;
use std::net::SocketAddr;

use rand::Rng;
use rand::rngs::StdRng;

use crate::core::{AfterSync, Input};
use crate::ids::ReplicaId;
use crate::item::Kind;
use crate::membership::{self, Members, Membership};
use crate::role::Role;

use super::oracle::{AppState, Checked, ensure};
use super::simulated_replica::{Node, Process};
use super::world::World;
use evenkeel_host::ForgetfulDisk as SimDisk;

/// The most replicas there ever are in a run, members or not.
const MAX_REPLICAS: u64 = 9;

pub(super) fn members(ids: impl IntoIterator<Item = u64>) -> Members {
    let address = |id: u64| SocketAddr::from(([10, 0, 0, id as u8], 1));
    ids.into_iter().map(|id| (ReplicaId(id), address(id).into())).collect()
}

impl World {
    fn newest(&self) -> &Members {
        self.oracle.configurations.last().map_or(&self.founding.members, |(_, members)| members)
    }

    pub(super) fn newest_configuration(&self) -> u32 {
        self.oracle.configurations.len() as u32 + 1
    }

    pub(super) fn is_member(&self, id: u64) -> bool {
        self.newest().contains_key(&ReplicaId(id))
    }

    pub(super) fn retire(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.process = None;
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

    fn tell(&mut self, id: u64, input: Input) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.told.push_back(input);
        }
    }

    /// Ends the sessions that the turn closes: those of an ended configuration, and those with a
    /// peer that has another disk.
    pub(super) fn end_sessions(&mut self, id: u64, ready: &AfterSync) -> Checked<()> {
        for (peer, _) in &ready.refused {
            let peer = *peer;
            let lost_once = self.nodes[&peer].store != peer;
            ensure(lost_once, || format!("replica {id} refuses replica {peer} with the disk that it always had"))?;
            self.lose_session((id.min(peer), id.max(peer)));
        }
        if ready.entered {
            let began = self.nodes[&id].membership().map_or(0, |membership| membership.began.0);
            let transferred = self.nodes[&id].process.as_ref().is_some_and(|p| p.core.status().compacted.0 == began);
            if let Some(process) = self.nodes.get_mut(&id).and_then(|n| n.process.as_mut()) {
                // The retained entries may be gone with the whole log.
                process.lease = process.lease.filter(|_| !transferred);
            }
            self.stats
                .count(if transferred { "configurations entered by transfer" } else { "configurations entered" }, 1);
            let keys: Vec<_> = self.sessions.keys().copied().filter(|(a, b)| *a == id || *b == id).collect();
            keys.into_iter().for_each(|key| self.lose_session(key));
        }
        Ok(())
    }

    /// Replaces a replica's disk by an empty one, if the group must survive that.
    pub(super) fn lose_disk(&mut self, id: u64) {
        let began = self.oracle.configurations.last().map_or(0, |(began, _)| *began);
        let n = self.newest().len();
        let has_lost = |other: u64, disk: u64| self.nodes[&other].store != if disk == 0 { other } else { disk };
        let others = self.newest().iter().filter(|(other, _)| other.0 != id);
        let lost = others.filter(|(other, member)| has_lost(other.0, member.disk)).count();
        let enough = lost < n - (n / 2 + 1);
        // During a change the group tolerates fewer failures.
        let steady = |node: &Node| node.process.as_ref().is_some_and(|p| p.frozen.is_none() && !p.core.has_barrier());
        let changing = !self.nodes.values().all(steady) || self.oracle.len() <= began;
        if !self.is_member(id) || !enough || changing || !self.all_have_seen_the_disk_of(id) {
            return;
        }
        self.stats.count("disks lost", 1);
        let keys: Vec<_> = self.sessions.keys().copied().filter(|(a, b)| *a == id || *b == id).collect();
        keys.into_iter().for_each(|key| self.lose_session(key));
        self.ends.retain(|(me, ..)| *me != id);
        let (skip_every, prepared_bytes) = self.disks;
        let store = self.next_store;
        self.next_store += 1;
        let up_at_ms = self.now_ms + self.rng.random_range(1..200);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.wipe(SimDisk::new(skip_every, prepared_bytes), store, up_at_ms);
        }
    }

    fn all_have_seen_the_disk_of(&self, id: u64) -> bool {
        let store = self.nodes[&id].store;
        let seen = |node: &Node| node.process.as_ref().is_some_and(|p| p.core.knows_disk(id) == Some(store));
        // A barrier names the disks.
        let named = self.newest()[&ReplicaId(id)].disk == store;
        let others = self.newest().keys().filter(|other| other.0 != id);
        named || (self.newest_configuration() == 1 && others.copied().all(|other| seen(&self.nodes[&other.0])))
    }

    /// Adds a replica that asks to join.
    pub(super) fn add_replica(&mut self) -> u64 {
        let id = self.nodes.len() as u64 + 1;
        let (skip_every, prepared_bytes) = self.disks;
        let mut config = self.nodes[&1].config.clone();
        config.me = id;
        let asked = members(self.newest().keys().map(|id| id.0).chain([id]));
        let node = Node {
            id,
            disk: SimDisk::new(skip_every, prepared_bytes),
            config,
            founding: Membership { configuration: 0, members: asked, ..Membership::default() },
            store: id,
            process: None,
            durable: AppState::default(),
            up_at_ms: self.now_ms,
            drift_permille: self.rng.random_range(-50..=50),
            told: Default::default(),
        };
        self.nodes.insert(id, node);
        id
    }

    /// Starts one more replica now and then, so that a change can add it.
    pub(super) fn prepare_changes(&mut self) {
        let waiting = self.nodes.keys().filter(|id| !self.is_member(**id)).count();
        if waiting < 2 && (self.nodes.len() as u64) < MAX_REPLICAS && self.rng.random_bool(self.rates.change) {
            self.add_replica();
        }
    }
}

/// The members that a leader asks for: with probability `chance`, or more often if some replica has
/// come with another disk.
pub(super) fn wanted(id: u64, process: &Process, rng: &mut StdRng, chance: f64) -> Option<Input> {
    let Role::Leader { term, .. } = process.role else { return None };
    let status = process.core.status();
    let now = process.core.membership();
    let lost = status.peers.values().any(|peer| peer.other_disk);
    if !rng.random_bool(if lost { 0.05 } else { chance }) {
        return None;
    }
    let mut next = now.members.clone();
    let mut others: Vec<_> = status.applicants.keys().copied().collect();
    if !lost {
        match rng.random_range(0..4) {
            // Others come in the place of some.
            0 | 1 if next.len() > 3 || !others.is_empty() => {
                let leaving: Vec<_> = next.keys().copied().collect();
                next.remove(&leaving[rng.random_range(0..leaving.len())]);
                others.truncate(1);
            }
            // More.
            0..=2 => {}
            // Fewer.
            _ => {
                while next.len() > 3 {
                    next.pop_first();
                }
                others.clear();
            }
        }
        others.truncate(5usize.saturating_sub(next.len()));
        next.extend(members(others.into_iter().map(|id| id.0)));
    }
    let me = (ReplicaId(id), process.store);
    let next = membership::complete(now, me, &next, &BTreeSet::new(), &status).ok()?;
    Some(Input::Propose { kind: Kind::ConfigChange, term, payload: Membership::barrier(&next), tracked: None })
}
