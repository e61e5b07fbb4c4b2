//! One scan at one shard: a cursor of postgres_fdw.
//!
//! The shard executes it with the first fetch, and suspends it between fetches. A scan that begins
//! again is executed again: a shard's portals go forward only.

use super::clip::clipped;
use super::reads::{ReadPart, StatementReads};
use crate::wire::backend;
use crate::wire::outgoing::Outgoing;
use bytes::Bytes;
use evenkeel_client::ClientError;
use evenkeel_postgres_session::tags;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::pass_through::{PassThroughEnd, PassThroughItem, PassThroughStatement, PassThroughStep};
use evenkeel_protocol::{ShardId, SqlError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rows that wait for postgres_fdw, in bytes. It may take them late, and the shard's statement must
/// not wait for that unless they are many.
const MAX_BUFFERED_BYTES: usize = 4 << 20;

/// The numbers of these portals begin here: those of users' own portals are below.
static NEXT_PORTAL: AtomicU64 = AtomicU64::new(1 << 32);

/// See the module.
pub struct RemoteCursor {
    reads: Arc<StatementReads>,
    shard: ShardId,
    /// `None`: the shard has not been asked for the table, which has no rows here.
    statement: Option<PassThroughStatement>,
    state: CursorState,
    /// The RowDescription of its rows.
    description: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CursorState {
    New,
    Suspended,
    Ended,
}

impl RemoteCursor {
    /// A scan with these parameters, in the text format.
    ///
    /// # Errors
    /// As [`clipped`].
    pub fn declare(
        reads: Arc<StatementReads>,
        shard: ShardId,
        query: &str,
        mut parameters: Vec<Option<Bytes>>,
    ) -> Result<RemoteCursor, SqlError> {
        let tables = reads.part(shard).map_or(&[][..], |part| &part.tables);
        let schema = |id| reads.table(id).filter(|_| reads.has(id));
        let clipped = clipped(query, parameters.len(), tables, schema)?;
        let statement = clipped.map(|clipped| {
            let given = parameters.len();
            let mut parameter_types = vec![0; given];
            parameter_types.extend(clipped.types);
            let mut parameter_formats = vec![0; given];
            parameter_formats.resize(given + clipped.values.len(), 1);
            parameters.extend(clipped.values.into_iter().map(Some));
            PassThroughStatement {
                sql: clipped.sql.into(),
                parameter_types,
                parameter_formats,
                parameters,
                describe: true,
                portal: NEXT_PORTAL.fetch_add(1, Ordering::Relaxed),
                ..PassThroughStatement::default()
            }
        });
        let state = if statement.is_some() { CursorState::New } else { CursorState::Ended };
        Ok(RemoteCursor { reads, shard, statement, state, description: Bytes::new() })
    }

    /// Whether it reads in the user's own transaction.
    pub fn is_of_user(&self) -> bool {
        self.reads.part(self.shard).is_some_and(|part| part.of_user)
    }

    /// Writes the next rows.
    ///
    /// # Errors
    /// `Err(Ok(_))` goes to postgres_fdw; `Err(Err(_))`: it is gone.
    pub async fn fetch(&mut self, rows: u32, out: &mut Outgoing) -> Result<(), Result<SqlError, std::io::Error>> {
        let (Some(statement), Some(part)) = (&self.statement, self.reads.part(self.shard)) else {
            self.no_rows(out);
            return Ok(());
        };
        let step = match self.state {
            CursorState::Ended => {
                self.no_rows(out);
                return Ok(());
            }
            CursorState::New => PassThroughStep::Execute(PassThroughStatement { max_rows: rows, ..statement.clone() }),
            CursorState::Suspended => {
                out.buffer.extend_from_slice(&self.description);
                PassThroughStep::Fetch { portal: statement.portal, max_rows: rows }
            }
        };
        let fresh = self.state == CursorState::New;
        self.state = CursorState::Ended;
        let fetched = relay(&self.reads, part, step, fresh.then_some(&mut self.description), out).await;
        match fetched {
            Ok(Fetched::More) => self.state = CursorState::Suspended,
            Ok(Fetched::All) => {}
            Err(FetchError::Shard(error)) => return Err(Ok(self.reads.failed(self.shard, error))),
            Err(FetchError::Limit(error)) => return Err(Ok(error)),
            Err(FetchError::Gone(error)) => return Err(Err(error)),
        }
        Ok(())
    }

    /// Begins again.
    pub fn rewind(&mut self) {
        if let Some(statement) = &mut self.statement {
            // The old portal ends with its transaction, or is replaced.
            self.state = CursorState::New;
            statement.describe = true;
        }
    }

    /// Closes it at the shard.
    pub async fn close(self) {
        let (CursorState::Suspended, Some(statement)) = (self.state, &self.statement) else { return };
        let Some(part) = self.reads.part(self.shard) else { return };
        let step = PassThroughStep::ClosePortal { portal: statement.portal };
        let closed = part.transaction.lock().await.step(Vec::new(), step).await;
        // If it could not be closed, its transaction is over, and the next scan says so.
        if let Ok(replies) = closed {
            _ = replies.end().await;
        }
    }

    fn no_rows(&self, out: &mut Outgoing) {
        if self.description.is_empty() {
            backend::no_columns(&mut out.buffer);
        } else {
            out.buffer.extend_from_slice(&self.description);
        }
    }
}

/// How a fetch ended.
enum Fetched {
    More,
    All,
}

/// Why a fetch failed.
enum FetchError {
    Shard(ClientError),
    Limit(SqlError),
    Gone(std::io::Error),
}

/// Has a step executed, and passes its rows on. `description` takes the RowDescription that comes
/// first.
async fn relay(
    reads: &StatementReads,
    part: &ReadPart,
    step: PassThroughStep,
    mut description: Option<&mut Bytes>,
    out: &mut Outgoing,
) -> Result<Fetched, FetchError> {
    // The part's keys were acquired when it was opened.
    let replies = part.transaction.lock().await.step(Vec::new(), step).await;
    let mut replies = replies.map_err(FetchError::Shard)?;
    while let Some(item) = replies.next().await.map_err(FetchError::Shard)? {
        match item {
            PassThroughItem::Messages(messages) => {
                if let Some(description) = description.take() {
                    *description = first_message(&messages);
                }
                reads.count(messages.len()).map_err(FetchError::Limit)?;
                out.buffer.extend_from_slice(&messages);
                if out.buffer.len() > MAX_BUFFERED_BYTES {
                    out.send().await.map_err(FetchError::Gone)?;
                }
            }
            PassThroughItem::Parameters(_) => {}
            PassThroughItem::End(PassThroughEnd::Suspended) => return Ok(Fetched::More),
            PassThroughItem::End(_) => return Ok(Fetched::All),
        }
    }
    let error = SqlError::new(codes::INTERNAL, "a shard's answer has no end");
    Err(FetchError::Shard(ClientError::Sql(error)))
}

/// The first of these messages, if it is a RowDescription.
fn first_message(messages: &Bytes) -> Bytes {
    match messages.first_chunk::<5>() {
        Some([tag, length @ ..]) if *tag == tags::ROW_DESCRIPTION => {
            let end = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX).saturating_add(1);
            messages.slice(..end.min(messages.len()))
        }
        _ => Bytes::new(),
    }
}
