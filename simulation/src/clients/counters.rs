//! Operations on counters and accounts.

use super::client::{ANSWER_MS, GIVE_UP_MS, SimulatedClient, StatementOutcome, Step};
use super::early_commit::{Early, Write, commit_early};
use super::table::{ACCOUNTS, ADD, READ, SCAN, TALLY, UPDATE, wanted};
use crate::history::events::{ADDITION, LEADER, LOCAL, TRANSFER};
use crate::process::{self, below, once_in};
use evenkeel_protocol::shard::{
    Durability, PieceRequest, ReadLevel, ShardReply, ShardRequest, StatementReply, StatementRequest, TransactionOptions,
};
use evenkeel_protocol::{Failure, TxnId};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// After how long an answered statement is sent once more, in milliseconds, at most.
const AGAIN_MS: u64 = 1_500;
/// How long a transaction that looks twice pauses between the two, in milliseconds, at most.
const LOOK_MS: u64 = 250;

/// Adds one to a counter; `false` if it was not answered.
pub(super) async fn add(client: &mut SimulatedClient, key: i64) -> bool {
    let sent_ms = process::now_ms();
    let id = client.id();
    match client.statement_under(id, ADD, vec![key.into()], key).await {
        StatementOutcome::Answered(reply) => {
            let value = reply.rows.int(0, 0).unwrap_or(-1);
            client.record(key, ADDITION, sent_ms, Some(value));
            if once_in(4) {
                again(client, id, key, value).await;
            }
            true
        }
        StatementOutcome::Unknown => {
            client.record(key, ADDITION, sent_ms, None);
            false
        }
        StatementOutcome::Refused => false,
    }
}

pub(super) async fn operate(client: &mut SimulatedClient) {
    let key = wanted();
    match below(20) {
        0..=7 => _ = add(client, key).await,
        8..=9 => _ = add(client, TALLY).await,
        10..=11 => read(client, key).await,
        12 => scan(client, key / 10 * 10).await,
        13 => stream(client, key / 10 * 10).await,
        14..=15 => look_twice(client, key).await,
        _ => transfer(client).await,
    }
}

/// Repeats an addition that was answered, as a client does that has not got the answer: the answer
/// must be the same (R14).
pub(super) async fn again(client: &mut SimulatedClient, id: TxnId, key: i64, value: i64) {
    evenkeel_host::sleep(Duration::from_millis(below(AGAIN_MS))).await;
    if let StatementOutcome::Answered(reply) = client.statement_under(id, ADD, vec![key.into()], key).await
        && reply.rows.int(0, 0) != Some(value)
    {
        let other = reply.rows.int(0, 0);
        let sentence = format!("an addition to {key} was answered {value}, and sent again {other:?}");
        client.users.history.borrow_mut().wrong(sentence);
    }
}

pub(super) async fn read(client: &mut SimulatedClient, key: i64) {
    let sent_ms = process::now_ms();
    if let StatementOutcome::Answered(reply) = client.statement(READ, vec![key.into()], key).await {
        client.record(key, "a read", sent_ms, Some(reply.rows.int(0, 0).unwrap_or(0)));
    }
}

/// Reads at any replica. It may be as old as it says (R17), by a clock that may drift by a
/// twentieth.
pub(super) async fn local(client: &mut SimulatedClient, key: i64) {
    let sent_ms = process::now_ms();
    let shard = client.route(key);
    let Some((replica, address)) = any_replica(client, shard) else { return };
    let Some(connection) = client.connection(address).await else { return };
    let statement = StatementRequest {
        read: ReadLevel::Local,
        max_staleness_ms: once_in(2).then_some(100),
        ..SimulatedClient::request(client.id(), READ, vec![key.into()])
    };
    let answer = connection.call_within(&ShardRequest::Statement(statement), Duration::from_millis(ANSWER_MS)).await;
    match answer {
        Ok(ShardReply::Rows(reply)) => {
            let Some(age_ms) = reply.staleness_ms else { return };
            client.by = Some((shard, replica));
            let since_ms = sent_ms.saturating_sub(age_ms + age_ms / 20 + 1);
            client.record(key, LOCAL, since_ms, Some(reply.rows.int(0, 0).unwrap_or(0)));
        }
        Ok(_) => {}
        Err(_) => client.leave(address),
    }
}

fn any_replica(client: &SimulatedClient, shard: u32) -> Option<(u64, SocketAddr)> {
    let replicas = client.users.replicas(shard);
    let at = below(replicas.len() as u64) as usize;
    replicas.into_iter().nth(at)
}

/// Reads at level `leader`, now and then at a replica that may have led before: it must not answer
/// if it knows that its leadership is over.
pub(super) async fn leader(client: &mut SimulatedClient, key: i64) {
    let sent_ms = process::now_ms();
    let shard = client.route(key);
    let known = client.leader_known(shard);
    let known = client.users.replicas(shard).get(&known).map(|address| (known, *address));
    let Some((replica, address)) = known.filter(|_| !once_in(3)).or_else(|| any_replica(client, shard)) else {
        return;
    };
    let Some(connection) = client.connection(address).await else { return };
    let statement =
        StatementRequest { read: ReadLevel::Leader, ..SimulatedClient::request(client.id(), READ, vec![key.into()]) };
    let answer = connection.call_within(&ShardRequest::Statement(statement), Duration::from_millis(ANSWER_MS)).await;
    match answer {
        Ok(ShardReply::Rows(reply)) => {
            client.by = Some((shard, replica));
            client.record(key, LEADER, sent_ms, Some(reply.rows.int(0, 0).unwrap_or(0)));
        }
        Ok(ShardReply::Failed(Failure::NotLeader { .. })) => client.denied((shard, replica), sent_ms),
        Ok(_) => {}
        Err(_) => client.leave(address),
    }
}

/// Reads a counter twice in one transaction, with a pause: the second read is no older than its
/// statement, whatever happens in the pause (R9, R22).
async fn look_twice(client: &mut SimulatedClient, key: i64) {
    let mut shard = client.route(key);
    let transaction = client.id().sequence;
    let mut looks = Vec::new();
    for begin in [Some(TransactionOptions::default()), None] {
        let sent_ms = process::now_ms();
        let statement = SimulatedClient::request(client.id(), READ, vec![key.into()]);
        let request = ShardRequest::InTransaction { transaction, begin, statement };
        let step = client.ask(&mut shard, &request, key).await;
        let Step::Answered(ShardReply::Rows(reply)) = step else { return broken_off(client, !looks.is_empty()) };
        looks.push((sent_ms, reply.rows.int(0, 0).unwrap_or(0)));
        evenkeel_host::sleep(Duration::from_millis(below(LOOK_MS))).await;
    }
    let key_of_table = Some((client.users.schema.id, client.key(key)));
    let id = client.id();
    let request = ShardRequest::Commit { transaction, id, key: key_of_table, durability: Durability::Disk };
    if let Step::Answered(ShardReply::Done) = client.ask(&mut shard, &request, key).await {
        for (sent_ms, seen) in looks {
            client.record(key, "a look in a transaction", sent_ms, Some(seen));
        }
    } else {
        broken_off(client, true);
    }
}

/// A transaction has failed. If it has touched its range (`touched`: all keys of it lie in one),
/// the range cannot have been fenced under it: the fence waits for it, or ends it first (R22).
fn broken_off(client: &mut SimulatedClient, touched: bool) {
    if touched && client.trouble().contains("a range that the transaction uses has moved") {
        let sentence = format!("a range was fenced under a transaction that had touched it: {}", client.trouble());
        client.users.history.borrow_mut().wrong(sentence);
    }
}

/// Reads ten counters at once.
async fn scan(client: &mut SimulatedClient, from: i64) {
    let sent_ms = process::now_ms();
    let reply = client.statement(SCAN, vec![from.into(), (from + 10).into()], from).await;
    let StatementOutcome::Answered(reply) = reply else { return };
    let rows: BTreeMap<i64, i64> = (0..reply.rows.count as usize)
        .filter_map(|row| Some((reply.rows.int(row, 0)?, reply.rows.int(row, 1)?)))
        .collect();
    for key in from..from + 10 {
        client.record(key, "a scan", sent_ms, Some(rows.get(&key).copied().unwrap_or(0)));
    }
}

/// Reads ten counters a few at a time, each piece after the one before.
async fn stream(client: &mut SimulatedClient, from: i64) {
    let (mut next, end) = (from, from + 10);
    while next < end {
        let most = 1 + below(4);
        let mut statement = SimulatedClient::request(client.id(), SCAN, vec![from.into(), end.into()]);
        statement.limit = Some(most);
        let after = (next > from).then(|| client.key(next - 1));
        let sent_ms = process::now_ms();
        let Some(reply) = piece(client, PieceRequest { statement, after }, next).await else { return };
        let rows: Vec<(i64, i64)> = (0..reply.rows.count as usize)
            .filter_map(|row| Some((reply.rows.int(row, 0)?, reply.rows.int(row, 1)?)))
            .collect();
        if rows.iter().any(|(key, _)| *key < next) || !rows.is_sorted() || rows.len() as u64 > most {
            let sentence = format!("a piece of at most {most} rows from {next} on has the rows {rows:?}");
            return client.users.history.borrow_mut().wrong(sentence);
        }
        // Fewer than were asked for: there are no more.
        let last = rows.last().filter(|_| rows.len() as u64 == most).map_or(end - 1, |(key, _)| *key);
        let rows: BTreeMap<i64, i64> = rows.into_iter().collect();
        for key in next..=last {
            client.record(key, "a stream", sent_ms, Some(rows.get(&key).copied().unwrap_or(0)));
        }
        next = last + 1;
    }
}

/// Asks for a piece until it comes.
async fn piece(client: &mut SimulatedClient, piece: PieceRequest, key: i64) -> Option<StatementReply> {
    let request = ShardRequest::Piece(piece);
    let mut shard = client.route(key);
    let deadline_ms = process::now_ms() + GIVE_UP_MS;
    while process::now_ms() < deadline_ms {
        match client.ask(&mut shard, &request, key).await {
            Step::Answered(ShardReply::Piece(piece)) => return Some(piece.reply),
            Step::Never => return None,
            _ => {}
        }
    }
    None
}

/// Moves money from one account to another and counts it, in one transaction.
async fn transfer(client: &mut SimulatedClient) {
    let from = ACCOUNTS.start + below(4) as i64;
    let to = ACCOUNTS.start + (from - ACCOUNTS.start + 1 + below(3) as i64) % 4;
    let sent_ms = process::now_ms();
    let mut shard = client.route(from);
    let transaction = client.id().sequence;
    let mut tally = None;
    // The balancer may split between accounts.
    let together = !client.users.membership.borrow().balanced;
    let steps =
        [(UPDATE, vec![from.into(), (-1).into()]), (UPDATE, vec![to.into(), 1.into()]), (ADD, vec![TALLY.into()])];
    for (n, (sql, params)) in steps.into_iter().enumerate() {
        let statement = SimulatedClient::request(client.id(), sql, params);
        let begin = (n == 0).then(TransactionOptions::default);
        let request = ShardRequest::InTransaction { transaction, begin, statement };
        // Only the first may be sent anywhere: the others belong to its connection.
        let step = client.ask(&mut shard, &request, from).await;
        let Step::Answered(ShardReply::Rows(reply)) = step else { return broken_off(client, n > 0 && together) };
        if reply.affected != 1 {
            let sentence = format!("a transfer changed {} rows of an account", reply.affected);
            client.users.history.borrow_mut().wrong(sentence);
            return;
        }
        tally = reply.rows.int(0, 0);
    }
    let id = client.id();
    let key = Some((client.users.schema.id, client.key(from)));
    let request = ShardRequest::Commit { transaction, id, key, durability: Durability::Disk };
    let write = Write { id, key: TALLY, how: TRANSFER, sent_ms, shard };
    let early = if once_in(3) { commit_early(client, transaction, &write, tally).await } else { Early::NotSent };
    let mut perhaps = match early {
        Early::Recorded => return,
        Early::Never => return broken_off(client, together),
        Early::Perhaps => true,
        Early::NotSent => false,
    };
    let deadline_ms = process::now_ms() + GIVE_UP_MS;
    while process::now_ms() < deadline_ms {
        match client.ask(&mut shard, &request, from).await {
            Step::Answered(_) => return client.record(TALLY, TRANSFER, sent_ms, tally),
            Step::Perhaps => perhaps = true,
            // The shard says so after it has looked in its retry window.
            Step::Never => return broken_off(client, together),
            Step::Again => {}
        }
    }
    if perhaps {
        client.record(TALLY, TRANSFER, sent_ms, None);
    }
}
