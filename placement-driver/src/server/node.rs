//! The node: the one task through which everything passes that changes the state or the leadership.
//!
//! A turn takes in whatever has come (decided entries, reports, answers, proposals), then lets the pure parts say what to do, and does it. It never waits for a
//! shard or a disk: calls and snapshots run beside it and come back as messages.

use super::held::Held;
use super::members::Mending;
use super::quorum::Quorum;
use super::shared::{Leading, Message, ProposeFailure, Shared};
use super::waiters::{Answer, Waiters};
use super::{RunError, transfer};
use crate::balancer::{Balancer, explanation};
use crate::operators::{OperatorController, Todo, may_number, missing, take_in, take_members};
use crate::rest::metrics;
use crate::snapshot;
use crate::state::{Command, Effect, PlacementState, Proposal, apply};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_replicated_log::{Body, Delivery, Entry, LogIndex, ProposeError, Role, Subscription, Term};
use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, watch};

/// The most bytes of entries applied in one turn.
const TURN_BYTES: usize = 1 << 20;
/// The most messages taken in one turn.
const TURN_MESSAGES: usize = 256;
/// The longest time between two turns of a leader, in milliseconds: what depends on time alone is noticed that late at most.
const TICK_MS: u64 = 100;
/// How long one call to one replica of a shard may take, in milliseconds.
const CALL_MS: u64 = 2_000;
/// A snapshot is written after this many bytes of log at the earliest, unless enough entries say so.
const MIN_SNAPSHOT_EVERY_BYTES: u64 = 1 << 20;
/// The shortest time between two proposals that are no operator's step, in milliseconds.
const HOUSEKEEPING_MS: u64 = 500;
/// How often that time doubles at most, when such proposals are refused: up to 32 seconds.
const MAX_DOUBLINGS: u32 = 6;
/// The pause before a failed state transfer is tried again, in milliseconds.
const TRANSFER_AGAIN_MS: u64 = 500;

/// Milliseconds since the Unix epoch that never go back while the process lives.
struct Clock {
    started: Instant,
    started_ms: u64,
}

impl Clock {
    fn new() -> Clock {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Clock { started: Instant::now(), started_ms: since_epoch.as_millis() as u64 }
    }

    fn now_ms(&self) -> u64 {
        self.started_ms + self.started.elapsed().as_millis() as u64
    }
}

/// See the module's page.
pub(super) struct Node {
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Message>,
    role: watch::Receiver<Role>,
    entries: Subscription,
    clock: Clock,
    waiters: Waiters,
    held: Held,
    next_nonce: u64,
    /// The term this replica leads in or has led in last, and when it began or made its last proposal, by this process's clock, which nobody sets.
    proposed: Option<(Term, u64)>,
    /// What this process's clock showed when the state's time was what it is now. It holds for the term of `proposed`.
    state_since_ms: u64,
    snapshot_at: LogIndex,
    /// Bytes of log applied since the last snapshot.
    since_snapshot_bytes: u64,
    /// When the leader's last round was.
    led: Instant,
    writing: bool,
    transferring: bool,
    mending: Mending,
    quorum: Quorum,
}

impl Node {
    pub(super) fn new(shared: Arc<Shared>, inbox: mpsc::Receiver<Message>) -> Node {
        let index = shared.applied().index;
        let clock = Clock::new();
        Node {
            role: shared.log.role(),
            entries: shared.log.subscribe(index.next()),
            // Nonces of different processes and lives must differ: a follower takes no other's proposal for its own.
            next_nonce: clock.started_ms << 20 | (shared.config.replica & 0xff) << 12,
            proposed: None,
            state_since_ms: 0,
            snapshot_at: index,
            since_snapshot_bytes: 0,
            led: Instant::now(),
            shared,
            inbox,
            clock,
            waiters: Waiters::default(),
            held: Held::default(),
            writing: false,
            transferring: false,
            mending: Mending::default(),
            quorum: Quorum::default(),
        }
    }

    pub(super) async fn run(mut self) -> Result<(), RunError> {
        loop {
            let pause = Duration::from_millis(self.pause_ms());
            // Whether this turn was about keys of the coordination store only, which the leader's rounds do not look at.
            let mut only_keys = false;
            tokio::select! {
                delivery = self.entries.next(TURN_BYTES), if !self.transferring => match delivery {
                    Ok(Delivery::Entries(entries)) => only_keys = self.apply(entries)?,
                    Ok(Delivery::NeedState { trimmed, leader }) => self.transfer(trimmed, leader.map(|id| id.0)),
                    Err(_) => return Err(RunError::Stopped("the replicated log has stopped".into())),
                },
                changed = self.role.changed() => {
                    if changed.is_err() {
                        return Err(RunError::Stopped("the replicated log has stopped".into()));
                    }
                }
                message = self.inbox.recv() => {
                    let Some(message) = message else { return Ok(()) };
                    only_keys = is_key(&message);
                    self.take(message)?;
                    for _ in 1..TURN_MESSAGES {
                        let Ok(message) = self.inbox.try_recv() else { break };
                        only_keys &= is_key(&message);
                        self.take(message)?;
                    }
                }
                () = tokio::time::sleep(pause) => {}
            }
            self.follow_role();
            self.propose_held();
            // Planning after each batch of the coordination store's writes would cost more than the writes.
            if !only_keys || self.led.elapsed() >= pause {
                self.led = Instant::now();
                self.lead();
            }
        }
    }

    fn pause_ms(&self) -> u64 {
        let leading = self.shared.leading();
        let Some(leading) = leading.as_ref() else { return 10 * TICK_MS };
        let wake = leading.controller.wake_ms().map(|at| at.saturating_sub(self.time_ms()).max(1));
        wake.unwrap_or(TICK_MS).min(TICK_MS)
    }

    fn take(&mut self, message: Message) -> Result<(), RunError> {
        match message {
            Message::Report(report, reply) => {
                let now_ms = self.time_ms();
                let mut leading = self.shared.leading();
                let taken = leading.is_some();
                if let Some(leading) = leading.as_mut() {
                    let (shard, leader) = (report.shard, report.leader);
                    let observed = {
                        let applied = self.shared.applied();
                        leading.balancer.load.observe(*report, &applied.state, &self.shared.config.balancer, now_ms)
                    };
                    if observed.taken {
                        self.shared.view().leaders.set(shard, leader);
                    }
                    metrics::fault(shard, &observed);
                }
                metrics::report(taken);
                // The reporter may have given up waiting.
                reply.send(taken).ok();
            }
            Message::Propose(command, answer) if Held::needs_numbers(&command) && !self.may_number() => {
                self.held.push(command, answer);
            }
            Message::Propose(command, answer) => self.propose(command, Some(answer)).map(drop).unwrap_or(()),
            Message::Answered(name, answer) => {
                let now_ms = self.time_ms();
                if let Some(leading) = self.shared.leading().as_mut() {
                    let applied = self.shared.applied();
                    leading.controller.answered(name, answer, &applied.state, now_ms);
                }
            }
            Message::Sized(range, epoch, answer) => {
                let now_ms = self.time_ms();
                if let Some(leading) = self.shared.leading().as_mut() {
                    leading.balancer.sizes.answered(range, epoch, answer, now_ms);
                }
            }
            Message::Written(result) => {
                self.writing = false;
                match result {
                    // R16: the log may forget only what is durable here.
                    Ok(index) => self.shared.log.compact(index),
                    Err(reason) => return Err(RunError::Stopped(format!("the snapshot cannot be written: {reason}"))),
                }
            }
            Message::Confirmed(term, confirmed) => self.quorum.answered(term, confirmed),
            Message::Fetched(result) => self.install(result),
        }
        Ok(())
    }

    /// Follows the log's role: loses the leadership at once, begins one only after its own `LeaderStart` is applied (invariant 4).
    fn follow_role(&mut self) {
        let role = self.role.borrow_and_update().clone();
        let (index, term) = {
            let applied = self.shared.applied();
            (applied.index, applied.term)
        };
        let leadershiping = self.shared.leading().as_ref().map(|leading| leading.term);
        match role {
            Role::Leader { term: mine, start } => {
                let begun = index >= start && term == mine;
                let now_ms = self.clock.now_ms();
                if begun {
                    self.quorum.begin(mine, now_ms);
                    self.confirm(now_ms);
                }
                match leadershiping {
                    Some(term) if term == mine && self.quorum.stands(now_ms) => return,
                    Some(term) if term == mine => tracing::warn!(%term, "no majority confirms that this replica leads"),
                    _ => {}
                }
                self.shared.end_leadership();
                if begun && self.quorum.stands(now_ms) {
                    self.begin_leadership(mine);
                }
            }
            Role::Follower { .. } => self.shared.end_leadership(),
            Role::Behind { trimmed, leader } => {
                self.shared.end_leadership();
                if index >= trimmed {
                    // The state is here already: the process ended between fetching it and saying so.
                    self.shared.log.installed(index, term).ok();
                } else if !self.transferring {
                    self.transfer(trimmed, leader.map(|id| id.0));
                }
            }
        }
    }

    /// Asks a majority whether this replica still leads, if it is time to.
    fn confirm(&mut self, now_ms: u64) {
        if self.quorum.ask(now_ms) {
            let (shared, term) = (self.shared.clone(), self.quorum.term());
            tokio::spawn(async move {
                let confirmed = shared.log.read_barrier().await.is_ok();
                // The node is gone only when the replica shuts down.
                shared.messages.send(Message::Confirmed(term, confirmed)).await.ok();
            });
        }
    }

    /// The state machine's time now, in milliseconds ([`PlacementState::time_ms`] and what has passed since). It only means something while this replica leads.
    fn time_ms(&self) -> u64 {
        self.shared.applied().state.time_ms() + self.clock.now_ms().saturating_sub(self.state_since_ms)
    }

    fn begin_leadership(&mut self, term: Term) {
        tracing::info!(%term, "leading the placement driver");
        // The same term can be led in twice, if no majority confirmed it for a while: its time goes on.
        if self.proposed.is_none_or(|(of, _)| of != term) {
            self.state_since_ms = self.clock.now_ms();
            self.proposed = Some((term, self.state_since_ms));
        }
        let leading = Leading {
            term,
            first: self.shared.applied().state.shards.keys().copied().collect(),
            balancer: Balancer::default(),
            controller: OperatorController::default(),
            rejections: Arc::default(),
            missing: Vec::new(),
            clocks_off: BTreeSet::new(),
            deciding: Vec::new(),
            housekept_ms: 0,
            refused: 0,
            round: (self.time_ms(), Instant::now()),
        };
        *self.shared.leading() = Some(leading);
        let version = self.shared.applied().state.version;
        if let Some(configured) = self.shared.config.incarnation.filter(|told| *told > version.generation()) {
            self.propose(Command::BeginIncarnation(configured), None).ok();
        }
        if version.cluster() == 0 {
            self.propose(Command::NameCluster(drawn()), None).ok();
        }
    }

    /// One round of the leader: what the pure parts say, done.
    fn lead(&mut self) {
        let now_ms = self.time_ms();
        let (todo, decisions, questions) = {
            let mut leading = self.shared.leading();
            let Some(leading) = leading.as_mut() else { return };
            let applied = self.shared.applied();
            let (state, config) = (&applied.state, &self.shared.config.balancer);
            leading.round = (now_ms, Instant::now());
            leading.balancer.load.set_clock(Some(self.clock.now_ms()), now_ms);
            leading.balancer.update(state, config, now_ms);
            let mut todo = leading.controller.next(state, &leading.balancer.load, now_ms);
            todo.extend(take_in(state, &leading.balancer.load, now_ms).map(Todo::Propose));
            todo.extend(take_members(state, &leading.balancer.load).map(Todo::Propose));
            // Whatever is not an operator's step follows from the state alone: proposed once, and not again before that is applied, nor often
            // should it be refused.
            let housekeeping =
                |todo: &Todo| !matches!(todo, Todo::Propose(Command::Advance { .. }) | Todo::Call { .. });
            // What was refused is refused again: it must not fill the log.
            let pause_ms = HOUSEKEEPING_MS << leading.refused.min(MAX_DOUBLINGS);
            let quiet = !leading.deciding.is_empty() || now_ms < leading.housekept_ms + pause_ms;
            if quiet {
                todo.retain(|todo| !housekeeping(todo));
            } else if todo.iter().any(housekeeping) {
                leading.housekept_ms = now_ms;
            }
            let mut decisions = Vec::new();
            if leading.deciding.is_empty() && (leading.refused == 0 || now_ms >= leading.housekept_ms + pause_ms) {
                let plan = leading.balancer.plan(state, config, now_ms);
                if plan.exhausted {
                    leading.balancer.rebalancing.rest();
                }
                leading.rejections = explanation(&leading.rejections, &plan);
                decisions = plan.decisions;
            }
            let missing = missing(state, &leading.balancer.load);
            if missing != leading.missing {
                missing.iter().for_each(|what| tracing::warn!(what, "not everything that shards hold is known here"));
                leading.missing = missing;
            }
            leading.clocks_off = metrics::clocks(&leading.balancer.load, &leading.clocks_off);
            metrics::round(state, leading, now_ms);
            let questions = leading.balancer.size_questions(state, config, now_ms);
            (todo, decisions, questions)
        };
        if let Some(term) = self.shared.leading().as_ref().map(|leading| leading.term) {
            self.mending.look(&self.shared.log, term, self.clock.now_ms());
        }
        for decision in decisions {
            tracing::info!(why = %decision.why, "decided");
            if let Ok(nonce) = self.propose(Command::Decide(Box::new(decision)), None)
                && let Some(leading) = self.shared.leading().as_mut()
            {
                leading.housekept_ms = if leading.refused > 0 { now_ms } else { leading.housekept_ms };
                leading.deciding.push(nonce);
            }
        }
        for question in questions {
            let (range, epoch) = (question.range, question.epoch);
            self.ask(question.shard, question.request(), move |answer| Message::Sized(range, epoch, answer));
        }
        for todo in todo {
            match todo {
                Todo::Call { name, request } => {
                    self.ask(name.shard, request, move |answer| Message::Answered(name, answer));
                }
                Todo::Propose(command) => {
                    let step = matches!(command, Command::Advance { .. });
                    match (self.propose(command, None), self.shared.leading().as_mut()) {
                        (Ok(nonce), Some(leading)) if !step => leading.deciding.push(nonce),
                        (Err(failure), _) => tracing::debug!(%failure, "not proposed"),
                        _ => {}
                    }
                }
            }
        }
    }

    /// Whether numbers may be given now; who does not lead refuses by itself.
    fn may_number(&self) -> bool {
        let now_ms = self.time_ms();
        let leading = self.shared.leading();
        let may = |leading: &Leading| {
            let applied = self.shared.applied();
            may_number(&applied.state, &leading.balancer.load, &leading.first, now_ms)
        };
        leading.as_ref().is_none_or(may)
    }

    /// Proposes what has waited for numbers, as soon as they may be given.
    fn propose_held(&mut self) {
        if self.held.is_empty() {
            return;
        }
        if self.shared.leading().is_none() {
            self.held.end();
        } else if self.may_number() {
            for (command, answer) in self.held.take() {
                self.propose(command, Some(answer)).map(drop).unwrap_or(());
            }
        }
    }

    /// Asks a shard's leader; the answer comes back as a message.
    fn ask(
        &self,
        id: ShardId,
        request: ControlRequest,
        message: impl FnOnce(Result<ControlReply, String>) -> Message + Send + 'static,
    ) {
        let shared = self.shared.clone();
        let shard = shared.applied().state.shards.get(&id).map(|shard| shard.info.clone());
        let leader = shared.view().leaders.get(id);
        tokio::spawn(async move {
            let answer = match shard {
                Some(shard) => shared.calls.ask(&shard, leader, &request, Duration::from_millis(CALL_MS)).await,
                None => Err(format!("there is no shard {id}")),
            };
            // The node is gone only when the replica shuts down.
            shared.messages.send(message(answer)).await.ok();
        });
    }

    /// Queues a command in the log; gives its nonce.
    fn propose(&mut self, command: Command, answer: Option<Answer>) -> Result<u64, ProposeFailure> {
        let term = self.shared.leading().as_ref().map(|leading| leading.term);
        let result = match term {
            None => Err(ProposeFailure::NotLeader),
            Some(_) if self.waiters.is_full() => Err(ProposeFailure::Overloaded),
            Some(term) => {
                self.next_nonce += 1;
                let at_ms = self.clock.now_ms();
                let last = self.proposed.filter(|(of, _)| *of == term);
                let since_ms = last.map_or(0, |(_, last_ms)| at_ms.saturating_sub(last_ms));
                let proposal = Proposal { at_ms, since_ms, nonce: self.next_nonce, command };
                queue(&self.shared, term, &proposal).map(|()| {
                    // Only what is in the log counts: the time before a proposal that is not falls to the next.
                    self.proposed = Some((term, at_ms));
                    (term, self.next_nonce)
                })
            }
        };
        match (result, answer) {
            (Ok((term, nonce)), answer) => {
                if let Some(answer) = answer {
                    self.waiters.insert(nonce, term, answer);
                }
                Ok(nonce)
            }
            (Err(failure), answer) => {
                if let Some(answer) = answer {
                    answer.send(Err(failure.clone())).ok();
                }
                Err(failure)
            }
        }
    }

    /// Applies entries; says whether they were all about keys of the coordination store.
    fn apply(&mut self, entries: Vec<Entry>) -> Result<bool, RunError> {
        let mut outcomes = Vec::new();
        let mut only_keys = true;
        let mut begun = None;
        {
            let mut applied = self.shared.applied_mut();
            for entry in entries {
                applied.index = entry.index;
                match entry.body {
                    Body::Data(bytes) => {
                        self.since_snapshot_bytes += bytes.len() as u64;
                        let proposal: Proposal = postcard::from_bytes(&bytes).map_err(|error| {
                            RunError::Stopped(format!("entry {} of the log cannot be read: {error}", entry.index))
                        })?;
                        let nonce = proposal.nonce;
                        let at_ms = proposal.at_ms;
                        only_keys &= matches!(proposal.command, Command::Kv(_));
                        // Invariant 1: what a deposed leader proposed comes out as nothing, on every replica alike.
                        if entry.effective && self.proposed.is_some_and(|(term, _)| term == entry.term) {
                            self.state_since_ms = at_ms;
                        }
                        let outcome = if entry.effective {
                            apply_one(&mut applied.state, proposal).map_err(ProposeFailure::Refused)
                        } else {
                            Err(ProposeFailure::NotLeader)
                        };
                        outcomes.push((nonce, outcome));
                    }
                    Body::LeaderStart { .. } => {
                        only_keys = false;
                        applied.term = entry.term;
                        begun = Some(entry.term);
                    }
                    Body::ConfigChange(_) => {}
                }
            }
        }
        // The view first: who is answered must find what was done.
        self.shared.publish();
        if let Some(leading) = self.shared.leading().as_mut() {
            for (nonce, outcome) in &outcomes {
                if let Some(at) = leading.deciding.iter().position(|deciding| deciding == nonce) {
                    leading.deciding.swap_remove(at);
                    leading.refused = if outcome.is_ok() { 0 } else { leading.refused.saturating_add(1) };
                }
            }
        }
        for (nonce, outcome) in outcomes {
            self.waiters.tell(nonce, outcome);
        }
        if let Some(term) = begun {
            self.waiters.begun(term);
        }
        self.snapshot_if_due();
        Ok(only_keys)
    }

    fn snapshot_if_due(&mut self) {
        let due = {
            let applied = self.shared.applied();
            let config = &self.shared.config;
            // By bytes too, or a few large values would fill the log; but never more often than a snapshot is worth.
            let worth_bytes = config.log_retention_bytes.max(applied.state.kv.bytes()).max(MIN_SNAPSHOT_EVERY_BYTES);
            let due = applied.index.0 >= self.snapshot_at.0 + config.snapshot_every_entries
                || self.since_snapshot_bytes >= worth_bytes;
            (due && !self.writing).then(|| (applied.index, applied.term, snapshot::encode(&applied.state)))
        };
        let Some((index, term, body)) = due else { return };
        self.writing = true;
        self.snapshot_at = index;
        self.since_snapshot_bytes = 0;
        let (file, messages) = (self.shared.snapshots.clone(), self.shared.messages.clone());
        tokio::spawn(async move {
            let write = move || file.write(index, term, &body?).map_err(|e| e.to_string());
            let written = evenkeel_host::blocking(write).await.flatten();
            // Nobody waits for one that was not written because the replica has ended.
            if let Some(written) = written.transpose() {
                messages.send(Message::Written(written)).await.ok();
            }
        });
    }

    fn transfer(&mut self, trimmed: LogIndex, leader: Option<u64>) {
        tracing::info!(%trimmed, "fetching the state from another replica");
        self.transferring = true;
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let fetched = transfer::fetch(shared.clone(), trimmed, leader).await;
            if let Err(reason) = &fetched {
                tracing::warn!(reason, "no state could be fetched");
                tokio::time::sleep(Duration::from_millis(TRANSFER_AGAIN_MS)).await;
            }
            shared.messages.send(Message::Fetched(fetched)).await.ok();
        });
    }

    /// Puts a fetched state in place, unless this replica has got further meanwhile.
    fn install(&mut self, fetched: Result<Box<snapshot::Snapshot>, String>) {
        self.transferring = false;
        let mut index = self.shared.applied().index;
        if let Ok(fetched) = fetched
            && fetched.index > index
        {
            index = fetched.index;
            let term = fetched.term;
            {
                let mut applied = self.shared.applied_mut();
                applied.state = fetched.state;
                applied.index = index;
                applied.term = term;
            }
            self.waiters.skipped();
            self.snapshot_at = index;
            self.since_snapshot_bytes = 0;
            self.shared.log.installed(index, term).ok();
            self.shared.publish();
        }
        self.entries = self.shared.log.subscribe(index.next());
    }
}

/// A random number from 1.
fn drawn() -> u32 {
    // The keys of the standard library's hash maps are random.
    let number = std::hash::RandomState::new().build_hasher().finish();
    ((number >> 32) as u32).max(1)
}

/// Whether a message is about keys of the coordination store only.
fn is_key(message: &Message) -> bool {
    matches!(message, Message::Propose(Command::Kv(_), _))
}

fn apply_one(state: &mut PlacementState, proposal: Proposal) -> Result<Effect, crate::state::Refusal> {
    let advanced = match &proposal.command {
        Command::Advance { operator, .. } => Some(*operator),
        _ => None,
    };
    let result = apply(state, proposal);
    match (&result, advanced.and_then(|id| state.operators.get(&id))) {
        (Ok(_), Some(operator)) => metrics::advanced(operator),
        (Err(refusal), _) => tracing::debug!(%refusal, "refused"),
        _ => {}
    }
    result
}

fn queue(shared: &Shared, term: Term, proposal: &Proposal) -> Result<(), ProposeFailure> {
    let Ok(bytes) = postcard::to_stdvec(proposal) else { return Err(ProposeFailure::Overloaded) };
    shared.log.propose(term, bytes.into()).map_err(|error| match error {
        ProposeError::NotLeader { .. } | ProposeError::Stopped => ProposeFailure::NotLeader,
        ProposeError::Overloaded | ProposeError::TooLarge { .. } => ProposeFailure::Overloaded,
    })
}
