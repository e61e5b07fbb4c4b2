//! A connection of a foreign table's server: one process of the engine database, and one shard.

use super::cursor::RemoteCursor;
use super::dialogue::{RemoteCommand, command};
use super::sessions::ReadingSessions;
use crate::wire::backend::{self, Status};
use crate::wire::incoming::{Incoming, Received};
use crate::wire::message::{Bind, ClientMessage as Message};
use crate::wire::outgoing::Outgoing;
use bytes::Bytes;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::{ShardId, SqlError};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The most scans of a connection at a time.
const MAX_CURSORS: usize = 1_000;
/// How long a fetch in the user's transaction may go on after it was cancelled, in milliseconds:
/// until then the transaction survives.
const CANCELLED_MS: u64 = 5_000;

/// See the module.
pub struct RemoteConnection {
    sessions: Arc<ReadingSessions>,
    process: i32,
    shard: ShardId,
    incoming: Incoming,
    out: Outgoing,
    cancel: Arc<Notify>,
    status: Status,
    cursors: HashMap<String, RemoteCursor>,
    /// The text that was prepared without a name, and the parameters that were bound to it.
    prepared: String,
    parameters: Vec<Option<Bytes>>,
    /// After an error, messages up to the next Sync are passed over.
    skipping: bool,
}

/// Why a command failed: an error for postgres_fdw, or it is gone.
type Failed = Result<SqlError, io::Error>;

impl RemoteConnection {
    /// A connection that has been started up.
    pub fn new(
        sessions: Arc<ReadingSessions>,
        process: i32,
        shard: ShardId,
        incoming: Incoming,
        out: Outgoing,
        cancel: Arc<Notify>,
    ) -> RemoteConnection {
        RemoteConnection {
            sessions,
            process,
            shard,
            incoming,
            out,
            cancel,
            status: Status::Idle,
            cursors: HashMap::new(),
            prepared: String::new(),
            parameters: Vec::new(),
            skipping: false,
        }
    }

    /// Serves it until it ends.
    ///
    /// # Errors
    /// It ended in the middle.
    pub async fn run(mut self) -> io::Result<()> {
        backend::ready_for_query(&mut self.out.buffer, self.status);
        self.out.send().await?;
        while let Some(Received::Message(message)) = self.incoming.next().await {
            match message {
                Message::Terminate => return Ok(()),
                Message::Query(text) => {
                    self.skipping = false;
                    let result = self.execute(&text, Vec::new()).await;
                    self.report(result)?;
                    self.ready().await?;
                }
                Message::Sync => {
                    self.skipping = false;
                    self.ready().await?;
                }
                _ if self.skipping => {}
                other => {
                    let result = self.extended(other).await;
                    self.skipping = result.is_err();
                    self.report(result)?;
                }
            }
        }
        Ok(())
    }

    async fn ready(&mut self) -> io::Result<()> {
        backend::ready_for_query(&mut self.out.buffer, self.status);
        self.out.send().await
    }

    fn report(&mut self, result: Result<(), Failed>) -> io::Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(Ok(error)) => {
                if self.status == Status::InTransaction {
                    self.status = Status::Failed;
                }
                backend::error_response(&mut self.out.buffer, &error);
                Ok(())
            }
            Err(Err(gone)) => Err(gone),
        }
    }

    /// postgres_fdw declares its cursors by the extended protocol, with the unnamed statement and
    /// portal.
    async fn extended(&mut self, message: Message) -> Result<(), Failed> {
        match message {
            Message::Parse(parse) => {
                self.prepared = parse.text;
                backend::bare(&mut self.out.buffer, b'1');
            }
            Message::Bind(Bind { parameters, formats, .. }) => {
                if formats.iter().any(|format| *format != 0) {
                    return Err(Ok(unexpected("a parameter in the binary format")));
                }
                self.parameters = parameters;
                backend::bare(&mut self.out.buffer, b'2');
            }
            Message::Describe(_) => backend::bare(&mut self.out.buffer, b'n'),
            Message::Execute(..) => {
                let (text, parameters) = (std::mem::take(&mut self.prepared), std::mem::take(&mut self.parameters));
                self.execute(&text, parameters).await?;
            }
            Message::Close(_) => backend::bare(&mut self.out.buffer, b'3'),
            Message::Flush => self.out.send().await.map_err(Err)?,
            _ => return Err(Ok(unexpected("a message of this kind"))),
        }
        Ok(())
    }

    async fn execute(&mut self, text: &str, parameters: Vec<Option<Bytes>>) -> Result<(), Failed> {
        let Some(command) = command(text) else { return Err(Ok(unexpected(text))) };
        let tag = match command {
            RemoteCommand::Set => "SET",
            RemoteCommand::Deallocate => "DEALLOCATE",
            RemoteCommand::Begin => {
                self.status = Status::InTransaction;
                "START TRANSACTION"
            }
            RemoteCommand::End(committed) => {
                self.status = Status::Idle;
                // Their portals end with the transactions that they read in, or are closed here.
                for (_, cursor) in self.cursors.drain() {
                    cursor.close().await;
                }
                if committed { "COMMIT" } else { "ROLLBACK" }
            }
            RemoteCommand::Savepoint(tag) => {
                if tag == "ROLLBACK" {
                    self.status = Status::InTransaction;
                }
                tag
            }
            RemoteCommand::Declare { cursor, query } => {
                self.declare(cursor, &query, parameters).map_err(Ok)?;
                "DECLARE CURSOR"
            }
            RemoteCommand::Fetch { cursor, rows } => {
                self.fetch(&cursor, rows).await?;
                "FETCH"
            }
            RemoteCommand::Rewind(cursor) => {
                self.cursors.get_mut(&cursor).ok_or_else(|| Ok(no_cursor(&cursor)))?.rewind();
                "MOVE 0"
            }
            RemoteCommand::Close(cursor) => {
                if let Some(cursor) = self.cursors.remove(&cursor) {
                    cursor.close().await;
                }
                "CLOSE CURSOR"
            }
        };
        backend::command_complete(&mut self.out.buffer, tag);
        Ok(())
    }

    fn declare(&mut self, cursor: String, query: &str, parameters: Vec<Option<Bytes>>) -> Result<(), SqlError> {
        if self.cursors.len() >= MAX_CURSORS {
            return Err(SqlError::new(codes::LIMIT_EXCEEDED, format!("more than {MAX_CURSORS} scans at a time")));
        }
        let Some(reads) = self.sessions.of(self.process) else {
            return Err(SqlError::new(codes::INTERNAL, "no statement of this session is under way"));
        };
        self.cursors.insert(cursor, RemoteCursor::declare(reads, self.shard, query, parameters)?);
        Ok(())
    }

    async fn fetch(&mut self, name: &str, rows: u32) -> Result<(), Failed> {
        let Some(cursor) = self.cursors.get_mut(name) else { return Err(Ok(no_cursor(name))) };
        let of_user = cursor.is_of_user();
        let (cancel, mut gone) = (self.cancel.clone(), self.incoming.gone());
        let fetch = cursor.fetch(rows, &mut self.out);
        tokio::pin!(fetch);
        tokio::select! {
            biased;
            result = &mut fetch => return result,
            () = cancel.notified() => {}
            _ = gone.wait_for(|gone| *gone) => {}
        }
        // postgres_fdw passes over what still comes.
        if of_user && let Ok(result) = evenkeel_host::timeout(Duration::from_millis(CANCELLED_MS), fetch).await {
            return result;
        }
        Err(Ok(SqlError::new(codes::QUERY_CANCELED, "canceling statement due to user request")))
    }
}

fn unexpected(what: &str) -> SqlError {
    let what: String = what.chars().take(100).collect();
    SqlError::new(codes::INTERNAL, format!("postgres_fdw has sent something unexpected: {what}"))
}

fn no_cursor(name: &str) -> SqlError {
    SqlError::new("34000", format!("cursor \"{name}\" does not exist"))
}
