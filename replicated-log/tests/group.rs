//! Groups of real replicas in one process, over loopback sockets and folders of their own.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use evenkeel_replicated_log::{
    BarrierError, Body, Delivery, Entry, GroupConfig, Limits, LogHandle, LogIndex, ProposeError, ReplicaId, Role,
    StartError, Subscription, Term, Timing, WalError, start,
};
use tempfile::TempDir;

/// Far longer than anything here takes, even on a busy machine: a hang fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

struct Group {
    dirs: Vec<TempDir>,
    peers: BTreeMap<ReplicaId, SocketAddr>,
    limits: Limits,
    timing: Timing,
    nodes: BTreeMap<ReplicaId, LogHandle>,
}

impl Group {
    fn new(n: u64, limits: Limits) -> Group {
        let ids = || (1..=n).map(ReplicaId);
        let mut group = Group {
            dirs: ids().map(|_| TempDir::new().unwrap()).collect(),
            peers: ids().map(|id| (id, evenkeel_host::ports::address().unwrap())).collect(),
            limits,
            timing: Timing { forget_peer_ms: 300, ..Timing::default() },
            nodes: BTreeMap::new(),
        };
        for id in ids() {
            group.start(id);
        }
        group
    }

    fn config(&self, id: ReplicaId) -> GroupConfig {
        GroupConfig {
            group: 7,
            join: false,
            me: id,
            listen: self.peers[&id],
            peers: self.peers.iter().map(|(id, at)| (*id, (*at).into())).collect(),
            dir: self.dirs[id.0 as usize - 1].path().join("log"),
            timing: self.timing.clone(),
            limits: self.limits.clone(),
        }
    }

    fn start(&mut self, id: ReplicaId) {
        let handle = start(self.config(id)).unwrap();
        self.nodes.insert(id, handle);
    }

    async fn stop(&mut self, id: ReplicaId) {
        let handle = self.nodes.remove(&id).unwrap();
        evenkeel_host::timeout(PATIENCE, handle.shutdown()).await.unwrap();
    }

    /// Waits until some running replica leads and its `LeaderStart` is decided.
    async fn leader(&self) -> (ReplicaId, Term, LogIndex) {
        let search = async {
            loop {
                for (id, node) in &self.nodes {
                    let role = node.role().borrow().clone();
                    if let Role::Leader { term, start } = role
                        && node.read_barrier().await.is_ok()
                    {
                        return (*id, term, start);
                    }
                }
                evenkeel_host::sleep(Duration::from_millis(5)).await;
            }
        };
        evenkeel_host::timeout(PATIENCE, search).await.expect("nobody leads")
    }

    async fn shutdown(mut self) {
        let ids: Vec<_> = self.nodes.keys().copied().collect();
        for id in ids {
            self.stop(id).await;
        }
    }
}

async fn next_entries(subscription: &mut Subscription) -> Vec<Entry> {
    let delivery = evenkeel_host::timeout(PATIENCE, subscription.next(1 << 20)).await;
    match delivery.expect("nothing was delivered").unwrap() {
        Delivery::Entries(entries) => entries,
        other => panic!("{other:?}"),
    }
}

/// The effective data from position 1 on, until `count` entries of it have come.
async fn effective_data(node: &LogHandle, count: usize) -> Vec<Bytes> {
    let mut subscription = node.subscribe(LogIndex(1));
    let mut data = Vec::new();
    let mut expected = LogIndex(1);
    while data.len() < count {
        for entry in next_entries(&mut subscription).await {
            assert_eq!(entry.index, expected, "in order and without gaps");
            expected = expected.next();
            if let (true, Body::Data(bytes)) = (entry.effective, entry.body) {
                data.push(bytes);
            }
        }
    }
    data
}

fn payload(i: u64) -> Bytes {
    Bytes::copy_from_slice(&i.to_le_bytes())
}

/// Proposes `from..to` and waits until the leader has them, in this order. When a leadership ends
/// on the way (on a busy machine a leader can seem dead), what did not make it is proposed again in
/// the next one, as owners do.
async fn propose_all(group: &Group, from: u64, to: u64) {
    let mut next = from;
    while next < to {
        let (leader, term, _) = group.leader().await;
        let node = &group.nodes[&leader];
        let mut log = node.subscribe(node.status().decided.next());
        let mut ended = false;
        let mut proposed = next;
        while next < to && !ended {
            while proposed < to {
                match node.propose(term, payload(proposed)) {
                    Ok(()) => proposed += 1,
                    Err(ProposeError::Overloaded | ProposeError::NotLeader { .. }) => break,
                    Err(other) => panic!("{other}"),
                }
            }
            for entry in next_entries(&mut log).await {
                ended |= entry.term > term;
                if entry.effective && entry.term == term && entry.body == Body::Data(payload(next)) {
                    next += 1;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_deliver_the_same_entries_in_the_order_proposed() {
    let group = Group::new(3, Limits::default());
    propose_all(&group, 0, 5_000).await;
    let expected: Vec<_> = (0..5_000).map(payload).collect();
    for node in group.nodes.values() {
        assert_eq!(effective_data(node, 5_000).await, expected);
    }
    let (leader, ..) = group.leader().await;
    let barrier = group.nodes[&leader].read_barrier().await.unwrap();
    assert!(barrier >= LogIndex(5_001));
    for (id, node) in group.nodes.iter().filter(|(id, _)| **id != leader) {
        let refused = node.read_barrier().await;
        assert!(matches!(refused, Err(BarrierError::NotLeader { .. })), "{id}: {refused:?}");
        let refused = node.propose(Term(1), Bytes::new());
        assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{id}: {refused:?}");
    }
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_is_replaced_and_comes_back() {
    let mut group = Group::new(3, Limits::default());
    propose_all(&group, 0, 100).await;
    let (first, first_term, _) = group.leader().await;
    effective_data(&group.nodes[&first], 100).await;
    group.stop(first).await;
    let (second, second_term, _) = group.leader().await;
    assert_ne!(first, second);
    assert!(second_term > first_term, "the order of terms is the order of leaderships");
    propose_all(&group, 100, 200).await;
    group.start(first);
    let expected: Vec<_> = (0..200).map(payload).collect();
    for node in group.nodes.values() {
        assert_eq!(effective_data(node, 200).await, expected);
    }
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_group_restarts_with_everything() {
    let mut group = Group::new(3, Limits::default());
    propose_all(&group, 0, 300).await;
    let ids: Vec<_> = group.nodes.keys().copied().collect();
    for id in &ids {
        effective_data(&group.nodes[id], 300).await;
    }
    for id in &ids {
        group.stop(*id).await;
    }
    for id in &ids {
        group.start(*id);
    }
    propose_all(&group, 300, 400).await;
    let expected: Vec<_> = (0..400).map(payload).collect();
    for node in group.nodes.values() {
        assert_eq!(effective_data(node, 400).await, expected);
    }
    group.shutdown().await;
}

// Log rule 15.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_on_request() {
    let group = Group::new(3, Limits::default());
    let (first, first_term, _) = group.leader().await;
    let mut role = group.nodes[&first].role();
    let lost = async {
        // Best effort: before it knows where its peers stand it asks nobody.
        while role.borrow_and_update().leading() == Some(first_term) {
            group.nodes[&first].yield_leadership();
            evenkeel_host::timeout(Duration::from_millis(100), role.changed()).await.ok();
        }
    };
    evenkeel_host::timeout(PATIENCE, lost).await.expect("still leads");
    let (second, ..) = group.leader().await;
    group.nodes[&first].try_lead();
    let mut role = group.nodes[&first].role();
    let won = role.wait_for(|r| r.leading().is_some());
    evenkeel_host::timeout(PATIENCE, won).await.expect("does not lead").unwrap();
    assert_ne!(first, second);
    group.shutdown().await;
}

// R1, invariant 1: entries of a leadership behind the next one's LeaderStart are rejected,
// everywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_further_leadership_ends_the_one_before() {
    let group = Group::new(3, Limits::default());
    // On a busy machine somebody else may win an election meanwhile: then once more.
    while !further_leadership(&group).await {}
    group.shutdown().await;
}

async fn further_leadership(group: &Group) -> bool {
    let (leader, term, _) = group.leader().await;
    let node = &group.nodes[&leader];
    let mut log = node.subscribe(node.status().decided.next());
    if node.propose(term, payload(1)).is_err() || node.new_leadership(term).is_err() {
        return false;
    }
    let mut role = node.role();
    let changed = role.wait_for(|r| r.leading() != Some(term));
    let changed = evenkeel_host::timeout(PATIENCE, changed).await.unwrap().unwrap().clone();
    let Role::Leader { term: next, start } = changed else {
        return false;
    };
    assert_eq!((next.ballot(), next.replica()), (term.ballot(), term.replica()));
    assert!(next > term);
    assert!(matches!(node.propose(term, payload(2)), Err(ProposeError::NotLeader { .. })));
    if node.propose(next, payload(3)).is_err() {
        return false;
    }
    let mut seen = Vec::new();
    while seen.len() < 3 {
        for entry in next_entries(&mut log).await {
            if entry.term > next {
                return false;
            }
            seen.push(entry);
        }
    }
    let expected =
        [(term, Body::Data(payload(1))), (next, Body::LeaderStart { leader }), (next, Body::Data(payload(3)))];
    assert_eq!(seen.iter().map(|e| (e.term, e.body.clone())).collect::<Vec<_>>(), expected);
    assert!(seen.iter().all(|e| e.effective));
    assert_eq!(seen[1].index, start);
    for other in group.nodes.values() {
        let same = next_entries(&mut other.subscribe(start)).await.remove(0);
        assert_eq!(same, seen[1]);
    }
    true
}

// Log rule 10: compaction passes a replica that has been away for long; it must fetch the state,
// and cannot lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_away_too_long_needs_a_state_transfer() {
    let limits =
        Limits { segment_bytes: 4 << 10, retention_bytes: 8 << 10, recent_bytes: 4 << 10, ..Limits::default() };
    let mut group = Group::new(3, limits);
    propose_all(&group, 0, 10).await;
    let (leader, ..) = group.leader().await;
    let away = *group.nodes.keys().find(|id| **id != leader).unwrap();
    group.stop(away).await;
    let mut done = 10;
    let compacted = async {
        loop {
            propose_all(&group, done, done + 200).await;
            done += 200;
            let (leader, ..) = group.leader().await;
            for node in group.nodes.values() {
                node.compact(node.status().decided);
            }
            evenkeel_host::sleep(Duration::from_millis(20)).await;
            if group.nodes[&leader].status().compacted > LogIndex(100) {
                break;
            }
        }
    };
    evenkeel_host::timeout(PATIENCE, compacted).await.expect("never compacted");

    group.start(away);
    let node = &group.nodes[&away];
    let mut role = node.role();
    let behind = role.wait_for(|r| matches!(r, Role::Behind { .. }));
    let behind = evenkeel_host::timeout(PATIENCE, behind).await.unwrap().unwrap().clone();
    let Role::Behind { trimmed, .. } = behind else {
        panic!("{behind:?}");
    };
    let delivery = node.subscribe(LogIndex(11)).next(1 << 20).await.unwrap();
    assert!(matches!(delivery, Delivery::NeedState { .. }), "{delivery:?}");
    // Any state at or behind the trimmed position will do; take the leader's position now.
    let status = async {
        loop {
            let status = group.nodes[&leader].status();
            if status.decided >= trimmed && status.term != Term::NONE {
                break status;
            }
            evenkeel_host::sleep(Duration::from_millis(5)).await;
        }
    };
    let state = evenkeel_host::timeout(PATIENCE, status).await.unwrap();
    node.installed(state.decided, state.term).unwrap();
    let well = role.wait_for(|r| !matches!(r, Role::Behind { .. }));
    evenkeel_host::timeout(PATIENCE, well).await.expect("still behind").unwrap();
    let mut subscription = node.subscribe(state.decided.next());
    propose_all(&group, done, done + 1).await;
    let mut last = Vec::new();
    while last.last() != Some(&Body::Data(payload(done))) {
        last = next_entries(&mut subscription).await.into_iter().map(|e| e.body).collect();
    }
    group.shutdown().await;
}

// Log rule 10: a replica with an empty disk must not rejoin the configuration in which it has made
// promises.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lost_its_disk_is_not_let_in() {
    let mut group = Group::new(3, Limits::default());
    propose_all(&group, 0, 10).await;
    for node in group.nodes.values() {
        effective_data(node, 10).await;
    }
    let lost = ReplicaId(3);
    group.stop(lost).await;
    std::fs::remove_dir_all(group.config(lost).dir).unwrap();
    group.start(lost);
    propose_all(&group, 10, 20).await;
    for id in [ReplicaId(1), ReplicaId(2)] {
        effective_data(&group.nodes[&id], 20).await;
    }
    assert_eq!(group.nodes[&lost].status().accepted, LogIndex(0));
    group.shutdown().await;
}

// Log rule 4: a replica of another group is not heard, on either side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_group_is_not_heard() {
    let mut group = Group::new(3, Limits::default());
    propose_all(&group, 0, 10).await;
    let stranger = ReplicaId(3);
    group.stop(stranger).await;
    // The member's own session has ended for both: another one would be the stranger's.
    for id in [ReplicaId(1), ReplicaId(2)] {
        while group.nodes[&id].status().peers[&stranger].connected {
            evenkeel_host::sleep(Duration::from_millis(5)).await;
        }
    }
    let mut config = group.config(stranger);
    config.group = 8;
    let old_folder = start(config.clone());
    assert!(matches!(old_folder, Err(StartError::Wal(WalError::WrongOwner(_)))), "{old_folder:?}");
    config.dir = config.dir.with_file_name("next");
    group.nodes.insert(stranger, start(config).unwrap());
    propose_all(&group, 10, 20).await;
    for id in [ReplicaId(1), ReplicaId(2)] {
        effective_data(&group.nodes[&id], 20).await;
        assert!(!group.nodes[&id].status().peers[&stranger].connected);
    }
    assert_eq!(group.nodes[&stranger].status().accepted, LogIndex(0));
    group.shutdown().await;
}

// Log rule 3: a queue that overflows costs the session, never a single message, and the next
// session makes up for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overflowing_session_is_lost_as_a_whole_and_replaced() {
    let limits = Limits { session_queue_bytes: 20_000, ..Limits::default() };
    let group = Group::new(3, limits);
    let count = 2_000;
    let mut proposed = 0;
    while proposed < count {
        let (leader, term, _) = group.leader().await;
        // Lost leadership shows as a refusal; what was queued before it may or may not have made
        // it.
        while proposed < count && group.nodes[&leader].propose(term, Bytes::from(vec![1; 4_000])).is_ok() {
            proposed += 1;
        }
    }
    propose_all(&group, 7, 8).await;
    let mut logs = Vec::new();
    for node in group.nodes.values() {
        let mut subscription = node.subscribe(LogIndex(1));
        let mut log: Vec<Entry> = Vec::new();
        let marker = |e: &Entry| e.body == Body::Data(payload(7)) && e.effective;
        while !log.iter().any(marker) {
            log.extend(next_entries(&mut subscription).await);
        }
        let end = log.iter().position(marker);
        log.truncate(end.map_or(0, |at| at + 1));
        logs.push(log);
    }
    assert!(logs.iter().all(|log| *log == logs[0]), "replicas differ");
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_says_why() {
    let group = Group::new(3, Limits::default());
    let mut config = group.config(ReplicaId(1));
    let taken = start(config.clone());
    assert!(matches!(taken, Err(StartError::Wal(WalError::WrongOwner(_)))), "{taken:?}");
    config.dir = config.dir.with_file_name("other");
    let taken = start(config.clone());
    assert!(matches!(taken, Err(StartError::Io { .. })), "the port: {taken:?}");
    // Log rule 6.
    config.peers.insert(ReplicaId(256), evenkeel_host::ports::address().unwrap().into());
    assert!(matches!(start(config.clone()), Err(StartError::Config(_))));
    config.peers.remove(&ReplicaId(256));
    config.me = ReplicaId(4);
    assert!(matches!(start(config), Err(StartError::Config(_))));

    let (leader, term, _) = group.leader().await;
    let large = Bytes::from(vec![0; group.limits.max_entry_bytes + 1]);
    let refused = group.nodes[&leader].propose(term, large);
    assert!(matches!(refused, Err(ProposeError::TooLarge { .. })), "{refused:?}");
    let node = group.nodes[&leader].clone();
    let mut subscription = node.subscribe(LogIndex(1_000_000));
    group.shutdown().await;
    assert_eq!(node.propose(term, Bytes::new()), Err(ProposeError::Stopped));
    assert_eq!(node.read_barrier().await, Err(BarrierError::Stopped));
    assert!(subscription.next(1).await.is_err());
    node.shutdown().await;
}

/// A replica whose application cannot serve is not waited for: another one leads, and it never
/// does, whoever else fails. It votes, so that the group has its majority.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ineligible_replica_votes_and_does_not_lead() {
    let mut group = Group::new(3, Limits::default());
    let (first, term, _) = group.leader().await;
    group.nodes[&first].set_ineligible(true);
    let mut role = group.nodes[&first].role();
    evenkeel_host::timeout(PATIENCE, role.wait_for(|role| role.leading() != Some(term))).await.unwrap().unwrap();
    let (second, ..) = group.leader().await;
    assert_ne!(second, first);
    assert!(group.nodes[&first].propose(term, payload(1)).is_err(), "its leadership is over");
    // The majority now needs the ineligible replica's vote, and its acceptance.
    group.stop(second).await;
    let (third, term, _) = group.leader().await;
    assert!(third != first && third != second);
    group.nodes[&third].propose(term, payload(2)).unwrap();
    assert_eq!(effective_data(&group.nodes[&first], 1).await, [payload(2)]);
    // All remaining replicas are ineligible: none leads until one is eligible again, in a new
    // leadership.
    group.nodes[&third].set_ineligible(true);
    let mut role = group.nodes[&third].role();
    evenkeel_host::timeout(PATIENCE, role.wait_for(|role| !matches!(role, Role::Leader { .. })))
        .await
        .unwrap()
        .unwrap();
    group.nodes[&third].set_ineligible(false);
    let (again, later, _) = group.leader().await;
    assert!(again == third && later > term, "{again} leads in {later}, before {term}");
    group.shutdown().await;
}
