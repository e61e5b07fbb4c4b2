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
use evenkeel_rpc::Pool;
use evenkeel_rpc::group::{Group, GroupProtocol, Members, Patience, Verdict};
use std::collections::{HashMap, HashSet};
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
/// A report is offered for at most twice this many times [`REPORT_BOUND_MS`]: the largest number of
/// placement-driver replicas.
const MAX_PLACEMENT_DRIVERS: u32 = 7;

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
    let destinations = peers::PeerPool::default();
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
                        running.start(operator, "ask", ask_settled(leader.clone(), destinations.clone(), operator));
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
async fn ask_settled(leader: Arc<Leader>, destinations: peers::PeerPool, operator: OperatorId) {
    let Some(movement) = leader.shared().state().move_out(operator).cloned() else { return };
    let request = ShardRequest::AskSettled { operator };
    let bound = Duration::from_millis(ASK_SETTLED_MS * 4);
    if let Some(ShardReply::Settled(Some(adopted))) = destinations.ask_leader(&movement.to, &request, bound).await {
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
    let bound = Duration::from_millis(REPORT_BOUND_MS);
    let pool = Arc::new(Pool::new(1, bound));
    let mut placement_driver = Group::<Reporting>::new(config.placement_drivers.clone(), None, pool.clone());
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
        let patience = Patience { attempt: bound, total: bound.saturating_mul(2 * MAX_PLACEMENT_DRIVERS) };
        let taken = placement_driver.call(&request, patience).await.is_ok();
        // The placement driver's replicas change. If none of the known ones takes a report, they
        // have probably changed.
        if (!taken || sequence.is_multiple_of(MEMBERS_EVERY_REPORTS)) && placement_driver.refresh_members(bound).await {
            let members = placement_driver.members();
            pool.retain(|address| members.values().any(|member| member == address));
        }
    }
}

/// The messages of reports to the placement driver.
struct Reporting;

impl GroupProtocol for Reporting {
    type Request = PlacementRequest;
    type Reply = PlacementReply;

    fn verdict(reply: &PlacementReply) -> Verdict {
        match reply {
            PlacementReply::Accepted => Verdict::Answered,
            PlacementReply::NotLeader { leader } => Verdict::NotLeader { leader: *leader },
            PlacementReply::State { .. } | PlacementReply::Members(_) => Verdict::NotLeader { leader: None },
        }
    }

    fn members_request() -> PlacementRequest {
        PlacementRequest::Members
    }

    fn members(reply: PlacementReply) -> Option<Members> {
        match reply {
            PlacementReply::Members(members) => Some(members),
            _ => None,
        }
    }
}

/// What about moves is worth a report of its own.
fn settled_moves(leader: &Leader, checks: &Checks) -> Vec<(OperatorId, bool)> {
    let state = leader.shared().state();
    let served = |m: &MoveIn| m.phase == InPhase::Adopted && !checks.adoption(m.operator).is_some_and(|a| a.pending);
    let moves_in = state.moves_in().map(|m| (m.operator, served(m)));
    let moves_out = state.moves_out().map(|m| (m.operator, m.phase == OutPhase::HandedOver));
    moves_in.chain(moves_out).collect()
}
