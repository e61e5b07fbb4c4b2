//! `local` reads: at any replica, leader or not, read-only, with an age that the replica can prove (R17).
//!
//! A read is answered from this replica's PostgreSQL as it is. Three things must hold for the answer to be what it says:
//!
//! 1. **Its age.** The answer states how old it can be: everything acknowledged longer ago, when the answer left here, is
//!    in it. That is proven by a question to the leader ([`proofs`]): its position was applied before the snapshot was taken. Whoever is
//!    frozen or cut off gets no new proof, the age grows, and above the bound that the read asks for it is refused.
//! 2. **Its rows belong to this shard** (R9). The keys must be owned by the state machine both before the snapshot and after
//!    it, with no change of ownership in between, and PostgreSQL must hold everything up to the last such change: so rows that
//!    are coming in, or are being purged, are not seen.
//! 3. **It disturbs nobody.** No more are let in than are done within a quarter of a second ([`Gate`]). Their sessions are read-only,
//!    and statements that write or lock are refused before they get there; a reader holds no lock that row images wait for. What drops
//!    tables (a state transfer) ends these sessions first.
//!
//! Only what is decided, and so on a quorum's disks, is ever in a replica's PostgreSQL (R28).

pub mod proofs;

use crate::leader::clip::{AddedParameter, Narrowed, clipped, touches};
use crate::leader::gate::{Gate, Kind};
use crate::leader::plans::{BoundPlan, Plans};
use crate::leader::reads::{check_piecewise, unless_gone};
use crate::leader::scans::Scans;
use crate::leader::session::{Parameters, UserSession, reply};
use crate::leader::transactions::NoSession;
use crate::leader::{group, weight};
use crate::postgres::Role;
use crate::replica::ReplicaHandles;
use crate::state_machine::ShardState;
use crate::storage::StoreError;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{Piece, PieceRequest, StatementReply, StatementRequest};
use evenkeel_protocol::{Failure, Key, SqlError, TableId};
use evenkeel_rpc::Gone;
use evenkeel_sql::Touches;
use proofs::{ASK_AGAIN_MS, Proofs, age_ms};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a read waits for a proof that is good enough, in milliseconds; also how long a leader may take to answer before
/// reads stop waiting for it.
const WAIT_MS: u64 = 250;
/// Without a bound of the user's, a read waits for a proof if the state may be older than this, in milliseconds.
const GOOD_MS: u64 = 100;
/// How often a read is run again because ownership changed beside it, or because its proof grew too old meanwhile.
const MAX_RUNS: usize = 3;
/// Sessions for scans that are read whole, and as many for pieces.
pub const LOCAL_SCAN_SESSIONS: usize = 2;
/// Nothing runs for ever; that nothing writes is how [`Role::User`] comes in. A user cannot change it (R6).
const SESSION_SETTINGS: &str = "SET statement_timeout = '30s'";

/// See the module. Lives as long as one start of PostgreSQL.
pub struct LocalReads {
    shared: ReplicaHandles,
    gate: Arc<Gate>,
    plans: Plans,
    sessions: Vec<tokio::sync::Mutex<Option<Arc<UserSession>>>>,
    next_session: AtomicUsize,
    scans: Scans,
    pieces: Scans,
    proofs: Mutex<Proofs>,
}

impl LocalReads {
    /// Reads over this many sessions, opened when first needed.
    pub fn new(shared: ReplicaHandles, sessions: usize) -> LocalReads {
        let sessions: Vec<_> = (0..sessions.max(1)).map(|_| tokio::sync::Mutex::default()).collect();
        LocalReads {
            scans: Scans::new(&shared.connector, LOCAL_SCAN_SESSIONS),
            pieces: Scans::for_pieces(&shared.connector, LOCAL_SCAN_SESSIONS),
            shared,
            gate: Gate::new(sessions.len()),
            plans: Plans::default(),
            sessions,
            next_session: AtomicUsize::new(0),
            proofs: Mutex::default(),
        }
    }

    /// Answers a read. One that may take long is ended when `gone` says that nobody waits for it.
    ///
    /// # Errors
    /// [`Failure::TooStale`] if the bound cannot be proven to be kept, [`Failure::Moved`] if the keys are not here,
    /// [`Failure::Overloaded`] if too many wait already, and 25006 for
    /// what is no read.
    pub async fn read(&self, request: &StatementRequest, gone: Gone) -> Result<StatementReply, Failure> {
        let bound = self.bind(request)?;
        let touched = touches(&bound, request)?;
        let (sql, added) = clipped(&bound, request)?;
        let scans = matches!(touched, Touches::Intervals(_));
        let run = || self.run(&bound, request, &sql, &added, scans);
        let current = self.current(&bound, request, &touched, run);
        let (mut answer, age) = if scans { unless_gone(Some(gone), current).await? } else { current.await? };
        answer.staleness_ms = Some(age);
        Ok(answer)
    }

    /// Answers a piece of a read, likewise.
    ///
    /// # Errors
    /// As [`LocalReads::read`]; 0A000 for what is not read piece by piece.
    pub async fn piece(&self, request: PieceRequest, gone: Gone) -> Result<Piece, Failure> {
        let bound = self.bind(&request.statement)?;
        check_piecewise(&bound)?;
        let narrowed = Narrowed::new(request, bound.plan.descending());
        let touched = touches(&bound, &narrowed.request)?;
        let (sql, added) = narrowed.clipped(&bound)?;
        let run = || self.run_piece(&bound, &narrowed.request, &sql, &added);
        let current = self.current(&bound, &narrowed.request, &touched, run);
        let (mut piece, age) = unless_gone(Some(gone), current).await?;
        piece.reply.staleness_ms = Some(age);
        Ok(piece)
    }

    fn bind(&self, request: &StatementRequest) -> Result<Arc<BoundPlan>, Failure> {
        let bound = self.plans.get(&request.sql, &self.shared.state())?;
        if bound.plan.parameters() != request.params.len() {
            return Err(wrong_parameters(bound.plan.parameters(), request.params.len()).into());
        }
        if bound.plan.writes() || bound.plan.locks() {
            let error = SqlError::new(codes::READ_ONLY, "a read at level local can neither change nor lock rows");
            return Err(error.hint("Choose another read level for this statement.").into());
        }
        Ok(bound)
    }

    /// Runs a read, if need be several times, until it is known of what age its answer is, in milliseconds, and that its rows belong here.
    async fn current<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        bound: &BoundPlan,
        request: &StatementRequest,
        touched: &Touches,
        run: impl Fn() -> F,
    ) -> Result<(T, u64), Failure> {
        let table = bound.schema.as_ref().map(|schema| schema.id).unwrap_or_default();
        let mut too_stale = None;
        for _ in 0..MAX_RUNS {
            self.prove(request.max_staleness_ms).await?;
            let changed = self.shared.owned_changed.load(Ordering::SeqCst);
            covered(&self.shared.state(), table, touched)?;
            self.applied(changed).await?;
            let Some(asked_ms) = self.proofs().proven_ms(self.shared.progress.watermark()) else { continue };
            let answer = run().await?;
            covered(&self.shared.state(), table, touched)?;
            let age = age_ms(asked_ms, self.shared.log.now_ms());
            if request.max_staleness_ms.is_some_and(|most| age > most) {
                too_stale = Some(age);
            } else if self.shared.owned_changed.load(Ordering::SeqCst) == changed {
                metrics::histogram!("evenkeel_local_read_staleness_seconds").record(age as f64 / 1_000.0);
                return Ok((answer, age));
            }
        }
        Err(match too_stale {
            Some(age) => Failure::TooStale { staleness_ms: Some(age), bound_ms: request.max_staleness_ms },
            None => Failure::Busy { reason: "ranges come and go at this replica".into(), retry_after_ms: 20 },
        })
    }

    fn proofs(&self) -> MutexGuard<'_, Proofs> {
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the state is proven to be no older than asked for, asking the leader as needed.
    async fn prove(&self, bound_ms: Option<u64>) -> Result<(), Failure> {
        let log = &self.shared.log;
        let (mut fresh, mut applied) = (log.fresh(), self.shared.progress.watch());
        let wanted_ms = bound_ms.unwrap_or(GOOD_MS);
        let began_ms = log.now_ms();
        loop {
            let learned = *fresh.borrow_and_update();
            let watermark = *applied.borrow_and_update();
            let now_ms = log.now_ms();
            let (age, ask, waiting_since_ms) = {
                let mut proofs = self.proofs();
                if let Some(fresh) = learned {
                    proofs.learn(fresh);
                }
                let age = proofs.proven_ms(watermark).map(|asked_ms| age_ms(asked_ms, now_ms));
                // Ahead of need, so that a stream of reads seldom waits.
                let ask = age.is_none_or(|age| age > wanted_ms / 2) && proofs.ask(now_ms);
                (age, ask, proofs.unanswered_since_ms().unwrap_or(began_ms).min(began_ms))
            };
            if ask {
                log.ask_fresh();
            }
            if age.is_some_and(|age| age <= wanted_ms) {
                return Ok(());
            }
            if now_ms.saturating_sub(waiting_since_ms) >= WAIT_MS {
                // Without a bound any age will do, as long as it can be said.
                return match (bound_ms, age) {
                    (None, Some(_)) => Ok(()),
                    _ => Err(Failure::TooStale { staleness_ms: age, bound_ms }),
                };
            }
            // A log or applier that has stopped changes nothing any more; then time passes.
            let pause = tokio::time::sleep(Duration::from_millis(ASK_AGAIN_MS));
            tokio::select! {
                Ok(()) = fresh.changed() => {}
                Ok(()) = applied.changed() => {}
                () = pause => {}
            }
        }
    }

    /// Waits until PostgreSQL holds everything up to `position`.
    async fn applied(&self, position: u64) -> Result<(), Failure> {
        let bound = Duration::from_millis(WAIT_MS);
        tokio::time::timeout(bound, self.shared.progress.reached(position)).await.map_err(|_| Failure::Busy {
            reason: "this replica has not yet applied which ranges it holds".into(),
            retry_after_ms: 20,
        })
    }

    async fn run(
        &self,
        bound: &BoundPlan,
        request: &StatementRequest,
        sql: &Arc<str>,
        added: &[AddedParameter],
        scans: bool,
    ) -> Result<StatementReply, Failure> {
        let bytes = weight(request);
        let _inside = self.gate.enter(Kind::of(&request.sql, bytes), bytes)?;
        let started = Instant::now();
        let mut params = Parameters::new(&request.params);
        params.extend(added);
        let returned = bound.plan.returned();
        let read = if scans {
            self.scans.read(sql, returned, &params).await.map_err(none)?
        } else {
            let place = self.next_session.fetch_add(1, Ordering::Relaxed) % self.sessions.len();
            let executed = async {
                let session = self.session(place).await?;
                let prepared = session.prepare(sql, returned).await?;
                let rows = session.run(&prepared, &params.refs()).await?;
                Ok::<_, StoreError>((prepared, rows))
            };
            executed.await
        };
        let (prepared, rows) = read.map_err(|error| group::lost(&error))?;
        metrics::histogram!("evenkeel_local_read_seconds").record(started.elapsed().as_secs_f64());
        Ok(reply(&prepared.columns, &rows, rows.len())?)
    }

    async fn run_piece(
        &self,
        bound: &BoundPlan,
        request: &StatementRequest,
        sql: &Arc<str>,
        added: &[AddedParameter],
    ) -> Result<Piece, Failure> {
        let _inside = self.gate.enter(Kind::Large, weight(request))?;
        let mut params = Parameters::new(&request.params);
        params.extend(added);
        let read = self.pieces.read_piece(sql, bound.plan.returned(), &params).await.map_err(none)?;
        let (prepared, piece) = read.map_err(|error| group::lost(&error))?;
        Ok(piece.told(&prepared, &bound.codec)?)
    }

    /// The session at this place: a new one if there was none, or if its backend has been ended (with a leadership, R3).
    async fn session(&self, place: usize) -> Result<Arc<UserSession>, StoreError> {
        let mut slot = self.sessions[place].lock().await;
        if let Some(session) = slot.as_ref().filter(|session| !session.is_closed()) {
            return Ok(session.clone());
        }
        let session = UserSession::new(self.shared.connector.connect(Role::User).await?);
        session.simple(SESSION_SETTINGS).await?;
        let session = Arc::new(session);
        *slot = Some(session.clone());
        Ok(session)
    }
}

fn none(error: NoSession) -> Failure {
    match error {
        NoSession::Full(failure) => failure,
        NoSession::Failed(error) => group::lost(&error),
    }
}

fn wrong_parameters(expected: usize, given: usize) -> SqlError {
    SqlError::new(codes::UNDEFINED_PARAMETER, format!("the statement has {expected} parameter(s), {given} given"))
}

/// Whether all keys touched lie in ranges that are owned here, unfenced (R9).
fn covered(state: &ShardState, table: TableId, touches: &Touches) -> Result<(), Failure> {
    let missing = match touches {
        Touches::Nothing => None,
        Touches::Keys(keys) => keys.iter().find(|key| state.owner(table, key).is_none()).cloned(),
        Touches::Intervals(intervals) => intervals.iter().find_map(|interval| {
            let mut at = interval.start.clone();
            loop {
                let Some(range) = state.owner(table, &at) else { return Some(at) };
                match &range.interval.end {
                    Some(end) if interval.end.as_ref().is_none_or(|until| end < until) => at = end.clone(),
                    _ => return None,
                }
            }
        }),
    };
    missing.map_or(Ok(()), |key| Err(elsewhere(state, table, &key)))
}

/// Where a key is that is not owned here, as far as this replica has heard: it may be behind.
fn elsewhere(state: &ShardState, table: TableId, key: &Key) -> Failure {
    if state.moves_in().any(|m| m.table == table && m.interval.contains(key)) {
        let reason = "the range is coming to this replica".to_string();
        return Failure::Busy { reason, retry_after_ms: 20 };
    }
    let gone = state
        .moves_out()
        .filter(|m| m.phase != crate::state_machine::OutPhase::Open && m.table == table && m.interval.contains(key))
        .max_by_key(|m| m.epoch);
    Failure::Moved { to: gone.map(|m| m.to.id), range: gone.map(|m| (m.range, m.epoch.next())) }
}
