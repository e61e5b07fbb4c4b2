//! PostgreSQL's protocol (version 3), from the server's side.

use super::data::Table;
use super::evaluate::{named, type_of};
use super::execute::{Runner, StatementResult, Transaction};
use super::parser;
use super::server::SimulatedPostgres;
use super::statement::{Condition, Expr, OnConflict, Statement, Wanted};
use super::values::{ARRAYS, Failed, Value};
use crate::process;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Notify;

/// The longest message, in bytes.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// How long it takes at most until a client learns of the end of its session, in milliseconds.
const LATE_MS: u64 = 12;

/// Types of a statement's parameters; names and types of its columns.
type Types = (Vec<u32>, Vec<(String, u32)>);

/// A prepared statement.
#[derive(Clone)]
struct Prepared {
    statement: Arc<Statement>,
    parameters: Vec<u32>,
    columns: Vec<(String, u32)>,
}

/// A statement with its parameters.
enum Portal {
    /// It has not been run.
    Bound(Prepared, Vec<Value>),
    /// It has been run, and these rows have not been asked for yet.
    Suspended(Prepared, std::vec::IntoIter<Vec<Value>>),
}

struct Connection {
    runner: Runner,
    statements: BTreeMap<String, Prepared>,
    /// By name; the unnamed one, too.
    portals: BTreeMap<String, Portal>,
    /// After an error: everything up to the next Sync is passed over.
    skipping: bool,
    out: BytesMut,
}

/// Serves one session until its client goes, or it is ended.
pub(super) async fn serve(server: SimulatedPostgres, start: u32, mut stream: DuplexStream) {
    let Ok((is_user, read_only)) = start_up(&mut stream).await else { return };
    let end = Arc::new(Notify::new());
    let Some(session) = server.enter(start, is_user, &end) else {
        let mut out = BytesMut::new();
        error(&mut out, "FATAL", &Failed("53300", "sorry, too many clients already".into()));
        // The client learns it, or has gone.
        let _ = stream.write_all(&out).await;
        return;
    };
    let mut welcome = BytesMut::new();
    message(&mut welcome, b'R', |out| out.put_i32(0));
    message(&mut welcome, b'Z', |out| out.put_u8(b'I'));
    // A client that has gone is noticed at the first read.
    let _ = stream.write_all(&welcome).await;
    let transaction = Transaction::default();
    let runner = Runner { server: server.clone(), session, transaction, lock_timeout_ms: 0, read_only };
    let connection = Connection {
        runner,
        statements: BTreeMap::new(),
        portals: BTreeMap::new(),
        skipping: false,
        out: BytesMut::new(),
    };
    tokio::select! {
        biased;
        () = end.notified() => {
            // Its client learns of it a moment later, when other sessions may have got its locks.
            if process::once_in(2) {
                evenkeel_host::sleep(Duration::from_millis(process::below(LATE_MS))).await;
            }
        }
        _ = connection.talk(&mut stream) => {
            let mut state = server.state();
            state.end(session);
        }
    }
    server.released.notify_waiters();
}

/// Whether it is a user's session, and whether its transactions write only if they say so.
async fn start_up(stream: &mut DuplexStream) -> io::Result<(bool, bool)> {
    let length = stream.read_i32().await? as usize;
    let mut body = vec![0; length.saturating_sub(4).min(MAX_MESSAGE_BYTES)];
    stream.read_exact(&mut body).await?;
    let says = |what: &[u8]| body.windows(what.len()).any(|part| part == what);
    Ok((says(b"evenkeel_user"), says(b"default_transaction_read_only=on")))
}

impl Connection {
    async fn talk(mut self, stream: &mut DuplexStream) -> io::Result<()> {
        loop {
            let kind = stream.read_u8().await?;
            let length = stream.read_i32().await? as usize;
            let mut body = vec![0; length.saturating_sub(4).min(MAX_MESSAGE_BYTES)];
            stream.read_exact(&mut body).await?;
            if kind == b'X' {
                self.runner.roll_back();
                return Ok(());
            }
            self.take(kind, Bytes::from(body)).await?;
            if kind == b'S' || kind == b'Q' || kind == b'H' {
                stream.write_all(&self.out.split()).await?;
            }
        }
    }

    async fn take(&mut self, kind: u8, body: Bytes) -> io::Result<()> {
        if kind == b'S' {
            self.skipping = false;
            self.ready();
            return Ok(());
        }
        if self.skipping {
            return Ok(());
        }
        let result = match kind {
            b'Q' => {
                if let Err(failed) = self.simple(body).await {
                    error(&mut self.out, "ERROR", &failed);
                }
                self.ready();
                return Ok(());
            }
            b'P' => self.parse(body),
            b'D' => self.describe(body),
            b'B' => self.bind(body),
            b'E' => self.execute(body).await,
            b'C' => {
                self.close(body);
                message(&mut self.out, b'3', |_| {});
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(failed) = result {
            error(&mut self.out, "ERROR", &failed);
            self.skipping = true;
            if self.runner.transaction.open {
                self.runner.transaction.failed = true;
            }
        }
        Ok(())
    }

    fn ready(&mut self) {
        let status = match (self.runner.transaction.open, self.runner.transaction.failed) {
            (false, _) => b'I',
            (true, false) => b'T',
            (true, true) => b'E',
        };
        message(&mut self.out, b'Z', |out| out.put_u8(status));
    }

    async fn simple(&mut self, body: Bytes) -> Result<(), Failed> {
        let text = c_string(&mut body.clone())?;
        let statements = parser::parse_all(&text).map_err(|reason| self.unknown(&text, reason))?;
        for statement in statements {
            pause(&self.runner.server).await;
            let outcome = self.runner.run(&statement, &[]).await?;
            complete(&mut self.out, &statement, &outcome);
        }
        Ok(())
    }

    fn unknown(&self, text: &str, reason: String) -> Failed {
        self.runner.server.state().unknown.get_or_insert_with(|| format!("{text}: {reason}"));
        Failed("42601", reason)
    }

    fn parse(&mut self, mut body: Bytes) -> Result<(), Failed> {
        let (name, text) = (c_string(&mut body)?, c_string(&mut body)?);
        let count = body.get_u16();
        let given: Vec<u32> = (0..count).map(|_| body.get_u32()).collect();
        let statement = parser::parse(&text).map_err(|reason| self.unknown(&text, reason))?;
        let (mut parameters, columns) = self.types(&statement)?;
        for (n, oid) in given.into_iter().enumerate().filter(|(_, oid)| *oid != 0) {
            if n < parameters.len() {
                parameters[n] = oid;
            } else {
                parameters.push(oid);
            }
        }
        self.statements.insert(name, Prepared { statement: Arc::new(statement), parameters, columns });
        message(&mut self.out, b'1', |_| {});
        Ok(())
    }

    /// The types of a statement's parameters and columns.
    fn types(&self, statement: &Statement) -> Result<Types, Failed> {
        const OIDS: u32 = 1028;
        let table = |name: &str| {
            let missing = || Failed("42P01", format!("relation {name:?} does not exist"));
            self.runner.table(name).ok_or_else(missing)
        };
        let mut parameters = Parameters::default();
        let columns = match statement {
            Statement::HasSchema | Statement::RelationSize | Statement::EndSessions => vec![("one".into(), 20)],
            Statement::ArrayTypes => {
                parameters.is(0, OIDS);
                vec![("oid".into(), 26), ("typarray".into(), 26)]
            }
            Statement::Insert { table: name, columns, values, arrays, conflict, returning } => {
                let table = table(name)?;
                for (column, value) in columns.iter().zip(values) {
                    let oid = type_of(&table, &Expr::Column(column.clone()));
                    let array = ARRAYS.iter().find(|(element, _)| *element == oid).map_or(oid, |(_, array)| *array);
                    parameters.of(value, if *arrays { array } else { oid });
                }
                if let OnConflict::Update(set) = conflict {
                    parameters.set(&table, set);
                }
                named(&table, returning)
            }
            Statement::Update { table: name, set, given, filter, returning } => {
                let table = table(name)?;
                given.iter().for_each(|(n, _)| parameters.is(*n, ARRAYS[0].1));
                parameters.set(&table, set);
                parameters.filter(&table, filter);
                named(&table, returning)
            }
            Statement::Delete { table: name, given, filter, returning } => {
                let table = table(name)?;
                given.iter().for_each(|(n, _)| parameters.is(*n, ARRAYS[0].1));
                parameters.filter(&table, filter);
                named(&table, returning)
            }
            Statement::Declare(_, select) => {
                let (declared, _) = self.types(select)?;
                parameters = Parameters(declared);
                Vec::new()
            }
            Statement::Fetch(_, name) => self.runner.cursor_columns(name)?,
            Statement::Select { table: name, wanted, filter, limit, .. } => {
                let table = table(name)?;
                parameters.filter(&table, filter);
                if let Some(limit) = limit {
                    parameters.of(limit, 20);
                }
                match wanted {
                    Wanted::Rows(exprs) => named(&table, exprs),
                    Wanted::Checksum => vec![("count".into(), 20), ("sum".into(), 25)],
                    Wanted::Sizes => vec![("count".into(), 20), ("bytes".into(), 20)],
                }
            }
            _ => Vec::new(),
        };
        Ok((parameters.0, columns))
    }

    fn describe(&mut self, mut body: Bytes) -> Result<(), Failed> {
        body.advance(1);
        let prepared = self.statement(&c_string(&mut body)?)?;
        message(&mut self.out, b't', |out| {
            out.put_u16(prepared.parameters.len() as u16);
            prepared.parameters.iter().for_each(|oid| out.put_u32(*oid));
        });
        if prepared.columns.is_empty() {
            message(&mut self.out, b'n', |_| {});
            return Ok(());
        }
        message(&mut self.out, b'T', |out| {
            out.put_u16(prepared.columns.len() as u16);
            for (name, oid) in &prepared.columns {
                out.put_slice(name.as_bytes());
                out.put_slice(&[0; 7]);
                out.put_u32(*oid);
                out.put_i16(-1);
                out.put_i32(-1);
                out.put_i16(0);
            }
        });
        Ok(())
    }

    fn statement(&self, name: &str) -> Result<Prepared, Failed> {
        self.statements.get(name).cloned().ok_or_else(|| Failed("26000", format!("no statement {name:?}")))
    }

    fn bind(&mut self, mut body: Bytes) -> Result<(), Failed> {
        let portal = c_string(&mut body)?;
        let prepared = self.statement(&c_string(&mut body)?)?;
        let count = body.get_u16();
        let formats: Vec<u16> = (0..count).map(|_| body.get_u16()).collect();
        let count = body.get_u16();
        let mut values = Vec::with_capacity(count.into());
        for n in 0..usize::from(count) {
            let length = body.get_i32();
            if length < 0 {
                values.push(None);
                continue;
            }
            let raw = body.split_to(length as usize);
            let is_text = formats.get(n).or(formats.first()).is_some_and(|format| *format == 0);
            let is_number = prepared.parameters.get(n) == Some(&20);
            values.push(Some(if is_text && is_number {
                let text = String::from_utf8_lossy(&raw).trim().parse::<i64>();
                let number = text.map_err(|_| Failed("22P02", "no whole number".into()))?;
                Bytes::copy_from_slice(&number.to_be_bytes())
            } else {
                raw
            }));
        }
        self.portals.insert(portal, Portal::Bound(prepared, values));
        message(&mut self.out, b'2', |_| {});
        Ok(())
    }

    fn close(&mut self, mut body: Bytes) {
        let kind = body.get_u8();
        if let (b'P', Ok(name)) = (kind, c_string(&mut body)) {
            self.portals.remove(&name);
        }
    }

    async fn execute(&mut self, mut body: Bytes) -> Result<(), Failed> {
        let name = c_string(&mut body)?;
        // 0: all of them.
        let most = Some(body.get_u32() as usize).filter(|most| *most > 0).unwrap_or(usize::MAX);
        let (prepared, mut rows, outcome) = match self.portals.remove(&name) {
            None => return Err(Failed("34000", "no portal".into())),
            Some(Portal::Suspended(prepared, rows)) => (prepared, rows, StatementResult::default()),
            Some(Portal::Bound(prepared, values)) => {
                pause(&self.runner.server).await;
                let mut outcome = self.runner.run(&prepared.statement, &values).await?;
                (prepared, std::mem::take(&mut outcome.rows).into_iter(), outcome)
            }
        };
        let mut given = 0;
        for row in rows.by_ref().take(most) {
            data_row(&mut self.out, &row);
            given += 1;
        }
        // PostgreSQL does not look whether there are more.
        if given == most {
            message(&mut self.out, b's', |_| {});
            self.portals.insert(name, Portal::Suspended(prepared, rows));
        } else {
            complete(&mut self.out, &prepared.statement, &outcome);
        }
        Ok(())
    }
}

fn data_row(out: &mut BytesMut, row: &[Value]) {
    message(out, b'D', |out| {
        out.put_u16(row.len() as u16);
        for value in row {
            match value {
                Some(raw) => {
                    out.put_i32(raw.len() as i32);
                    out.put_slice(raw);
                }
                None => out.put_i32(-1),
            }
        }
    });
}

/// Types of parameters, by number.
#[derive(Default)]
struct Parameters(Vec<u32>);

impl Parameters {
    fn is(&mut self, n: usize, oid: u32) {
        if self.0.len() <= n {
            self.0.resize(n + 1, 20);
        }
        self.0[n] = oid;
    }

    fn of(&mut self, expr: &Expr, oid: u32) {
        match expr {
            Expr::Parameter(n) => self.is(*n, oid),
            Expr::Add(a, b) | Expr::Subtract(a, b) => {
                self.of(a, oid);
                self.of(b, oid);
            }
            _ => {}
        }
    }

    fn set(&mut self, table: &Table, set: &[(String, Expr)]) {
        for (column, expr) in set {
            self.of(expr, type_of(table, &Expr::Column(column.clone())));
        }
    }

    fn filter(&mut self, table: &Table, filter: &[Condition]) {
        for condition in filter {
            for (left, right) in condition.left.iter().zip(&condition.right) {
                self.of(right, type_of(table, left));
                self.of(left, type_of(table, right));
            }
        }
    }
}

/// A statement takes a moment now and then, so that sessions overtake each other.
async fn pause(server: &SimulatedPostgres) {
    let slow_ms = server.state().slow_ms;
    if slow_ms > 0 {
        evenkeel_host::sleep(Duration::from_millis(process::below(slow_ms))).await;
    } else if process::once_in(8) {
        evenkeel_host::sleep(Duration::from_millis(1 + process::below(3))).await;
    }
}

fn message(out: &mut BytesMut, kind: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(kind);
    let at = out.len();
    out.put_i32(0);
    body(out);
    let length = (out.len() - at) as i32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

fn error(out: &mut BytesMut, severity: &str, failed: &Failed) {
    message(out, b'E', |out| {
        for (field, text) in [(b'S', severity), (b'V', severity), (b'C', failed.0), (b'M', failed.1.as_str())] {
            out.put_u8(field);
            out.put_slice(text.as_bytes());
            out.put_u8(0);
        }
        out.put_u8(0);
    });
}

fn complete(out: &mut BytesMut, statement: &Statement, outcome: &StatementResult) {
    let tag = match statement {
        Statement::Insert { .. } => format!("INSERT 0 {}", outcome.affected),
        Statement::Update { .. } => format!("UPDATE {}", outcome.affected),
        Statement::Delete { .. } => format!("DELETE {}", outcome.affected),
        Statement::Select { .. } => format!("SELECT {}", outcome.affected),
        Statement::Begin { .. } => "BEGIN".into(),
        Statement::Commit => "COMMIT".into(),
        Statement::Rollback => "ROLLBACK".into(),
        _ => "SET".into(),
    };
    message(out, b'C', |out| {
        out.put_slice(tag.as_bytes());
        out.put_u8(0);
    });
}

fn c_string(body: &mut Bytes) -> Result<String, Failed> {
    let end = body.iter().position(|byte| *byte == 0).ok_or_else(|| Failed("08P01", "an open string".into()))?;
    let text = body.split_to(end);
    body.advance(1);
    String::from_utf8(text.to_vec()).map_err(|e| Failed("22021", e.to_string()))
}
