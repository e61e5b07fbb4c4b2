//! The server's configuration, as text: pure, so that each setting and its reason can be read and
//! tested in one place.

use super::config::PostgresConfig;
use super::sizing::Sizing;
use std::path::Path;

/// Every process may connect that can enter the socket's folder, which is the node alone.
pub(super) const HBA: &str = "local all all trust\n";

/// `postgresql.auto.conf`, whole.
pub(super) const AUTO: &str = "# Emptied by Evenkeel at every start; ALTER SYSTEM does not last.\n";

/// How the server compresses the full pages of its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WalCompression {
    /// Fast; not in every build.
    Lz4,
    /// In every build.
    Pglz,
}

/// `postgresql.conf`, whole. It is written again at every start.
pub(super) fn render(
    config: &PostgresConfig,
    sizing: &Sizing,
    compression: WalCompression,
    socket_dir: &Path,
) -> String {
    let mut text = String::from("# Written by Evenkeel at every start; changes are lost.\n");
    let mib = |mib: u64| format!("{mib}MB");
    let compression = match compression {
        WalCompression::Lz4 => "lz4",
        WalCompression::Pglz => "on",
    };
    let variable = [
        ("unix_socket_directories", format!("'{}'", socket_dir.display())),
        ("max_connections", config.max_connections.to_string()),
        ("shared_buffers", mib(sizing.shared_buffers_mib)),
        ("effective_cache_size", mib(sizing.effective_cache_mib)),
        ("maintenance_work_mem", mib(sizing.maintenance_work_mib)),
        ("wal_buffers", mib(sizing.wal_buffers_mib)),
        ("max_wal_size", mib(sizing.max_wal_mib)),
        ("min_wal_size", mib(sizing.min_wal_mib)),
        ("wal_compression", compression.to_string()),
    ];
    let fixed = FIXED.iter().map(|(name, value)| (*name, (*value).to_string()));
    for (name, value) in variable.into_iter().chain(fixed) {
        text.push_str(&format!("{name} = {value}\n"));
    }
    text
}

const FIXED: &[(&str, &str)] = &[
    // The socket is the only way in.
    ("listen_addresses", "''"),
    ("port", "5432"),
    ("unix_socket_permissions", "0700"),
    // The log's fsync is the only one a write waits for. `fsync` and full pages stay on, so that
    // after a crash the data is behind, never torn.
    ("synchronous_commit", "off"),
    ("fsync", "on"),
    ("full_page_writes", "on"),
    // Asynchronous commits reach the disk within three times this delay, or once so much waits;
    // each flush competes with the log's fsync.
    ("wal_writer_delay", "500ms"),
    ("wal_writer_flush_after", "8MB"),
    // Replication is the log's work, not the server's.
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("max_logical_replication_workers", "0"),
    // Checkpoints come by the log's length (see `sizing`): each makes every page be logged whole
    // once more, and its fsyncs stand before the log's.
    ("checkpoint_timeout", "15min"),
    ("checkpoint_completion_target", "0.9"),
    // R7: a transaction that outlives its session would bypass the log.
    ("max_prepared_transactions", "0"),
    // R1: a crash of one backend takes back commits that other sessions have seen. The server must
    // not hide that by restarting within: it ends, the supervisor sees it, the leadership ends.
    ("restart_after_crash", "off"),
    // Short statements on keys gain nothing from either and pay for both.
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("max_worker_processes", "2"),
    ("huge_pages", "off"),
    // At PostgreSQL's own pace, which users' tables want; the replica's own are seen to by
    // `store::keep_vacuumed`.
    ("autovacuum", "on"),
    ("autovacuum_max_workers", "2"),
    // R6: nothing in the server ends a statement or a session by itself; the node owns the time
    // limits.
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("deadlock_timeout", "200ms"),
    ("temp_file_limit", "1GB"),
    // Checksums hash the text form of rows, which must be the same on every replica.
    ("timezone", "'UTC'"),
    ("datestyle", "'iso, ymd'"),
    ("intervalstyle", "'postgres'"),
    ("extra_float_digits", "1"),
    ("bytea_output", "'hex'"),
    ("lc_messages", "'C'"),
    ("search_path", "'public'"),
    // Users' mistakes are answered, not logged: the log stays short.
    ("logging_collector", "off"),
    ("log_min_messages", "log"),
    ("log_min_error_statement", "panic"),
    ("log_checkpoints", "off"),
    ("log_autovacuum_min_duration", "-1"),
    ("log_timezone", "'UTC'"),
    ("log_line_prefix", "'%m [%p] '"),
    ("update_process_title", "off"),
];

/// The account of sessions that run statements which the shard has analysed.
pub(super) const USER: &str = "evenkeel_user";
/// The account of sessions that run users' own texts.
pub(super) const PASS_THROUGH_USER: &str = "evenkeel_user_pass_through";

/// Run once by the superuser: the account of users' sessions, which can change rows and nothing
/// else (R6). It may create nothing, not even temporary tables, end no other session, and change no
/// setting through a function. Its sessions are replica sessions: no trigger fires, so that those
/// which report changes (R7) cost nothing where RETURNING does it.
pub(super) const MAKE_USER: &str = "
BEGIN;
CREATE ROLE evenkeel_user LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
ALTER ROLE evenkeel_user SET session_replication_role TO replica;
REVOKE ALL ON DATABASE postgres FROM PUBLIC;
GRANT CONNECT ON DATABASE postgres TO evenkeel_user;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO evenkeel_user;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO evenkeel_user;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, USAGE, UPDATE ON SEQUENCES TO evenkeel_user;
REVOKE EXECUTE ON FUNCTION pg_catalog.pg_terminate_backend(int, bigint), pg_catalog.pg_cancel_backend(int),
    pg_catalog.set_config(text, text, boolean), pg_catalog.lo_create(oid), pg_catalog.lo_creat(int),
    pg_catalog.lo_from_bytea(oid, bytea) FROM PUBLIC;
COMMIT";

/// Run once by the superuser, behind [`MAKE_USER`]: the role that executes schema changes and owns
/// what they make. Nobody logs in as that role.
pub(super) const MAKE_OWNER: &str = "CREATE ROLE evenkeel_owner NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE";

/// What the owner may do, and what users may do with all that it will make. Run once behind
/// [`MAKE_OWNER`], and again whenever all that it owns has been dropped.
pub(crate) const OWNER_PRIVILEGES: &str = "
GRANT CONNECT, CREATE ON DATABASE postgres TO evenkeel_owner;
ALTER SCHEMA public OWNER TO evenkeel_owner;
GRANT USAGE ON SCHEMA public TO evenkeel_user;
ALTER DEFAULT PRIVILEGES FOR ROLE evenkeel_owner GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO evenkeel_user;
ALTER DEFAULT PRIVILEGES FOR ROLE evenkeel_owner GRANT TRUNCATE ON TABLES TO evenkeel_user_pass_through;
ALTER DEFAULT PRIVILEGES FOR ROLE evenkeel_owner GRANT USAGE, SELECT, UPDATE ON SEQUENCES TO evenkeel_user;
ALTER DEFAULT PRIVILEGES FOR ROLE evenkeel_owner GRANT EXECUTE ON FUNCTIONS TO evenkeel_user;
ALTER DEFAULT PRIVILEGES FOR ROLE evenkeel_owner GRANT USAGE ON TYPES TO evenkeel_user;
ALTER DEFAULT PRIVILEGES FOR ROLE evenkeel_owner GRANT USAGE ON SCHEMAS TO evenkeel_user";

/// The same: the account of sessions that run users' own texts. It has the other's privileges. Its
/// triggers fire, and it cannot change that: `session_replication_role` is a superuser's to set,
/// and the other account's setting is not inherited.
pub(super) const MAKE_PASS_THROUGH_USER: &str = "
CREATE ROLE evenkeel_user_pass_through LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE INHERIT IN ROLE evenkeel_user;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT TRUNCATE ON TABLES TO evenkeel_user_pass_through";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::sizing::Resources;
    use super::*;

    #[test]
    fn every_setting_is_made_once_and_the_variable_ones_are_in() {
        let config = PostgresConfig {
            bin_dir: None,
            data_dir: "/d".into(),
            resources: Resources::default(),
            max_connections: 9,
        };
        let sizing = Sizing {
            shared_buffers_mib: 77,
            effective_cache_mib: 200,
            maintenance_work_mib: 16,
            wal_buffers_mib: 7,
            max_wal_mib: 512,
            min_wal_mib: 128,
        };
        let text = render(&config, &sizing, WalCompression::Lz4, Path::new("/d/socket"));
        let mut names: Vec<&str> = text.lines().skip(1).map(|line| line.split(" = ").next().unwrap()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for line in [
            "shared_buffers = 77MB",
            "max_connections = 9",
            "unix_socket_directories = '/d/socket'",
            "wal_buffers = 7MB",
            "max_wal_size = 512MB",
            "wal_compression = lz4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}");
        }
        let text = render(&config, &sizing, WalCompression::Pglz, Path::new("/d/socket"));
        assert!(text.lines().any(|l| l == "wal_compression = on"));
    }
}
