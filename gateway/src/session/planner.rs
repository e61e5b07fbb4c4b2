//! What a text is, what it touches, and who executes it; cached by text.
//!
//! A plan belongs to a text, the types given with it, the search path and a version of the schema.
//! What PostgreSQL says of a statement is cached by its masked text, so that texts with other
//! constants need not ask again. Fingerprints are no keys of the cache: statements that differ in
//! more than their constants have the same one.

use super::declared::TouchedTable;
use crate::front::analysis::{Analysis, Question};
use crate::front::server::FrontPostgres;
use crate::front::settings::Settings;
use crate::grammar::parser::Parser;
use crate::grammar::statement::{Kind, Rows, Statement};
use evenkeel_client::Client;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::schema::RelationKind;
use evenkeel_protocol::{SqlError, TableSchema};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Texts whose parsing is kept.
const MAX_TEXTS: usize = 4_096;
/// Statements whose plan is kept.
const MAX_PLANS: usize = 4_096;
/// Longer texts are not kept, in bytes: they are bulk loads with constants, which do not repeat.
const MAX_KEPT_BYTES: usize = 16 << 10;

/// Who executes a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The gateway's own PostgreSQL: the statement touches no table of users.
    Front,
    /// The shard that owns what it touches, or the engine database if several own what it reads.
    Shard,
    /// Wherever the transaction's earlier statement ran.
    Follows,
}

/// A statement on rows, planned.
#[derive(Debug)]
pub struct Plan {
    /// The statement.
    pub statement: Arc<Statement>,
    /// What it has in common with statements that differ in constants only.
    pub shape: Arc<Shape>,
    /// The keys that its conditions let through, if they are understood.
    pub narrow: Option<evenkeel_sql::Plan>,
}

/// What statements touch and return that differ in constants only.
#[derive(Debug)]
pub struct Shape {
    /// What PostgreSQL found.
    pub analysis: Analysis,
    /// Who executes it.
    pub place: Place,
    /// The tables and sequences that it touches.
    pub touched: Vec<TouchedTable>,
    /// The version of the schema that it was planned with.
    pub schema_version: u64,
}

impl Plan {
    /// The statement on rows.
    pub fn rows(&self) -> Option<&Rows> {
        match &self.statement.kind {
            Kind::Rows(rows) => Some(rows),
            _ => None,
        }
    }
}

/// The statements of a text.
type Statements = Arc<[Arc<Statement>]>;

#[derive(PartialEq, Eq, Hash, Clone)]
struct PlanKey {
    text: Arc<str>,
    types: Vec<u32>,
    search_path: Option<String>,
    schema_version: u64,
}

/// See the module. One for all sessions of a gateway.
pub struct Planner {
    client: Client,
    front: Arc<FrontPostgres>,
    parser: Parser,
    texts: Mutex<Generations<Arc<str>, Statements>>,
    plans: Mutex<Generations<PlanKey, Arc<Plan>>>,
    shapes: Mutex<Generations<PlanKey, Arc<Shape>>>,
}

impl Planner {
    /// Nothing is cached.
    pub fn new(client: Client, front: Arc<FrontPostgres>, parser: Parser) -> Planner {
        Planner {
            client,
            front,
            parser,
            texts: Mutex::new(Generations::new(MAX_TEXTS)),
            plans: Mutex::new(Generations::new(MAX_PLANS)),
            shapes: Mutex::new(Generations::new(MAX_PLANS)),
        }
    }

    /// The parser.
    pub fn parser(&self) -> &Parser {
        &self.parser
    }

    /// The statements of a text.
    ///
    /// # Errors
    /// PostgreSQL's own for a text that does not parse, with its position.
    pub async fn statements(&self, text: &str) -> Result<Statements, SqlError> {
        if let Some(known) = lock(&self.texts).get(text) {
            return Ok(known);
        }
        let text: Arc<str> = text.into();
        let parsed = match self.parser.parse(&text).await {
            Ok(parsed) => parsed,
            Err(error) if error.code == codes::SYNTAX_ERROR => return Err(self.complaint(&text, error).await),
            Err(error) => return Err(error),
        };
        let statements: Statements = parsed.into_iter().map(Arc::new).collect();
        if text.len() <= MAX_KEPT_BYTES {
            lock(&self.texts).put(text, statements.clone());
        }
        Ok(statements)
    }

    /// PostgreSQL's own error for a text that the parser has refused: it has a position. The parser
    /// is of a later version; what only this version's PostgreSQL accepts is refused all the same.
    async fn complaint(&self, text: &str, error: SqlError) -> SqlError {
        let nothing = Question { text, inner: None, types: &[], named: &[], functions: &[] };
        match self.front.analyse(&Settings::new(), nothing).await {
            Err(own) if own.code == codes::SYNTAX_ERROR => own,
            _ => error,
        }
    }

    /// Plans a statement on rows.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn plan(
        &self,
        statement: &Arc<Statement>,
        types: &[u32],
        settings: &Settings,
    ) -> Result<Arc<Plan>, SqlError> {
        let mut key = PlanKey {
            text: statement.text.clone(),
            types: types.to_vec(),
            search_path: settings.get("search_path").cloned(),
            schema_version: self.front.version(),
        };
        if let Some(known) = lock(&self.plans).get(&key) {
            return Ok(known);
        }
        let keep = statement.text.len() <= MAX_KEPT_BYTES;
        let exact = key.clone();
        key.text = statement.masked.clone();
        let known = lock(&self.shapes).get(&key);
        let shape = match known {
            Some(known) => known,
            None => {
                let made = Arc::new(self.shape(statement, types, settings, key.schema_version).await?);
                if keep {
                    lock(&self.shapes).put(key, made.clone());
                }
                made
            }
        };
        let narrow = match &shape.touched[..] {
            [only] if !shape.analysis.uses_views && !only.table.pinned => {
                let inner = match &statement.kind {
                    Kind::Rows(rows) => Some(rows.inner.as_deref().unwrap_or(&statement.text)),
                    _ => None,
                };
                inner.and_then(|text| narrow(text, &only.table, settings))
            }
            _ => None,
        };
        let plan = Arc::new(Plan { statement: statement.clone(), shape, narrow });
        if keep {
            lock(&self.plans).put(exact, plan.clone());
        }
        Ok(plan)
    }

    async fn shape(
        &self,
        statement: &Arc<Statement>,
        types: &[u32],
        settings: &Settings,
        schema_version: u64,
    ) -> Result<Shape, SqlError> {
        let nothing = Rows::default();
        let rows = match &statement.kind {
            Kind::Rows(rows) => rows,
            _ => &nothing,
        };
        if rows.follows {
            let (analysis, touched) = (Analysis::default(), Vec::new());
            return Ok(Shape { analysis, place: Place::Follows, touched, schema_version });
        }
        let mut named = rows.named.clone();
        if let Kind::CopyIn(copy) = &statement.kind {
            named.push((copy.table.clone(), true));
        }
        named.extend(statement.sequences.iter().map(|name| (name.clone(), true)));
        let question = Question {
            text: &statement.text,
            inner: rows.inner.as_deref(),
            types,
            named: &named,
            functions: &statement.functions,
        };
        let analysis = self.front.analyse(settings, question).await?;
        let touched = self.touched(&analysis, rows.runs_code || analysis.calls_user_code).await?;
        let place = if touched.is_empty() { Place::Front } else { Place::Shard };
        Ok(Shape { analysis, place, touched, schema_version })
    }

    /// The tables by their names, and those that code may touch besides.
    async fn touched(&self, analysis: &Analysis, runs_code: bool) -> Result<Vec<TouchedTable>, SqlError> {
        let mut routes = self.client.routes();
        if analysis.relations.iter().any(|(name, _)| routes.table(name).is_none()) {
            // A table that has just been made. If the placement driver cannot be reached, the
            // lookup below says so.
            _ = self.client.refresh().await;
            routes = self.client.routes();
        }
        let mut touched = Vec::new();
        for (name, writes) in &analysis.relations {
            let table = routes.table(name).cloned().ok_or_else(|| {
                SqlError::new(codes::CANNOT_CONNECT_NOW, format!("the place of table {name} is not known yet"))
            })?;
            touched.push(TouchedTable { table, writes: *writes });
        }
        let triggers = touched.iter().any(|touched| touched.writes && touched.table.pass_through_only);
        if runs_code || triggers {
            for table in routes.tables().filter(|table| table.pinned) {
                match touched.iter_mut().find(|touched| touched.table.id == table.id) {
                    Some(known) => known.writes = true,
                    None => touched.push(TouchedTable { table: table.clone(), writes: true }),
                }
            }
        } else {
            let written = touched.iter().filter(|touched| touched.writes);
            let sequences: Vec<_> = written.flat_map(|touched| touched.table.sequences.clone()).collect();
            for id in sequences {
                if let Some(table) = routes.schema(id)
                    && !touched.iter().any(|touched| touched.table.id == id)
                {
                    touched.push(TouchedTable { table: table.clone(), writes: true });
                }
            }
        }
        Ok(touched)
    }
}

/// The keys that a statement's conditions let through, if they are understood.
fn narrow(text: &str, table: &TableSchema, settings: &Settings) -> Option<evenkeel_sql::Plan> {
    // Instants without a time zone mean what the session's time zone says.
    let instants = table.key.iter().any(|&at| table.columns.get(at).is_some_and(|column| column.type_oid == 1184));
    if table.kind != RelationKind::Table || (instants && settings.contains_key("timezone")) {
        return None;
    }
    let Ok(evenkeel_sql::Command::Statement(parsed)) = evenkeel_sql::parse(text) else { return None };
    // PostgreSQL has found the one table that it touches, in whichever schema of the search path.
    let named = TableSchema { name: parsed.table_name()?.to_string(), ..table.clone() };
    parsed.bind(Some(&named)).ok()
}

/// A bounded map with two generations: an entry that is used stays, the rest makes room.
struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    entries: usize,
}

impl<K: std::hash::Hash + Eq + Clone, V: Clone> Generations<K, V> {
    fn new(entries: usize) -> Generations<K, V> {
        Generations { young: HashMap::new(), old: HashMap::new(), entries: entries.div_ceil(2) }
    }

    fn get<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
        Q: std::hash::Hash + Eq + ?Sized,
    {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.put(key, value.clone());
        Some(value)
    }

    fn put(&mut self, key: K, value: V) {
        self.young.insert(key, value);
        if self.young.len() >= self.entries {
            self.old = std::mem::take(&mut self.young);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
