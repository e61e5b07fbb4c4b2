//! What a leader does by itself while it leaderships: drives the moves that come in, learns what became of those that went out, deletes
//! what must go, corrects the sizes of its ranges, brings replicas back that lost their disks, compares what the replicas hold, and
//! reports.
//!
//! Everything here follows from the state machine: a new leader looks at it and goes on.

use crate::checks::Checks;
use crate::config::Config;
use crate::entry::Control;
use crate::fold::{InPhase, MoveIn, OutPhase};
use crate::leader::{Leader, now_ms};
use crate::members;
use crate::migration::cleanup::{What, clean_up};
use crate::migration::{destination, peers};
use crate::report::build_report;
use crate::scrub::round::go_round;
use crate::sizes;
use evenkeel_protocol::OperatorId;
use evenkeel_protocol::placement::{PlacementReply, PlacementRequest};
use evenkeel_protocol::shard::{ShardReply, ShardRequest};
use evenkeel_rpc::Connection;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How often the state machine is looked at for something to do, in milliseconds.
const LOOK_MS: u64 = 25;
/// How long after a fence the destination is asked what became of it, and how often, in milliseconds. Normally it tells by itself.
const ASK_SETTLED_MS: u64 = 500;
/// How often reports go out, in milliseconds.
const REPORT_MS: u64 = 250;
/// How often it is asked who the placement driver's replicas are: with every so-many-th report.
const MEMBERS_EVERY_REPORTS: u64 = 20;
/// How long a report may take, in milliseconds.
const REPORT_BOUND_MS: u64 = 1_000;

/// Tasks under way, so that none is started twice.
#[derive(Default, Clone)]
struct Running(Arc<Mutex<HashSet<(OperatorId, &'static str)>>>);

impl Running {
    fn start(&self, operator: OperatorId, kind: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        if !self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((operator, kind)) {
            return;
        }
        let running = self.clone();
        tokio::spawn(async move {
            task.await;
            running.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(operator, kind));
        });
    }
}

/// Looks after a leadership until it ends.
pub async fn keep_house(leader: Arc<Leader>, config: Arc<Config>, checks: Arc<Checks>) {
    let (report, wanted) = mpsc::channel(1);
    let mut ended = leader.leadership.ended();
    tokio::select! {
        _ = ended.wait_for(|ended| *ended) => {}
        () = look_after_moves(leader.clone(), checks.clone(), report) => {}
        () = send_reports(leader.clone(), config.clone(), checks.clone(), wanted) => {}
        () = sizes::correct(leader.clone()) => {}
        () = members::mend(leader.clone()) => {}
        () = go_round(&leader, &checks.scrub, &config) => {}
    }
}

async fn look_after_moves(leader: Arc<Leader>, checks: Arc<Checks>, report: mpsc::Sender<()>) {
    let running = Running::default();
    let mut asked: HashMap<OperatorId, Instant> = HashMap::new();
    loop {
        let state = leader.shared().state();
        for movement in state.moves_in() {
            let operator = movement.operator;
            match movement.phase {
                InPhase::Copying => {
                    let drive = destination::drive(leader.clone(), checks.clone(), operator, report.clone());
                    running.start(operator, "drive", drive);
                }
                InPhase::Discarding => start_clean_up(&running, &leader, operator, What::Discarded),
                InPhase::Adopted => {}
            }
        }
        asked.retain(|operator, _| state.move_out(*operator).is_some());
        for movement in state.moves_out() {
            let operator = movement.operator;
            match movement.phase {
                OutPhase::Fenced { .. } => {
                    let since = asked.entry(operator).or_insert_with(Instant::now);
                    if since.elapsed() >= Duration::from_millis(ASK_SETTLED_MS) {
                        *since = Instant::now();
                        running.start(operator, "ask", ask_settled(leader.clone(), operator));
                    }
                }
                // A purge that an earlier leadership began.
                OutPhase::Purging => start_clean_up(&running, &leader, operator, What::Left),
                OutPhase::Open | OutPhase::HandedOver => {}
            }
        }
        tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
    }
}

fn start_clean_up(running: &Running, leader: &Arc<Leader>, operator: OperatorId, what: What) {
    let leader = leader.clone();
    running.start(operator, "clean", async move { clean_up(&leader, operator, what).await });
}

/// Asks the destination what became of a fenced move (R23).
async fn ask_settled(leader: Arc<Leader>, operator: OperatorId) {
    let Some(movement) = leader.shared().state().move_out(operator).cloned() else { return };
    let request = ShardRequest::AskResolved { operator };
    let bound = Duration::from_millis(ASK_SETTLED_MS * 4);
    if let Some(ShardReply::Resolved(Some(adopted))) = peers::ask_leader(&movement.to, &request, bound).await {
        settle(&leader, operator, adopted).await;
    }
}

/// Logs what became of a fenced move. Idempotent: an entry that comes too late is refused by the state machine.
pub async fn settle(leader: &Leader, operator: OperatorId, adopted: bool) {
    let open = |m: &crate::fold::MoveOut| matches!(m.phase, OutPhase::Fenced { .. });
    if !leader.shared().state().move_out(operator).is_some_and(open) {
        return;
    }
    let entry = if adopted { Control::HandedOver { operator } } else { Control::TakeBack { operator } };
    if let Err(failure) = leader.control(entry).await {
        tracing::info!(%operator, %failure, "the end of a move is not logged yet");
    }
}

async fn send_reports(leader: Arc<Leader>, config: Arc<Config>, checks: Arc<Checks>, mut wanted: mpsc::Receiver<()>) {
    let mut sequence = 0;
    let mut hint = None;
    let mut drivers = config.placement_drivers.clone();
    let mut connections: HashMap<u64, Connection<PlacementRequest, PlacementReply>> = HashMap::new();
    let mut tick = tokio::time::interval(Duration::from_millis(REPORT_MS));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut settled = settled_moves(&leader, &checks);
    loop {
        // What the placement driver waits for is told at once; load is told at its interval.
        loop {
            tokio::select! {
                _ = tick.tick() => break,
                Some(()) = wanted.recv() => break,
                () = tokio::time::sleep(Duration::from_millis(LOOK_MS)) => {
                    let now = settled_moves(&leader, &checks);
                    if now != settled {
                        settled = now;
                        break;
                    }
                }
            }
        }
        sequence += 1;
        let report = build_report(&leader, &config, &checks, sequence, now_ms());
        let request = PlacementRequest::Report(Box::new(report));
        hint = deliver(&drivers, &mut connections, hint, &request).await;
        // The placement driver's replicas may be others by now than they were when this one was configured; and if none of those that
        // are known takes a report, they probably are.
        if (hint.is_none() || sequence.is_multiple_of(MEMBERS_EVERY_REPORTS))
            && let Some(members) = ask_members(&connections, hint).await
        {
            connections.retain(|replica, _| members.get(replica) == drivers.get(replica));
            drivers = members;
        }
    }
}

/// Who the placement driver's replicas are, by the first one that says; `first` is asked first.
async fn ask_members(
    connections: &HashMap<u64, Connection<PlacementRequest, PlacementReply>>,
    first: Option<u64>,
) -> Option<BTreeMap<u64, SocketAddr>> {
    let mut asked: Vec<_> = connections.iter().collect();
    asked.sort_by_key(|(replica, _)| (Some(**replica) != first, **replica));
    for (_, connection) in asked {
        let bound = Duration::from_millis(REPORT_BOUND_MS);
        if let Ok(PlacementReply::Members(members)) = connection.call_within(&PlacementRequest::Members, bound).await
            && !members.is_empty()
        {
            return Some(members);
        }
    }
    None
}

/// What about moves is worth a report of its own.
fn settled_moves(leader: &Leader, checks: &Checks) -> Vec<(OperatorId, bool)> {
    let state = leader.shared().state();
    let served = |m: &MoveIn| m.phase == InPhase::Adopted && !checks.adoption(m.operator).is_some_and(|a| a.pending);
    let moves_in = state.moves_in().map(|m| (m.operator, served(m)));
    let moves_out = state.moves_out().map(|m| (m.operator, m.phase == OutPhase::HandedOver));
    moves_in.chain(moves_out).collect()
}

/// Delivers a report to whoever leads the placement driver; gives the replica to try first next time.
async fn deliver(
    drivers: &BTreeMap<u64, SocketAddr>,
    connections: &mut HashMap<u64, Connection<PlacementRequest, PlacementReply>>,
    hint: Option<u64>,
    request: &PlacementRequest,
) -> Option<u64> {
    let bound = Duration::from_millis(REPORT_BOUND_MS);
    let mut left: Vec<u64> = drivers.keys().copied().collect();
    let mut next = hint.or(left.first().copied());
    while let Some(replica) = next {
        left.retain(|other| *other != replica);
        next = left.first().copied();
        let Some(address) = drivers.get(&replica) else { continue };
        let connection = match connections.get(&replica).filter(|c| !c.is_closed()).cloned() {
            Some(connection) => connection,
            None => match Connection::connect(*address, bound).await {
                Ok(connection) => {
                    connections.insert(replica, connection.clone());
                    connection
                }
                Err(_) => continue,
            },
        };
        match connection.call_within(request, bound).await {
            Ok(PlacementReply::Accepted) => return Some(replica),
            Ok(PlacementReply::NotLeader { leader }) => {
                if let Some(leader) = leader.filter(|leader| left.contains(leader)) {
                    next = Some(leader);
                }
            }
            Ok(PlacementReply::State { .. } | PlacementReply::Members(_)) => {
                tracing::debug!(%address, "an answer to another question")
            }
            Err(error) => {
                tracing::debug!(%address, %error, "a report was not taken");
                connections.remove(&replica);
            }
        }
    }
    None
}
