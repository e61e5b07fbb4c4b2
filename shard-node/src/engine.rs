//! The database server of a replica: PostgreSQL, or what a simulation puts in its place.
//!
//! Both speak PostgreSQL's protocol, so that everything above a session ([`crate::store`], [`crate::leader`]) is the same code for both.
//! It decides nothing and promises what [`crate::postgres`] promises.

use crate::postgres::{Connector, Postgres, PostgresConfig, PostgresError};
use crate::progress::Progress;
use crate::store::keep_clean;
use evenkeel_host::Server;
use std::sync::Arc;
use tokio::sync::watch;

/// The server, running or not.
pub enum Engine {
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

impl Engine {
    /// See [`Postgres::claim`].
    ///
    /// # Errors
    /// As there.
    pub async fn claim(config: PostgresConfig) -> Result<Engine, PostgresError> {
        match evenkeel_host::simulation() {
            Some(simulation) => Ok(Engine::Simulated { server: simulation.server(&config.data_dir), start: None }),
            None => Postgres::claim(config).await.map(|postgres| Engine::Postgres(Box::new(postgres))),
        }
    }

    /// See [`Postgres::restart`].
    ///
    /// # Errors
    /// As there.
    pub async fn restart(&mut self) -> Result<(), PostgresError> {
        match self {
            Engine::Postgres(postgres) => postgres.restart().await,
            Engine::Simulated { server, start } => {
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
            Engine::Postgres(postgres) => postgres.halt().await,
            Engine::Simulated { server, .. } => {
                server.halt();
                Ok(())
            }
        }
    }

    /// See [`keep_clean`]. A simulation's server keeps nothing that is deleted. Never returns.
    pub async fn keep_clean(&self, progress: &Arc<Progress>) {
        match self {
            Engine::Postgres(postgres) => keep_clean(&postgres.connector(), progress).await,
            Engine::Simulated { .. } => std::future::pending().await,
        }
    }

    /// See [`Postgres::free_bytes`].
    ///
    /// # Errors
    /// As there.
    pub fn free_bytes(&self) -> Result<u64, PostgresError> {
        match self {
            Engine::Postgres(postgres) => postgres.free_bytes(),
            Engine::Simulated { .. } => Ok(u64::MAX),
        }
    }

    /// See [`Postgres::discard`].
    ///
    /// # Errors
    /// As there.
    pub async fn discard(&mut self) -> Result<(), PostgresError> {
        match self {
            Engine::Postgres(postgres) => postgres.discard().await,
            Engine::Simulated { server, .. } => {
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
            Engine::Postgres(postgres) => postgres.forget_discarded().await,
            Engine::Simulated { .. } => Ok(()),
        }
    }

    /// See [`Postgres::down`].
    pub fn down(&self) -> watch::Receiver<bool> {
        match self {
            Engine::Postgres(postgres) => postgres.down(),
            Engine::Simulated { server, start: Some(_) } => server.down(),
            Engine::Simulated { start: None, .. } => watch::channel(true).1,
        }
    }

    /// See [`Postgres::pid`].
    pub fn pid(&self) -> Option<u32> {
        match self {
            Engine::Postgres(postgres) => postgres.pid(),
            Engine::Simulated { server, start } => start.filter(|_| !*server.down().borrow()),
        }
    }

    /// See [`Postgres::connector`].
    pub fn connector(&self) -> Connector {
        match self {
            Engine::Postgres(postgres) => postgres.connector(),
            Engine::Simulated { server, .. } => Connector::simulated(server.clone()),
        }
    }

    /// See [`Postgres::stop`].
    ///
    /// # Errors
    /// As there.
    pub async fn stop(self) -> Result<(), PostgresError> {
        match self {
            Engine::Postgres(postgres) => postgres.stop().await,
            Engine::Simulated { server, .. } => {
                server.halt();
                Ok(())
            }
        }
    }
}
