//! Prepared statements and portals of a session. Values.

use super::declared::Parameter;
use super::planner::Plan;
use crate::grammar::statement::Statement;
use crate::remote::reads::StatementReads;
use bytes::Bytes;
use evenkeel_protocol::ShardId;
use std::collections::VecDeque;
use std::sync::Arc;

/// Prepared statements of a session.
pub const MAX_PREPARED: usize = 100_000;
/// Portals of a session.
pub const MAX_PORTALS: usize = 1_000;

/// A prepared statement.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The statement; `None` for an empty text.
    pub statement: Option<Arc<Statement>>,
    /// The parameters' types as the client gave them.
    pub types: Vec<u32>,
    /// Its plan, if it is a statement on rows. It is planned again when the schema has changed.
    pub plan: Option<Arc<Plan>>,
}

/// A prepared statement with its parameters.
#[derive(Debug, Clone)]
pub struct Portal {
    /// The statement.
    pub prepared: Prepared,
    /// The parameters.
    pub values: Values,
    /// How far it has been executed.
    pub progress: Progress,
}

/// The parameters of a statement, and the formats of its result.
#[derive(Debug, Clone, Default)]
pub struct Values {
    /// The formats of the parameters, as Bind has them.
    pub formats: Vec<i16>,
    /// The parameters; `None` for null.
    pub parameters: Vec<Option<Bytes>>,
    /// The formats of the result's columns.
    pub result_formats: Vec<i16>,
}

impl Values {
    /// The parameters with their types.
    pub fn typed<'a>(&'a self, types: &'a [u32]) -> Vec<Parameter<'a>> {
        let format = |at: usize| match &self.formats[..] {
            [] => 0,
            [all] => *all,
            each => each.get(at).copied().unwrap_or(0),
        };
        let each = self.parameters.iter().enumerate();
        each.map(|(at, value)| Parameter {
            type_oid: types.get(at).copied().unwrap_or(0),
            binary: format(at) == 1,
            value: value.as_deref(),
        })
        .collect()
    }
}

/// How far a portal has been executed.
#[derive(Debug, Clone, Default)]
pub enum Progress {
    /// Not at all.
    #[default]
    New,
    /// It is suspended at this shard, under this number.
    AtShard(ShardId, u64),
    /// It is suspended in the engine database, under this number, and reads there.
    InEngine(u64, Arc<StatementReads>),
    /// These rows, whole messages, are left, and then this command tag.
    Left(VecDeque<Bytes>, String),
    /// To its end.
    Done,
}
