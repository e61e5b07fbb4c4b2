//! A simulated user with a client of the product, [`evenkeel_client::Client`]: it routes, finds
//! leaders, retries and judges outcomes as for any program. This module only turns what it answers
//! into the terms of histories.

use super::placement_api::PlacementApi;
use super::replies::{Replies, Seen};
use super::users::Users;
use crate::history::events::{ADDITION, Event, ShardReplica, TRANSFER};
use crate::process;
use crate::topology::REPLICAS;
use evenkeel_client::{Answer, Client, ClientConfig, ClientError, Levels};
use evenkeel_protocol::Value;
use std::sync::Arc;
use std::sync::MutexGuard;
use std::time::Duration;

/// How long a statement may take, in milliseconds.
const STATEMENT_MS: u64 = 4_000;
/// How long connecting to a replica may take, in milliseconds.
const CONNECT_MS: u64 = 300;
/// A pause after a failure, in milliseconds.
const AFTER_FAILURE_MS: u64 = 10;
/// Errors that a statement may end with under faults: the disk is full, a limit, cancelled, the
/// server is shutting down.
const EXPECTED: [&str; 4] = ["53100", "53400", "57014", "57P01"];
/// Keys on several shards: the balancer may split between keys of one transaction.
const SEVERAL_SHARDS: &str = "0A000";
/// A placement driver that was restored from a copy of before the table does not know it until its
/// shards have reported.
const UNDEFINED_TABLE: &str = "42P01";

/// The outcome of a statement, as histories have it.
pub(super) enum StatementOutcome<T = Answer> {
    /// It was answered.
    Answered(T),
    /// It certainly did not happen.
    Refused,
    /// The outcome is unknown.
    Unknown,
}

/// See the module.
pub struct SimulatedClient {
    pub(super) users: Users,
    pub(super) client: Client,
    replies: Arc<Replies>,
    /// The error of the last statement.
    trouble: Option<ClientError>,
    statements: u64,
}

/// The settings of a client, but for its number of connections to each replica those of a run that
/// lasts seconds.
fn config(connections: usize) -> ClientConfig {
    let endpoints = (1..=REPLICAS).map(|replica| format!("http://placement-driver-{replica}"));
    ClientConfig {
        connections_per_replica: connections,
        statement_timeout_ms: STATEMENT_MS,
        connect_timeout_ms: CONNECT_MS,
        ..ClientConfig::new(endpoints)
    }
}

impl SimulatedClient {
    /// Connects, however long that takes.
    pub async fn connect(users: Users, connections: usize) -> SimulatedClient {
        let replies = Arc::new(Replies::default());
        loop {
            let api = Arc::new(PlacementApi::new(users.registry.clone()));
            match Client::connect_through(config(connections), api, replies.clone()).await {
                Ok(client) => return SimulatedClient { users, client, replies, trouble: None, statements: 0 },
                Err(error) => users.history.borrow_mut().waiting_for = format!("(a client to connect: {error})"),
            }
        }
    }

    /// Ends and connects again, as a program that is started again: it knows no leaders and has no
    /// connections.
    pub(super) async fn restart(&mut self) {
        let connections = 1 + process::below(2) as usize;
        let SimulatedClient { client, replies, .. } = SimulatedClient::connect(self.users.clone(), connections).await;
        (self.client, self.replies) = (client, replies);
    }

    /// Why its last statement failed, for people.
    pub(super) fn trouble(&self) -> String {
        self.trouble.as_ref().map_or_else(String::new, ToString::to_string)
    }

    /// A number for each statement that it asks for one.
    pub(super) fn next_statement(&mut self) -> u64 {
        self.statements += 1;
        self.statements
    }

    /// The replies of replicas since the operation began.
    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.replies.seen()
    }

    /// An operation begins.
    pub(super) fn begin(&self) {
        self.note_denials();
        *self.seen() = Seen::default();
    }

    /// Records which replicas have said that they do not lead.
    pub(super) fn note_denials(&self) {
        let denials = std::mem::take(&mut self.seen().denials);
        self.users.history.borrow_mut().denials.extend(denials);
    }

    /// Executes a statement in a transaction of its own, as an operation.
    pub(super) async fn execute(&mut self, sql: &str, params: &[Value]) -> StatementOutcome {
        self.execute_with(sql, params, Levels::default()).await
    }

    /// As [`SimulatedClient::execute`], at these levels.
    pub(super) async fn execute_with(&mut self, sql: &str, params: &[Value], levels: Levels) -> StatementOutcome {
        self.begin();
        let result = self.client.execute_with(sql, params, levels).await;
        self.judge(result).await
    }

    /// The outcome that the client's answer says, and a pause after a failure. An error that no
    /// fault explains is a violation.
    pub(super) async fn judge<T>(&mut self, result: Result<T, ClientError>) -> StatementOutcome<T> {
        self.note_denials();
        let error = match result {
            Ok(answer) => return StatementOutcome::Answered(answer),
            Err(error) => error,
        };
        let expected = {
            let membership = self.users.membership.borrow();
            match &error {
                ClientError::Rerun(_) | ClientError::Unavailable(_) | ClientError::OutcomeUnknown(_) => true,
                ClientError::Sql(error) => match error.code.as_ref() {
                    SEVERAL_SHARDS => membership.balanced,
                    UNDEFINED_TABLE => membership.restored,
                    code => EXPECTED.contains(&code),
                },
                ClientError::WriteLost(_) | ClientError::Config(_) => false,
            }
        };
        if !expected {
            self.users.history.borrow_mut().wrong(format!("a statement failed: {error}"));
        }
        let unknown = matches!(error, ClientError::OutcomeUnknown(_));
        self.trouble = Some(error);
        evenkeel_host::sleep(Duration::from_millis(AFTER_FAILURE_MS)).await;
        if unknown { StatementOutcome::Unknown } else { StatementOutcome::Refused }
    }

    /// Records an operation on a key that ends now, with the replica that answered it.
    pub(super) fn record(&self, key: i64, how: &'static str, sent_ms: u64, seen: Option<i64>) {
        let by = self.seen().only();
        self.record_by(by, key, how, sent_ms, seen);
    }

    /// As [`SimulatedClient::record`], with a named replica.
    pub(super) fn record_by(
        &self,
        by: Option<ShardReplica>,
        key: i64,
        how: &'static str,
        sent_ms: u64,
        seen: Option<i64>,
    ) {
        let answered_ms = process::now_ms();
        let adds = [ADDITION, TRANSFER].contains(&how);
        self.users.history.borrow_mut().events.push(Event { key, adds, how, sent_ms, answered_ms, seen, by });
    }
}
