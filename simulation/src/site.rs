//! The machines as those know them who run the cluster: who is a member of which group, who comes, who goes.
//!
//! Orders go to the placement driver and to shards. What is done to machines themselves, a new one switched on or an old one off, is an
//! errand: it is noted here, and the world runs it.

use crate::net;
use crate::world::{Part, REPLICAS, RPC};
use evenkeel_protocol::ShardId;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;

/// The largest number of a replica: a machine's number has room for no more.
const MAX_REPLICA: u64 = 9;

/// A group of replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// The placement driver.
    PlacementDriver,
    /// A shard.
    Shard(ShardId),
}

impl Group {
    /// Its replica of this number.
    pub fn part(self, replica: u64) -> Part {
        match self {
            Group::PlacementDriver => Part::PlacementDriver(replica),
            Group::Shard(shard) => Part::Shard(shard, replica),
        }
    }
}

/// What is to be done to a machine.
#[derive(Debug, Clone, Copy)]
pub enum Errand {
    /// A new machine is switched on; it waits to be let in.
    SwitchOn(Part),
    /// It is switched off, for good.
    SwitchOff(Part),
    /// It stands still for so many milliseconds.
    Freeze(Part, u64),
    /// Nothing gets from it to other machines of the cluster or back.
    CutOff(Part),
    /// Everything gets there again.
    Mend(Part),
    /// The shards' database servers take up to so many milliseconds for a statement; 0: they are as fast as ever.
    SlowServers(u64),
}

/// The site. One for the world and those who run the cluster.
pub type Shared = Rc<RefCell<Site>>;

/// See the module.
#[derive(Debug, Default)]
pub struct Site {
    members: BTreeSet<Part>,
    /// Machines that came later, and the replicas that they were told of.
    joined: BTreeMap<Part, BTreeSet<u64>>,
    /// Replicas that have been asked to leave.
    leaving: BTreeSet<Part>,
    /// Those that have left by now.
    left: BTreeSet<Part>,
    /// Machines that are off for good.
    off: BTreeSet<Part>,
    /// Groups in which a change is under way: all of their disks are needed.
    changing: BTreeSet<Group>,
    /// Groups that have lost a disk: they may lose no other.
    lost: BTreeSet<Group>,
    errands: Vec<Errand>,
    /// Whether the balancer is on: then ranges are split wherever the load says.
    pub balanced: bool,
    /// Whether more clients come than the shards can serve.
    pub crowded: bool,
    /// Whether clients write large values, too.
    pub large: bool,
    /// Whether the placement driver is restored from an old copy: then it forgets what it has been told.
    pub restored: bool,
    /// What was done, by kind.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Site {
    /// The site of a cluster with so many shards, whether its balancer is on, whether a crowd comes, and whether values are large.
    pub fn new(shards: u32, balanced: bool, crowded: bool, large: bool) -> Site {
        let groups = std::iter::once(Group::PlacementDriver).chain((1..=shards).map(|n| Group::Shard(ShardId(n))));
        let members = groups.flat_map(|group| (1..=REPLICAS).map(move |replica| group.part(replica))).collect();
        Site { members, balanced, crowded, large, ..Site::default() }
    }

    /// All members.
    pub fn members(&self) -> impl Iterator<Item = Part> {
        self.members.iter().copied()
    }

    /// The replicas of a group.
    pub fn replicas(&self, group: Group) -> BTreeSet<u64> {
        self.members.iter().filter(|part| part.group() == group).map(|part| part.replica()).collect()
    }

    /// Where the replicas of a shard listen for requests.
    pub fn addresses(&self, shard: ShardId) -> BTreeMap<u64, SocketAddr> {
        let group = Group::Shard(shard);
        let address = |replica| (replica, net::address(group.part(replica).machine(), RPC));
        self.replicas(group).into_iter().map(address).collect()
    }

    /// The replicas that a machine's configuration names, and whether it waits to be let in.
    pub fn configured(&self, part: Part) -> (BTreeSet<u64>, bool) {
        match self.joined.get(&part) {
            Some(told) => (told.clone(), true),
            None => ((1..=REPLICAS).collect(), false),
        }
    }

    /// A machine that never was in this group, if there is a number for one.
    pub fn newcomer(&self, group: Group) -> Option<Part> {
        let known = self.joined.keys().filter(|part| part.group() == group).map(|part| part.replica());
        let replica = known.max().unwrap_or(REPLICAS) + 1;
        (replica <= MAX_REPLICA).then(|| group.part(replica))
    }

    /// Switches a new machine on, which is told of the replicas that there are.
    pub fn switch_on(&mut self, new: Part) {
        let mut told = self.replicas(new.group());
        told.insert(new.replica());
        self.joined.insert(new, told);
        self.run(Errand::SwitchOn(new));
    }

    /// Notes an errand.
    pub fn run(&mut self, errand: Errand) {
        self.errands.push(errand);
    }

    /// The errands that nobody has run yet.
    pub fn take_errands(&mut self) -> Vec<Errand> {
        std::mem::take(&mut self.errands)
    }

    /// A change begins, by which these leave.
    pub fn begin(&mut self, group: Group, leave: &[Part]) {
        self.changing.insert(group);
        self.leaving.extend(leave);
    }

    /// One has come, and the change goes on.
    pub fn came(&mut self, new: Part) {
        self.members.insert(new);
    }

    /// It has come about: a leader of the new epoch has said so.
    pub fn done(&mut self, group: Group, left: &[Part], come: &[Part]) {
        self.changing.remove(&group);
        self.left.extend(left);
        self.members.retain(|part| !left.contains(part));
        self.members.extend(come);
    }

    /// Whether a replica was asked to leave.
    pub fn is_leaving(&self, part: Part) -> bool {
        self.leaving.contains(&part)
    }

    /// Whether a replica has left.
    pub fn has_left(&self, part: Part) -> bool {
        self.left.contains(&part)
    }

    /// A machine is off for good.
    pub fn switched_off(&mut self, part: Part) {
        self.off.insert(part);
    }

    /// Replicas that have left, and run all the same.
    pub fn lingering(&self) -> impl Iterator<Item = Part> {
        self.left.difference(&self.off).copied()
    }

    /// Whether a group can do without one of its disks.
    pub fn may_lose_disk(&self, group: Group) -> bool {
        !self.lost.contains(&group) && !self.changing.contains(&group)
    }

    /// A disk of the group is lost.
    pub fn disk_lost(&mut self, group: Group) {
        self.lost.insert(group);
    }

    /// Counts something that was done.
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}
