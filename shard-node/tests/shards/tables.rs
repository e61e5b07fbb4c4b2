//! Definitions that parse here and that PostgreSQL refuses (invariant 5: nothing fails after it is
//! decided).

use super::harness::{Shard, definition};
use super::start_logging;
use evenkeel_protocol::error::SqlError;
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::{Epoch, KeyInterval, OperatorId, RangeId};

/// Definitions that are refused, and with which SQLSTATE.
const REFUSED: [(&str, &str); 5] = [
    ("CREATE TABLE t (id bigint PRIMARY KEY, n numeric(2000))", "22023"),
    ("CREATE TABLE t (id bigint PRIMARY KEY, v varchar(0))", "22023"),
    ("CREATE TABLE t (id bigint PRIMARY KEY, n bigint DEFAULT 'x')", "22P02"),
    ("CREATE TABLE t (id bigint PRIMARY KEY, CHECK (id))", "42804"),
    ("CREATE TABLE t (id bigint PRIMARY KEY, CONSTRAINT c CHECK (id > 0), CONSTRAINT c CHECK (id > 1))", "42710"),
];

/// Decided, each of them would end every replica, and again after every restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_postgresql_refuses_is_refused_before_it_is_decided() {
    start_logging();
    let shard = Shard::start(1, 3).await;
    for (number, (sql, code)) in (1..).zip(REFUSED) {
        let schema = definition(sql, number);
        let create = ControlRequest::CreateTable { schema: schema.clone(), range: RangeId(number.into()) };
        // It is brought in with a range, too.
        let ingest = ControlRequest::IngestOpen {
            operator: OperatorId(number.into()),
            schema,
            range: RangeId(number.into()),
            interval: KeyInterval::ALL,
            epoch: Epoch(1),
            from: shard.info.clone(),
        };
        for request in [create, ingest] {
            let reply = shard.control(request).await;
            let ControlReply::Refused { code: why, reason } = &reply else { panic!("{sql}: {reply:?}") };
            let error = SqlError::from_sentence(reason).unwrap_or_else(|| panic!("{sql}: {reason}"));
            assert_eq!((why.as_str(), error.code.as_ref()), ("bad-definition", code), "{sql}: {reason}");
        }
    }
    // The name is free, and the shard lives on: the table of the same name is made on every
    // replica.
    shard.create_table("CREATE TABLE t (id bigint PRIMARY KEY, n numeric(1000))", 9, 9).await;
    shard.sql("INSERT INTO t VALUES (1, 2)", &[]).await.unwrap();
    assert_eq!(shard.checked_sums().await[0].1.rows, 1);

    // Asked for many times at once, as after lost answers, a table is made once and never called
    // impossible.
    let schema = definition("CREATE TABLE u (id bigint PRIMARY KEY)", 10);
    let create = ControlRequest::CreateTable { schema, range: RangeId(10) };
    let asked = (0..8).map(|_| shard.control(create.clone()));
    for reply in futures::future::join_all(asked).await {
        assert_eq!(reply, ControlReply::Done);
    }
    shard.sql("INSERT INTO u VALUES (1)", &[]).await.unwrap();
    shard.stop().await;
}
