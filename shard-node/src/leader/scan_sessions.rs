//! Scan sessions: the PostgreSQL sessions of reads that may take long, whole scans and pieces of
//! scans.
//!
//! PostgreSQL answers a session's statements in order, so each of these sessions is used by one
//! read at a time. The module promises:
//!
//! - A read that is dropped before it has ended is cancelled in PostgreSQL. Its session is not used
//!   again, because a late cancellation would hit the next statement.
//! - A read waits for a session for a limited time. The read itself has a time limit, too.

use super::postgres_session::{Parameters, PieceRows, Prepared, UserSession};
use super::read_sessions;
use super::session_pool::NoSession;
use crate::postgres::Connector;
use crate::storage::StoreError;
use evenkeel_protocol::Failure;
use evenkeel_protocol::error::codes;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit as OwnedPlace, Semaphore};
use tokio_postgres::Row;

/// Sessions of a leader for whole scans, and as many for pieces. A long scan does not delay pieces.
pub const SCAN_SESSIONS: usize = 4;
/// How long a scan waits for a session before it is rejected, in milliseconds. Its client tries
/// again.
const WAIT_MS: u64 = 2_000;

/// The settings of sessions for pieces. A piece is read in key order, which the index provides, so
/// nothing has to be sorted.
const PIECE_SETTINGS: &str = "SET enable_sort = off; SET enable_bitmapscan = off";

/// See the module.
pub struct ScanSessions {
    connector: Connector,
    for_pieces: bool,
    idle: Arc<Mutex<Vec<UserSession>>>,
    free: Arc<Semaphore>,
}

/// A session for one read. Dropping it cancels the read.
struct Lease {
    connector: Connector,
    idle: Arc<Mutex<Vec<UserSession>>>,
    session: Option<(UserSession, OwnedPlace)>,
}

impl Lease {
    /// The read has ended. Another may use the session.
    fn end(mut self) {
        if let Some((session, _place)) = self.session.take() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some((session, place)) = self.session.take() else { return };
        metrics::counter!("evenkeel_reads_cancelled_total").increment(1);
        let connector = self.connector.clone();
        // Outside of a runtime, the process is ending, and its PostgreSQL too.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                connector.cancel(session.cancel_token()).await;
                drop((session, place));
            });
        }
    }
}

impl ScanSessions {
    /// At most `sessions` sessions. None is open yet.
    pub fn new(connector: &Connector, sessions: usize) -> ScanSessions {
        let free = Arc::new(Semaphore::new(sessions));
        ScanSessions { connector: connector.clone(), for_pieces: false, idle: Arc::default(), free }
    }

    /// The same for pieces.
    pub fn for_pieces(connector: &Connector, sessions: usize) -> ScanSessions {
        ScanSessions { for_pieces: true, ..ScanSessions::new(connector, sessions) }
    }

    async fn lease(&self) -> Result<Lease, NoSession> {
        let wait = Duration::from_millis(WAIT_MS);
        let Ok(Ok(place)) = evenkeel_host::timeout(wait, self.free.clone().acquire_owned()).await else {
            let reason = "too many scans are under way".to_string();
            return Err(NoSession::Full(Failure::Busy { reason, retry_after_ms: 50 }));
        };
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let session = match idle.filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => {
                let session = read_sessions::open(&self.connector).await.map_err(NoSession::Failed)?;
                if self.for_pieces {
                    session.simple(PIECE_SETTINGS).await.map_err(NoSession::Failed)?;
                }
                session
            }
        };
        Ok(Lease { connector: self.connector.clone(), idle: self.idle.clone(), session: Some((session, place)) })
    }

    /// Reads all of a statement's rows.
    ///
    /// # Errors
    /// As [`UserSession::run`]. The outer error says that there is no session.
    pub async fn read(
        &self,
        sql: &Arc<str>,
        returned: usize,
        parameters: &Parameters<'_>,
    ) -> Result<Result<(Arc<Prepared>, Vec<Row>), StoreError>, NoSession> {
        let lease = self.lease().await?;
        let Some((session, _)) = &lease.session else { return Ok(Err(StoreError::SessionLost)) };
        let read = async {
            let prepared = session.prepare(sql, returned).await?;
            let rows = session.run(&prepared, &parameters.refs()).await?;
            Ok((prepared, rows))
        };
        let read = read.await;
        if read.as_ref().map_or_else(has_ended, |_| true) {
            lease.end();
        }
        Ok(read)
    }

    /// Reads a piece of a statement's rows.
    ///
    /// # Errors
    /// As [`UserSession::run_piece`]. The outer error says that there is no session.
    pub async fn read_piece(
        &self,
        sql: &Arc<str>,
        returned: usize,
        parameters: &Parameters<'_>,
    ) -> Result<Result<(Arc<Prepared>, PieceRows), StoreError>, NoSession> {
        let mut lease = self.lease().await?;
        let Some((session, _)) = &mut lease.session else { return Ok(Err(StoreError::SessionLost)) };
        let read = async {
            let prepared = session.prepare(sql, returned).await?;
            let piece = session.run_piece(&prepared, &parameters.refs()).await?;
            Ok((prepared, piece))
        };
        let read = read.await;
        if read.as_ref().map_or_else(has_ended, |(_, piece)| piece.drained) {
            lease.end();
        }
        Ok(read)
    }
}

/// Whether the failed statement has ended in PostgreSQL. A statement with too many rows is rejected
/// here and still runs there.
fn has_ended(error: &StoreError) -> bool {
    matches!(error, StoreError::Refused(error) if error.code != codes::PROGRAM_LIMIT)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::postgres::{Postgres, PostgresConfig, Resources};

    async fn start(dir: &tempfile::TempDir) -> Postgres {
        let config = PostgresConfig {
            bin_dir: None,
            data_dir: dir.path().to_path_buf(),
            resources: Resources { shared_buffers_mib: Some(16), ..Resources::default() },
            max_connections: 20,
        };
        Postgres::start(config).await.unwrap()
    }

    // E3: a read whose client has gone is cancelled in PostgreSQL, and its place is free again.
    #[tokio::test]
    async fn a_read_that_is_dropped_is_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let postgres = start(&dir).await;
        let connector = postgres.connector();
        let scans = Arc::new(ScanSessions::new(&connector, SCAN_SESSIONS));
        let observer = read_sessions::open(&connector).await.unwrap();
        let sleeping: Arc<str> = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%3600%' AND state = 'active'\
             AND pid <> pg_backend_pid()"
            .into();
        let sleeping = observer.prepare(&sleeping, 1).await.unwrap();
        let sleepers = async || {
            let rows = observer.run(&sleeping, &[]).await.unwrap();
            rows[0].try_get::<_, i64>(0).unwrap()
        };
        let mut reads = Vec::new();
        for _ in 0..SCAN_SESSIONS {
            let scans = scans.clone();
            reads.push(tokio::spawn(async move {
                let sql = "SELECT pg_sleep(3600)".into();
                _ = scans.read(&sql, 1, &Parameters::new(&[])).await;
            }));
        }
        while sleepers().await < SCAN_SESSIONS as i64 {
            tokio::task::yield_now().await;
        }
        reads.iter().for_each(tokio::task::JoinHandle::abort);
        let began = evenkeel_host::now();
        while sleepers().await > 0 {
            assert!(evenkeel_host::elapsed(began) < Duration::from_secs(20), "the dropped reads still run");
            tokio::task::yield_now().await;
        }
        let read = scans.read(&"SELECT 1".into(), 1, &Parameters::new(&[])).await;
        assert!(matches!(read, Ok(Ok(_))));
        drop((scans, observer));
        postgres.stop().await.unwrap();
    }
}
