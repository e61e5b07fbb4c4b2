//! What a statement touches and returns, as PostgreSQL itself finds it.
//!
//! The statement is prepared in a transaction that is rolled back. Preparing resolves names, views
//! and rules, and locks every relation that it finds: the locks say which relations are read,
//! locked and written. Nothing is executed.

use super::sessions::{FrontSession, sql_error};
use super::settings::literal;
use bytes::Bytes;
use evenkeel_postgres_session::{Message, Named, Requests, error_response, tags};
use evenkeel_protocol::SqlError;

/// The relations locked by this transaction: schema, name, kind, and whether rows can be written or
/// locked.
const LOCKED: &str = "
SELECT n.nspname, c.relname, c.relkind,
  bool_or(l.mode IN ('RowShareLock', 'RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND c.relkind IN ('r', 'S', 'v')
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
GROUP BY 1, 2, 3";

/// The analysis of a statement.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Analysis {
    /// The parameters' types, as object ids.
    pub parameter_types: Vec<u32>,
    /// The RowDescription message, in the text format; `None` if it returns no rows.
    pub description: Option<Bytes>,
    /// The users' tables and sequences that it touches: the name as the store has it, and whether
    /// rows can be written or locked.
    pub relations: Vec<(String, bool)>,
    /// Whether it names a view, so that a name in it need not be a table's.
    pub uses_views: bool,
    /// Whether a function that is not PostgreSQL's own is called.
    pub calls_user_code: bool,
}

/// The statement to be analysed.
pub struct Question<'a> {
    /// The statement.
    pub text: &'a str,
    /// The part of it whose tables count, if not the whole.
    pub inner: Option<&'a str>,
    /// The parameters' types as the client gave them; 0 for "not given".
    pub types: &'a [u32],
    /// Tables and sequences that it names without PostgreSQL's resolving them.
    pub named: &'a [(String, bool)],
    /// The functions that it calls by name.
    pub functions: &'a [String],
}

/// Analyses a statement in a session that is outside of any transaction.
///
/// # Errors
/// PostgreSQL's own, as it would give it when the statement is prepared.
pub async fn analyse(front: &mut FrontSession, question: Question<'_>) -> Result<Analysis, SqlError> {
    let mut requests = Requests::default();
    requests.query("BEGIN")?;
    requests.parse("", question.text, question.types)?;
    requests.describe(Named::Statement(""))?;
    requests.sync();
    if let Some(inner) = question.inner {
        requests.parse("", inner, &[])?;
        requests.sync();
    }
    requests.query(LOCKED)?;
    requests.query(&resolve_named(question.named))?;
    requests.query(&user_code(question.functions))?;
    requests.query("ROLLBACK")?;
    front.session.send(requests);

    let mut analysis = Analysis::default();
    // A failed part fails the queries behind it, too; the first error is the statement's own.
    let mut part = 0;
    let mut seen = Ok(());
    let result = front
        .session
        .until_ready(|message| {
            if seen.is_ok() {
                seen = analysis.see(message, part, question.inner.is_some());
            }
            part += usize::from(message.tag() == tags::READY_FOR_QUERY);
        })
        .await;
    result.map_err(sql_error)?;
    seen?;
    Ok(analysis)
}

impl Analysis {
    /// Takes a message of the answer's part with this number.
    fn see(&mut self, message: &Message, part: usize, has_inner: bool) -> Result<(), SqlError> {
        let queries_from = if has_inner { 3 } else { 2 };
        match message.tag() {
            tags::ERROR_RESPONSE => return Err(error_response::parse(&message.body())),
            tags::PARAMETER_DESCRIPTION if part == 1 => {
                self.parameter_types = message
                    .body()
                    .get(2..)
                    .unwrap_or_default()
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|oid| u32::from_be_bytes(*oid))
                    .collect();
            }
            tags::ROW_DESCRIPTION if part == 1 => self.description = Some(message.whole().clone()),
            tags::DATA_ROW if part >= queries_from => {
                let row = evenkeel_postgres_session::row::text_row(&message.body()).unwrap_or_default();
                let text = |at: usize| row.get(at).cloned().flatten();
                if part == queries_from + 2 {
                    self.calls_user_code |= text(0).as_deref() == Some("t");
                } else if text(2).as_deref() == Some("v") {
                    self.uses_views = true;
                } else if let (Some(schema), Some(name)) = (text(0), text(1)) {
                    let writes = text(3).as_deref() == Some("t");
                    self.touch(if schema == "public" { name } else { format!("{schema}.{name}") }, writes);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn touch(&mut self, name: String, writes: bool) {
        match self.relations.iter_mut().find(|(other, _)| *other == name) {
            Some((_, also)) => *also |= writes,
            None => self.relations.push((name, writes)),
        }
    }
}

/// A query that gives the relations with these names, in the form of [`LOCKED`].
fn resolve_named(named: &[(String, bool)]) -> String {
    if named.is_empty() {
        return "SELECT WHERE false".into();
    }
    let each = named.iter().map(|(name, writes)| format!("({}, {writes})", literal(name)));
    let each = each.collect::<Vec<_>>().join(", ");
    format!(
        "SELECT n.nspname, c.relname, c.relkind, v.writes FROM (VALUES {each}) v (name, writes) \
         JOIN pg_class c ON c.oid = v.name::regclass JOIN pg_namespace n ON n.oid = c.relnamespace"
    )
}

/// A query that says whether one of these functions may be a user's.
fn user_code(functions: &[String]) -> String {
    if functions.is_empty() {
        return "SELECT false".into();
    }
    let names = functions.iter().map(|name| literal(name));
    let names = names.collect::<Vec<_>>().join(", ");
    format!("SELECT EXISTS (SELECT 1 FROM pg_proc WHERE oid >= 16384 AND proname IN ({names}))")
}
