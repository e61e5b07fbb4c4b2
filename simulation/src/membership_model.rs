//! Membership model: the members of each group, and pending additions and removals, as the
//! administrator knows them.
//!
//! Requests go to the placement driver and to shards. Actions on the machines themselves, such as
//! switching a new one on or an old one off, are [`MachineCommand`]s: they are queued here, and the
//! world executes them.

use crate::net;
use crate::topology::{Group, Part, REPLICAS, RPC};
use evenkeel_protocol::ShardId;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;

/// The largest number of a replica: a machine's number has room for no more.
const MAX_REPLICA: u64 = 9;

/// An action on a machine.
#[derive(Debug, Clone, Copy)]
pub enum MachineCommand {
    /// A new machine is switched on; it waits to become a member.
    SwitchOn(Part),
    /// It is switched off, for good.
    SwitchOff(Part),
    /// It is frozen for this many milliseconds.
    Freeze(Part, u64),
    /// Nothing gets from it to other machines of the cluster or back.
    Isolate(Part),
    /// Its links work again.
    Reconnect(Part),
    /// The shards' database servers take up to this many milliseconds for a statement; 0 is full
    /// speed.
    SlowServers(u64),
}

/// One model, shared by the world and the clients.
pub type SharedMembership = Rc<RefCell<MembershipModel>>;

/// See the module.
#[derive(Debug, Default)]
pub struct MembershipModel {
    members: BTreeSet<Part>,
    /// Machines that came later, and the replicas that their configuration names.
    joined: BTreeMap<Part, BTreeSet<u64>>,
    /// Replicas that have been asked to leave.
    leaving: BTreeSet<Part>,
    /// Replicas that have left.
    left: BTreeSet<Part>,
    /// Machines that are off for good.
    off: BTreeSet<Part>,
    /// Groups in which a change is under way: all of their disks are needed.
    changing: BTreeSet<Group>,
    /// Groups that have lost a disk: they may lose no other.
    lost: BTreeSet<Group>,
    commands: Vec<MachineCommand>,
    /// Whether the balancer is on: then ranges are split wherever the load says.
    pub balanced: bool,
    /// Whether a load spike comes: more clients than the shards can serve.
    pub load_spike: bool,
    /// Whether clients write large values, too.
    pub large: bool,
    /// Whether clients pay between distant accounts, in transactions over several shards.
    pub payments: bool,
    /// Whether the placement driver is restored from an old copy: then it forgets later decisions.
    pub restored: bool,
    /// Counted events, by kind.
    pub counts: BTreeMap<&'static str, u64>,
}

impl MembershipModel {
    /// The model of a cluster: its number of shards, whether its balancer is on, whether a load
    /// spike comes, and whether values are large.
    pub fn new(shards: u32, balanced: bool, load_spike: bool, large: bool) -> MembershipModel {
        let groups = std::iter::once(Group::PlacementDriver).chain((1..=shards).map(|n| Group::Shard(ShardId(n))));
        let members = groups.flat_map(|group| (1..=REPLICAS).map(move |replica| group.part(replica))).collect();
        MembershipModel { members, balanced, load_spike, large, ..MembershipModel::default() }
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

    /// The replicas that a machine's configuration names, and whether it waits to become a member.
    pub fn configured(&self, part: Part) -> (BTreeSet<u64>, bool) {
        match self.joined.get(&part) {
            Some(known) => (known.clone(), true),
            None => ((1..=REPLICAS).collect(), false),
        }
    }

    /// A machine that never was in this group, if there is a number for one.
    pub fn newcomer(&self, group: Group) -> Option<Part> {
        let known = self.joined.keys().filter(|part| part.group() == group).map(|part| part.replica());
        let replica = known.max().unwrap_or(REPLICAS) + 1;
        (replica <= MAX_REPLICA).then(|| group.part(replica))
    }

    /// Switches a new machine on; its configuration names the present replicas.
    pub fn switch_on(&mut self, new: Part) {
        let mut known = self.replicas(new.group());
        known.insert(new.replica());
        self.joined.insert(new, known);
        self.command(MachineCommand::SwitchOn(new));
    }

    /// Queues a command.
    pub fn command(&mut self, command: MachineCommand) {
        self.commands.push(command);
    }

    /// Takes the commands that have not been executed yet.
    pub fn take_commands(&mut self) -> Vec<MachineCommand> {
        std::mem::take(&mut self.commands)
    }

    /// A change begins that removes these replicas.
    pub fn begin(&mut self, group: Group, leave: &[Part]) {
        self.changing.insert(group);
        self.leaving.extend(leave);
    }

    /// A replica has been added, and the change goes on.
    pub fn came(&mut self, new: Part) {
        self.members.insert(new);
    }

    /// The change is done: a leader of the new configuration has confirmed it.
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

    /// Counts an event.
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}
