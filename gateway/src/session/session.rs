//! The loop over a client's messages; the simple and the extended protocol.

use super::block::Block;
use super::context::SessionContext;
use super::copy_rows::CopyRows;
use super::planner::{Place, Plan};
use super::prepared::{MAX_PORTALS, MAX_PREPARED, Portal, Prepared, Progress, Values};
use super::run::{Run, RunEnd};
use super::settings::{SessionSettings, check};
use super::trouble::Trouble;
use crate::front::settings::{Settings, literal};
use crate::grammar::statement::{
    CopyFormat, CopyKind, Kind, Modes, SchemaStatement, SettingChange, Statement, TransactionCommand,
};
use crate::wire::backend::{self, Status};
use crate::wire::incoming::{Incoming, Received};
use crate::wire::message::{Bind, ClientMessage as Message, Parse, Target};
use crate::wire::outgoing::Outgoing;
use evenkeel_client::TransactionOptions;
use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// One client's session.
pub struct Session {
    context: Arc<SessionContext>,
    incoming: Incoming,
    out: Outgoing,
    settings: SessionSettings,
    /// The settings that the client has been notified of.
    reported: BTreeMap<String, String>,
    block: Option<Block>,
    /// Changes of the schema of the open transaction, not made yet.
    schema: Vec<String>,
    prepared: HashMap<String, Prepared>,
    portals: HashMap<String, Portal>,
    /// After an error, messages up to the next Sync are passed over.
    skipping: bool,
    cancel: Arc<Notify>,
    draining: watch::Receiver<bool>,
}

impl Session {
    /// A session of an authenticated user, who has been notified of `reported`.
    pub fn new(
        context: Arc<SessionContext>,
        incoming: Incoming,
        out: Outgoing,
        settings: SessionSettings,
        reported: BTreeMap<String, String>,
        cancel: Arc<Notify>,
        draining: watch::Receiver<bool>,
    ) -> Session {
        Session {
            context,
            incoming,
            out,
            settings,
            reported,
            block: None,
            schema: Vec::new(),
            prepared: HashMap::new(),
            portals: HashMap::new(),
            skipping: false,
            cancel,
            draining,
        }
    }

    /// Serves the client until it leaves, or until the gateway ends and the session is idle.
    pub async fn run(mut self) {
        self.ready();
        let ended = self.serve().await;
        tracing::trace!(?ended, "a session has ended");
        if let Some(block) = self.block.take() {
            block.roll_back().await;
        }
        self.out.close().await;
    }

    async fn serve(&mut self) -> Result<(), Trouble> {
        loop {
            let received = match self.incoming.next_now() {
                Some(received) => received,
                None => {
                    // Nothing waits: what there is to read shall be read.
                    if !self.in_pipeline() {
                        self.out.send().await?;
                    }
                    match self.next_or_end().await {
                        Some(received) => received,
                        None => return Ok(()),
                    }
                }
            };
            match received {
                Received::Malformed(error) => {
                    backend::fatal(&mut self.out.buffer, &error);
                    return Ok(());
                }
                Received::Message(Message::Terminate) => return Ok(()),
                Received::Message(message) => self.message(message).await?,
            }
        }
    }

    /// The next message; `None` if the client is gone, or if the gateway ends and nothing is open.
    async fn next_or_end(&mut self) -> Option<Received> {
        let idle = self.block.is_none();
        tokio::select! {
            biased;
            received = self.incoming.next() => received,
            _ = self.draining.wait_for(|draining| *draining), if idle => {
                let error = SqlError::new(codes::ADMIN_SHUTDOWN, "terminating connection: the gateway is ending");
                backend::fatal(&mut self.out.buffer, &error);
                None
            }
        }
    }

    /// Whether messages of the extended protocol wait for their Sync.
    fn in_pipeline(&self) -> bool {
        self.block.as_ref().is_some_and(|block| !block.explicit)
    }

    fn ready(&mut self) {
        let status = match &self.block {
            Some(block) if block.failed => Status::Failed,
            Some(block) if block.explicit => Status::InTransaction,
            _ => Status::Idle,
        };
        backend::ready_for_query(&mut self.out.buffer, status);
    }

    async fn message(&mut self, message: Message) -> Result<(), Trouble> {
        match message {
            Message::Query(query) => {
                self.skipping = false;
                self.end_implicit_or_report().await?;
                self.simple_query(&query).await
            }
            Message::Sync => {
                self.skipping = false;
                self.end_implicit_or_report().await?;
                self.ready();
                Ok(self.out.send().await?)
            }
            _ if self.skipping => Ok(()),
            Message::Flush => Ok(self.out.send().await?),
            // Left from a COPY that has failed.
            Message::CopyData(_) | Message::CopyDone | Message::CopyFail(_) => Ok(()),
            extended => match self.extended(extended).await {
                Err(Trouble::Gone) => Err(Trouble::Gone),
                Err(Trouble::Sql(error) | Trouble::Ended(error)) => {
                    self.skipping = true;
                    self.fail(&error);
                    // Drivers rely on learning of an error before they send their Sync.
                    Ok(self.out.send().await?)
                }
                Ok(()) => Ok(()),
            },
        }
    }

    /// Reports an error, after which the transaction has failed.
    fn fail(&mut self, error: &SqlError) {
        if let Some(block) = &mut self.block {
            block.failed = true;
        }
        backend::error_response(&mut self.out.buffer, error);
    }

    /// Ends the implicit transaction, if there is one.
    async fn end_implicit_or_report(&mut self) -> Result<(), Trouble> {
        match self.end_implicit().await {
            Err(Trouble::Sql(error) | Trouble::Ended(error)) => {
                backend::error_response(&mut self.out.buffer, &error);
                Ok(())
            }
            other => other,
        }
    }

    async fn end_implicit(&mut self) -> Result<(), Trouble> {
        if self.block.as_ref().is_none_or(|block| block.explicit) {
            return Ok(());
        }
        self.end_transaction(true).await.map(drop)
    }

    /// Commits or rolls back, and returns whether it was committed.
    async fn end_transaction(&mut self, commit: bool) -> Result<bool, Trouble> {
        let Some(mut block) = self.block.take() else { return Ok(true) };
        self.portals.clear();
        let schema = std::mem::take(&mut self.schema);
        let result = if commit && !block.failed {
            match self.change_schema(&schema).await {
                Ok(()) => block.commit().await,
                Err(error) => {
                    block.failed = true;
                    block.roll_back().await;
                    Err(error.into())
                }
            }
        } else {
            block.roll_back().await;
            Ok(false)
        };
        let committed = matches!(result, Ok(true));
        self.settings.end(committed);
        if !committed {
            self.report_settings().await?;
        }
        result
    }

    // The simple protocol.

    async fn simple_query(&mut self, text: &str) -> Result<(), Trouble> {
        self.prepared.remove("");
        match self.simple_statements(text).await {
            Ok(()) => {}
            Err(Trouble::Gone) => return Err(Trouble::Gone),
            Err(Trouble::Sql(error) | Trouble::Ended(error)) => {
                self.fail(&error);
                self.end_implicit_or_report().await?;
            }
        }
        self.ready();
        Ok(self.out.send().await?)
    }

    async fn simple_statements(&mut self, text: &str) -> Result<(), Trouble> {
        let statements = self.context.planner.statements(text).await?;
        if statements.is_empty() {
            backend::bare(&mut self.out.buffer, b'I');
        }
        for (at, statement) in statements.iter().enumerate() {
            let last = at + 1 == statements.len();
            let ended = self.simple_statement(statement).await.map_err(|trouble| moved(trouble, statement))?;
            if last {
                // As PostgreSQL, which says that the last one is done when it is committed.
                self.end_implicit().await?;
            }
            self.complete(&ended);
        }
        Ok(())
    }

    async fn simple_statement(&mut self, statement: &Arc<Statement>) -> Result<RunEnd, Trouble> {
        let prepared = Prepared { statement: Some(statement.clone()), types: Vec::new(), plan: None };
        let mut portal = Portal { prepared, values: Values::default(), progress: Progress::New };
        self.interruptible(statement.clone(), &mut portal, 0, true).await
    }

    fn complete(&mut self, ended: &RunEnd) {
        match ended {
            RunEnd::Complete(tag) => backend::command_complete(&mut self.out.buffer, tag),
            RunEnd::Empty => backend::bare(&mut self.out.buffer, b'I'),
            RunEnd::Suspended => backend::bare(&mut self.out.buffer, b's'),
        }
    }

    // The extended protocol.

    async fn extended(&mut self, message: Message) -> Result<(), Trouble> {
        match message {
            Message::Parse(parse) => self.parse(parse).await,
            Message::Bind(bind) => self.bind(bind),
            Message::Describe(target) => self.describe(target).await,
            Message::Execute(portal, max_rows) => self.execute(portal, max_rows).await,
            Message::Close(target) => {
                self.close(&target);
                Ok(())
            }
            _ => Err(SqlError::new("08P01", "a message that does not belong here").into()),
        }
    }

    async fn parse(&mut self, parse: Parse) -> Result<(), Trouble> {
        let Parse { name, text, types } = parse;
        if !name.is_empty() && self.prepared.contains_key(&name) {
            return Err(SqlError::new("42P05", format!("prepared statement \"{name}\" already exists")).into());
        }
        if self.prepared.len() >= MAX_PREPARED {
            return Err(SqlError::new("53400", format!("more than {MAX_PREPARED} prepared statements")).into());
        }
        let prepared = self.prepare(&text, types).await?;
        self.prepared.insert(name, prepared);
        backend::bare(&mut self.out.buffer, b'1');
        Ok(())
    }

    async fn prepare(&mut self, text: &str, types: Vec<u32>) -> Result<Prepared, Trouble> {
        let statements = self.context.planner.statements(text).await?;
        let statement = match &statements[..] {
            [] => return Ok(Prepared { statement: None, types, plan: None }),
            [one] => one.clone(),
            _ => {
                let message = "cannot insert multiple commands into a prepared statement";
                return Err(SqlError::new(codes::SYNTAX_ERROR, message).into());
            }
        };
        self.refuse_if_failed(&statement.kind)?;
        let plan = match statement.kind {
            Kind::Rows(_) => {
                self.publish_schema().await?;
                Some(self.context.planner.plan(&statement, &types, &self.settings.current()).await?)
            }
            _ => None,
        };
        Ok(Prepared { statement: Some(statement), types, plan })
    }

    fn bind(&mut self, bind: Bind) -> Result<(), Trouble> {
        let name = bind.statement;
        let Some(prepared) = self.prepared.get(&name).cloned() else {
            return Err(SqlError::new("26000", format!("prepared statement \"{name}\" does not exist")).into());
        };
        let expected = prepared.plan.as_ref().map_or(0, |plan| plan.shape.analysis.parameter_types.len());
        if bind.parameters.len() != expected {
            let given = bind.parameters.len();
            let message = format!(
                "bind message supplies {given} parameters, but prepared statement \"{name}\" requires {expected}"
            );
            return Err(SqlError::new("08P01", message).into());
        }
        let portal = bind.portal;
        if !portal.is_empty() && self.portals.contains_key(&portal) {
            return Err(SqlError::new("42P03", format!("cursor \"{portal}\" already exists")).into());
        }
        if self.portals.len() >= MAX_PORTALS {
            return Err(SqlError::new("53400", format!("more than {MAX_PORTALS} portals")).into());
        }
        let values = Values { formats: bind.formats, parameters: bind.parameters, result_formats: bind.result_formats };
        self.portals.insert(portal, Portal { prepared, values, progress: Progress::New });
        backend::bare(&mut self.out.buffer, b'2');
        Ok(())
    }

    async fn describe(&mut self, target: Target) -> Result<(), Trouble> {
        let (prepared, formats) = match target {
            Target::Statement(name) => {
                let Some(prepared) = self.prepared.get(&name) else {
                    return Err(SqlError::new("26000", format!("prepared statement \"{name}\" does not exist")).into());
                };
                let types = prepared.plan.as_ref().map_or(&[][..], |plan| &plan.shape.analysis.parameter_types);
                backend::parameter_description(&mut self.out.buffer, types);
                (prepared.clone(), Vec::new())
            }
            Target::Portal(name) => {
                let Some(portal) = self.portals.get(&name) else {
                    return Err(SqlError::new("34000", format!("portal \"{name}\" does not exist")).into());
                };
                (portal.prepared.clone(), portal.values.result_formats.clone())
            }
        };
        let described = match (&prepared.statement, &prepared.plan) {
            (_, Some(plan)) if plan.shape.place == Place::Follows => {
                let settings = self.settings.current();
                match &mut self.block {
                    Some(block) => block.describe(plan, &settings).await?,
                    None => None,
                }
            }
            (_, Some(plan)) => plan.shape.analysis.description.clone(),
            _ => None,
        };
        match described {
            Some(description) => {
                self.out.buffer.extend_from_slice(&backend::with_formats(&description, &formats));
            }
            None => backend::bare(&mut self.out.buffer, b'n'),
        }
        Ok(())
    }

    async fn execute(&mut self, name: String, max_rows: u32) -> Result<(), Trouble> {
        let Some(mut portal) = self.portals.remove(&name) else {
            return Err(SqlError::new("34000", format!("portal \"{name}\" does not exist")).into());
        };
        let Some(statement) = portal.prepared.statement.clone() else {
            backend::bare(&mut self.out.buffer, b'I');
            self.portals.insert(name, portal);
            return Ok(());
        };
        if let Progress::Done = portal.progress {
            let message = format!("portal \"{name}\" cannot be run");
            return Err(SqlError::new("55000", message).into());
        }
        let ended = self.interruptible(statement, &mut portal, max_rows, false).await?;
        if ended != RunEnd::Suspended {
            portal.progress = Progress::Done;
        }
        self.complete(&ended);
        // A transaction that ended in it has closed all portals.
        if self.block.is_some() {
            self.portals.insert(name, portal);
        }
        Ok(self.out.send_if_full().await?)
    }

    fn close(&mut self, target: &Target) {
        match target {
            Target::Statement(name) => _ = self.prepared.remove(name),
            Target::Portal(name) => _ = self.portals.remove(name),
        }
        backend::bare(&mut self.out.buffer, b'3');
    }

    // Statements.

    /// Executes a statement, unless the user cancels it or the client goes away meanwhile.
    async fn interruptible(
        &mut self,
        statement: Arc<Statement>,
        portal: &mut Portal,
        max_rows: u32,
        describe: bool,
    ) -> Result<RunEnd, Trouble> {
        self.refuse_if_failed(&statement.kind)?;
        // The end of a transaction is not interrupted: its outcome would be unknown. A COPY listens
        // to the client itself.
        if let Kind::Transaction(_) | Kind::CopyIn(_) | Kind::Schema(_) = statement.kind {
            return self.statement(&statement, portal, max_rows, describe).await;
        }
        let (cancel, mut gone) = (self.cancel.clone(), self.incoming.gone());
        let cancelled = cancel.notified();
        let result = tokio::select! {
            biased;
            result = self.statement(&statement, portal, max_rows, describe) => return result,
            () = cancelled => {
                Err(SqlError::new(codes::QUERY_CANCELED, "canceling statement due to user request").into())
            }
            _ = gone.wait_for(|gone| *gone) => Err(Trouble::Gone),
        };
        if let Some(block) = &mut self.block {
            block.interrupted();
        }
        result
    }

    fn refuse_if_failed(&self, kind: &Kind) -> Result<(), Trouble> {
        use TransactionCommand as T;
        let ends = matches!(kind, Kind::Transaction(T::Commit { .. } | T::Rollback { .. } | T::RollbackTo(_)));
        if ends || !self.block.as_ref().is_some_and(|block| block.failed) {
            return Ok(());
        }
        let message = "current transaction is aborted, commands ignored until end of transaction block";
        Err(SqlError::new(codes::IN_FAILED_TRANSACTION, message).into())
    }

    async fn statement(
        &mut self,
        statement: &Arc<Statement>,
        portal: &mut Portal,
        max_rows: u32,
        describe: bool,
    ) -> Result<RunEnd, Trouble> {
        let tag = match &statement.kind {
            Kind::Rows(_) => return self.rows(statement, portal, max_rows, describe).await,
            Kind::CopyIn(format) => return self.copy_in(statement, format).await,
            Kind::Transaction(command) => self.transaction(command).await?,
            Kind::Setting(change) => self.setting(change).await?.to_string(),
            Kind::Prepare { name, types, statement } => self.prepare_by_name(name, types, statement).await?.to_string(),
            Kind::Execute { name, parameters } => return self.execute_by_name(name, parameters, describe).await,
            Kind::Deallocate(name) => self.deallocate(name.as_deref())?.to_string(),
            Kind::Schema(change) => self.schema(statement, change).await?,
            Kind::Discard(tag) => self.discard(tag).await?.to_string(),
            Kind::Maintenance(tag) => (*tag).to_string(),
            Kind::Refused { what, instead } => {
                return Err(SqlError::unsupported(format!("{what} is not supported"), *instead).into());
            }
        };
        Ok(RunEnd::Complete(tag))
    }

    async fn rows(
        &mut self,
        statement: &Arc<Statement>,
        portal: &mut Portal,
        max_rows: u32,
        describe: bool,
    ) -> Result<RunEnd, Trouble> {
        self.publish_schema().await?;
        for (name, value, _) in &statement.configured {
            check(name, Some(value))?;
        }
        loop {
            let settings = self.settings.current();
            let plan = self.planned(statement, &portal.prepared, &settings).await?;
            let first = !self.block.as_ref().is_some_and(Block::is_at_shard);
            let mark = self.out.buffer.len();
            let error = match self.planned_rows(&plan, portal, max_rows, describe, &settings).await {
                Err(Trouble::Ended(error)) if error.code == codes::SCHEMA_CHANGED => error,
                other => {
                    if other.is_ok() {
                        self.configure(statement);
                    }
                    return other;
                }
            };
            // Nothing has been done yet, and nothing said: it is planned again and begins again.
            let again = match &mut self.block {
                Some(block) if first => {
                    block.restart();
                    self.context.front.sync_beyond(plan.shape.schema_version).await
                }
                _ => Err(SqlError::new(codes::SERIALIZATION_FAILURE, error.message)),
            };
            if let Err(error) = again {
                return Err(Trouble::Ended(error));
            }
            self.out.buffer.truncate(mark);
        }
    }

    /// Keeps the settings that a statement's calls of `set_config` have made.
    fn configure(&mut self, statement: &Statement) {
        let explicit = self.block.as_ref().is_some_and(|block| block.explicit);
        for (name, value, local) in &statement.configured {
            if explicit || !local {
                self.settings.set(name, Some(value.clone()), *local);
            }
        }
    }

    /// A statement's plan with the present schema.
    async fn planned(
        &self,
        statement: &Arc<Statement>,
        prepared: &Prepared,
        settings: &Settings,
    ) -> Result<Arc<Plan>, SqlError> {
        let old = match &prepared.plan {
            Some(plan) if plan.shape.schema_version == self.context.front.version() => return Ok(plan.clone()),
            old => old,
        };
        let plan = self.context.planner.plan(statement, &prepared.types, settings).await?;
        if old.as_ref().is_some_and(|old| old.shape.analysis.description != plan.shape.analysis.description) {
            // The client reads the rows by the description that it has.
            return Err(SqlError::new(codes::FEATURE_NOT_SUPPORTED, "cached plan must not change result type"));
        }
        Ok(plan)
    }

    async fn planned_rows(
        &mut self,
        plan: &Plan,
        portal: &mut Portal,
        max_rows: u32,
        describe: bool,
        settings: &Settings,
    ) -> Result<RunEnd, Trouble> {
        if plan.rows().is_some_and(|rows| rows.needs_block) && !self.block.as_ref().is_some_and(|block| block.explicit)
        {
            let message = "this statement can only be used in transaction blocks";
            return Err(SqlError::new(codes::NO_TRANSACTION, message).into());
        }
        self.begin_if_none()?;
        let describes_itself = plan.shape.place == Place::Follows;
        if let (true, Some(description)) = (describe && !describes_itself, &plan.shape.analysis.description) {
            self.out.buffer.extend_from_slice(description);
        }
        let run =
            Run { plan, values: &portal.values, max_rows, describe: describe && describes_itself, copy_data: None };
        let Some(block) = &mut self.block else { return Err(no_block()) };
        block.run(run, settings, &mut portal.progress, &mut self.out).await
    }

    /// Begins an implicit transaction, with the session's default modes.
    fn begin_if_none(&mut self) -> Result<(), SqlError> {
        if self.block.is_none() {
            let options = options(&self.settings.modes(&Modes::default()))?;
            self.block = Some(Block::new(&self.context, options, false));
            self.settings.begin();
        }
        Ok(())
    }

    async fn copy_in(&mut self, statement: &Arc<Statement>, format: &CopyFormat) -> Result<RunEnd, Trouble> {
        self.publish_schema().await?;
        let settings = self.settings.current();
        let plan = self.context.planner.plan(statement, &[], &settings).await?;
        let all = plan.shape.touched.first().map_or(0, |touched| touched.table.columns.len());
        self.begin_if_none()?;
        backend::copy_in_response(
            &mut self.out.buffer,
            format.format == CopyKind::Binary,
            format.columns.unwrap_or(all),
        );
        self.out.send().await?;
        let mut rows = CopyRows::new(format);
        let mut copied = 0;
        let mut began = false;
        loop {
            let message = match self.incoming.next().await {
                None => return Err(Trouble::Gone),
                Some(Received::Malformed(error)) => return Err(error.into()),
                Some(Received::Message(message)) => message,
            };
            let last = match message {
                Message::CopyData(data) => {
                    rows.add(&data)?;
                    false
                }
                Message::CopyDone => true,
                Message::CopyFail(reason) => {
                    let message = format!("COPY from stdin failed: {reason}");
                    return Err(SqlError::new(codes::QUERY_CANCELED, message).into());
                }
                Message::Flush | Message::Sync => false,
                Message::Terminate => return Err(Trouble::Gone),
                _ => return Err(SqlError::new("08P01", "unexpected message type during COPY from stdin").into()),
            };
            while let Some(piece) = rows.piece() {
                began = true;
                copied += self.copy_piece(&plan, piece, &settings).await?;
            }
            if last {
                let rest = rows.rest();
                // Without rows, too, PostgreSQL has to see the statement.
                if rest.is_some() || !began {
                    copied += self.copy_piece(&plan, rest.unwrap_or_default(), &settings).await?;
                }
                let Some(block) = &mut self.block else { return Err(no_block()) };
                block.end_copy(&plan, &settings, &mut self.out).await?;
                return Ok(RunEnd::Complete(format!("COPY {copied}")));
            }
        }
    }

    async fn copy_piece(&mut self, plan: &Plan, piece: bytes::Bytes, settings: &Settings) -> Result<u64, Trouble> {
        let run = Run { plan, values: &Values::default(), max_rows: 0, describe: false, copy_data: Some(piece) };
        let Some(block) = &mut self.block else { return Err(no_block()) };
        let run = block.run(run, settings, &mut Progress::New, &mut self.out).await;
        match run.map_err(|trouble| trouble.instead_of(codes::SCHEMA_CHANGED, codes::SERIALIZATION_FAILURE))? {
            RunEnd::Complete(tag) => Ok(tag.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0)),
            _ => Ok(0),
        }
    }

    async fn transaction(&mut self, command: &TransactionCommand) -> Result<String, Trouble> {
        let explicit = self.block.as_ref().is_some_and(|block| block.explicit);
        let no_block =
            |what: &str| SqlError::new(codes::NO_TRANSACTION, format!("{what} can only be used in transaction blocks"));
        match command {
            TransactionCommand::Begin(tag, modes) => {
                self.begin(modes)?;
                return Ok((*tag).to_string());
            }
            TransactionCommand::SetModes(modes) => {
                let options = options(&self.settings.modes(modes))?;
                match &mut self.block {
                    Some(block) if explicit && block.is_untouched() => block.set_options(options),
                    Some(block) if explicit && block.options() == options => {}
                    Some(_) if explicit => {
                        let message = "SET TRANSACTION ISOLATION LEVEL must be called before any query";
                        return Err(SqlError::new("25001", message).into());
                    }
                    _ => self.warn(codes::NO_TRANSACTION, "SET TRANSACTION can only be used in transaction blocks"),
                }
                return Ok("SET".into());
            }
            TransactionCommand::Commit { chain } | TransactionCommand::Rollback { chain } => {
                let commit = matches!(command, TransactionCommand::Commit { .. });
                if !explicit {
                    self.warn(codes::NO_TRANSACTION, "there is no transaction in progress");
                }
                let chained = self.block.as_ref().map(Block::options);
                let committed = self.end_transaction(commit).await?;
                if let (true, Some(options)) = (*chain && explicit, chained) {
                    self.open_block(options);
                }
                return Ok(if commit && committed { "COMMIT" } else { "ROLLBACK" }.into());
            }
            TransactionCommand::Savepoint(_) if !explicit => return Err(no_block("SAVEPOINT").into()),
            TransactionCommand::Release(_) if !explicit => return Err(no_block("RELEASE SAVEPOINT").into()),
            TransactionCommand::RollbackTo(_) if !explicit => return Err(no_block("ROLLBACK TO SAVEPOINT").into()),
            _ => {}
        }
        self.publish_schema().await?;
        let Some(block) = &mut self.block else { return Err(self::no_block()) };
        match command {
            TransactionCommand::Savepoint(name) => {
                block.savepoint(name).await?;
                self.settings.save(name);
                Ok("SAVEPOINT".into())
            }
            TransactionCommand::Release(name) => {
                block.release(name).await?;
                Ok("RELEASE".into())
            }
            TransactionCommand::RollbackTo(name) => {
                block.roll_back_to(name).await?;
                self.settings.back_to(name);
                self.report_settings().await?;
                Ok("ROLLBACK".into())
            }
            _ => Err(self::no_block()),
        }
    }

    fn begin(&mut self, modes: &Modes) -> Result<(), Trouble> {
        let options = options(&self.settings.modes(modes))?;
        match &mut self.block {
            Some(block) if block.explicit => self.warn("25001", "there is already a transaction in progress"),
            // In a pipeline or a text of several statements: what came before belongs to it.
            Some(block) => block.explicit = true,
            None => self.open_block(options),
        }
        Ok(())
    }

    fn open_block(&mut self, options: TransactionOptions) {
        self.block = Some(Block::new(&self.context, options, true));
        self.settings.begin();
    }

    fn warn(&mut self, code: &'static str, message: &str) {
        backend::notice(&mut self.out.buffer, "WARNING", &SqlError::new(code, message));
    }

    async fn setting(&mut self, change: &SettingChange) -> Result<&'static str, Trouble> {
        let mut changed = self.settings.clone();
        let tag = match change {
            SettingChange::Set { local, name, value } => {
                check(name, value.as_deref())?;
                if *local && self.block.as_ref().is_none_or(|block| !block.explicit) {
                    self.warn(codes::NO_TRANSACTION, "SET LOCAL can only be used in transaction blocks");
                    return Ok("SET");
                }
                changed.set(name, value.clone(), *local);
                if value.is_some() { "SET" } else { "RESET" }
            }
            SettingChange::ResetAll => {
                changed.reset_all();
                "RESET"
            }
            SettingChange::Characteristics(modes) => {
                options(modes)?;
                let read_only = modes.read_only.map(|read_only| if read_only { "on" } else { "off" }.to_string());
                if read_only.is_some() {
                    changed.set("default_transaction_read_only", read_only, false);
                }
                if modes.isolation.is_some() {
                    changed.set("default_transaction_isolation", modes.isolation.clone(), false);
                }
                "SET"
            }
        };
        // PostgreSQL judges the value.
        let session = self.context.front.session(&changed.current()).await?;
        let reported = session.session.reported().clone();
        self.context.front.sessions().put_back(session);
        self.settings = changed;
        self.report(reported);
        Ok(tag)
    }

    /// Tells the client of settings that have changed.
    fn report(&mut self, now: BTreeMap<String, String>) {
        for (name, value) in now {
            let known = self.reported.get_mut(&name);
            if let Some(known) = known.filter(|known| **known != value) {
                backend::parameter_status(&mut self.out.buffer, &name, &value);
                *known = value;
            }
        }
    }

    async fn report_settings(&mut self) -> Result<(), Trouble> {
        let session = self.context.front.session(&self.settings.current()).await?;
        let reported = session.session.reported().clone();
        self.context.front.sessions().put_back(session);
        self.report(reported);
        Ok(())
    }

    async fn prepare_by_name(&mut self, name: &str, types: &[String], text: &str) -> Result<&'static str, Trouble> {
        if self.prepared.contains_key(name) {
            return Err(SqlError::new("42P05", format!("prepared statement \"{name}\" already exists")).into());
        }
        let oids = if types.is_empty() {
            Vec::new()
        } else {
            let each = types.iter().map(|of| format!("{}::regtype::oid", literal(of))).collect::<Vec<_>>().join(", ");
            let row = self.ask_front(&format!("SELECT {each}"), false).await?;
            row.into_iter().map(|oid| oid.and_then(|oid| oid.parse().ok()).unwrap_or(0)).collect()
        };
        let prepared = self.prepare(text, oids).await?;
        self.prepared.insert(name.to_string(), prepared);
        Ok("PREPARE")
    }

    async fn execute_by_name(&mut self, name: &str, parameters: &[String], describe: bool) -> Result<RunEnd, Trouble> {
        let Some(prepared) = self.prepared.get(name).cloned() else {
            return Err(SqlError::new("26000", format!("prepared statement \"{name}\" does not exist")).into());
        };
        let Some(statement) = prepared.statement.clone() else { return Ok(RunEnd::Empty) };
        let types = prepared.plan.as_ref().map_or(&[][..], |plan| &plan.shape.analysis.parameter_types);
        if types.len() != parameters.len() {
            let message = format!("wrong number of parameters for prepared statement \"{name}\"");
            let detail = format!("Expected {} parameters but got {}.", types.len(), parameters.len());
            let error = SqlError { detail: Some(detail), ..SqlError::new(codes::SYNTAX_ERROR, message) };
            return Err(error.into());
        }
        let mut values = Values::default();
        if !parameters.is_empty() {
            let casts = parameters.iter().zip(types);
            let each = casts.map(|(parameter, oid)| format!("CAST(({parameter}) AS {})", type_name(*oid)));
            let calls = parameters.iter().any(|parameter| parameter.contains('('));
            let row = self.ask_front(&format!("SELECT {}", each.collect::<Vec<_>>().join(", ")), calls).await?;
            values.parameters = row.into_iter().map(|value| value.map(Into::into)).collect();
        }
        let mut portal = Portal { prepared, values, progress: Progress::New };
        self.rows(&statement, &mut portal, 0, describe).await
    }

    /// The one row of a query of the gateway's own PostgreSQL. `calls`: whether it calls functions,
    /// which may leave something in the session.
    async fn ask_front(&mut self, sql: &str, calls: bool) -> Result<Vec<Option<String>>, Trouble> {
        let mut session = self.context.front.session(&self.settings.current()).await?;
        session.spent = calls;
        let rows = session.session.query_text(sql).await.map_err(crate::front::sessions::sql_error);
        self.context.front.sessions().put_back(session);
        Ok(rows?.into_iter().next().unwrap_or_default())
    }

    fn deallocate(&mut self, name: Option<&str>) -> Result<&'static str, Trouble> {
        match name {
            None => {
                self.prepared.clear();
                Ok("DEALLOCATE ALL")
            }
            Some(name) if self.prepared.remove(name).is_some() => Ok("DEALLOCATE"),
            Some(name) => Err(SqlError::new("26000", format!("prepared statement \"{name}\" does not exist")).into()),
        }
    }

    async fn discard(&mut self, tag: &'static str) -> Result<&'static str, Trouble> {
        if tag == "DISCARD ALL" {
            if self.block.as_ref().is_some_and(|block| block.explicit) {
                return Err(SqlError::new("25001", "DISCARD ALL cannot run inside a transaction block").into());
            }
            self.prepared.clear();
            self.portals.clear();
            self.settings.reset_all();
            self.report_settings().await?;
        }
        Ok(tag)
    }

    // Changes of the schema.

    /// A change of the schema: kept until the transaction ends or touches rows, so that several
    /// changes are one.
    async fn schema(&mut self, statement: &Arc<Statement>, change: &SchemaStatement) -> Result<String, Trouble> {
        if self.block.as_ref().is_some_and(|block| !block.is_untouched()) {
            return Err(SqlError::unsupported(
                "a change of the schema after other statements of a transaction is not supported",
                "COMMIT before it.",
            )
            .into());
        }
        let text = change.rewritten.clone().unwrap_or_else(|| statement.text.to_string());
        self.schema.push(text);
        let planned = self.context.front.plan(&self.schema.join(";\n"), &self.settings.current()).await;
        if let Err(error) = planned {
            self.schema.pop();
            return Err(error.into());
        }
        self.begin_if_none()?;
        let Some(then) = &change.then else { return Ok(change.tag.clone()) };
        self.publish_schema().await?;
        let filling = self.context.planner.statements(then).await?;
        let Some(filling) = filling.first() else { return Ok(change.tag.clone()) };
        let prepared = Prepared { statement: Some(filling.clone()), types: Vec::new(), plan: None };
        let mut portal = Portal { prepared, values: Values::default(), progress: Progress::New };
        match self.rows(filling, &mut portal, 0, false).await? {
            RunEnd::Complete(tag) => {
                let count = tag.rsplit(' ').next().unwrap_or("0").to_string();
                Ok(format!("{} {count}", change.then_tag))
            }
            _ => Ok(change.tag.clone()),
        }
    }

    /// Makes the open transaction's changes of the schema, before a statement that touches rows.
    async fn publish_schema(&mut self) -> Result<(), Trouble> {
        if self.schema.is_empty() {
            return Ok(());
        }
        let schema = std::mem::take(&mut self.schema);
        self.change_schema(&schema).await?;
        if self.block.as_ref().is_some_and(|block| block.explicit) {
            self.warn("01000", "the transaction's changes of the schema are made now and last if it is rolled back");
        }
        Ok(())
    }

    async fn change_schema(&mut self, statements: &[String]) -> Result<(), SqlError> {
        if statements.is_empty() {
            return Ok(());
        }
        let front = &self.context.front;
        let planned = front.plan(&statements.join(";\n"), &self.settings.current()).await?;
        front.change(&planned).await
    }
}

/// The options of a transaction with these modes.
fn options(modes: &Modes) -> Result<TransactionOptions, SqlError> {
    let repeatable_read = match modes.isolation.as_deref() {
        None | Some("read committed" | "read uncommitted") => false,
        Some("repeatable read") => true,
        Some("serializable") => {
            return Err(SqlError::unsupported("isolation level SERIALIZABLE is not supported", "use REPEATABLE READ"));
        }
        Some(other) => {
            let message = format!("invalid value for parameter \"transaction_isolation\": \"{other}\"");
            return Err(SqlError::new(codes::INVALID_PARAMETER, message));
        }
    };
    Ok(TransactionOptions { repeatable_read, read_only: modes.read_only.unwrap_or(false) })
}

/// The error of a statement of a longer text: its position counts from the beginning of the text.
fn moved(trouble: Trouble, statement: &Statement) -> Trouble {
    let Trouble::Sql(mut error) = trouble else { return trouble };
    if let Some(position) = error.fields.as_mut().and_then(|fields| fields.position.as_mut()) {
        *position += statement.characters_before;
    }
    Trouble::Sql(error)
}

/// A type by its object id, as SQL.
fn type_name(oid: u32) -> String {
    // A number cast to `regtype` prints as the type's name, but a cast needs the name itself.
    BUILT_IN.iter().find(|(known, _)| *known == oid).map_or_else(|| "text".to_string(), |(_, name)| (*name).to_string())
}

/// The types that parameters of EXECUTE are cast to; a value of another type is given as text.
const BUILT_IN: [(u32, &str); 17] = [
    (16, "boolean"),
    (17, "bytea"),
    (20, "bigint"),
    (21, "smallint"),
    (23, "integer"),
    (25, "text"),
    (114, "json"),
    (700, "real"),
    (701, "double precision"),
    (1043, "varchar"),
    (1082, "date"),
    (1083, "time"),
    (1114, "timestamp"),
    (1184, "timestamptz"),
    (1700, "numeric"),
    (2950, "uuid"),
    (3802, "jsonb"),
];

fn no_block() -> Trouble {
    SqlError::new(codes::INTERNAL, "no transaction is open").into()
}
