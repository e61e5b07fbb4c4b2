//! Executes `local` reads; see [`super`].

use super::ownership::check_owned;
use super::proofs::{ASK_AGAIN_MS, Proofs, age_ms};
use crate::leader::admission_control::{AdmissionControl, StatementKind};
use crate::leader::clip::{AddedParameter, Narrowed, clipped, touches};
use crate::leader::failures::not_executed;
use crate::leader::plan_cache::{BoundPlan, PlanCache};
use crate::leader::postgres_session::{Parameters, UserSession, reply};
use crate::leader::reads::{check_piecewise, unless_gone};
use crate::leader::scan_sessions::ScanSessions;
use crate::leader::session_pool::NoSession;
use crate::leader::statement::weight;
use crate::postgres::SessionRole;
use crate::replica::ReplicaHandles;
use crate::storage::StoreError;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{Piece, PieceRequest, StatementReply, StatementRequest};
use evenkeel_protocol::{Failure, SqlError};
use evenkeel_rpc::Gone;
use evenkeel_sql::Touches;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a read waits for a sufficient proof, in milliseconds. A leader that does not answer for
/// as long is not waited for any more.
const WAIT_MS: u64 = 250;
/// The age, in milliseconds, above which a read without a staleness bound waits for a proof.
const GOOD_MS: u64 = 100;
/// The most executions of a read whose ranges changed, or whose proof became too old, meanwhile.
const MAX_RUNS: usize = 3;
/// Sessions for whole scans, and as many for pieces.
pub const LOCAL_SCAN_SESSIONS: usize = 2;
/// A time limit. A user cannot change it (R6).
const SESSION_SETTINGS: &str = "SET statement_timeout = '30s'";

/// See [`super`]. Lives as long as one server start.
pub struct LocalReads {
    shared: ReplicaHandles,
    admission: Arc<AdmissionControl>,
    plans: PlanCache,
    sessions: Vec<tokio::sync::Mutex<Option<Arc<UserSession>>>>,
    next_session: AtomicUsize,
    scans: ScanSessions,
    pieces: ScanSessions,
    proofs: Mutex<Proofs>,
}

impl LocalReads {
    /// Reads over this many sessions, which are opened when they are needed first.
    pub fn new(shared: ReplicaHandles, sessions: usize) -> LocalReads {
        let sessions: Vec<_> = (0..sessions.max(1)).map(|_| tokio::sync::Mutex::default()).collect();
        LocalReads {
            scans: ScanSessions::new(&shared.connector, LOCAL_SCAN_SESSIONS),
            pieces: ScanSessions::for_pieces(&shared.connector, LOCAL_SCAN_SESSIONS),
            shared,
            admission: AdmissionControl::new(sessions.len()),
            plans: PlanCache::default(),
            sessions,
            next_session: AtomicUsize::new(0),
            proofs: Mutex::default(),
        }
    }

    /// Answers a read. A scan is cancelled when `gone` says that its client has gone.
    ///
    /// # Errors
    /// [`Failure::TooStale`] if the staleness bound cannot be proven, [`Failure::Moved`] if the
    /// keys are not here, [`Failure::Overloaded`] if admission control rejects it, and 25006 if it
    /// is not a read.
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
    /// As [`LocalReads::read`]; 0A000 for a statement that cannot be read piece by piece.
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
        let schema_version = self.shared.schema_version();
        let bound = self.plans.bind(request, &self.shared.state(), schema_version)?;
        if bound.plan.writes() || bound.plan.locks() {
            let error = SqlError::new(codes::READ_ONLY, "a read at level local can neither change nor lock rows");
            return Err(error.hint("Choose another read level for this statement.").into());
        }
        Ok(bound)
    }

    /// Executes a read, several times if necessary, until the age of its answer is proven and its
    /// rows are known to be owned here. Returns the age in milliseconds.
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
            check_owned(&self.shared.state(), table, touched)?;
            self.applied(changed).await?;
            if bound.schema_version != self.shared.schema_version() {
                return Err(Failure::Busy { reason: "the schema has changed".into(), retry_after_ms: 0 });
            }
            let Some(asked_ms) = self.proofs().proven_ms(self.shared.progress.watermark()) else { continue };
            let answer = run().await?;
            check_owned(&self.shared.state(), table, touched)?;
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

    /// Waits until the state is proven to be within the staleness bound, and asks the leader as
    /// needed.
    async fn prove(&self, bound_ms: Option<u64>) -> Result<(), Failure> {
        let log = &self.shared.log;
        let (mut fresh, mut applied) = (log.staleness_bound(), self.shared.progress.watch());
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
                // Ahead of need, so that a sequence of reads rarely waits.
                let ask = age.is_none_or(|age| age > wanted_ms / 2) && proofs.ask(now_ms);
                (age, ask, proofs.unanswered_since_ms().unwrap_or(began_ms).min(began_ms))
            };
            if ask {
                log.ask_staleness_bound();
            }
            if age.is_some_and(|age| age <= wanted_ms) {
                return Ok(());
            }
            if now_ms.saturating_sub(waiting_since_ms) >= WAIT_MS {
                // Without a bound, any proven age is sufficient.
                return match (bound_ms, age) {
                    (None, Some(_)) => Ok(()),
                    _ => Err(Failure::TooStale { staleness_ms: age, bound_ms }),
                };
            }
            // The pause also ends the wait for a log or an applier that has stopped.
            let pause = evenkeel_host::sleep(Duration::from_millis(ASK_AGAIN_MS));
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
        evenkeel_host::timeout(bound, self.shared.progress.reached(position)).await.map_err(|_| Failure::Busy {
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
        let _admitted = self.admission.admit(StatementKind::of(&request.sql, bytes), bytes)?;
        let started = evenkeel_host::now();
        let mut params = Parameters::new(&request.params);
        params.extend(added);
        let returned = bound.plan.returned();
        let read = if scans {
            self.scans.read(sql, returned, &params).await.map_err(no_session)?
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
        let (prepared, rows) = read.map_err(|error| not_executed(&error))?;
        metrics::histogram!("evenkeel_local_read_seconds").record(evenkeel_host::elapsed(started).as_secs_f64());
        Ok(reply(&prepared.columns, &rows, rows.len())?)
    }

    async fn run_piece(
        &self,
        bound: &BoundPlan,
        request: &StatementRequest,
        sql: &Arc<str>,
        added: &[AddedParameter],
    ) -> Result<Piece, Failure> {
        let _admitted = self.admission.admit(StatementKind::Large, weight(request))?;
        let mut params = Parameters::new(&request.params);
        params.extend(added);
        let read = self.pieces.read_piece(sql, bound.plan.returned(), &params).await.map_err(no_session)?;
        let (prepared, piece) = read.map_err(|error| not_executed(&error))?;
        Ok(piece.to_piece(&prepared, &bound.codec)?)
    }

    /// The session at this place. A new one if there was none, or if its backend was ended with a
    /// leadership (R3).
    async fn session(&self, place: usize) -> Result<Arc<UserSession>, StoreError> {
        let mut at_place = self.sessions[place].lock().await;
        if let Some(session) = at_place.as_ref().filter(|session| !session.is_closed()) {
            return Ok(session.clone());
        }
        let session = UserSession::new(self.shared.connector.connect(SessionRole::User).await?, &self.shared.connector);
        session.simple(SESSION_SETTINGS).await?;
        let session = Arc::new(session);
        *at_place = Some(session.clone());
        Ok(session)
    }
}

fn no_session(error: NoSession) -> Failure {
    match error {
        NoSession::Full(failure) => failure,
        NoSession::Failed(error) => not_executed(&error),
    }
}
