//! The kinds of statements. Values.

use std::sync::Arc;

/// One statement of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// Its own text, without the semicolon.
    pub text: Arc<str>,
    /// Statements with this text touch and return the same; its own text if nothing is masked.
    pub masked: Arc<str>,
    /// The characters of the whole text in front of it: error positions count from there.
    pub characters_before: u32,
    /// What it is.
    pub kind: Kind,
    /// The functions that it calls, without schemas. A name that is no function's may be among
    /// them.
    pub functions: Vec<String>,
    /// The names given to `nextval` and its kin as constants.
    pub sequences: Vec<String>,
    /// The settings that `set_config` is called with: names, values, and whether they hold for the
    /// transaction only.
    pub configured: Vec<(String, String, bool)>,
}

/// Who has to deal with a statement, and how.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// BEGIN, COMMIT and the like.
    Transaction(TransactionCommand),
    /// SET, RESET.
    Setting(SettingChange),
    /// A statement on rows: SELECT, INSERT, UPDATE, DELETE, MERGE, VALUES, EXPLAIN, cursors.
    Rows(Rows),
    /// `COPY … FROM STDIN`.
    CopyIn(CopyFormat),
    /// PREPARE: a name, the types as written, and the statement.
    Prepare {
        /// The name.
        name: String,
        /// The parameters' types, as written.
        types: Vec<String>,
        /// The statement.
        statement: String,
    },
    /// EXECUTE: a name, and the parameters' expressions as written.
    Execute {
        /// The name.
        name: String,
        /// The parameters' expressions.
        parameters: Vec<String>,
    },
    /// DEALLOCATE: a name, or all.
    Deallocate(Option<String>),
    /// A change of the schema, as each shard is to execute it.
    Schema(SchemaStatement),
    /// DISCARD: ALL, PLANS, SEQUENCES or TEMP.
    Discard(&'static str),
    /// VACUUM, ANALYZE and the like: nothing that a user has to do here.
    Maintenance(&'static str),
    /// Not possible here.
    Refused {
        /// What.
        what: String,
        /// What to do instead.
        instead: &'static str,
    },
}

/// A statement on rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rows {
    /// The statement whose tables count, if it is a part of the text: the query of an EXPLAIN or of
    /// a cursor.
    pub inner: Option<String>,
    /// Tables named by a statement that PostgreSQL does not analyse when it parses it (TRUNCATE,
    /// LOCK, COPY): as written, and whether they are written to.
    pub named: Vec<(String, bool)>,
    /// Whether it must run in a transaction block (DECLARE, LOCK).
    pub needs_block: bool,
    /// Whether it belongs to where an earlier statement of the block ran (FETCH, CLOSE): it touches
    /// no table itself.
    pub follows: bool,
    /// Whether code runs whose tables are not known: DO, CALL.
    pub runs_code: bool,
    /// Whether sequences are set to values of the statement's own (`setval`, `RESTART IDENTITY`).
    pub sets_sequences: bool,
    /// The cursor that it declares, reads or closes.
    pub cursor: Option<String>,
    /// Whether the cursor that it declares outlives its transaction.
    pub holds: bool,
    /// The text that means the same where tables are parents of others that have their rows, if its
    /// own does not.
    pub for_parents: Option<Arc<str>>,
    /// What it has that would mean something else there, if anything.
    pub not_for_parents: Option<&'static str>,
}

/// BEGIN, COMMIT and the like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransactionCommand {
    /// BEGIN, START TRANSACTION: the tag, and the modes.
    Begin(&'static str, Modes),
    /// COMMIT, END.
    Commit {
        /// AND CHAIN.
        chain: bool,
    },
    /// ROLLBACK, ABORT.
    Rollback {
        /// AND CHAIN.
        chain: bool,
    },
    /// SAVEPOINT.
    Savepoint(String),
    /// RELEASE.
    Release(String),
    /// ROLLBACK TO.
    RollbackTo(String),
    /// SET TRANSACTION.
    SetModes(Modes),
}

/// The modes of a transaction, as far as they are given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Modes {
    /// The isolation level, in lower case.
    pub isolation: Option<String>,
    /// READ ONLY or READ WRITE.
    pub read_only: Option<bool>,
}

/// SET, RESET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingChange {
    /// SET.
    Set {
        /// SET LOCAL.
        local: bool,
        /// The name, in lower case.
        name: String,
        /// The value as `set_config` takes it; `None` for DEFAULT.
        value: Option<String>,
    },
    /// RESET ALL.
    ResetAll,
    /// SET SESSION CHARACTERISTICS.
    Characteristics(Modes),
}

/// The format of the data of a `COPY … FROM STDIN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyFormat {
    /// The table, as written.
    pub table: String,
    /// The number of columns named; `None` for all of the table's.
    pub columns: Option<usize>,
    /// The format.
    pub format: CopyKind,
    /// CSV: the character that encloses values.
    pub quote: u8,
    /// CSV: the character before an enclosing character inside of a value.
    pub escape: u8,
    /// Whether the first line holds names.
    pub header: bool,
}

/// How rows of a copy are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyKind {
    /// Lines, with backslashes.
    Text,
    /// Comma-separated values.
    Csv,
    /// PostgreSQL's binary format.
    Binary,
}

/// A change of the schema.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SchemaStatement {
    /// The text for the shards, if it is not the user's own.
    pub rewritten: Option<String>,
    /// The command tag, such as `CREATE TABLE`.
    pub tag: String,
    /// A statement that fills what was created, such as the INSERT of a CREATE TABLE AS.
    pub then: Option<String>,
    /// The tag of that statement's number of rows, instead of its own.
    pub then_tag: &'static str,
}
