//! Warm sessions: PostgreSQL sessions that a follower opens ahead for its next leadership.
//!
//! A session costs PostgreSQL a process, and a leadership needs one for each write queue. Opening
//! them would be the longest part of a planned transfer of leadership. Nothing has been executed on
//! a warm session, so it belongs to no leadership before one takes it (R1). Sessions that have
//! ended meanwhile are not used. The applier owns the warm sessions, so they live as long as one
//! server start.

use super::postgres_session::UserSession;
use super::{read_sessions, write_queue};
use crate::config::Config;
use crate::postgres::Connector;
use crate::storage::StoreError;
use futures::future::try_join_all;
use std::sync::Arc;
use tokio::sync::Mutex;

/// The sessions of one leadership.
pub struct LeaderSessions {
    /// One for each write queue, opened by [`write_queue::open`].
    pub writers: Vec<UserSession>,
    /// For reads by key, opened by [`read_sessions::open`].
    pub readers: Vec<UserSession>,
}

impl LeaderSessions {
    /// Opens all of them at the same time.
    async fn open(connector: &Connector, config: &Config) -> Result<LeaderSessions, StoreError> {
        let writers = try_join_all((0..config.write_lanes.max(1)).map(|_| write_queue::open(connector)));
        let readers = try_join_all((0..config.read_lanes.max(1)).map(|_| read_sessions::open(connector)));
        let (writers, readers) = futures::future::try_join(writers, readers).await?;
        Ok(LeaderSessions { writers, readers })
    }

    fn all_open(&self) -> bool {
        self.writers.iter().chain(&self.readers).all(|session| !session.is_closed())
    }
}

/// See the module.
#[derive(Clone)]
pub struct WarmSessions {
    connector: Connector,
    config: Arc<Config>,
    /// Locked while sessions are opened, so that a leadership waits for them instead of opening its
    /// own.
    ready: Arc<Mutex<Option<LeaderSessions>>>,
}

impl WarmSessions {
    /// No session is open yet.
    pub fn new(connector: Connector, config: Arc<Config>) -> WarmSessions {
        WarmSessions { connector, config, ready: Arc::default() }
    }

    /// Opens sessions in the background, unless they are open. Errors are ignored: a leadership
    /// that needs the sessions meets them again.
    pub fn prepare(&self) {
        let warm = self.clone();
        tokio::spawn(async move {
            let mut ready = warm.ready.lock().await;
            if !ready.as_ref().is_some_and(LeaderSessions::all_open) {
                *ready = LeaderSessions::open(&warm.connector, &warm.config)
                    .await
                    .inspect_err(|error| tracing::debug!(%error, "no warm sessions"))
                    .ok();
            }
        });
    }

    /// The sessions of a leadership: the warm ones, otherwise new ones.
    pub async fn take(&self) -> Result<LeaderSessions, StoreError> {
        let ready = self.ready.lock().await.take();
        match ready.filter(LeaderSessions::all_open) {
            Some(sessions) => Ok(sessions),
            None => LeaderSessions::open(&self.connector, &self.config).await,
        }
    }
}
