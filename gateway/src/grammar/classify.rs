//! From the parser's tree to the kind of each statement. Pure.

use super::calls::{Calls, calls, scan};
use super::deparse::{complaint, expression_text, inner, quote, text_of, type_text, written};
use super::mask::masked;
use super::parents::{not_for_parents, without_only};
use super::settings::{constant, modes, setting};
use super::statement::{CopyFormat, CopyKind, Kind, Rows, SchemaStatement, Statement, TransactionCommand};
use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use pg_query::NodeEnum;
use pg_query::protobuf::{self, Node, RangeVar, TransactionStmtKind};
use std::sync::Arc;

/// The bit of DECLARE's options that says WITH HOLD.
const CURSOR_HOLDS: i32 = 0x20;

/// The statements of a text. `Err` is the parser's own complaint, without a position.
pub fn statements(text: &str) -> Result<Vec<Statement>, SqlError> {
    let parsed = pg_query::parse(text, pg_query::ParserOptions::default())
        .map_err(|error| SqlError::new(codes::SYNTAX_ERROR, complaint(&error)))?;
    parsed.protobuf.stmts.iter().filter_map(|raw| statement(text, raw).transpose()).collect()
}

fn statement(text: &str, raw: &protobuf::RawStmt) -> Result<Option<Statement>, SqlError> {
    let Some(node) = raw.stmt.as_ref().and_then(|node| node.node.as_ref()) else { return Ok(None) };
    let start = usize::try_from(raw.stmt_location).unwrap_or(0);
    let length = match usize::try_from(raw.stmt_len) {
        Ok(0) | Err(_) => text.len().saturating_sub(start),
        Ok(length) => length,
    };
    let (Some(before), Some(own)) = (text.get(..start), text.get(start..start + length)) else {
        return Err(SqlError::new(codes::INTERNAL, "the parser cut a text inside of a character"));
    };
    let blank = own.len() - own.trim_start().len();
    let characters_before = (before.chars().count() + own[..blank].chars().count()) as u32;
    let own: Arc<str> = own.trim().trim_end_matches(';').into();
    let Some(tokens) = scan(&own) else {
        return Err(SqlError::new(codes::INTERNAL, "a statement that parses cannot be scanned"));
    };
    let Calls { functions, sequences, configured, escaped } = calls(&own, &tokens);
    let mut kind = match (session_lock(&functions), &configured) {
        _ if escaped => refused("a function's name with Unicode escapes", "write the name as it is"),
        (Some(name), _) => refused(
            format!("{name}, a lock that outlives its transaction,"),
            "use pg_advisory_xact_lock or pg_try_advisory_xact_lock",
        ),
        (None, None) => refused("set_config with anything but constants", "use SET or SET LOCAL"),
        _ => self::kind(node, &functions)?,
    };
    if let Kind::Rows(rows) = &mut kind {
        rows.not_for_parents = not_for_parents(&own, &tokens);
        if rows.for_parents.is_none() {
            rows.for_parents = without_only(&own, &tokens).map(Into::into);
        }
    }
    let plain = matches!(&kind, Kind::Rows(rows) if rows.inner.is_none() && rows.named.is_empty());
    let masked = if plain && sequences.is_empty() { masked(&own, &tokens).map(Into::into) } else { None };
    Ok(Some(Statement {
        masked: masked.unwrap_or_else(|| own.clone()),
        text: own,
        characters_before,
        kind,
        functions,
        sequences,
        configured: configured.unwrap_or_default(),
    }))
}

/// The first function that takes or gives back a session's advisory lock. Sessions are shared.
fn session_lock(functions: &[String]) -> Option<&str> {
    functions.iter().map(String::as_str).find(|name| {
        let kind = name.strip_prefix("pg_try_advisory_").or_else(|| name.strip_prefix("pg_advisory_"));
        kind.is_some_and(|kind| kind.starts_with("lock") || kind.starts_with("unlock"))
    })
}

fn kind(node: &NodeEnum, functions: &[String]) -> Result<Kind, SqlError> {
    let sets_sequences = functions.iter().any(|name| name == "setval");
    let rows = Rows { sets_sequences, ..Rows::default() };
    Ok(match node {
        NodeEnum::SelectStmt(select) if select.into_clause.is_some() => select_into(select)?,
        NodeEnum::SelectStmt(_)
        | NodeEnum::InsertStmt(_)
        | NodeEnum::UpdateStmt(_)
        | NodeEnum::DeleteStmt(_)
        | NodeEnum::MergeStmt(_) => Kind::Rows(rows),
        NodeEnum::VariableShowStmt(_) => Kind::Rows(rows),
        NodeEnum::ExplainStmt(explain) => Kind::Rows(Rows { inner: inner(explain.query.as_deref())?, ..rows }),
        NodeEnum::DeclareCursorStmt(cursor) => {
            let name = Some(cursor.portalname.clone());
            let holds = cursor.options & CURSOR_HOLDS != 0;
            let inner = inner(cursor.query.as_deref())?;
            Kind::Rows(Rows { inner, needs_block: true, cursor: name, holds, ..rows })
        }
        NodeEnum::FetchStmt(fetch) => {
            Kind::Rows(Rows { follows: true, cursor: Some(fetch.portalname.clone()), ..rows })
        }
        NodeEnum::ClosePortalStmt(close) => {
            let name = Some(close.portalname.clone()).filter(|name| !name.is_empty());
            Kind::Rows(Rows { follows: true, cursor: name, ..rows })
        }
        NodeEnum::ConstraintsSetStmt(_) => Kind::Rows(Rows { follows: true, ..rows }),
        NodeEnum::TruncateStmt(truncate) => {
            let named = truncate.relations.iter().filter_map(range).map(|table| (written(table), true)).collect();
            Kind::Rows(Rows { named, sets_sequences: truncate.restart_seqs, ..rows })
        }
        NodeEnum::LockStmt(lock) => {
            let named = lock.relations.iter().filter_map(range).map(|table| (written(table), true)).collect();
            Kind::Rows(Rows { named, needs_block: true, ..rows })
        }
        NodeEnum::DoStmt(_) | NodeEnum::CallStmt(_) => Kind::Rows(Rows { runs_code: true, ..rows }),
        NodeEnum::CopyStmt(copy) => self::copy(copy, rows)?,
        NodeEnum::TransactionStmt(transaction) => self::transaction(transaction),
        NodeEnum::VariableSetStmt(set) => match setting(set) {
            Ok(change) => Kind::Setting(change),
            Err(command) => Kind::Transaction(command),
        },
        NodeEnum::PrepareStmt(prepare) => Kind::Prepare {
            name: prepare.name.clone(),
            types: prepare.argtypes.iter().map(type_text).collect::<Result<_, _>>()?,
            statement: inner(prepare.query.as_deref())?.unwrap_or_default(),
        },
        NodeEnum::ExecuteStmt(execute) => Kind::Execute {
            name: execute.name.clone(),
            parameters: execute.params.iter().map(expression_text).collect::<Result<_, _>>()?,
        },
        NodeEnum::DeallocateStmt(deallocate) => Kind::Deallocate((!deallocate.isall).then(|| deallocate.name.clone())),
        NodeEnum::DiscardStmt(discard) => Kind::Discard(match protobuf::DiscardMode::try_from(discard.target) {
            Ok(protobuf::DiscardMode::DiscardPlans) => "DISCARD PLANS",
            Ok(protobuf::DiscardMode::DiscardSequences) => "DISCARD SEQUENCES",
            Ok(protobuf::DiscardMode::DiscardTemp) => "DISCARD TEMP",
            _ => "DISCARD ALL",
        }),
        NodeEnum::VacuumStmt(vacuum) => Kind::Maintenance(if vacuum.is_vacuumcmd { "VACUUM" } else { "ANALYZE" }),
        NodeEnum::CheckPointStmt(_) => Kind::Maintenance("CHECKPOINT"),
        NodeEnum::ReindexStmt(_) => Kind::Maintenance("REINDEX"),
        NodeEnum::ClusterStmt(_) => Kind::Maintenance("CLUSTER"),
        other => schema_or_refusal(other)?,
    })
}

fn transaction(statement: &protobuf::TransactionStmt) -> Kind {
    use TransactionStmtKind as K;
    let name = || statement.savepoint_name.clone();
    let chain = statement.chain;
    Kind::Transaction(match K::try_from(statement.kind).unwrap_or(K::Undefined) {
        K::TransStmtBegin => TransactionCommand::Begin("BEGIN", modes(&statement.options)),
        K::TransStmtStart => TransactionCommand::Begin("START TRANSACTION", modes(&statement.options)),
        K::TransStmtCommit => TransactionCommand::Commit { chain },
        K::TransStmtRollback => TransactionCommand::Rollback { chain },
        K::TransStmtSavepoint => TransactionCommand::Savepoint(name()),
        K::TransStmtRelease => TransactionCommand::Release(name()),
        K::TransStmtRollbackTo => TransactionCommand::RollbackTo(name()),
        K::Undefined | K::TransStmtPrepare | K::TransStmtCommitPrepared | K::TransStmtRollbackPrepared => {
            return refused("two-phase commit by the client", "COMMIT: every commit is replicated");
        }
    })
}

fn copy(copy: &protobuf::CopyStmt, rows: Rows) -> Result<Kind, SqlError> {
    if copy.is_program || !copy.filename.is_empty() {
        return Ok(refused("COPY with a file or a program of the server", "use STDIN, STDOUT, or psql's \\copy"));
    }
    if !copy.is_from {
        let named = copy.relation.iter().map(|table| (written(table), false)).collect();
        let for_parents = copy_of_query(copy)?.map(Into::into);
        return Ok(Kind::Rows(Rows { inner: inner(copy.query.as_deref())?, named, for_parents, ..rows }));
    }
    let option = |name: &str| {
        copy.options.iter().find_map(|option| match &option.node {
            Some(NodeEnum::DefElem(option)) if option.defname == name => {
                Some(option.arg.as_deref().and_then(constant).unwrap_or_else(|| "true".into()))
            }
            _ => None,
        })
    };
    let format = match option("format").as_deref() {
        Some("csv") => CopyKind::Csv,
        Some("binary") => CopyKind::Binary,
        _ => CopyKind::Text,
    };
    let character = |name| option(name).and_then(|text| text.bytes().next());
    let quote = character("quote").unwrap_or(b'"');
    Ok(Kind::CopyIn(CopyFormat {
        table: copy.relation.as_ref().map(written).unwrap_or_default(),
        columns: (!copy.attlist.is_empty()).then_some(copy.attlist.len()),
        format,
        quote,
        escape: character("escape").unwrap_or(quote),
        header: option("header").is_some_and(|value| !["false", "off", "0"].contains(&value.as_str())),
    }))
}

/// `COPY t (a, b) TO STDOUT` as `COPY (SELECT a, b FROM t) TO STDOUT`: the former leaves out the
/// rows of the tables below.
fn copy_of_query(copy: &protobuf::CopyStmt) -> Result<Option<String>, SqlError> {
    let Some(table) = &copy.relation else { return Ok(None) };
    let columns: Vec<String> = copy.attlist.iter().filter_map(constant).map(|name| quote(&name)).collect();
    let columns = if columns.is_empty() { "*".to_string() } else { columns.join(", ") };
    let select = format!("SELECT {columns} FROM {}", written(table));
    let parsed = pg_query::parse(&select, pg_query::ParserOptions::default())
        .map_err(|error| SqlError::new(codes::SYNTAX_ERROR, complaint(&error)))?;
    let query = parsed.protobuf.stmts.into_iter().next().and_then(|raw| raw.stmt);
    let copy = protobuf::CopyStmt { relation: None, attlist: Vec::new(), query, ..copy.clone() };
    text_of(&NodeEnum::CopyStmt(Box::new(copy))).map(Some)
}

fn refused(what: impl Into<String>, instead: &'static str) -> Kind {
    Kind::Refused { what: what.into(), instead }
}

/// `SELECT … INTO t`: as `CREATE TABLE t AS SELECT …`.
fn select_into(select: &protobuf::SelectStmt) -> Result<Kind, SqlError> {
    let mut query = select.clone();
    let Some(into) = query.into_clause.take() else { return Ok(Kind::Rows(Rows::default())) };
    let query = Some(Box::new(Node { node: Some(NodeEnum::SelectStmt(Box::new(query))) }));
    let objtype = protobuf::ObjectType::ObjectTable as i32;
    create_as(&protobuf::CreateTableAsStmt {
        query,
        into: Some(into),
        objtype,
        is_select_into: false,
        if_not_exists: false,
    })
}

/// `CREATE TABLE t AS q`: the empty table as a change of the schema, then an INSERT.
fn create_as(create: &protobuf::CreateTableAsStmt) -> Result<Kind, SqlError> {
    let mut empty = create.clone();
    let materialized = create.objtype == protobuf::ObjectType::ObjectMatview as i32;
    let Some(into) = &mut empty.into else { return Ok(refused("CREATE TABLE AS without a table", "name it")) };
    if materialized {
        return Ok(refused("a materialized view", "use a view, or CREATE TABLE AS"));
    }
    if into.rel.as_ref().is_some_and(|table| table.relpersistence != "p") {
        return Ok(temporary());
    }
    let fill = !into.skip_data;
    into.skip_data = true;
    let table = into.rel.as_ref().map(written).unwrap_or_default();
    let columns: Vec<String> = into.col_names.iter().filter_map(constant).map(|name| quote(&name)).collect();
    let columns = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
    let then = match inner(create.query.as_deref())? {
        Some(query) if fill => Some(format!("INSERT INTO {table}{columns} {query}")),
        _ => None,
    };
    let rewritten = Some(text_of(&NodeEnum::CreateTableAsStmt(Box::new(empty)))?);
    Ok(Kind::Schema(SchemaStatement { rewritten, tag: "CREATE TABLE AS".into(), then, then_tag: "SELECT" }))
}

fn temporary() -> Kind {
    refused("a temporary table", "use an ordinary table, or WITH in the statement")
}

fn schema(tag: &str) -> Kind {
    Kind::Schema(SchemaStatement { tag: tag.into(), ..SchemaStatement::default() })
}

fn schema_or_refusal(node: &NodeEnum) -> Result<Kind, SqlError> {
    Ok(match node {
        NodeEnum::CreateStmt(create) => {
            let table = create.relation.as_ref();
            if table.is_some_and(|table| table.relpersistence == "t") {
                temporary()
            } else if table.is_some_and(|table| table.relpersistence == "u") {
                refused("an unlogged table", "leave UNLOGGED out")
            } else if create.partspec.is_some() || create.partbound.is_some() {
                refused("a partitioned table", "leave PARTITION out: tables split by themselves")
            } else if !create.inh_relations.is_empty() {
                refused("table inheritance", "use a foreign key")
            } else {
                schema("CREATE TABLE")
            }
        }
        NodeEnum::CreateTableAsStmt(create) => create_as(create)?,
        NodeEnum::ViewStmt(view) if view.view.as_ref().is_some_and(|view| view.relpersistence == "t") => {
            refused("a temporary view", "use an ordinary view")
        }
        NodeEnum::ViewStmt(_) => schema("CREATE VIEW"),
        NodeEnum::IndexStmt(index) if index.concurrent => {
            let mut plain = index.clone();
            plain.concurrent = false;
            let rewritten = Some(text_of(&NodeEnum::IndexStmt(plain))?);
            Kind::Schema(SchemaStatement { rewritten, tag: "CREATE INDEX".into(), ..SchemaStatement::default() })
        }
        NodeEnum::IndexStmt(_) => schema("CREATE INDEX"),
        NodeEnum::CreateSeqStmt(sequence) if sequence.sequence.as_ref().is_some_and(|s| s.relpersistence != "p") => {
            refused("a temporary sequence", "use an ordinary sequence")
        }
        NodeEnum::CreateSeqStmt(_) => schema("CREATE SEQUENCE"),
        NodeEnum::AlterSeqStmt(_) => schema("ALTER SEQUENCE"),
        NodeEnum::AlterTableStmt(alter) => schema(match protobuf::ObjectType::try_from(alter.objtype) {
            Ok(protobuf::ObjectType::ObjectIndex) => "ALTER INDEX",
            Ok(protobuf::ObjectType::ObjectView) => "ALTER VIEW",
            Ok(protobuf::ObjectType::ObjectSequence) => "ALTER SEQUENCE",
            Ok(protobuf::ObjectType::ObjectType) => "ALTER TYPE",
            _ => "ALTER TABLE",
        }),
        NodeEnum::CreateSchemaStmt(_) => schema("CREATE SCHEMA"),
        NodeEnum::CreateEnumStmt(_) | NodeEnum::CompositeTypeStmt(_) | NodeEnum::CreateRangeStmt(_) => {
            schema("CREATE TYPE")
        }
        NodeEnum::AlterEnumStmt(_) | NodeEnum::AlterTypeStmt(_) => schema("ALTER TYPE"),
        NodeEnum::CreateDomainStmt(_) => schema("CREATE DOMAIN"),
        NodeEnum::AlterDomainStmt(_) => schema("ALTER DOMAIN"),
        NodeEnum::CreateFunctionStmt(function) => {
            schema(if function.is_procedure { "CREATE PROCEDURE" } else { "CREATE FUNCTION" })
        }
        NodeEnum::AlterFunctionStmt(_) => schema("ALTER FUNCTION"),
        NodeEnum::CreateTrigStmt(_) => schema("CREATE TRIGGER"),
        NodeEnum::CreateCastStmt(_) => schema("CREATE CAST"),
        NodeEnum::CreateStatsStmt(_) => schema("CREATE STATISTICS"),
        NodeEnum::DefineStmt(define) => schema(match protobuf::ObjectType::try_from(define.kind) {
            Ok(protobuf::ObjectType::ObjectAggregate) => "CREATE AGGREGATE",
            Ok(protobuf::ObjectType::ObjectOperator) => "CREATE OPERATOR",
            Ok(protobuf::ObjectType::ObjectCollation) => "CREATE COLLATION",
            _ => "CREATE TYPE",
        }),
        NodeEnum::CommentStmt(_) => schema("COMMENT"),
        NodeEnum::GrantStmt(grant) => schema(if grant.is_grant { "GRANT" } else { "REVOKE" }),
        NodeEnum::RenameStmt(rename) => schema(&format!("ALTER {}", object(rename.rename_type, rename.relation_type))),
        NodeEnum::AlterObjectSchemaStmt(alter) => schema(&format!("ALTER {}", object(alter.object_type, 0))),
        NodeEnum::DropStmt(drop) if drop.concurrent => {
            let mut plain = drop.clone();
            plain.concurrent = false;
            let rewritten = Some(text_of(&NodeEnum::DropStmt(plain))?);
            Kind::Schema(SchemaStatement { rewritten, tag: "DROP INDEX".into(), ..SchemaStatement::default() })
        }
        NodeEnum::DropStmt(drop) => schema(&format!("DROP {}", object(drop.remove_type, 0))),
        NodeEnum::ListenStmt(_) | NodeEnum::NotifyStmt(_) | NodeEnum::UnlistenStmt(_) => {
            refused("LISTEN and NOTIFY", "poll a table")
        }
        NodeEnum::CreateRoleStmt(_)
        | NodeEnum::AlterRoleStmt(_)
        | NodeEnum::DropRoleStmt(_)
        | NodeEnum::GrantRoleStmt(_) => refused("a role made by SQL", "list the user in the gateway's configuration"),
        NodeEnum::AlterOwnerStmt(_) | NodeEnum::AlterDefaultPrivilegesStmt(_) | NodeEnum::ReassignOwnedStmt(_) => {
            refused("another owner", "leave it out: all objects belong to the database's owner")
        }
        NodeEnum::CreateExtensionStmt(_) => refused("an extension", "use what PostgreSQL has built in"),
        NodeEnum::CreatedbStmt(_)
        | NodeEnum::DropdbStmt(_)
        | NodeEnum::AlterDatabaseStmt(_)
        | NodeEnum::AlterDatabaseSetStmt(_) => refused("another database", "use schemas in the one database"),
        NodeEnum::RuleStmt(_) => refused("a rule", "use a view or a trigger"),
        NodeEnum::RefreshMatViewStmt(_) => refused("a materialized view", "use a view"),
        NodeEnum::CreatePolicyStmt(_) | NodeEnum::AlterPolicyStmt(_) => refused("row security", "use views"),
        NodeEnum::AlterSystemStmt(_) | NodeEnum::LoadStmt(_) => refused("a change of the server", "use SET"),
        _ => refused("this statement", "docs/sql.md lists the supported statements"),
    })
}

/// The kind of an object in a command tag.
fn object(kind: i32, of: i32) -> &'static str {
    use protobuf::ObjectType as O;
    match O::try_from(kind).unwrap_or(O::Undefined) {
        O::ObjectIndex => "INDEX",
        O::ObjectView => "VIEW",
        O::ObjectSequence => "SEQUENCE",
        O::ObjectSchema => "SCHEMA",
        O::ObjectType => "TYPE",
        O::ObjectDomain => "DOMAIN",
        O::ObjectFunction => "FUNCTION",
        O::ObjectProcedure => "PROCEDURE",
        O::ObjectRoutine => "ROUTINE",
        O::ObjectAggregate => "AGGREGATE",
        O::ObjectOperator => "OPERATOR",
        O::ObjectTrigger => "TRIGGER",
        O::ObjectCast => "CAST",
        O::ObjectCollation => "COLLATION",
        O::ObjectStatisticExt => "STATISTICS",
        O::ObjectDomconstraint => "DOMAIN",
        O::ObjectAttribute => "TYPE",
        O::ObjectColumn if of == O::ObjectView as i32 => "VIEW",
        _ => "TABLE",
    }
}

fn range(node: &Node) -> Option<&RangeVar> {
    match node.node.as_ref()? {
        NodeEnum::RangeVar(table) => Some(table),
        _ => None,
    }
}

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;
