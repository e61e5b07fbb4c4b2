//! Changes of membership: replicas of shards are replaced by new machines, the placement driver
//! grows to five and shrinks again.
//!
//! A change that has begun is completed, however long the faults last. The replica that leaves is
//! healthy, or lost for good, or frozen, or isolated so that it does not hear of the change.
//! Afterwards its machine is switched off or goes on running; in the second case the replica must
//! find out by itself that it is no longer a member.

use crate::clients::users::Users;
use crate::membership_model::MachineCommand;
use crate::net;
use crate::operators;
use crate::process::{below, once_in};
use crate::topology::{Group, LOG, Part, REST, RPC};
use evenkeel_placement_driver::replica::{NewMember, next_members};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::shard::{ControlReply, ControlRequest, NewReplica};
use std::time::Duration;

/// The most replicas of shards that are replaced in a run.
const REPLACED: u64 = 2;
/// Before a change begins, in milliseconds, at most.
const BEFORE_MS: u64 = 2_500;
/// How long a leaving replica is frozen, in milliseconds, at most.
const STILL_MS: u64 = 2_500;
/// For how long after the change it is cut off, in milliseconds, at most.
const CUT_OFF_MS: u64 = 1_500;
/// How long a new machine has run when it asks for membership, in milliseconds, at most.
const READY_MS: u64 = 300;
/// Between two questions whether it is done, in milliseconds.
const ASK_AGAIN_MS: u64 = 100;
/// Replicas that the placement driver grows by.
const GROWTH: usize = 2;

async fn pause(at_most_ms: u64) {
    evenkeel_host::sleep(Duration::from_millis(below(at_most_ms))).await;
}

fn healed(users: &Users) -> bool {
    users.history.borrow().healed_ms.is_some()
}

/// The condition of the replica that leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaver {
    Well,
    Gone,
    Still,
    CutOff,
}

impl Leaver {
    fn draw(users: &Users, part: Part) -> Leaver {
        let mut membership = users.membership.borrow_mut();
        match below(6) {
            0 if membership.may_lose_disk(part.group()) => {
                membership.disk_lost(part.group());
                membership.command(MachineCommand::SwitchOff(part));
                Leaver::Gone
            }
            1 => {
                membership.command(MachineCommand::Freeze(part, below(STILL_MS)));
                Leaver::Still
            }
            2..=3 => {
                membership.command(MachineCommand::Isolate(part));
                Leaver::CutOff
            }
            _ => Leaver::Well,
        }
    }

    /// It has left.
    async fn after(self, users: &Users, part: Part) {
        if once_in(3) {
            users.membership.borrow_mut().command(MachineCommand::SwitchOff(part));
        } else {
            users.membership.borrow_mut().count("replicas that left and went on running");
        }
        if self == Leaver::CutOff {
            pause(CUT_OFF_MS).await;
            users.membership.borrow_mut().command(MachineCommand::Reconnect(part));
        }
    }
}

/// Replaces replicas of shards.
pub async fn replace_replicas(users: Users) {
    for _ in 0..below(REPLACED + 1) {
        pause(BEFORE_MS).await;
        if healed(&users) {
            return;
        }
        replace(&users, ShardId(1 + below(users.shards.into()) as u32)).await;
    }
}

async fn replace(users: &Users, shard: ShardId) {
    let group = Group::Shard(shard);
    let (old, new) = {
        let mut membership = users.membership.borrow_mut();
        let members: Vec<u64> = membership.replicas(group).into_iter().collect();
        let old = group.part(members[below(members.len() as u64) as usize]);
        let Some(new) = membership.newcomer(group) else { return };
        membership.switch_on(new);
        membership.count("replicas' replacements begun");
        (old, new)
    };
    let leaver = Leaver::draw(users, old);
    users.membership.borrow_mut().begin(group, &[old]);
    pause(READY_MS).await;
    let at = |port| net::address(new.machine(), port);
    let add = Some(NewReplica { replica: new.replica(), rpc: at(RPC), log: at(LOG) });
    let remove = Some(old.replica());
    match below(4) {
        // Four of which one is gone for good are not enough to begin with.
        0 if leaver != Leaver::Gone => {
            change_shard(users, shard, None, add).await;
            users.membership.borrow_mut().came(new);
            change_shard(users, shard, remove, None).await;
        }
        1 => {
            change_shard(users, shard, remove, None).await;
            change_shard(users, shard, None, add).await;
        }
        _ => change_shard(users, shard, remove, add).await,
    }
    {
        let mut membership = users.membership.borrow_mut();
        membership.done(group, &[old], &[new]);
        membership.count("replicas' replacements done");
    }
    leaver.after(users, old).await;
}

/// Asks the shard until it is done.
async fn change_shard(users: &Users, shard: ShardId, remove: Option<u64>, add: Option<NewReplica>) {
    let request = ControlRequest::ChangeReplicas { remove, add };
    loop {
        let trouble = match operators::ask(users, shard, &request).await {
            Ok(ControlReply::Done) => return,
            Ok(reply) => format!("{reply:?}"),
            Err(trouble) => trouble,
        };
        users.history.borrow_mut().waiting_for = format!("(shard {shard}: {request:?}: {trouble})");
        evenkeel_host::sleep(Duration::from_millis(ASK_AGAIN_MS)).await;
    }
}

/// The placement driver grows and shrinks again, in some runs.
pub async fn resize_placement_driver(users: Users) {
    pause(BEFORE_MS).await;
    if !once_in(3) || healed(&users) || users.membership.borrow().restored {
        return;
    }
    let group = Group::PlacementDriver;
    let mut come = Vec::new();
    {
        let mut membership = users.membership.borrow_mut();
        membership.begin(group, &[]);
        membership.count("the placement driver's growth begun");
        for _ in 0..GROWTH {
            let Some(new) = membership.newcomer(group) else { return };
            membership.switch_on(new);
            come.push(new);
        }
    }
    pause(READY_MS).await;
    let driver = |part: &Part| {
        let at = |port| net::address(part.machine(), port);
        NewMember { replica: part.replica(), rest: at(REST), rpc: at(RPC), log: at(LOG) }
    };
    change_members(&users, &[], &come.iter().map(driver).collect::<Vec<_>>()).await;
    {
        let mut membership = users.membership.borrow_mut();
        membership.done(group, &[], &come);
        membership.count("the placement driver's growth done");
    }
    pause(BEFORE_MS).await;
    if healed(&users) {
        return;
    }
    let mut leave = Vec::new();
    {
        let mut membership = users.membership.borrow_mut();
        let mut members: Vec<u64> = membership.replicas(group).into_iter().collect();
        for _ in 0..GROWTH {
            leave.push(group.part(members.swap_remove(below(members.len() as u64) as usize)));
        }
        membership.count("the placement driver's shrinking begun");
    }
    let leaver = Leaver::draw(&users, leave[0]);
    users.membership.borrow_mut().begin(group, &leave);
    change_members(&users, &leave.iter().map(|part| part.replica()).collect::<Vec<_>>(), &[]).await;
    {
        let mut membership = users.membership.borrow_mut();
        membership.done(group, &leave, &[]);
        membership.count("the placement driver's shrinking done");
    }
    // They are no longer asked for routes.
    users.registry.write().retain(|replica, _| !leave.contains(&group.part(*replica)));
    Leaver::Well.after(&users, leave[1]).await;
    leaver.after(&users, leave[0]).await;
}

/// Asks the placement driver until its replicas are so.
async fn change_members(users: &Users, remove: &[u64], add: &[NewMember]) {
    loop {
        let trouble = match operators::leader(&users.registry) {
            None => "nobody leads".to_string(),
            Some(shared) => {
                let term = shared.leading().as_ref().map(|leading| leading.term);
                let now = shared.log.membership().borrow().members.clone();
                match (next_members(&now, remove, add), term) {
                    (Ok(None), Some(_)) => return,
                    (Ok(Some(next)), Some(term)) => format!("{:?}", shared.log.change_members(term, &next)),
                    (Ok(_), None) => "nobody leads any more".to_string(),
                    (Err(reason), _) => reason,
                }
            }
        };
        users.history.borrow_mut().waiting_for =
            format!("(placement driver, less {remove:?}, more {add:?}: {trouble})");
        evenkeel_host::sleep(Duration::from_millis(ASK_AGAIN_MS)).await;
    }
}
