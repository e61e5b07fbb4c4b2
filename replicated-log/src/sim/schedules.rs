//! Chosen schedules with three replicas: the promises of durability level `memory` and what it can
//! lose (R28), with crashes while the followers have an entry in memory only; reads over slow links
//! (log rule 9); and a slow disk (log rule 1).

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::config::{Limits, Timing};
use crate::core::{CoreConfig, Fault, Input};
use crate::entry::Body;
use crate::error::BarrierError;
use crate::ids::{LogIndex, ReplicaId};
use crate::item::Kind;
use crate::membership::Membership;
use crate::role::Role;
use crate::status::PeerStatus;
use crate::wire::Wire;

use super::oracle::AppState;
use super::simulated_replica::{Node, members};
use evenkeel_host::ForgetfulDisk as SimDisk;

const ENTRY: &[u8] = b"entry in question";
/// Simulated time within which an awaited event must happen, in milliseconds.
const PATIENCE_MS: u64 = 5_000;

/// The founding configuration, the only one here.
const FOUNDING: u32 = 1;

pub(super) struct Group {
    pub(super) now_ms: u64,
    pub(super) nodes: BTreeMap<u64, Node>,
    /// Messages on their way, by sender and receiver.
    wires: BTreeMap<(u64, u64), VecDeque<Wire>>,
    /// Open sessions.
    sessions: BTreeMap<(u64, u64), u64>,
    next_session: u64,
    /// Replicas that are up but hear nobody.
    pub(super) cut: BTreeSet<u64>,
    /// Pairs of which neither hears the other, the lower one first.
    pub(super) apart: BTreeSet<(u64, u64)>,
    acknowledged: bool,
    /// Answered reads, with their answers.
    answers: Vec<(u64, Result<LogIndex, BarrierError>)>,
    /// The largest message sent and the most written in one turn, in bytes.
    pub(super) largest_message_bytes: usize,
    pub(super) largest_write_bytes: u64,
}

impl Group {
    fn new(faults: &[Fault]) -> Group {
        Group::with(faults, 50)
    }

    fn with(faults: &[Fault], election_timeout_ms: u64) -> Group {
        Group::limited(faults, election_timeout_ms, Limits::default())
    }

    pub(super) fn limited(faults: &[Fault], election_timeout_ms: u64, limits: Limits) -> Group {
        let nodes = (1..=3).map(|id| {
            let timing = Timing { election_timeout_ms, status_ms: 20, lease_ms: 0, ..Timing::default() };
            let config =
                CoreConfig { me: id, unix_at_boot_ms: 0, timing, limits: limits.clone(), faults: faults.to_vec() };
            let founding = Membership { configuration: FOUNDING, members: members(1..=3), ..Membership::default() };
            let (disk, durable, told) = (SimDisk::new(0, 0), AppState::default(), VecDeque::new());
            let node = Node {
                id,
                disk,
                config,
                founding,
                store: id,
                process: None,
                durable,
                up_at_ms: 0,
                drift_permille: 0,
                told,
            };
            (id, node)
        });
        let (wires, sessions, cut, apart) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let nodes = nodes.collect();
        Group {
            now_ms: 0,
            nodes,
            wires,
            sessions,
            next_session: 1,
            cut,
            apart,
            acknowledged: false,
            answers: Vec::new(),
            largest_message_bytes: 0,
            largest_write_bytes: 0,
        }
    }

    pub(super) fn start(&mut self, id: u64) {
        let now_ms = self.now_ms;
        self.nodes.get_mut(&id).unwrap().start(now_ms).unwrap();
    }

    pub(super) fn crash(&mut self, id: u64) {
        self.nodes.get_mut(&id).unwrap().crash(0, &mut StdRng::seed_from_u64(id));
        self.connect();
    }

    /// It comes back with an empty disk.
    pub(super) fn lose_disk(&mut self, id: u64) {
        self.crash(id);
        let node = self.nodes.get_mut(&id).unwrap();
        (node.disk, node.durable, node.store) = (SimDisk::new(0, 0), AppState::default(), node.store + 100);
        self.start(id);
    }

    fn can_talk(&self, a: u64, b: u64) -> bool {
        let up = |id| self.nodes[&id].process.is_some() && !self.cut.contains(&id);
        up(a) && up(b) && !self.apart.contains(&(a.min(b), a.max(b)))
    }

    /// What a replica that is up knows of a peer.
    pub(super) fn peer(&self, id: u64, peer: u64) -> PeerStatus {
        self.nodes[&id].process.as_ref().unwrap().core.status().peers[&ReplicaId(peer)].clone()
    }

    /// Opens and ends sessions by which replicas can talk.
    pub(super) fn connect(&mut self) {
        for pair in [(1, 2), (1, 3), (2, 3)] {
            let (a, b) = pair;
            match (self.can_talk(a, b), self.sessions.get(&pair).copied()) {
                (true, None) => {
                    let session = self.next_session;
                    self.next_session += 1;
                    self.sessions.insert(pair, session);
                    let [of_a, of_b] = [a, b].map(|id| self.nodes[&id].store);
                    self.feed(a, Input::SessionUp { peer: b, session, configuration: FOUNDING, store_id: of_b });
                    self.feed(b, Input::SessionUp { peer: a, session, configuration: FOUNDING, store_id: of_a });
                }
                (false, Some(_)) => self.disconnect(a, b),
                _ => {}
            }
        }
    }

    fn disconnect(&mut self, a: u64, b: u64) {
        let Some(session) = self.sessions.remove(&(a.min(b), a.max(b))) else { return };
        self.wires.remove(&(a, b));
        self.wires.remove(&(b, a));
        self.feed(a, Input::SessionDown { peer: b, session });
        self.feed(b, Input::SessionDown { peer: a, session });
    }

    pub(super) fn feed(&mut self, id: u64, input: Input) {
        let now_ms = self.now_ms;
        if let Some(process) = &mut self.nodes.get_mut(&id).unwrap().process {
            process.core.feed(now_ms, input);
        }
    }

    /// One turn with every waiting message. Without `sync` the disk is slow: only the part before
    /// the sync is carried out.
    pub(super) fn turn(&mut self, id: u64, sync: bool) {
        for from in (1..=3).filter(|from| *from != id) {
            let session = self.sessions.get(&(id.min(from), id.max(from))).copied();
            let arrived = self.wires.remove(&(from, id)).unwrap_or_default();
            for wire in session.map(|_| arrived).unwrap_or_default() {
                self.feed(id, Input::Message { peer: from, session: session.unwrap(), wire });
            }
        }
        let Some(process) = &mut self.nodes.get_mut(&id).unwrap().process else { return };
        let mut ready = process.core.finish();
        let before = std::mem::take(&mut ready.before_sync);
        self.acknowledged |= !before.acknowledged.is_empty();
        self.answers.extend(before.barriers);
        if let Some(role) = before.role {
            process.role = role;
        }
        let mut sends = before.sends;
        let mut refused = Vec::new();
        if sync {
            let before_bytes = process.core.written().disk_bytes;
            let after = ready.synced(process.core.sync().unwrap());
            let written_bytes = process.core.written().disk_bytes - before_bytes;
            self.largest_write_bytes = self.largest_write_bytes.max(written_bytes);
            process.core.newly_decided();
            self.answers.extend(after.barriers);
            if let Some(role) = after.role {
                process.role = role;
            }
            sends.extend(after.sends);
            refused = after.refused;
        }
        for send in sends {
            self.largest_message_bytes = self.largest_message_bytes.max(send.wire.size_bytes());
            self.wires.entry((id, send.peer)).or_default().push_back(send.wire);
        }
        refused.into_iter().for_each(|(peer, _)| self.disconnect(id, peer));
    }

    pub(super) fn run_until(&mut self, what: &str, done: impl Fn(&Group) -> bool) {
        let until_ms = self.now_ms + PATIENCE_MS;
        while !done(self) {
            assert!(self.now_ms < until_ms, "not in time: {what}");
            self.now_ms += 10;
            self.connect();
            for id in 1..=3 {
                self.feed(id, Input::Tick);
                self.turn(id, true);
            }
        }
    }

    /// A leader that is heard, and whose log is decided to its end.
    pub(super) fn leader(&self) -> Option<u64> {
        let leads = |(id, node): (&u64, &Node)| {
            let process = node.process.as_ref()?;
            let status = process.core.status();
            let leads = matches!(process.role, Role::Leader { .. }) && status.decided == status.accepted;
            (leads && !self.cut.contains(id)).then_some(*id)
        };
        self.nodes.iter().find_map(leads)
    }

    /// Leader `leader` with followers at rest; then the entry is proposed there.
    fn propose(&mut self) -> (u64, [u64; 2]) {
        (1..=3).for_each(|id| self.start(id));
        self.run_until("a leader", |group| group.leader().is_some());
        let leader = self.leader().unwrap();
        let rest: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
        let process = self.nodes[&leader].process.as_ref().unwrap();
        let Role::Leader { term, start } = process.role else { panic!("no leader") };
        self.run_until("all to have decided the start", |group| {
            group.nodes.values().all(|n| n.process.as_ref().unwrap().core.status().decided >= start)
        });
        let payload = Bytes::from_static(ENTRY);
        self.feed(leader, Input::Propose { kind: Kind::Data, term, payload, tracked: Some(1) });
        self.turn(leader, true);
        (leader, [rest[0], rest[1]])
    }

    /// Whether the entry is in the log that the group goes on with.
    fn kept(&mut self) -> bool {
        self.run_until("a leader afterwards", |group| group.leader().is_some());
        let leader = self.leader().unwrap();
        let core = &self.nodes[&leader].process.as_ref().unwrap().core;
        let crate::old_entries::OldEntries::Entries(entries) = core.old_entries(LogIndex(1), usize::MAX).unwrap()
        else {
            panic!("nothing is compacted here")
        };
        entries.iter().any(|e| e.effective && matches!(&e.body, Body::Data(bytes) if bytes == ENTRY))
    }
}

// R28: both followers have the entry in memory only, and it is acknowledged. All three crash, and
// the followers are back before the leader, the only one whose disk had it: the entry is lost.
#[test]
fn a_write_acknowledged_in_memory_is_lost_when_all_replicas_crash_together() {
    let mut group = Group::new(&[]);
    let (leader, followers) = group.propose();
    followers.iter().for_each(|id| group.turn(*id, false));
    group.turn(leader, true);
    assert!(group.acknowledged, "both followers have answered that they have it");
    (1..=3).for_each(|id| group.crash(id));
    followers.iter().for_each(|id| group.start(*id));
    assert!(!group.kept());
}

// R28: of the three replicas one crashes and a second is cut off; the third alone has the entry,
// and that is enough.
#[test]
fn a_write_acknowledged_in_memory_survives_any_one_crash() {
    for (crashed, cut) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
        let mut group = Group::new(&[]);
        let (leader, [first, second]) = group.propose();
        group.turn(first, false);
        group.turn(second, false);
        group.turn(leader, true);
        assert!(group.acknowledged);
        let who = [leader, first, second];
        group.crash(who[crashed]);
        group.start(who[crashed]);
        group.cut.insert(who[cut]);
        assert!(group.kept(), "crashed: {crashed}, cut off: {cut}");
    }
}

// R28: with the memory of a majority the same crash loses the entry, so a majority is not enough.
#[test]
fn memory_of_a_mere_majority_is_noticed() {
    let schedule = |faults: &[Fault]| {
        let mut group = Group::new(faults);
        let (leader, [first, second]) = group.propose();
        // The second follower has not got it yet.
        group.wires.remove(&(leader, second));
        group.turn(first, false);
        group.turn(leader, true);
        let held = group.acknowledged;
        group.crash(first);
        group.start(first);
        group.cut.insert(leader);
        (held, group.kept())
    };
    assert_eq!(schedule(&[]), (false, false), "not acknowledged, so it may be lost");
    assert_eq!(schedule(&[Fault::MemoryOfMajority]), (true, false), "acknowledged and lost");
}

// R28: level `disk` is answered when the entry is decided. Then the entry survives the crash of
// all.
#[test]
fn what_was_decided_survives_the_crash_of_all() {
    let mut group = Group::new(&[]);
    let (leader, [first, second]) = group.propose();
    group.turn(first, true);
    group.turn(leader, true);
    let decided = group.nodes[&leader].process.as_ref().unwrap().core.status();
    assert_eq!(decided.decided, decided.accepted, "decided by the leader and one follower");
    (1..=3).for_each(|id| group.crash(id));
    // Without the leader that decided it.
    [first, second].iter().for_each(|id| group.start(*id));
    assert!(group.kept());
}

// Log rule 9: with one of three away there is no lease, and every read asks the other one. An
// answer counts though it takes longer than it takes to ask again, which is for messages that were
// lost.
#[test]
fn a_read_is_answered_over_a_way_that_is_longer_than_the_time_to_ask_again() {
    const ONE_WAY_MS: u64 = 40;
    let mut group = Group::with(&[], 200);
    let (leader, [away, _]) = group.propose();
    group.crash(away);
    let mut on_the_way: VecDeque<(u64, (u64, u64), Wire)> = VecDeque::new();
    group.feed(leader, Input::Barrier { id: 7 });
    let began_ms = group.now_ms;
    while group.answers.is_empty() {
        assert!(group.now_ms < began_ms + PATIENCE_MS, "it is never answered");
        group.now_ms += 10;
        for id in 1..=3 {
            group.feed(id, Input::Tick);
            group.turn(id, true);
        }
        let due_ms = group.now_ms + ONE_WAY_MS;
        for (way, wires) in std::mem::take(&mut group.wires) {
            on_the_way.extend(wires.into_iter().map(|wire| (due_ms, way, wire)));
        }
        while on_the_way.front().is_some_and(|(due_ms, ..)| *due_ms <= group.now_ms) {
            let (_, way, wire) = on_the_way.pop_front().unwrap();
            group.wires.entry(way).or_default().push_back(wire);
        }
    }
    assert!(matches!(group.answers[..], [(7, Ok(_))]), "{:?} after {} ms", group.answers, group.now_ms - began_ms);
}

// Log rule 1: whatever this turn has to sync, what earlier ones have synced is shown, and reads are
// answered. What has not been synced is neither shown nor said to be there.
#[test]
fn a_slow_disk_holds_up_only_what_it_has_to_store() {
    let mut group = Group::new(&[]);
    let (leader, [first, _]) = group.propose();
    group.turn(first, true);
    let Role::Leader { term, .. } = group.nodes[&leader].process.as_ref().unwrap().role else { panic!("no leader") };
    let payload = Bytes::from_static(b"another one");
    group.feed(leader, Input::Propose { kind: Kind::Data, term, payload, tracked: None });
    group.feed(leader, Input::Barrier { id: 7 });
    group.turn(leader, false);
    let core = &mut group.nodes.get_mut(&leader).unwrap().process.as_mut().unwrap().core;
    let (entries, decided) = core.newly_decided();
    assert!(matches!(&entries.last().unwrap().body, Body::Data(bytes) if bytes == ENTRY), "{entries:?}");
    assert_eq!(entries.last().unwrap().index, decided, "the other one is not on disk");
    // The follower's disk is slow, too: it has the other entry in memory, and answers the probe.
    group.turn(first, false);
    let said = &group.wires[&(first, leader)];
    assert!(said.iter().any(|wire| matches!(wire, Wire::ProbeReply { .. })), "{said:?}");
    assert!(!said.iter().any(|wire| matches!(wire, Wire::Paxos(omnipaxos::messages::Message::SequencePaxos(_)))));
    group.turn(leader, false);
    assert!(matches!(group.answers[..], [(7, Ok(_))]), "{:?}", group.answers);
}
