//! The server process of the front PostgreSQL, and the schema in it.
//!
//! The schema follows the placement driver's log of changes, one change after the other. Tables
//! that were made through the placement driver's table interface are added by their definitions.

use super::analysis::{Analysis, Question, analyse};
use super::children::EngineChildren;
use super::database::{FrontDatabase, unavailable};
use super::engine::EngineDatabase;
use super::relations::{self, difference};
use super::sessions::{FrontSession, FrontSessions, sql_error};
use super::settings::{Settings, pairs, set};
use crate::remote::sessions::ReadingSessions;
use evenkeel_client::placement_driver::ApiError;
use evenkeel_client::{Client, ShardPart};
use evenkeel_postgres_session::Session;
use evenkeel_protocol::api::{SchemaChange, SchemaChangeBody};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::schema_change::CHANGE_SETTINGS;
use evenkeel_protocol::{SqlError, TableSchema};
use evenkeel_shard_node::postgres::{Connector, Postgres, PostgresConfig, PostgresError, Resources, SessionRole};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;

/// `max_connections` of the server: users' sessions in both databases, planning, and some to spare.
const MAX_CONNECTIONS: u32 = 128;
/// Sessions that serve users' statements without rows at a time.
const MAX_SESSIONS: usize = 64;
/// Sessions that serve users' statements on several shards at a time.
const MAX_ENGINE_SESSIONS: usize = 40;
/// What users' sessions may do here: everything that reads no table. The rows are elsewhere.
const PREPARE: &str = "
ALTER SYSTEM SET fsync = off; ALTER SYSTEM SET full_page_writes = off; SELECT pg_reload_conf();
GRANT EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) TO evenkeel_user";
/// Takes the rows of users' schemas away from users' sessions. The catalog shows a table to those
/// who have any privilege on it.
const HIDE_ROWS: &str = "
DO $$ DECLARE s text; BEGIN
  FOR s IN SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' AND nspname NOT IN ('information_schema', 'evenkeel') LOOP
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA %I FROM evenkeel_user', s);
    EXECUTE format('GRANT REFERENCES, TRIGGER ON ALL TABLES IN SCHEMA %I TO evenkeel_user', s);
    EXECUTE format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA %I FROM evenkeel_user', s);
  END LOOP;
END $$";
/// How long a version of the schema that shards have may be unknown here.
const CATCH_UP: Duration = Duration::from_secs(5);
/// Between two questions for it.
const ASK_AGAIN: Duration = Duration::from_millis(10);
/// How long a change of the schema may take on all shards.
const CHANGE: Duration = Duration::from_secs(60);
/// The role that owns users' objects.
const AS_OWNER: &str = "SET LOCAL ROLE evenkeel_owner";

/// See the module.
pub struct FrontPostgres {
    client: Client,
    connector: Connector,
    sessions: Arc<FrontSessions>,
    engine_sessions: Arc<FrontSessions>,
    reading: Arc<ReadingSessions>,
    children: Arc<EngineChildren>,
    /// The folder of its sockets.
    folder: PathBuf,
    /// The version of the schema in it.
    version: AtomicU64,
    /// The session that makes and plans changes. One at a time.
    changing: Mutex<Changing>,
    /// Keeps the server running.
    _postgres: Postgres,
}

struct Changing {
    admin: Session,
    engine: EngineDatabase,
    /// The tables that were added by their definitions.
    added: BTreeSet<String>,
}

impl FrontPostgres {
    /// Starts the server in a folder, which is emptied first, and brings it up to date.
    ///
    /// # Errors
    /// The server does not start, or the schema cannot be had; one sentence.
    pub async fn start(client: Client, folder: &Path, bin_dir: Option<&Path>) -> Result<FrontPostgres, String> {
        // What was there belongs to an earlier gateway; the schema is made again from its log.
        if folder.join("postgres").exists() {
            std::fs::remove_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        let config = PostgresConfig {
            bin_dir: bin_dir.map(Path::to_path_buf),
            data_dir: folder.to_path_buf(),
            resources: Resources::default(),
            max_connections: MAX_CONNECTIONS,
        };
        let postgres = Postgres::start(config).await.map_err(|error: PostgresError| error.to_string())?;
        let connector = postgres.connector();
        let mut admin = connector.raw(SessionRole::Admin).await.map_err(|error| error.to_string())?;
        for statement in PREPARE.split(';') {
            admin.simple(statement).await.map_err(|error| error.to_string())?;
        }
        let folder = socket_folder(&mut admin).await.map_err(|error| error.to_sentence())?;
        let children = Arc::<EngineChildren>::default();
        let engine = EngineDatabase::create(&mut admin, &folder, children.clone()).await;
        let engine = engine.map_err(|error| error.to_sentence())?;
        let front = FrontPostgres {
            client,
            sessions: FrontSessions::new(FrontDatabase::Catalog(connector.clone()), MAX_SESSIONS),
            engine_sessions: FrontSessions::new(FrontDatabase::Engine(folder.clone()), MAX_ENGINE_SESSIONS),
            reading: Arc::default(),
            children,
            folder,
            connector,
            version: AtomicU64::new(0),
            changing: Mutex::new(Changing { admin, engine, added: BTreeSet::new() }),
            _postgres: postgres,
        };
        front.sync().await.map_err(|error| error.to_sentence())?;
        Ok(front)
    }

    /// The version of the schema here.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Sessions for users' statements.
    pub fn sessions(&self) -> &Arc<FrontSessions> {
        &self.sessions
    }

    /// Sessions for users' statements that read several shards.
    pub fn engine_sessions(&self) -> &Arc<FrontSessions> {
        &self.engine_sessions
    }

    /// What those sessions read now.
    pub fn reading(&self) -> &Arc<ReadingSessions> {
        &self.reading
    }

    /// The folder of the server's sockets, which only its account can enter.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the tables through which these parts are read, where they are not there yet.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn reach(&self, parts: &[ShardPart]) -> Result<(), SqlError> {
        if self.children.has_all(parts) {
            return Ok(());
        }
        let routes = self.client.routes();
        self.changing.lock().await.engine.make(parts, &routes).await
    }

    /// How often the engine database's schema was changed.
    pub fn engine_changes(&self) -> u64 {
        self.children.changes()
    }

    /// Takes over the changes of the schema that were made since.
    ///
    /// # Errors
    /// The placement driver cannot be reached (57P03), or a change that shards have executed fails
    /// here (XX000).
    pub async fn sync(&self) -> Result<(), SqlError> {
        let mut changing = self.changing.lock().await;
        self.sync_with(&mut changing).await
    }

    async fn sync_with(&self, changing: &mut Changing) -> Result<(), SqlError> {
        loop {
            let answer = self.client.placement_driver().schema_after(self.version()).await.map_err(unreachable)?;
            let changes = answer.changes.len();
            for change in answer.changes.into_iter().filter(|change| change.version > self.version()) {
                changing.execute(&change).await?;
                self.version.store(change.version, Ordering::Release);
                self.forget_sessions();
            }
            if changes == 0 || self.version() >= answer.version {
                break;
            }
        }
        let routes = self.client.routes();
        let new: Vec<Arc<TableSchema>> = routes
            .tables()
            .filter(|table| !table.create_sql.is_empty() && !changing.added.contains(&table.name))
            .cloned()
            .collect();
        for table in new {
            changing.add(&table).await?;
            self.forget_sessions();
        }
        Ok(())
    }

    /// Closes idle sessions: what they have prepared belongs to an earlier schema.
    fn forget_sessions(&self) {
        self.sessions.forget();
        self.engine_sessions.forget();
    }

    /// What a statement touches and returns.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn analyse(&self, settings: &Settings, question: Question<'_>) -> Result<Analysis, SqlError> {
        let mut session = self.sessions.take(settings).await?;
        let analysis = analyse(&mut session, question).await;
        self.sessions.put_back(session);
        analysis
    }

    /// A session for a user's statement.
    ///
    /// # Errors
    /// As [`FrontSessions::take`].
    pub async fn session(&self, settings: &Settings) -> Result<FrontSession, SqlError> {
        self.sessions.take(settings).await
    }

    /// Plans a change of the schema: executes it, looks at what it did, and takes it back.
    ///
    /// # Errors
    /// PostgreSQL's own; 0A000 if the store cannot hold what it makes.
    pub async fn plan(&self, sql: &str, settings: &Settings) -> Result<SchemaChangeBody, SqlError> {
        let mut changing = self.changing.lock().await;
        self.sync_with(&mut changing).await?;
        let mut settings = pairs(settings).to_vec();
        settings.retain(|(name, _)| CHANGE_SETTINGS.contains(&name.as_str()));
        let planned = changing.try_out(sql, &settings).await;
        changing.admin.simple("ROLLBACK").await.map_err(sql_error)?;
        let (relations, dropped) = planned?;
        Ok(SchemaChangeBody { version: self.version(), sql: sql.to_string(), settings, relations, dropped })
    }

    /// Has a planned change made on all shards, and here.
    ///
    /// # Errors
    /// The shards' or the placement driver's refusal. 40001: another change was made meanwhile.
    pub async fn change(&self, body: &SchemaChangeBody) -> Result<(), SqlError> {
        let made = self.client.placement_driver().change_schema(body, CHANGE).await.map_err(not_changed)?;
        // Statements that follow need the new tables' routes.
        _ = self.client.refresh().await;
        self.sync_beyond(made.version.saturating_sub(1)).await
    }

    /// Takes over changes of the schema until its version is higher than `version`. A replica of
    /// the placement driver that is behind does not know the latest one yet.
    ///
    /// # Errors
    /// As [`FrontPostgres::sync`]; 57P03 if none comes in time.
    pub async fn sync_beyond(&self, version: u64) -> Result<(), SqlError> {
        let begun = evenkeel_host::now();
        loop {
            self.sync().await?;
            if self.version() > version {
                return Ok(());
            }
            if evenkeel_host::elapsed(begun) > CATCH_UP {
                let message = format!("the change of the schema after version {version} cannot be learnt");
                return Err(SqlError::new(codes::CANNOT_CONNECT_NOW, message));
            }
            self.client.placement_driver().pass_over();
            evenkeel_host::sleep(ASK_AGAIN).await;
        }
    }

    /// The way to connect to it, for cancelling statements.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }
}

impl Changing {
    /// Executes a change that the shards have executed.
    async fn execute(&mut self, change: &SchemaChange) -> Result<(), SqlError> {
        let made = async {
            self.engine.prepare(&change.sql, &settings_text(&change.settings)).await?;
            self.begin(&change.settings).await?;
            self.admin.simple(&change.sql).await.map_err(sql_error)?;
            self.admin.simple("RESET ROLE").await.map_err(sql_error)?;
            self.admin.simple(HIDE_ROWS).await.map_err(sql_error)?;
            self.admin.simple("COMMIT").await.map_err(sql_error)?;
            self.engine.end(true).await
        };
        if let Err(error) = made.await {
            _ = self.admin.simple("ROLLBACK").await;
            _ = self.engine.end(false).await;
            let message = format!("version {} of the schema cannot be made here: {error}", change.version);
            return Err(SqlError::new(codes::INTERNAL, message));
        }
        Ok(())
    }

    /// Adds a table by its definition.
    async fn add(&mut self, table: &TableSchema) -> Result<(), SqlError> {
        self.engine.prepare(&table.create_sql, &settings_text(&[])).await?;
        self.begin(&[]).await?;
        let made = self.admin.simple(&table.create_sql).await.map_err(sql_error);
        match made {
            Ok(_) => {
                self.admin.simple("RESET ROLE").await.map_err(sql_error)?;
                self.admin.simple(HIDE_ROWS).await.map_err(sql_error)?;
                self.admin.simple("COMMIT").await.map_err(sql_error)?;
                self.engine.end(true).await?;
            }
            Err(error) => {
                self.engine.end(false).await?;
                self.admin.simple("ROLLBACK").await.map_err(sql_error)?;
                return Err(error);
            }
        }
        self.added.insert(table.name.clone());
        Ok(())
    }

    async fn try_out(
        &mut self,
        sql: &str,
        settings: &[(String, String)],
    ) -> Result<(Vec<evenkeel_protocol::api::ChangedRelation>, Vec<String>), SqlError> {
        self.begin(settings).await?;
        self.admin.simple("SET LOCAL search_path = pg_catalog").await.map_err(sql_error)?;
        let before = relations::read(&mut self.admin).await?;
        self.settings(settings).await?;
        self.admin.simple(sql).await.map_err(sql_error)?;
        self.admin.simple("SET LOCAL search_path = pg_catalog").await.map_err(sql_error)?;
        let after = relations::read(&mut self.admin).await?;
        difference(&before, &after)
    }

    async fn begin(&mut self, settings: &[(String, String)]) -> Result<(), SqlError> {
        self.admin.simple(&format!("BEGIN; {AS_OWNER}")).await.map_err(sql_error)?;
        self.settings(settings).await
    }

    async fn settings(&mut self, settings: &[(String, String)]) -> Result<(), SqlError> {
        self.admin.simple(&settings_text(settings)).await.map_err(sql_error)?;
        Ok(())
    }
}

/// The statements that make a change's settings in its transaction.
fn settings_text(settings: &[(String, String)]) -> String {
    let mut all = vec!["SET LOCAL search_path TO public".to_string()];
    all.extend(settings.iter().map(|(name, value)| set(name, value, true)));
    all.join("; ")
}

/// The folder of the server's sockets.
async fn socket_folder(admin: &mut Session) -> Result<PathBuf, SqlError> {
    let rows = admin.query_text("SHOW unix_socket_directories").await.map_err(sql_error)?;
    let folder = rows.into_iter().flatten().next().flatten();
    folder.map(PathBuf::from).ok_or_else(|| unavailable("it does not say where its sockets are"))
}

fn unreachable(error: ApiError) -> SqlError {
    SqlError::new(codes::CANNOT_CONNECT_NOW, format!("the schema cannot be asked for: {error}"))
}

fn not_changed(error: ApiError) -> SqlError {
    match error {
        ApiError::Refused(problem) => SqlError::from_sentence(&problem.detail)
            .unwrap_or_else(|| SqlError::new(codes::SERIALIZATION_FAILURE, problem.detail)),
        ApiError::Unreachable { maybe_done: true, .. } => {
            let message = format!("whether the schema was changed is unknown: {error}");
            SqlError::new(codes::OUTCOME_UNKNOWN, message).hint("Look at it before doing it again.")
        }
        other => unreachable(other),
    }
}
