//! The tables in which a replica records what its PostgreSQL holds, and the settings of the apply
//! session.

/// The statement with which the leader records its own entry in the user's transaction (R5).
/// Parameters: term and serial as `bigint` (an `u64`'s bits), answers as `bytea`.
pub const RECORD_SQL: &str = "INSERT INTO evenkeel.applied (term, serial, answers) VALUES ($1, $2, $3)";

/// Of this replica only. Blobs are stored as they are: compressing them costs more than it saves on
/// rows that soon go. Inserted rows are deleted again soon, so that vacuum goes by counts, not by
/// shares.
pub(super) const MAKE_SCHEMA: &str = "
BEGIN;
SET LOCAL synchronous_commit = on;
CREATE SCHEMA evenkeel;
CREATE TABLE evenkeel.applied (term bigint NOT NULL, serial bigint NOT NULL, answers bytea NOT NULL, PRIMARY KEY (term, serial))
    WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
ALTER TABLE evenkeel.applied ALTER answers SET STORAGE EXTERNAL;
CREATE TABLE evenkeel.position (batch bigint PRIMARY KEY, index bigint NOT NULL, reached bigint NOT NULL, term bigint NOT NULL,
    state bytea, answers bytea NOT NULL, seeding bytea, transactions bytea)
    WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
ALTER TABLE evenkeel.position ALTER state SET STORAGE EXTERNAL, ALTER answers SET STORAGE EXTERNAL,
    ALTER transactions SET STORAGE EXTERNAL;
GRANT USAGE ON SCHEMA evenkeel TO evenkeel_user;
GRANT INSERT ON evenkeel.applied TO evenkeel_user;
COMMIT";

/// The plans of the few statements are known in advance: one probe of the key's index per row.
/// Statistics, which a bulk load outruns, must not turn them into scans. Nothing that applies may
/// wait for ever for a lock.
pub(super) const SET_UP_SESSION: &str = "
SET session_replication_role = replica;
SET synchronous_commit = off;
SET plan_cache_mode = force_generic_plan;
SET enable_seqscan = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET lock_timeout = '10s'";

/// Statements are sent before it is known that BEGIN has come about: what follows a BEGIN that
/// failed must not commit by itself.
pub(super) const READ_ONLY: &str = "SET default_transaction_read_only = on";
/// Before a trial: statements that serve wait for it only briefly.
pub(super) const BEGIN_TRIAL: &str = "BEGIN; SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '5s'";
