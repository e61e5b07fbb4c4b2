//! Configuration of a replica's PostgreSQL server.

use super::sizing::Resources;
use std::path::PathBuf;

/// The oldest major version that works: the privileges on `public` and the server's settings are
/// those of 15.
pub const MIN_MAJOR: u32 = 15;

/// What the server needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    /// The folder with `postgres` and `initdb`; `None`: found (see [`MIN_MAJOR`]).
    pub bin_dir: Option<PathBuf>,
    /// The node's data directory; the server's data goes into `postgres` below it.
    pub data_dir: PathBuf,
    /// Its share of the machine.
    pub resources: Resources,
    /// `max_connections`.
    pub max_connections: u32,
}
