//! PostgreSQL sessions opened ahead of a leadership, so that it need not begin by opening them.
//!
//! Opening a session costs PostgreSQL a process, and a leadership needs a session for each lane: together the longest part of a planned
//! hand-over of leadership. So a follower keeps the sessions of its next leadership ready. Nothing has been executed on a spare,
//! so it belongs to no leadership before one takes it (R1); one that has ended meanwhile is not used. The owner is the applier, so
//! spares live and end with one start of PostgreSQL.

use super::session::UserSession;
use super::{lanes, readers};
use crate::config::Config;
use crate::postgres::{Connector, Role};
use crate::storage::StoreError;
use futures::future::try_join_all;
use std::sync::Arc;
use tokio::sync::Mutex;

/// The sessions of one leadership.
pub struct Sessions {
    /// One for each lane of writes, with [`lanes::SESSION_SETTINGS`].
    pub writers: Vec<UserSession>,
    /// For keyed reads, with [`readers::SESSION_SETTINGS`].
    pub readers: Vec<UserSession>,
}

impl Sessions {
    /// Opens them, all at the same time.
    async fn open(connector: &Connector, config: &Config) -> Result<Sessions, StoreError> {
        let writer = || async {
            let session = UserSession::new(connector.connect(Role::User).await?);
            session.simple(lanes::SESSION_SETTINGS).await?;
            Ok::<_, StoreError>(session)
        };
        let writers = try_join_all((0..config.write_lanes.max(1)).map(|_| writer()));
        let readers = try_join_all((0..config.read_lanes.max(1)).map(|_| readers::open(connector)));
        let (writers, readers) = futures::future::try_join(writers, readers).await?;
        Ok(Sessions { writers, readers })
    }

    fn all_open(&self) -> bool {
        self.writers.iter().chain(&self.readers).all(|session| !session.is_closed())
    }
}

/// See the module.
#[derive(Clone)]
pub struct Spares {
    connector: Connector,
    config: Arc<Config>,
    /// Held while opening: who takes in the meantime waits instead of opening as many again.
    ready: Arc<Mutex<Option<Sessions>>>,
}

impl Spares {
    /// None yet.
    pub fn new(connector: Connector, config: Arc<Config>) -> Spares {
        Spares { connector, config, ready: Arc::default() }
    }

    /// Has sessions opened in the background, unless they are there. A failure is not told: whoever takes meets it again.
    pub fn prepare(&self) {
        let spares = self.clone();
        tokio::spawn(async move {
            let mut ready = spares.ready.lock().await;
            if !ready.as_ref().is_some_and(Sessions::all_open) {
                *ready = Sessions::open(&spares.connector, &spares.config)
                    .await
                    .inspect_err(|error| tracing::debug!(%error, "no spare sessions"))
                    .ok();
            }
        });
    }

    /// Sessions for a leadership: those that are ready, else new ones.
    pub async fn take(&self) -> Result<Sessions, StoreError> {
        let ready = self.ready.lock().await.take();
        match ready.filter(Sessions::all_open) {
            Some(sessions) => Ok(sessions),
            None => Sessions::open(&self.connector, &self.config).await,
        }
    }
}
