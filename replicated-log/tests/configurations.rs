//! Memberships that change, over real sockets and folders: a replica that is replaced, one that
//! lost its disk, three that become five and three again. The simulator shows that nothing is lost
//! on the way; this shows that the sessions follow.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use evenkeel_replicated_log::{
    Body, ChangeError, Delivery, GroupConfig, Limits, LogHandle, LogIndex, Members, ReplicaId, Role, Subscription,
    Term, Timing, start,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// Far longer than anything here takes, even on a busy machine: a hang fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

/// A replica with an application that counts effective entries. Its state is the count.
struct Replica {
    log: LogHandle,
    dir: TempDir,
    counting: JoinHandle<()>,
    count: tokio::sync::watch::Receiver<(LogIndex, u64)>,
}

struct Group {
    addresses: BTreeMap<ReplicaId, SocketAddr>,
    running: BTreeMap<ReplicaId, Replica>,
}

async fn count(log: LogHandle, mut subscription: Subscription, at: tokio::sync::watch::Sender<(LogIndex, u64)>) {
    while let Ok(delivery) = subscription.next(1 << 20).await {
        match delivery {
            Delivery::Entries(entries) => {
                let data = entries.iter().filter(|e| e.effective && matches!(e.body, Body::Data(_))).count() as u64;
                let last = entries.last().unwrap().index;
                at.send_modify(|(index, counted)| (*index, *counted) = (last, *counted + data));
            }
            Delivery::NeedState { .. } => {
                // Somebody else fetches the state for it: see `Group::transfer`.
                let from = at.borrow().0.next();
                log.role().wait_for(|role| !matches!(role, Role::Behind { .. })).await.unwrap();
                let reached = at.borrow().0.next();
                subscription = log.subscribe(reached.max(from));
            }
        }
    }
}

impl Group {
    fn new(founders: u64) -> Group {
        let mut group = Group { addresses: BTreeMap::new(), running: BTreeMap::new() };
        group.addresses = (1..=9).map(|id| (ReplicaId(id), evenkeel_host::ports::address().unwrap())).collect();
        for id in 1..=founders {
            group.start(id, &(1..=founders).collect::<Vec<_>>(), false);
        }
        group
    }

    fn members(&self, ids: &[u64]) -> Members {
        ids.iter().map(|id| (ReplicaId(*id), self.addresses[&ReplicaId(*id)].into())).collect()
    }

    fn start(&mut self, id: u64, peers: &[u64], join: bool) {
        let dir = TempDir::new().unwrap();
        let me = ReplicaId(id);
        let log = start(GroupConfig {
            group: 3,
            join,
            me,
            listen: self.addresses[&me],
            peers: self.members(peers),
            dir: dir.path().join("log"),
            timing: Timing::default(),
            limits: Limits::default(),
        })
        .unwrap();
        let (at, counted) = tokio::sync::watch::channel((LogIndex(0), 0));
        let counting = tokio::spawn(count(log.clone(), log.subscribe(LogIndex(1)), at.clone()));
        let replica = Replica { log: log.clone(), dir, counting, count: counted.clone() };
        self.running.insert(me, replica);
        tokio::spawn(transfer(log, at, self.running.values().map(|r| (r.log.clone(), r.count.clone())).collect()));
    }

    async fn stop(&mut self, id: u64) {
        let replica = self.running.remove(&ReplicaId(id)).unwrap();
        evenkeel_host::timeout(PATIENCE, replica.log.shutdown()).await.unwrap();
        evenkeel_host::timeout(PATIENCE, replica.counting).await.unwrap().unwrap();
        drop(replica.dir);
    }

    async fn leader(&self) -> (LogHandle, Term) {
        let search = async {
            loop {
                for replica in self.running.values() {
                    let term = replica.log.role().borrow().leading();
                    if let (Some(term), true) = (term, replica.log.read_barrier().await.is_ok()) {
                        return (replica.log.clone(), term);
                    }
                }
                evenkeel_host::sleep(Duration::from_millis(5)).await;
            }
        };
        evenkeel_host::timeout(PATIENCE, search).await.expect("nobody leads")
    }

    /// Whoever leads, its term, and what counts once all before it is counted.
    async fn counted(&self) -> (LogHandle, Term, u64) {
        loop {
            let (leader, term) = self.leader().await;
            let Ok(index) = leader.read_barrier().await else { continue };
            let mut count = self.running[&leader.me()].count.clone();
            let counted = evenkeel_host::timeout(PATIENCE, count.wait_for(|(at, _)| *at >= index))
                .await
                .expect("not counted")
                .unwrap()
                .1;
            return (leader, term, counted);
        }
    }

    /// Proposes until exactly `more` have been counted by all replicas that run, through whatever
    /// leaderships there are meanwhile.
    async fn write(&self, more: u64) {
        let wanted = self.counted().await.2 + more;
        loop {
            let (leader, term, counted) = self.counted().await;
            if counted >= wanted {
                break;
            }
            for n in counted..wanted {
                if leader.propose(term, Bytes::copy_from_slice(&n.to_le_bytes())).is_err() {
                    break;
                }
            }
            // Until they are delivered, or their leadership has ended and the missing ones are
            // rejected.
            let (mut count, mut role) = (self.running[&leader.me()].count.clone(), leader.role());
            let resolved = async {
                tokio::select! {
                    _ = count.wait_for(|(_, counted)| *counted >= wanted) => {}
                    _ = role.wait_for(|role| role.leading() != Some(term)) => {}
                }
            };
            evenkeel_host::timeout(PATIENCE, resolved).await.expect("neither counted nor deposed");
        }
        for replica in self.running.values() {
            let mut count = replica.count.clone();
            let counted = evenkeel_host::timeout(PATIENCE, count.wait_for(|(_, counted)| *counted >= wanted)).await;
            counted.unwrap_or_else(|_| panic!("{}: {:?}", replica.log.me(), replica.log.status())).unwrap();
        }
    }

    /// Asks for these members until the configuration has begun, and waits until it has a leader.
    /// Returns the pause.
    async fn change(&self, ids: &[u64], configuration: u32) -> Duration {
        let next = self.members(ids);
        let changing = async {
            let mut asked = None;
            loop {
                let (leader, term) = self.leader().await;
                let mut membership = leader.membership();
                if membership.borrow().configuration >= configuration {
                    return asked;
                }
                asked = asked.or_else(|| Some(evenkeel_host::now()));
                if leader.change_members(term, &next).is_ok() {
                    let mut role = leader.role();
                    // A leadership that ends first may have taken the change with it.
                    tokio::select! {
                        _ = membership.wait_for(|m| m.configuration >= configuration) => return asked,
                        _ = role.wait_for(|role| role.leading() != Some(term)) => {}
                    }
                }
                evenkeel_host::sleep(Duration::from_millis(10)).await;
            }
        };
        let asked = evenkeel_host::timeout(PATIENCE, changing).await.expect("no new configuration");
        self.leader().await;
        asked.map_or(Duration::ZERO, evenkeel_host::elapsed)
    }
}

/// Gives a replica that is behind the state of any other that has it.
async fn transfer(
    log: LogHandle,
    at: tokio::sync::watch::Sender<(LogIndex, u64)>,
    others: Vec<(LogHandle, tokio::sync::watch::Receiver<(LogIndex, u64)>)>,
) {
    let mut role = log.role();
    while let Ok(behind) = role.wait_for(|role| matches!(role, Role::Behind { .. })).await.map(|role| role.clone()) {
        let Role::Behind { trimmed, .. } = behind else { return };
        for (_, count) in &others {
            let state = *count.borrow();
            if state.0 >= trimmed {
                at.send_replace(state);
                let term = log.membership().borrow().term;
                log.installed(state.0, term).ok();
                break;
            }
        }
        evenkeel_host::sleep(Duration::from_millis(10)).await;
    }
}

// Log rules 10 and 12: an empty machine takes the place of one that is gone, and positions and
// terms go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_machine_takes_the_place_of_a_dead_one() {
    let mut group = Group::new(3);
    group.write(50).await;
    let (before, old_term) = group.leader().await;
    let dead = if before.me() == ReplicaId(3) { 2 } else { 3 };
    let stays: Vec<u64> = (1..=3).filter(|id| *id != dead).collect();
    group.stop(dead).await;
    group.start(4, &[1, 2, 3, 4], true);
    let position = before.status().decided;
    let pause = group.change(&[stays[0], stays[1], 4], 2).await;
    println!("writing paused for {} ms", pause.as_millis());
    group.write(50).await;
    let (leader, term) = group.leader().await;
    assert!(term > old_term && leader.status().decided > position.next());
    for replica in group.running.values() {
        assert_eq!(replica.count.borrow().1, 100, "nothing lost, nothing twice");
        assert_eq!(replica.log.membership().borrow().configuration, 2);
    }
    // It counts: with it, one more can go.
    group.stop(stays[0]).await;
    group.write(10).await;
}

// Log rule 10: a replica that lost its disk does not rejoin its configuration, and is back after
// one change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lost_its_disk_comes_back_by_a_change() {
    let mut group = Group::new(3);
    group.write(20).await;
    let lost = if group.leader().await.0.me() == ReplicaId(2) { 3 } else { 2 };
    group.stop(lost).await;
    group.start(lost, &[1, 2, 3], false);
    let seen = async {
        while !group.leader().await.0.status().peers.get(&ReplicaId(lost)).is_some_and(|peer| peer.other_disk) {
            evenkeel_host::sleep(Duration::from_millis(5)).await;
        }
    };
    evenkeel_host::timeout(PATIENCE, seen).await.expect("the empty disk is not noticed");
    group.change(&[1, 2, 3], 2).await;
    group.write(20).await;
    assert_eq!(group.running[&ReplicaId(lost)].count.borrow().1, 40);
}

// Three, five, and other three.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_grows_and_shrinks() {
    let mut group = Group::new(3);
    group.write(20).await;
    group.start(7, &[1, 2, 3, 7], true);
    group.start(8, &[1, 2, 3, 8], true);
    group.change(&[1, 2, 3, 7, 8], 2).await;
    group.write(20).await;
    group.change(&[3, 7, 8], 3).await;
    for gone in [1, 2] {
        let mut known = group.running[&ReplicaId(gone)].log.membership();
        evenkeel_host::timeout(PATIENCE, known.wait_for(|m| m.configuration == 3))
            .await
            .expect("does not learn that it is out")
            .unwrap();
        group.stop(gone).await;
    }
    group.write(20).await;
    assert_eq!(group.running[&ReplicaId(8)].count.borrow().1, 60);
    let refused = loop {
        let (leader, term) = group.leader().await;
        let answer = leader.change_members(term, &group.members(&[3, 1, 2]));
        if !matches!(answer, Err(ChangeError::Propose(_))) {
            break answer;
        }
    };
    assert!(matches!(refused, Err(ChangeError::Impossible(_))), "{refused:?}");
}
