//! One turn of a replica's event loop, and what its application and its clients do meanwhile.
//!
//! A turn may freeze or crash at any point. Each answer is checked where it is given.

use std::collections::VecDeque;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;

use crate::core::{AfterSync, BarrierAnswer, Input, Ready};
use crate::error::BarrierError;
use crate::ids::{LogIndex, Term};
use crate::item::Kind;
use crate::role::Role;

use super::oracle::{Checked, Violation, ensure};
use super::simulated_replica::Frozen;
use super::world::World;
use super::{changes, clocks};

/// One turn of a replica's event loop. It may freeze or crash anywhere in it.
pub(super) fn turn(world: &mut World, id: u64) -> Checked<()> {
    // Readers run beside the event loop, which may have been frozen inside a turn.
    leased_reads(world, id)?;
    let frozen = world.process(id)?.frozen.take();
    let inputs = match frozen {
        Some(Frozen::Before(inputs)) => inputs,
        Some(Frozen::Fed) => return finish_turn(world, id),
        Some(Frozen::Syncing { ready, lost_role, inputs }) => {
            let point = crash_point(world, id);
            if point < 2 {
                return world.crash(id, "crashes before the sync");
            }
            sync_and_send(world, id, *ready, lost_role, point)?;
            if let Some(process) = world.node(id)?.process.as_mut() {
                inputs.into_iter().for_each(|(now_ms, input)| process.core.feed(now_ms, input));
            }
            return Ok(());
        }
        None => {
            let inputs = inputs(world, id);
            let now_ms = world.nodes[&id].clock_ms(world.now_ms);
            let inputs = inputs.into_iter().map(|input| (now_ms, input)).collect();
            if freezes(world) {
                return freeze(world, id, Frozen::Before(inputs), "freezes before a turn");
            }
            inputs
        }
    };
    let process = world.process(id)?;
    for (now_ms, input) in inputs {
        process.core.feed(now_ms, input);
    }
    match freezes(world) {
        true => freeze(world, id, Frozen::Fed, "freezes inside a turn"),
        false => finish_turn(world, id),
    }
}

fn freezes(world: &mut World) -> bool {
    !world.calm && world.rng.random_bool(world.rates.freeze)
}

fn freeze(world: &mut World, id: u64, at: Frozen, what: &'static str) -> Checked<()> {
    world.stats.count(what, 1);
    let until_ms = world.now_ms + world.rng.random_range(10..500);
    let process = world.process(id)?;
    process.frozen = Some(at);
    process.paused_until_ms = until_ms;
    Ok(())
}

/// Log rule 9: reads answered without a message, while the published lease holds by the
/// replica's clock.
fn leased_reads(world: &mut World, id: u64) -> Checked<()> {
    let now_ms = world.nodes[&id].clock_ms(world.now_ms);
    let asked = world.rng.random_bool(world.rates.read);
    let known = world.oracle.known;
    let process = world.process(id)?;
    if !asked || now_ms >= process.read_lease.until_ms {
        return Ok(());
    }
    let index = process.shown_decided.max(process.read_lease.floor);
    process.reads.push(index);
    world.stats.count("reads by lease", 1);
    ensure(index >= known, || format!("replica {id}: a leased read at {index}, a client had already seen {known}"))
}

fn finish_turn(world: &mut World, id: u64) -> Checked<()> {
    let point = crash_point(world, id);
    let process = world.process(id)?;
    let mut ready = process.core.finish();
    let ordinary = ready.is_ordinary();
    let before = std::mem::take(&mut ready.before_sync);
    process.read_lease = before.lease;
    if point == 0 {
        return world.crash(id, "crashes before the sync");
    }
    world.send(id, before.sends);
    // R28: memory acknowledgements do not wait for the sync.
    acknowledged(world, id, before.acknowledged, before.unacknowledged)?;
    answered(world, id, before.barriers)?;
    if shown(world, id)? {
        world.stats.count("entries shown before a sync", 1);
    }
    // The runtime answers requests for old entries after the sync; that makes no difference
    // here.
    if ordinary && world.rng.random_bool(0.5) {
        apply(world, id)?;
    }
    if point == 1 {
        return world.crash(id, "crashes before the sync");
    }
    if !world.calm && world.rng.random_bool(world.rates.slow_sync) {
        let slow = Frozen::Syncing { ready: Box::new(ready), lost_role: before.role, inputs: VecDeque::new() };
        return freeze(world, id, slow, "slow syncs");
    }
    sync_and_send(world, id, ready, before.role, point)
}

/// The point of this turn at which the replica crashes: 0 and 1 before the sync, 2 and 3 after
/// it, 4 not at all.
fn crash_point(world: &mut World, id: u64) -> usize {
    let now_ms = world.now_ms;
    let doomed = world.aftershock.take_if(|(at_ms, who)| *at_ms <= now_ms && *who == id).is_some();
    let crash = !world.calm && (doomed || world.rng.random_bool(world.rates.crash));
    if crash && !doomed && world.rng.random_bool(0.5) {
        world.aftershock = Some((now_ms + world.rng.random_range(2..60), world.any()));
    }
    if crash { world.rng.random_range(if world.storm { 1..3 } else { 0..4 }) } else { 4 }
}

fn sync_and_send(world: &mut World, id: u64, ready: Ready, lost_role: Option<Role>, point: usize) -> Checked<()> {
    let synced = world.process(id)?.core.sync().map_err(|e| Violation(format!("replica {id}: {e}")))?;
    let mut after = ready.synced(synced);
    let late = std::mem::take(&mut after.sends);
    after.role = lost_role.or(after.role);
    if point < 4 {
        // Some of the messages get out.
        let sent = world.rng.random_range(0..=late.len());
        world.send(id, late.into_iter().take(sent).collect());
        return world.crash(id, "crashes after the sync");
    }
    world.send(id, late);
    outcomes(world, id, after)?;
    leased_reads(world, id)
}

fn acknowledged(world: &mut World, id: u64, acknowledged: Vec<u64>, unacknowledged: Vec<u64>) -> Checked<()> {
    let World { nodes, oracle, stats, .. } = world;
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

/// The waiting inputs of the replica: ends and beginnings of sessions, arrived messages, the
/// owner's calls and the clock, in a possible order.
fn inputs(world: &mut World, id: u64) -> Vec<Input> {
    let mut inputs = Vec::new();
    let now_ms = world.now_ms;
    let (told, waiting): (VecDeque<_>, VecDeque<_>) = world.ends.drain(..).partition(|(me, ..)| *me == id);
    world.ends = waiting;
    inputs.extend(told.into_iter().map(|(_, peer, session)| Input::SessionDown { peer, session }));
    if let Some(node) = world.nodes.get_mut(&id) {
        inputs.extend(node.told.drain(..));
    }
    // The owner's calls come before, after or around the messages.
    if world.rng.random_bool(0.5) {
        owner_calls(world, id, &mut inputs);
    }
    for (key, session) in &mut world.sessions {
        let (end, peer) = match *key {
            (low, high) if low == id => (0, high),
            (low, high) if high == id => (1, low),
            _ => continue,
        };
        if !session.reported[end] {
            // The dialling end receives it after the accepting one.
            if (end == 0 && !session.reported[1]) || world.rng.random_bool(0.3) {
                continue;
            }
            session.reported[end] = true;
            let (session, configuration, store_id) = (session.number, session.configuration, world.nodes[&peer].store);
            inputs.push(Input::SessionUp { peer, session, configuration, store_id });
        }
        let most = world.rng.random_range(1..40);
        while inputs.len() < most + 40
            && session.to[end].front().is_some_and(|(at, _)| *at <= now_ms)
            && !world.cut.contains_key(&(peer, id))
            && let Some((_, wire)) = session.to[end].pop_front()
        {
            inputs.push(Input::Message { peer, session: session.number, wire });
        }
    }
    owner_calls(world, id, &mut inputs);
    let clock_ms = world.nodes[&id].clock_ms(now_ms);
    if let Some(process) = world.nodes.get_mut(&id).and_then(|n| n.process.as_mut())
        && clock_ms >= process.next_tick_ms
    {
        process.next_tick_ms = clock_ms + process.core.tick_ms();
        inputs.push(Input::Tick);
    }
    inputs
}

fn owner_calls(world: &mut World, id: u64, inputs: &mut Vec<Input>) {
    let World { rng, nodes, oracle, rates, next_id, calm, stats, .. } = world;
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
    if world.compaction && chance(rng, 0.05) {
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

fn outcomes(world: &mut World, id: u64, ready: AfterSync) -> Checked<()> {
    world.stats.count("leaderships", ready.counts.leaderships);
    world.stats.count("pieces of decided entries", ready.counts.learned);
    world.stats.count("candidates far behind", ready.counts.refusals);
    world.stats.count("dropped proposals", ready.counts.dropped);
    ensure(ready.overflowed.is_empty(), || format!("replica {id} gives up sessions: {:?}", ready.overflowed))?;
    changes::end_sessions(world, id, &ready)?;
    if let Some(role) = ready.role {
        world.process(id)?.role = role;
    }
    answered(world, id, ready.barriers)?;
    let World { nodes, stats, known_by, .. } = world;
    let node = nodes.get_mut(&id).ok_or_else(|| Violation("gone".to_owned()))?;
    let process = node.process.as_mut().ok_or_else(|| Violation("gone".to_owned()))?;
    clocks::check(id, &process.core, world.now_ms)?;
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
    shown(world, id)?;
    let World { rng, nodes, stats, .. } = world;
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
        apply(world, id)?;
    }
    transfer(world, id)
}

/// Checks the entries that a replica shows as decided, before or after its sync. Returns
/// whether there were any.
fn shown(world: &mut World, id: u64) -> Checked<bool> {
    let World { nodes, oracle, .. } = world;
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

fn apply(world: &mut World, id: u64) -> Checked<()> {
    let World { rng, nodes, oracle, .. } = world;
    nodes.get_mut(&id).ok_or_else(|| Violation("gone".to_owned()))?.apply(oracle, rng)
}

/// Reads that have been answered, before or after the sync.
fn answered(world: &mut World, id: u64, answers: Vec<BarrierAnswer>) -> Checked<()> {
    let World { nodes, stats, .. } = world;
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
fn transfer(world: &mut World, id: u64) -> Checked<()> {
    let node = &world.nodes[&id];
    let Some(process) = &node.process else { return Ok(()) };
    let Role::Behind { trimmed, .. } = process.role else { return Ok(()) };
    if process.core.leads_behind() {
        world.stats.count("leaders behind", 1);
    }
    if !world.rng.random_bool(0.03) {
        return Ok(());
    }
    let mut state = node.durable;
    if state.applied < trimmed.0 {
        let source = world.any();
        match world.nodes[&source].process.as_ref().map(|p| p.state) {
            Some(fetched) if fetched.applied >= trimmed.0 => state = fetched,
            _ => return Ok(()),
        }
    }
    world.stats.count("state transfers", 1);
    let now_ms = world.nodes[&id].clock_ms(world.now_ms);
    let node = world.node(id)?;
    // The copy is durable before the log is notified.
    node.durable = state;
    if let Some(process) = &mut node.process {
        process.state = state;
        process.core.feed(now_ms, Input::Installed { index: LogIndex(state.applied), term: state.term });
    }
    Ok(())
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
