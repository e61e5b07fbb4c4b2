//! A session with PostgreSQL that runs users' statements.
//!
//! A session belongs to one leadership (R1). It is used by one write queue, by one transaction or
//! by one scan at a time. Reads by key, each a transaction of its own, share a session and are
//! pipelined.
//!
//! The module limits the size of results, and keeps a cache of prepared statements per session.

use super::clip::AddedParameter;
use super::recent::Recent;
use crate::postgres::Connector;
use crate::storage::{Parameter, Raw, RawParameter, StoreError, parameter};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::rows::RowBuilder;
use evenkeel_protocol::shard::{PIECE_BYTES, Piece, StatementReply};
use evenkeel_protocol::value::MAX_VALUE_BYTES;
use evenkeel_protocol::{Column, KeyCodec, SqlError, Value};
use futures::TryStreamExt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use tokio_postgres::types::ToSql;
use tokio_postgres::{CancelToken, Client, Row, Statement};

/// Prepared statements per session. The least recently used are dropped.
const MAX_PREPARED: usize = 256;
/// The most bytes that a value takes in an answer in addition to its own bytes.
const VALUE_OVERHEAD_BYTES: usize = 5;
/// The most bytes of a statement's rows, if it returns several, so that one statement cannot take
/// the memory of others.
pub const MAX_RESULT_BYTES: usize = 15 << 20;
/// The most bytes of a single row, so that an answer fits into a frame.
pub const MAX_ROW_BYTES: usize = evenkeel_rpc::MAX_FRAME_BYTES - (1 << 20);

/// A statement that PostgreSQL has parsed for one session.
#[derive(Debug)]
pub struct Prepared {
    statement: Statement,
    /// The columns that the user asked for.
    pub columns: Arc<[Column]>,
}

/// A session.
pub struct UserSession {
    client: Client,
    connector: Connector,
    /// Of a version of the schema.
    prepared: Mutex<(u64, Recent<Arc<Prepared>>)>,
}

/// One statement's parameters, ready to be sent.
pub struct Parameters<'a> {
    own: Vec<Parameter<'a>>,
    keys: Vec<RawParameter<'a>>,
    limit: Option<Parameter<'a>>,
}

impl<'a> Parameters<'a> {
    /// The parameters of a user's statement.
    pub fn new(values: &'a [Value]) -> Parameters<'a> {
        Parameters { own: values.iter().map(parameter).collect(), keys: Vec::new(), limit: None }
    }

    /// Adds the parameters of a clip: key columns, then possibly a limit.
    pub fn extend(&mut self, added: &'a [AddedParameter]) {
        for parameter_added in added {
            match parameter_added {
                AddedParameter::Key(raw) => self.keys.push(RawParameter(Some(raw))),
                AddedParameter::Limit(value) => self.limit = Some(parameter(value)),
            }
        }
    }

    /// The parameters as `tokio_postgres` takes them.
    pub fn refs(&self) -> Vec<&(dyn ToSql + Sync)> {
        let own = self.own.iter().map(|p| p as &(dyn ToSql + Sync));
        let keys = self.keys.iter().map(|p| p as &(dyn ToSql + Sync));
        own.chain(keys).chain(self.limit.iter().map(|p| p as &(dyn ToSql + Sync))).collect()
    }
}

impl UserSession {
    /// A session over this connection, which `connector` has opened.
    pub fn new(client: Client, connector: &Connector) -> UserSession {
        let prepared = Mutex::new((connector.schema_version(), Recent::new(MAX_PREPARED)));
        UserSession { client, connector: connector.clone(), prepared }
    }

    /// The statements prepared for the present version of the schema.
    fn prepared(&self) -> MutexGuard<'_, (u64, Recent<Arc<Prepared>>)> {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.connector.schema_version();
        if prepared.0 != version {
            *prepared = (version, Recent::new(MAX_PREPARED));
        }
        prepared
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Prepares a statement in this session. The first `returned` columns are those that the user
    /// asked for.
    pub async fn prepare(&self, sql: &Arc<str>, returned: usize) -> Result<Arc<Prepared>, StoreError> {
        if let Some(known) = self.known(sql) {
            return Ok(known);
        }
        let statement = self.client.prepare(sql).await?;
        let columns = statement
            .columns()
            .iter()
            .take(returned)
            .map(|c| Column { name: c.name().to_string(), type_oid: c.type_().oid() })
            .collect();
        let prepared = Arc::new(Prepared { statement, columns });
        self.prepared().1.put(sql.clone(), prepared.clone());
        Ok(prepared)
    }

    fn known(&self, sql: &Arc<str>) -> Option<Arc<Prepared>> {
        self.prepared().1.take_up(sql)
    }

    /// The same for many statements. New statements are sent together and take one round trip.
    pub async fn prepare_all<'a>(
        &self,
        statements: impl Iterator<Item = (&'a Arc<str>, usize)>,
    ) -> Vec<Result<Arc<Prepared>, StoreError>> {
        let mut prepared = Vec::new();
        let (mut new, mut places) = (Vec::new(), Vec::new());
        for (place, (sql, returned)) in statements.enumerate() {
            let known = self.known(sql);
            if known.is_none() {
                new.push(Box::pin(self.prepare(sql, returned)));
                places.push(place);
            }
            prepared.push(known.ok_or(StoreError::SessionLost));
        }
        for (place, made) in places.into_iter().zip(pipeline(new).await) {
            prepared[place] = made;
        }
        prepared
    }

    /// Runs a prepared statement. The future that is polled first is sent first.
    ///
    /// # Errors
    /// 54000 if the rows take more than [`MAX_RESULT_BYTES`], or a single row more than
    /// [`MAX_ROW_BYTES`]. Further rows are discarded.
    pub async fn run(&self, prepared: &Prepared, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, StoreError> {
        let parameters = parameters.iter().map(|parameter| *parameter as &dyn ToSql);
        let stream = self.client.query_raw(&prepared.statement, parameters).await?;
        futures::pin_mut!(stream);
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while let Some(row) = stream.try_next().await? {
            bytes += row_bytes(&row);
            if bytes > if rows.is_empty() { MAX_ROW_BYTES } else { MAX_RESULT_BYTES } {
                return Err(StoreError::Refused(too_long()));
            }
            rows.push(row);
        }
        Ok(rows)
    }

    /// Runs a prepared statement for a piece of its rows: about [`PIECE_BYTES`], or one row.
    ///
    /// # Errors
    /// 54000 for a row that takes more than [`MAX_ROW_BYTES`].
    pub async fn run_piece(
        &mut self,
        prepared: &Prepared,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<PieceRows, StoreError> {
        let transaction = self.client.transaction().await?;
        let portal = transaction.bind(&prepared.statement, parameters).await?;
        let (mut filling, mut rows) = (Filling::default(), Vec::new());
        let (mut ended, mut discarded) = (false, 0);
        while let Some(wanted) = filling.next_rows().filter(|_| !ended) {
            let stream = transaction.query_portal_raw(&portal, wanted as i32).await?;
            futures::pin_mut!(stream);
            let (mut came, mut full) = (0, false);
            while let Some(row) = stream.try_next().await? {
                came += 1;
                let bytes = row_bytes(&row);
                if bytes > MAX_ROW_BYTES {
                    return Err(StoreError::Refused(too_long()));
                }
                full = full || !filling.take(bytes);
                if !full {
                    rows.push(row);
                    continue;
                }
                // The next piece contains it again.
                discarded += bytes;
                if discarded > MAX_DISCARDED_BYTES {
                    return Ok(PieceRows { rows, ended: false, drained: false });
                }
            }
            if full {
                break;
            }
            ended = came < wanted;
        }
        drop(portal);
        transaction.rollback().await?;
        Ok(PieceRows { rows, ended, drained: true })
    }

    /// The token that cancels its statement.
    pub fn cancel_token(&self) -> CancelToken {
        self.client.cancel_token()
    }

    /// Runs SQL without parameters and without a result.
    pub async fn simple(&self, sql: &str) -> Result<(), StoreError> {
        Ok(self.client.batch_execute(sql).await?)
    }
}

/// The most bytes of a piece's rows that are discarded because rows suddenly became larger. Beyond
/// it the statement is given up.
const MAX_DISCARDED_BYTES: usize = 4 << 20;

/// A piece of a statement's rows.
pub struct PieceRows {
    /// The rows.
    pub rows: Vec<Row>,
    /// Whether they are the last.
    pub ended: bool,
    /// Whether no statement runs on the session any more.
    pub drained: bool,
}

impl PieceRows {
    /// The piece for the client. In each row, the key columns follow the columns that the user
    /// asked for.
    ///
    /// # Errors
    /// A row differs from its statement: a fault of this program.
    pub fn to_piece(&self, prepared: &Prepared, codec: &KeyCodec) -> Result<Piece, SqlError> {
        let reply = reply(&prepared.columns, &self.rows, self.rows.len())?;
        let key = |row: &Row| {
            let columns = (0..codec.types.len()).map(|column| raw(row, prepared.columns.len() + column));
            let columns = columns.collect::<Result<Vec<_>, _>>()?;
            let malformed = |error| SqlError::new(codes::INTERNAL, format!("a row's key cannot be encoded: {error}"));
            codec.encode_binary(columns).map_err(malformed)
        };
        let more_after = self.rows.last().filter(|_| !self.ended).map(key).transpose()?;
        Ok(Piece { reply, more_after })
    }
}

/// The bytes of a piece in a simulation.
const SIMULATED_PIECE_BYTES: usize = 100;

/// How a piece fills: the number of rows to fetch next, by the size of those fetched so far. Pure.
#[derive(Debug, Default)]
struct Filling {
    rows: usize,
    bytes: usize,
}

impl Filling {
    /// See [`PIECE_BYTES`]. In a simulation, where tables are small, a few rows: streams must come
    /// in pieces all the same.
    fn limit_bytes() -> usize {
        if evenkeel_host::simulation().is_some() { SIMULATED_PIECE_BYTES } else { PIECE_BYTES }
    }

    /// The first row is fetched alone, because it may be as large as a piece. Then up to `GROWTH`
    /// times the rows fetched so far.
    const GROWTH: usize = 4;

    /// The number of rows to fetch; `None` if the piece is full.
    fn next_rows(&self) -> Option<usize> {
        let Some(average) = self.bytes.checked_div(self.rows) else { return Some(1) };
        let fit = Filling::limit_bytes().saturating_sub(self.bytes) / average.max(1);
        (fit > 0).then(|| fit.min(self.rows * Filling::GROWTH))
    }

    /// Adds a row, unless the piece is full. The first row always fits.
    fn take(&mut self, bytes: usize) -> bool {
        if self.rows > 0 && self.bytes + bytes > Filling::limit_bytes() {
            return false;
        }
        self.rows += 1;
        self.bytes += bytes;
        true
    }
}

/// Sends all of these in order without waiting in between, and returns their results in order.
pub async fn pipeline<F: Future>(mut futures: Vec<Pin<Box<F>>>) -> Vec<F::Output> {
    let mut done: Vec<Option<F::Output>> = Vec::with_capacity(futures.len());
    // Each future sends its statement when it is polled first.
    std::future::poll_fn(|context| {
        for future in &mut futures {
            done.push(match future.as_mut().poll(context) {
                Poll::Ready(output) => Some(output),
                Poll::Pending => None,
            });
        }
        Poll::Ready(())
    })
    .await;
    let mut results = Vec::with_capacity(futures.len());
    for (future, done) in futures.into_iter().zip(done) {
        results.push(match done {
            Some(output) => output,
            None => future.await,
        });
    }
    results
}

/// The reply with the columns that the user asked for.
pub fn reply(columns: &Arc<[Column]>, rows: &[Row], counted: usize) -> Result<StatementReply, SqlError> {
    let mut packed = RowBuilder::new(columns.len());
    if !columns.is_empty() {
        for row in rows {
            let values = (0..columns.len()).map(|i| raw(row, i)).collect::<Result<Vec<_>, _>>()?;
            packed.push(values);
        }
    }
    Ok(StatementReply { columns: columns.clone(), rows: packed.finish(), affected: counted as u64, staleness_ms: None })
}

/// The bytes of a row in an answer.
fn row_bytes(row: &Row) -> usize {
    let value = |column| row.try_get::<_, Option<Raw<'_>>>(column).ok().flatten().map_or(0, |raw| raw.0.len());
    (0..row.len()).map(|column| VALUE_OVERHEAD_BYTES + value(column)).sum()
}

/// Rejects a value that is larger than [`MAX_VALUE_BYTES`].
pub fn check_value_size(bytes: usize) -> Result<(), SqlError> {
    if bytes <= MAX_VALUE_BYTES {
        return Ok(());
    }
    let message = format!("a value of {bytes} bytes; at most {MAX_VALUE_BYTES} are possible");
    Err(SqlError::new(codes::PROGRAM_LIMIT, message).hint("Store it in several rows."))
}

fn too_long() -> SqlError {
    let message = format!(
        "the statement's rows take more than {MAX_RESULT_BYTES} bytes, or a single row more than {MAX_ROW_BYTES}"
    );
    SqlError::new(codes::PROGRAM_LIMIT, message)
        .hint("Read it as a stream, or fewer rows at a time: by key, or with LIMIT.")
}

/// A row's value, as PostgreSQL sent it.
pub(super) fn raw(row: &Row, column: usize) -> Result<Option<&[u8]>, SqlError> {
    let value: Result<Option<Raw<'_>>, _> = row.try_get(column);
    value
        .map(|raw| raw.map(|raw| raw.0))
        .map_err(|error| SqlError::new("XX000", format!("column {} cannot be read: {error}", column + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{BufMut, BytesMut};

    /// The number of rows of a size in a piece, and the number of fetches.
    fn filled(bytes: usize) -> (usize, usize) {
        let (mut filling, mut fetches) = (Filling::default(), 0);
        while let Some(rows) = filling.next_rows() {
            fetches += 1;
            assert!((0..rows).all(|_| filling.take(bytes)), "a fetched row has room");
        }
        (filling.rows, fetches)
    }

    /// A message of PostgreSQL's protocol, from its server.
    fn message(out: &mut BytesMut, kind: u8, body: &[u8]) {
        out.put_u8(kind);
        out.put_i32(body.len() as i32 + 4);
        out.put_slice(body);
    }

    /// A server that answers Parse messages only when `together` of them have come.
    async fn serve_together(mut stream: tokio::io::DuplexStream, together: usize) -> std::io::Result<()> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let length = stream.read_i32().await?;
        stream.read_exact(&mut vec![0; length as usize - 4]).await?;
        let mut out = BytesMut::new();
        message(&mut out, b'R', &0i32.to_be_bytes());
        message(&mut out, b'Z', b"I");
        let mut parsed = 0;
        loop {
            if parsed == 0 || parsed >= together {
                stream.write_all(&out.split()).await?;
            }
            let (kind, length) = (stream.read_u8().await?, stream.read_i32().await?);
            stream.read_exact(&mut vec![0; length as usize - 4]).await?;
            match kind {
                b'P' => {
                    parsed += 1;
                    message(&mut out, b'1', &[]);
                }
                b'D' => {
                    message(&mut out, b't', &0i16.to_be_bytes());
                    message(&mut out, b'n', &[]);
                }
                b'S' => message(&mut out, b'Z', b"I"),
                _ => {}
            }
        }
    }

    // E18: new texts take one round trip together.
    #[tokio::test]
    async fn new_texts_are_prepared_together() {
        const TEXTS: usize = 100;
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(serve_together(theirs, TEXTS));
        let mut config = tokio_postgres::Config::new();
        let connected = config.user("x").connect_raw(ours, tokio_postgres::NoTls).await;
        let Ok((client, connection)) = connected else { panic!("no session") };
        tokio::spawn(connection);
        let session = UserSession::new(client, &Connector::nowhere());
        let texts: Vec<Arc<str>> = (0..TEXTS).map(|n| format!("SELECT {n}").into()).collect();
        let prepared = session.prepare_all(texts.iter().map(|text| (text, 0)));
        let prepared = evenkeel_host::timeout(std::time::Duration::from_secs(20), prepared).await;
        assert!(prepared.is_ok_and(|all| all.len() == TEXTS && all.iter().all(Result::is_ok)), "one after the other");
    }

    #[test]
    fn a_piece_has_many_small_rows_or_one_large_row() {
        assert_eq!(filled(2 << 10), (128, 5));
        assert_eq!(filled(100 << 10), (2, 2));
        for large in [200 << 10, 300 << 10, 64 << 20] {
            assert_eq!(filled(large), (1, 1));
        }
        let (rows, fetches) = filled(30);
        assert!(rows > 8_000 && fetches < 10, "{rows} rows by {fetches} fetches");
        let mut filling = Filling::default();
        assert!(filling.take(10) && !filling.take(1 << 20), "a suddenly large row is left to the next piece");
    }
}
