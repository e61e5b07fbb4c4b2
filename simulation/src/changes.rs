//! Changes of membership: replicas of shards are replaced by new machines, the placement driver grows to five and shrinks again.
//!
//! What is begun is seen through, however long the faults last. Who leaves is well, or gone for good, or stands still, or is cut off
//! and does not hear of it; afterwards its machine is switched off, or goes on running: then it must find out by itself.

use crate::clients::Users;
use crate::net;
use crate::operators;
use crate::process::{below, once_in};
use crate::site::{Errand, Group};
use crate::world::{LOG, Part, REST, RPC};
use evenkeel_placement_driver::replica::{NewMember, next_members};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::shard::{ControlReply, ControlRequest, NewReplica};
use std::time::Duration;

/// The most replicas of shards that are replaced in a run.
const REPLACED: u64 = 2;
/// Before a change begins, in milliseconds, at most.
const BEFORE_MS: u64 = 2_500;
/// For how long who leaves stands still, in milliseconds, at most.
const STILL_MS: u64 = 2_500;
/// For how long after the change it is cut off, in milliseconds, at most.
const CUT_OFF_MS: u64 = 1_500;
/// How long a new machine has run when it is asked to be let in, in milliseconds, at most.
const READY_MS: u64 = 300;
/// Between two questions whether it is done, in milliseconds.
const ASK_AGAIN_MS: u64 = 100;
/// Replicas that the placement driver grows by.
const GROWTH: usize = 2;

async fn pause(at_most_ms: u64) {
    tokio::time::sleep(Duration::from_millis(below(at_most_ms))).await;
}

fn healed(users: &Users) -> bool {
    users.told.borrow().healed_ms.is_some()
}

/// How it is with who leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaver {
    Well,
    Gone,
    Still,
    CutOff,
}

impl Leaver {
    fn draw(users: &Users, part: Part) -> Leaver {
        let mut site = users.site.borrow_mut();
        match below(6) {
            0 if site.may_lose_disk(part.group()) => {
                site.disk_lost(part.group());
                site.run(Errand::SwitchOff(part));
                Leaver::Gone
            }
            1 => {
                site.run(Errand::Freeze(part, below(STILL_MS)));
                Leaver::Still
            }
            2..=3 => {
                site.run(Errand::CutOff(part));
                Leaver::CutOff
            }
            _ => Leaver::Well,
        }
    }

    /// It has left.
    async fn after(self, users: &Users, part: Part) {
        if once_in(3) {
            users.site.borrow_mut().run(Errand::SwitchOff(part));
        } else {
            users.site.borrow_mut().count("replicas that left and went on running");
        }
        if self == Leaver::CutOff {
            pause(CUT_OFF_MS).await;
            users.site.borrow_mut().run(Errand::Mend(part));
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
        let mut site = users.site.borrow_mut();
        let members: Vec<u64> = site.replicas(group).into_iter().collect();
        let old = group.part(members[below(members.len() as u64) as usize]);
        let Some(new) = site.newcomer(group) else { return };
        site.switch_on(new);
        site.count("replicas' replacements begun");
        (old, new)
    };
    let leaver = Leaver::draw(users, old);
    users.site.borrow_mut().begin(group, &[old]);
    pause(READY_MS).await;
    let at = |port| net::address(new.machine(), port);
    let add = Some(NewReplica { replica: new.replica(), rpc: at(RPC), log: at(LOG) });
    let remove = Some(old.replica());
    match below(4) {
        // Four of which one is gone for good are not enough to begin with.
        0 if leaver != Leaver::Gone => {
            change_shard(users, shard, None, add).await;
            users.site.borrow_mut().came(new);
            change_shard(users, shard, remove, None).await;
        }
        1 => {
            change_shard(users, shard, remove, None).await;
            change_shard(users, shard, None, add).await;
        }
        _ => change_shard(users, shard, remove, add).await,
    }
    {
        let mut site = users.site.borrow_mut();
        site.done(group, &[old], &[new]);
        site.count("replicas' replacements done");
    }
    leaver.after(users, old).await;
}

/// Asks the shard until it is done.
async fn change_shard(users: &Users, shard: ShardId, remove: Option<u64>, add: Option<NewReplica>) {
    let request = ControlRequest::ChangeReplicas { remove, add };
    loop {
        // Who comes in may lead already when the table does not have it yet.
        let trouble = match operators::ask(users, shard, &request, add.map(|new| (new.replica, new.rpc))).await {
            Ok(ControlReply::Done) => return,
            Ok(reply) => format!("{reply:?}"),
            Err(trouble) => trouble,
        };
        users.told.borrow_mut().waiting_for = format!("(shard {shard}: {request:?}: {trouble})");
        tokio::time::sleep(Duration::from_millis(ASK_AGAIN_MS)).await;
    }
}

/// The placement driver grows and shrinks again, in some runs.
pub async fn change_drivers(users: Users) {
    pause(BEFORE_MS).await;
    if !once_in(3) || healed(&users) || users.site.borrow().restored {
        return;
    }
    let group = Group::PlacementDriver;
    let mut come = Vec::new();
    {
        let mut site = users.site.borrow_mut();
        site.begin(group, &[]);
        site.count("the placement driver's growth begun");
        for _ in 0..GROWTH {
            let Some(new) = site.newcomer(group) else { return };
            site.switch_on(new);
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
        let mut site = users.site.borrow_mut();
        site.done(group, &[], &come);
        site.count("the placement driver's growth done");
    }
    pause(BEFORE_MS).await;
    if healed(&users) {
        return;
    }
    let mut leave = Vec::new();
    {
        let mut site = users.site.borrow_mut();
        let mut members: Vec<u64> = site.replicas(group).into_iter().collect();
        for _ in 0..GROWTH {
            leave.push(group.part(members.swap_remove(below(members.len() as u64) as usize)));
        }
        site.count("the placement driver's shrinking begun");
    }
    let leaver = Leaver::draw(&users, leave[0]);
    users.site.borrow_mut().begin(group, &leave);
    change_members(&users, &leave.iter().map(|part| part.replica()).collect::<Vec<_>>(), &[]).await;
    {
        let mut site = users.site.borrow_mut();
        site.done(group, &leave, &[]);
        site.count("the placement driver's shrinking done");
    }
    // They are no longer asked for routes.
    users.registry.borrow_mut().retain(|replica, _| !leave.contains(&group.part(*replica)));
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
        users.told.borrow_mut().waiting_for = format!("(placement driver, less {remove:?}, more {add:?}: {trouble})");
        tokio::time::sleep(Duration::from_millis(ASK_AGAIN_MS)).await;
    }
}
