//! A crowd: many more clients than the shards can serve, all at once.
//!
//! It comes twice in one run of [`IN_RUNS`]. While it hurts, for what a refusal promises: nothing happened. And once more when everything
//! has settled, for what [`oracles::overload`](crate::oracles::overload) judges: that who is let in is answered soon, the rest is told at once,
//! nothing that could be done is left undone, and it is over when the crowd is gone. The shards' servers are slow meanwhile, so that they
//! have a capacity at all.

use super::asking::{Client, Step};
use super::counters::ADD;
use super::{ADDITION, Users};
use crate::oracles::overload::{Answer, Overload, Period};
use crate::process::{self, below, once_in};
use crate::site::Errand;
use evenkeel_protocol::Failure;
use evenkeel_protocol::shard::{ShardReply, ShardRequest};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// A crowd comes in one run of so many.
pub const IN_RUNS: u64 = 8;
/// The counters that it adds to. No split comes between them, unless it is the balancer's.
pub const KEYS: Range<i64> = 60..90;
/// Clients in it.
const CROWD: u64 = 300;
/// As many as the shards can serve.
const FEW: u64 = 8;
/// How long a server takes for a statement meanwhile, in milliseconds, at most.
const SLOW_MS: u64 = 20;
/// Until the crowd comes while it hurts, in milliseconds, at most; and how long it stays.
const COMES_MS: u64 = 3_000;
const STAYS_MS: u64 = 1_500;
/// How long each period is in the end, in milliseconds: the few, the crowd, and the few again.
const CALM_MS: u64 = 1_000;
const CROWDED_MS: u64 = 3_000;
/// How long an answer is waited for, in milliseconds.
const ANSWER_MS: u64 = 5_000;
/// The first number of a client of a crowd: far from the others'.
const FIRST_NUMBER: u64 = 1_000;

/// One crowd while it hurts.
pub(super) async fn while_it_hurts(users: Users) {
    tokio::time::sleep(Duration::from_millis(below(COMES_MS))).await;
    slow(&users, SLOW_MS);
    let period = come(&users, CROWD, STAYS_MS).await;
    slow(&users, 0);
    let mut told = users.told.borrow_mut();
    told.add("refusals of a crowd under faults", refused(&period));
    told.add("answers to a crowd under faults", answered(&period));
}

/// A crowd when everything has settled, and what was before and after it.
pub(super) async fn when_all_is_well(users: &Users) {
    slow(users, SLOW_MS);
    let before = come(users, FEW, CALM_MS).await;
    let during = come(users, CROWD, CROWDED_MS).await;
    let after = come(users, FEW, CALM_MS).await;
    slow(users, 0);
    let mut told = users.told.borrow_mut();
    told.add("refusals of a crowd when all is well", refused(&during));
    told.add("answers to a crowd when all is well", answered(&during));
    told.overload = Some(Overload { before, during, after });
}

fn refused(period: &Period) -> u64 {
    period.answers.iter().filter(|answer| answer.refused).count() as u64
}

fn answered(period: &Period) -> u64 {
    period.answers.len() as u64 - refused(period)
}

fn slow(users: &Users, ms: u64) {
    users.site.borrow_mut().run(Errand::SlowServers(ms));
}

/// So many clients, for so long; returns when the last of them has its answer.
async fn come(users: &Users, clients: u64, for_ms: u64) -> Period {
    let began_ms = process::now_ms();
    let answers = Rc::new(RefCell::new(Vec::new()));
    let mut crowd = tokio::task::JoinSet::new();
    for number in 0..clients {
        let (mut client, answers) = (Client::new(users.clone(), number_of(users)), answers.clone());
        crowd.spawn_local(async move {
            // Not all in one millisecond.
            tokio::time::sleep(Duration::from_millis(number % 50)).await;
            while process::now_ms() < began_ms + for_ms {
                client.add_in_crowd(began_ms + for_ms, &answers).await;
            }
        });
    }
    while crowd.join_next().await.is_some() {}
    Period { began_ms, for_ms, answers: answers.take() }
}

fn number_of(users: &Users) -> u64 {
    let mut told = users.told.borrow_mut();
    told.crowd += 1;
    FIRST_NUMBER + told.crowd
}

impl Client {
    /// Adds one to a counter; tries until it is done, or until `until_ms` if it certainly is not.
    async fn add_in_crowd(&mut self, until_ms: u64, answers: &RefCell<Vec<Answer>>) {
        let key = KEYS.start + below((KEYS.end - KEYS.start) as u64) as i64;
        let (sent_ms, id) = (process::now_ms(), self.id());
        let request = ShardRequest::Statement(Client::request(id, ADD, vec![key.into()]));
        let mut shard = self.route(key);
        let mut perhaps = false;
        while process::now_ms() < until_ms || (perhaps && process::now_ms() < until_ms + ANSWER_MS) {
            let Some((by, address, connection)) = self.leader_of(shard).await else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            let asked_ms = process::now_ms();
            let reply = match connection.call_within(&request, Duration::from_millis(ANSWER_MS)).await {
                Ok(reply) => reply,
                Err(error) => {
                    perhaps |= !error.never_sent();
                    self.unanswered::<()>(by, address, &error);
                    continue;
                }
            };
            let refused = matches!(reply, ShardReply::Failed(Failure::Overloaded { .. }));
            if refused || matches!(reply, ShardReply::Rows(_)) {
                answers.borrow_mut().push(Answer { asked_ms, answered_ms: process::now_ms(), refused });
            }
            match self.answered(by, asked_ms, reply, &mut shard, key).await {
                Step::Answered(ShardReply::Rows(reply)) => {
                    let value = reply.rows.int(0, 0).unwrap_or(-1);
                    self.tell(key, ADDITION, sent_ms, Some(value));
                    return;
                }
                Step::Answered(_) | Step::Perhaps => perhaps = true,
                Step::Never if !perhaps => return,
                Step::Never | Step::Again => {}
            }
        }
        if perhaps {
            self.tell(key, ADDITION, sent_ms, None);
        }
    }
}

/// Whether a crowd comes in this run.
pub fn drawn() -> bool {
    once_in(IN_RUNS)
}
