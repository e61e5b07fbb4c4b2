//! The shapes of statements that a replica and the clients of a simulation send.

/// An expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    /// A column of the table.
    Column(String),
    /// A column of the row that could not be inserted.
    Excluded(String),
    /// A column of the arrays joined by UPDATE or DELETE.
    Given(String),
    /// A parameter, from 0.
    Parameter(usize),
    /// A whole number.
    Int(i64),
    /// A text.
    Text(String),
    /// A sum.
    Add(Box<Expr>, Box<Expr>),
    /// A difference.
    Subtract(Box<Expr>, Box<Expr>),
    /// Whether it is not null.
    IsNotNull(Box<Expr>),
    /// A hash of the whole row.
    RowHash,
    /// The size of a value, in bytes.
    Size(Box<Expr>),
    /// The size of the row, in bytes.
    RowSize,
}

/// `(a, b) op (x, y)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// The left sides.
    pub left: Vec<Expr>,
    /// One of `=`, `<`, `<=`, `>`, `>=`.
    pub operator: String,
    /// The right sides, as many.
    pub right: Vec<Expr>,
}

/// The result of a SELECT.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// Values of each row.
    Rows(Vec<Expr>),
    /// Number of rows and the sum of their hashes, as text.
    Checksum,
    /// Number of rows and their bytes.
    Sizes,
}

/// The action on a row that exists already.
#[derive(Debug, Clone, PartialEq)]
pub enum OnConflict {
    /// An error.
    Fail,
    /// Nothing.
    Nothing,
    /// It is changed.
    Update(Vec<(String, Expr)>),
}

/// A statement.
#[derive(Debug, Clone, PartialEq)]
pub enum Statement {
    /// BEGIN, with whether its snapshot stays.
    Begin {
        /// Whether it sees one moment only.
        repeatable: bool,
        /// Whether it may write; if it does not say, as the session's transactions do.
        writes: Option<bool>,
    },
    /// `SET default_transaction_read_only = on`.
    ReadOnly,
    /// COMMIT.
    Commit,
    /// ROLLBACK.
    Rollback,
    /// SAVEPOINT; they all have the same name.
    Savepoint,
    /// ROLLBACK TO SAVEPOINT: to the last.
    RollbackTo,
    /// `SET LOCAL synchronous_commit = on`.
    SyncCommit,
    /// `SET lock_timeout`, in milliseconds.
    LockTimeout(u64),
    /// A setting that changes nothing here.
    Nothing,
    /// Takes the transaction's snapshot.
    Pin,
    /// Whether there is the replica's schema.
    HasSchema,
    /// Makes it.
    MakeSchema,
    /// Drops everything.
    Clear,
    /// The size of a table on disk.
    RelationSize,
    /// Array types of types.
    ArrayTypes,
    /// Ends all users' sessions, and returns them.
    EndSessions,
    /// CREATE TABLE: columns with types, the key's columns.
    Create(String, Vec<(String, u32)>, Vec<String>),
    /// INSERT.
    Insert {
        /// Into which table.
        table: String,
        /// Which columns.
        columns: Vec<String>,
        /// One row of values, or arrays with one value per row.
        values: Vec<Expr>,
        /// Whether the values are arrays.
        arrays: bool,
        /// If the row is there.
        conflict: OnConflict,
        /// The returned expressions.
        returning: Vec<Expr>,
    },
    /// UPDATE.
    Update {
        /// Which table.
        table: String,
        /// The changes.
        set: Vec<(String, Expr)>,
        /// Arrays joined: their parameters and names.
        given: Vec<(usize, String)>,
        /// Of which rows.
        filter: Vec<Condition>,
        /// The returned expressions.
        returning: Vec<Expr>,
    },
    /// DELETE.
    Delete {
        /// Of which table.
        table: String,
        /// Arrays joined: their parameters and names.
        given: Vec<(usize, String)>,
        /// Which rows.
        filter: Vec<Condition>,
        /// The returned expressions.
        returning: Vec<Expr>,
    },
    /// DECLARE CURSOR: its name and its SELECT.
    Declare(String, Box<Statement>),
    /// FETCH: a number of rows of a cursor.
    Fetch(usize, String),
    /// CLOSE a cursor.
    Close(String),
    /// SELECT.
    Select {
        /// Of which table.
        table: String,
        /// The selected values.
        wanted: Wanted,
        /// Which rows.
        filter: Vec<Condition>,
        /// The most rows; rows come in the order of the key in any case.
        limit: Option<Expr>,
        /// Whether it locks them.
        locks: bool,
    },
}
