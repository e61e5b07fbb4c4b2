//! The database server of a replica: PostgreSQL, or the simulation's substitute.
//!
//! Both speak PostgreSQL's protocol, so that everything above a session ([`crate::storage`],
//! [`crate::leader`]) is the same code for both. A handle decides nothing and promises the same as
//! [`crate::postgres`].

use super::config::PostgresConfig;
use super::connector::Connector;
use super::error::PostgresError;
use super::server::Postgres;
use crate::progress::Progress;
use crate::storage::keep_vacuumed;
use evenkeel_host::Server;
use std::sync::Arc;
use tokio::sync::watch;

/// The server, running or not.
pub enum PostgresHandle {
    /// A process of this machine.
    Postgres(Box<Postgres>),
    /// A simulation's.
    Simulated {
        /// The server, which outlives this process.
        server: Arc<dyn Server>,
        /// Which start of it is this process's; `None` before the first.
        start: Option<u32>,
    },
}

impl PostgresHandle {
    /// See [`Postgres::claim`].
    ///
    /// # Errors
    /// As there.
    pub async fn claim(config: PostgresConfig) -> Result<PostgresHandle, PostgresError> {
        match evenkeel_host::simulation() {
            Some(simulation) => {
                Ok(PostgresHandle::Simulated { server: simulation.server(&config.data_dir), start: None })
            }
            None => Postgres::claim(config).await.map(|postgres| PostgresHandle::Postgres(Box::new(postgres))),
        }
    }

    /// See [`Postgres::restart`].
    ///
    /// # Errors
    /// As there.
    pub async fn restart(&mut self) -> Result<(), PostgresError> {
        match self {
            PostgresHandle::Postgres(postgres) => postgres.restart().await,
            PostgresHandle::Simulated { server, start } => {
                // R2: what an earlier node has left is ended before anything is read.
                *start = Some(server.start().map_err(|detail| PostgresError::Failed { what: "starting", detail })?);
                Ok(())
            }
        }
    }

    /// See [`Postgres::halt`].
    ///
    /// # Errors
    /// As there.
    pub async fn halt(&mut self) -> Result<(), PostgresError> {
        match self {
            PostgresHandle::Postgres(postgres) => postgres.halt().await,
            PostgresHandle::Simulated { server, .. } => {
                server.halt();
                Ok(())
            }
        }
    }

    /// See [`keep_vacuumed`]. A simulation's server keeps nothing that is deleted. Never returns.
    pub async fn keep_vacuumed(&self, progress: &Arc<Progress>) {
        match self {
            PostgresHandle::Postgres(postgres) => keep_vacuumed(&postgres.connector(), progress).await,
            PostgresHandle::Simulated { .. } => std::future::pending().await,
        }
    }

    /// See [`Postgres::free_bytes`].
    ///
    /// # Errors
    /// As there.
    pub fn free_bytes(&self) -> Result<u64, PostgresError> {
        match self {
            PostgresHandle::Postgres(postgres) => postgres.free_bytes(),
            PostgresHandle::Simulated { .. } => Ok(u64::MAX),
        }
    }

    /// See [`Postgres::discard`].
    ///
    /// # Errors
    /// As there.
    pub async fn discard(&mut self) -> Result<(), PostgresError> {
        match self {
            PostgresHandle::Postgres(postgres) => postgres.discard().await,
            PostgresHandle::Simulated { server, .. } => {
                server.discard();
                Ok(())
            }
        }
    }

    /// See [`Postgres::forget_discarded`].
    ///
    /// # Errors
    /// As there.
    pub async fn forget_discarded(&self) -> Result<(), PostgresError> {
        match self {
            PostgresHandle::Postgres(postgres) => postgres.forget_discarded().await,
            PostgresHandle::Simulated { .. } => Ok(()),
        }
    }

    /// See [`Postgres::down`].
    pub fn down(&self) -> watch::Receiver<bool> {
        match self {
            PostgresHandle::Postgres(postgres) => postgres.down(),
            PostgresHandle::Simulated { server, start: Some(_) } => server.down(),
            PostgresHandle::Simulated { start: None, .. } => watch::channel(true).1,
        }
    }

    /// See [`Postgres::pid`].
    pub fn pid(&self) -> Option<u32> {
        match self {
            PostgresHandle::Postgres(postgres) => postgres.pid(),
            PostgresHandle::Simulated { server, start } => start.filter(|_| !*server.down().borrow()),
        }
    }

    /// See [`Postgres::connector`].
    pub fn connector(&self) -> Connector {
        match self {
            PostgresHandle::Postgres(postgres) => postgres.connector(),
            PostgresHandle::Simulated { server, .. } => Connector::simulated(server.clone()),
        }
    }

    /// See [`Postgres::stop`].
    ///
    /// # Errors
    /// As there.
    pub async fn stop(self) -> Result<(), PostgresError> {
        match self {
            PostgresHandle::Postgres(postgres) => postgres.stop().await,
            PostgresHandle::Simulated { server, .. } => {
                server.halt();
                Ok(())
            }
        }
    }
}
