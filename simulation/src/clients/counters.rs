//! What clients do to counters and accounts, and how they tell what they saw.

use super::asking::{ANSWER_MS, Client, GIVE_UP_MS, Outcome, Step};
use super::sessions::{Early, Write};
use super::{ACCOUNTS, ADDITION, Event, LEADER, LOCAL, READ, TALLY, TRANSFER, wanted};
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

pub(super) const ADD: &str = "INSERT INTO counters AS c (id, v, kept) VALUES ($1, 1, 'made') ON CONFLICT (id) DO UPDATE SET v = c.v + 1 RETURNING c.v";
const UPDATE: &str = "UPDATE counters SET v = v + $2 WHERE id = $1 RETURNING v";
const SCAN: &str = "SELECT id, v FROM counters WHERE id >= $1 AND id < $2";

impl Client {
    pub(super) fn tell(&self, key: i64, how: &'static str, sent_ms: u64, seen: Option<i64>) {
        let answered_ms = process::now_ms();
        let adds = [ADDITION, TRANSFER].contains(&how);
        self.users.told.borrow_mut().history.push(Event { key, adds, how, sent_ms, answered_ms, seen, by: self.by });
    }

    /// Adds one to a counter; `false` if it was not answered.
    pub(super) async fn add(&mut self, key: i64) -> bool {
        let sent_ms = process::now_ms();
        let id = self.id();
        match self.statement_under(id, ADD, vec![key.into()], key).await {
            Outcome::Answered(reply) => {
                let value = reply.rows.int(0, 0).unwrap_or(-1);
                self.tell(key, ADDITION, sent_ms, Some(value));
                if once_in(4) {
                    self.again(id, key, value).await;
                }
                true
            }
            Outcome::Unknown => {
                self.tell(key, ADDITION, sent_ms, None);
                false
            }
            Outcome::Refused => false,
        }
    }

    pub(super) async fn something(&mut self) {
        let key = wanted();
        match below(20) {
            0..=7 => _ = self.add(key).await,
            8..=9 => _ = self.add(TALLY).await,
            10..=11 => self.read(key).await,
            12 => self.scan(key / 10 * 10).await,
            13 => self.stream(key / 10 * 10).await,
            14..=15 => self.look_twice(key).await,
            _ => self.transfer().await,
        }
    }

    /// Sends an addition that was answered once more, as a client does that has not got the answer: it must be told the same (R14).
    pub(super) async fn again(&mut self, id: TxnId, key: i64, value: i64) {
        tokio::time::sleep(Duration::from_millis(below(AGAIN_MS))).await;
        if let Outcome::Answered(reply) = self.statement_under(id, ADD, vec![key.into()], key).await
            && reply.rows.int(0, 0) != Some(value)
        {
            let other = reply.rows.int(0, 0);
            let sentence = format!("an addition to {key} was answered {value}, and sent again {other:?}");
            self.users.told.borrow_mut().wrong(sentence);
        }
    }

    pub(super) async fn read(&mut self, key: i64) {
        let sent_ms = process::now_ms();
        if let Outcome::Answered(reply) = self.statement(READ, vec![key.into()], key).await {
            self.tell(key, "a read", sent_ms, Some(reply.rows.int(0, 0).unwrap_or(0)));
        }
    }

    /// Reads at any replica. It may be as old as it says (R17), by a clock that may drift by a twentieth.
    pub(super) async fn local(&mut self, key: i64) {
        let sent_ms = process::now_ms();
        let shard = self.route(key);
        let Some((replica, address)) = self.any_replica(shard) else { return };
        let Some(connection) = self.connection(address).await else { return };
        let statement = StatementRequest {
            read: ReadLevel::Local,
            max_staleness_ms: once_in(2).then_some(100),
            ..Client::request(self.id(), READ, vec![key.into()])
        };
        let answer =
            connection.call_within(&ShardRequest::Statement(statement), Duration::from_millis(ANSWER_MS)).await;
        match answer {
            Ok(ShardReply::Rows(reply)) => {
                let Some(age_ms) = reply.staleness_ms else { return };
                self.by = Some((shard, replica));
                let since_ms = sent_ms.saturating_sub(age_ms + age_ms / 20 + 1);
                self.tell(key, LOCAL, since_ms, Some(reply.rows.int(0, 0).unwrap_or(0)));
            }
            Ok(_) => {}
            Err(_) => self.leave(address),
        }
    }

    fn any_replica(&self, shard: u32) -> Option<(u64, SocketAddr)> {
        let replicas = self.users.replicas(shard);
        let at = below(replicas.len() as u64) as usize;
        replicas.into_iter().nth(at)
    }

    /// Reads at level `leader`, now and then at a replica that may have led once: it must not answer what it knows to be over.
    pub(super) async fn leader(&mut self, key: i64) {
        let sent_ms = process::now_ms();
        let shard = self.route(key);
        let known = self.leader_known(shard);
        let known = self.users.replicas(shard).get(&known).map(|address| (known, *address));
        let Some((replica, address)) = known.filter(|_| !once_in(3)).or_else(|| self.any_replica(shard)) else {
            return;
        };
        let Some(connection) = self.connection(address).await else { return };
        let statement =
            StatementRequest { read: ReadLevel::Leader, ..Client::request(self.id(), READ, vec![key.into()]) };
        let answer =
            connection.call_within(&ShardRequest::Statement(statement), Duration::from_millis(ANSWER_MS)).await;
        match answer {
            Ok(ShardReply::Rows(reply)) => {
                self.by = Some((shard, replica));
                self.tell(key, LEADER, sent_ms, Some(reply.rows.int(0, 0).unwrap_or(0)));
            }
            Ok(ShardReply::Failed(Failure::NotLeader { .. })) => self.denied((shard, replica), sent_ms),
            Ok(_) => {}
            Err(_) => self.leave(address),
        }
    }

    /// Reads a counter twice in one transaction, with a pause: whatever is in the way of that, the second look is no older than its
    /// statement (R9, R22).
    async fn look_twice(&mut self, key: i64) {
        let mut shard = self.route(key);
        let transaction = self.id().sequence;
        let mut looks = Vec::new();
        for begin in [Some(TransactionOptions::default()), None] {
            let sent_ms = process::now_ms();
            let statement = Client::request(self.id(), READ, vec![key.into()]);
            let request = ShardRequest::InTransaction { transaction, begin, statement };
            let step = self.ask(&mut shard, &request, key).await;
            let Step::Answered(ShardReply::Rows(reply)) = step else { return self.broken_off(!looks.is_empty()) };
            looks.push((sent_ms, reply.rows.int(0, 0).unwrap_or(0)));
            tokio::time::sleep(Duration::from_millis(below(LOOK_MS))).await;
        }
        let key_of_table = Some((self.users.schema.id, self.key(key)));
        let id = self.id();
        let request = ShardRequest::Commit { transaction, id, key: key_of_table, durability: Durability::Disk };
        if let Step::Answered(ShardReply::Done) = self.ask(&mut shard, &request, key).await {
            for (sent_ms, seen) in looks {
                self.tell(key, "a look in a transaction", sent_ms, Some(seen));
            }
        } else {
            self.broken_off(true);
        }
    }

    /// A transaction came to nothing. If it has touched its range (`touched`: all keys of it lie in one), the range cannot have been
    /// fenced under it: the fence waits for it, or ends it first (R22).
    fn broken_off(&mut self, touched: bool) {
        if touched && self.trouble().contains("a range that the transaction uses has moved") {
            let sentence = format!("a range was fenced under a transaction that had touched it: {}", self.trouble());
            self.users.told.borrow_mut().wrong(sentence);
        }
    }

    /// Reads ten counters at once.
    async fn scan(&mut self, from: i64) {
        let sent_ms = process::now_ms();
        let reply = self.statement(SCAN, vec![from.into(), (from + 10).into()], from).await;
        let Outcome::Answered(reply) = reply else { return };
        let rows: BTreeMap<i64, i64> = (0..reply.rows.count as usize)
            .filter_map(|row| Some((reply.rows.int(row, 0)?, reply.rows.int(row, 1)?)))
            .collect();
        for key in from..from + 10 {
            self.tell(key, "a scan", sent_ms, Some(rows.get(&key).copied().unwrap_or(0)));
        }
    }

    /// Reads ten counters a few at a time, each piece behind the one before, whatever happens between them.
    async fn stream(&mut self, from: i64) {
        let (mut next, end) = (from, from + 10);
        while next < end {
            let most = 1 + below(4);
            let mut statement = Client::request(self.id(), SCAN, vec![from.into(), end.into()]);
            statement.limit = Some(most);
            let after = (next > from).then(|| self.key(next - 1));
            let sent_ms = process::now_ms();
            let Some(reply) = self.piece(PieceRequest { statement, after }, next).await else { return };
            let rows: Vec<(i64, i64)> = (0..reply.rows.count as usize)
                .filter_map(|row| Some((reply.rows.int(row, 0)?, reply.rows.int(row, 1)?)))
                .collect();
            if rows.iter().any(|(key, _)| *key < next) || !rows.is_sorted() || rows.len() as u64 > most {
                let sentence = format!("a piece of at most {most} rows from {next} on has the rows {rows:?}");
                return self.users.told.borrow_mut().wrong(sentence);
            }
            // Fewer than were asked for: there are no more.
            let last = rows.last().filter(|_| rows.len() as u64 == most).map_or(end - 1, |(key, _)| *key);
            let rows: BTreeMap<i64, i64> = rows.into_iter().collect();
            for key in next..=last {
                self.tell(key, "a stream", sent_ms, Some(rows.get(&key).copied().unwrap_or(0)));
            }
            next = last + 1;
        }
    }

    /// Asks for a piece until it comes.
    async fn piece(&mut self, piece: PieceRequest, key: i64) -> Option<StatementReply> {
        let request = ShardRequest::Piece(piece);
        let mut shard = self.route(key);
        let deadline_ms = process::now_ms() + GIVE_UP_MS;
        while process::now_ms() < deadline_ms {
            match self.ask(&mut shard, &request, key).await {
                Step::Answered(ShardReply::Piece(piece)) => return Some(piece.reply),
                Step::Never => return None,
                _ => {}
            }
        }
        None
    }

    /// Moves money from one account to another and counts it, in one transaction.
    async fn transfer(&mut self) {
        let from = ACCOUNTS.start + below(4) as i64;
        let to = ACCOUNTS.start + (from - ACCOUNTS.start + 1 + below(3) as i64) % 4;
        let sent_ms = process::now_ms();
        let mut shard = self.route(from);
        let transaction = self.id().sequence;
        let mut tally = None;
        // The balancer may split between accounts.
        let together = !self.users.site.borrow().balanced;
        let steps =
            [(UPDATE, vec![from.into(), (-1).into()]), (UPDATE, vec![to.into(), 1.into()]), (ADD, vec![TALLY.into()])];
        for (n, (sql, params)) in steps.into_iter().enumerate() {
            let statement = Client::request(self.id(), sql, params);
            let begin = (n == 0).then(TransactionOptions::default);
            let request = ShardRequest::InTransaction { transaction, begin, statement };
            // Only the first may be sent anywhere: the others belong to its connection.
            let step = self.ask(&mut shard, &request, from).await;
            let Step::Answered(ShardReply::Rows(reply)) = step else { return self.broken_off(n > 0 && together) };
            if reply.affected != 1 {
                let sentence = format!("a transfer changed {} rows of an account", reply.affected);
                self.users.told.borrow_mut().wrong(sentence);
                return;
            }
            tally = reply.rows.int(0, 0);
        }
        let id = self.id();
        let key = Some((self.users.schema.id, self.key(from)));
        let request = ShardRequest::Commit { transaction, id, key, durability: Durability::Disk };
        let write = Write { id, key: TALLY, how: TRANSFER, sent_ms, shard };
        let early = if once_in(3) { self.commit_early(transaction, &write, tally).await } else { Early::NotSent };
        let mut perhaps = match early {
            Early::Told => return,
            Early::Never => return self.broken_off(together),
            Early::Perhaps => true,
            Early::NotSent => false,
        };
        let deadline_ms = process::now_ms() + GIVE_UP_MS;
        while process::now_ms() < deadline_ms {
            match self.ask(&mut shard, &request, from).await {
                Step::Answered(_) => return self.tell(TALLY, TRANSFER, sent_ms, tally),
                Step::Perhaps => perhaps = true,
                // The shard says so after it has looked in its retry window.
                Step::Never => return self.broken_off(together),
                Step::Again => {}
            }
        }
        if perhaps {
            self.tell(TALLY, TRANSFER, sent_ms, None);
        }
    }
}
