#![allow(clippy::unwrap_used)]
use super::*;
use crate::entry::Control;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::{KeyValue, OperatorId, TableSchema};

const TABLE: TableId = TableId(1);

fn schema() -> TableSchema {
    TableSchema {
        id: TABLE,
        name: "t".into(),
        columns: vec![ColumnSchema { name: "id".into(), type_name: "bigint".into(), type_oid: 20 }],
        key: vec![0],
        create_sql: String::new(),
    }
}

fn key(n: i64) -> Key {
    schema().codec().encode(&[KeyValue::Int(n)]).unwrap()
}

fn one(n: i64) -> Touches {
    Touches::Keys(vec![key(n)])
}

struct Fixture {
    state: ShardState,
    admission: Arc<Admission>,
    position: u64,
}

impl Fixture {
    fn new() -> Fixture {
        let mut fixture = Fixture { state: ShardState::default(), admission: Arc::default(), position: 0 };
        fixture.fold(Control::CreateTable { schema: schema(), range: RangeId(1) });
        fixture
    }

    fn fold(&mut self, control: Control) {
        self.position += 1;
        self.state.control(self.position, &control).unwrap();
        self.admission.follow(&self.state, &HashSet::new());
    }

    fn split(&mut self, at: i64) {
        self.fold(Control::Split {
            operator: OperatorId(1),
            range: RangeId(1),
            epoch: Epoch(1),
            at: vec![(key(at), RangeId(2))],
        });
    }

    fn fence(&mut self, range: u64, epoch: u64) {
        let to = ShardInfo { id: ShardId(9), replicas: Default::default() };
        let operator = OperatorId(100 + range);
        self.fold(Control::MoveOpen { operator, range: RangeId(range), epoch: Epoch(epoch), to });
        self.fold(Control::Fence { operator, held_since_us: 0 });
    }
}

#[tokio::test]
async fn a_hold_waits_for_what_was_admitted_and_redirects_what_comes_after() {
    let mut fixture = Fixture::new();
    let admission = fixture.admission.clone();
    let permit = admission.admit(TABLE, &one(5), &[]).await.unwrap();
    let hold = admission.hold(RangeId(1)).unwrap();
    assert!(admission.hold(RangeId(1)).is_none(), "one hold at a time");
    assert!(!hold.drained(Duration::ZERO).await);
    let waiting = tokio::spawn({
        let admission = admission.clone();
        async move { admission.admit(TABLE, &one(6), &[]).await.map(drop) }
    });
    // A transaction that is inside already passes: the hold waits for it (R22).
    let inner = admission.admit(TABLE, &one(7), std::slice::from_ref(&permit)).await.unwrap();
    drop((permit, inner));
    assert!(hold.drained(Duration::from_secs(5)).await);
    fixture.fence(1, 1);
    let moved = waiting.await.unwrap().unwrap_err();
    assert_eq!(moved, Failure::Moved { to: Some(ShardId(9)), range: Some((RangeId(1), Epoch(2))) });
}

#[tokio::test]
async fn a_released_hold_lets_statements_go_on() {
    let fixture = Fixture::new();
    let hold = fixture.admission.hold(RangeId(1)).unwrap();
    let admission = fixture.admission.clone();
    let waiting = tokio::spawn(async move { admission.admit(TABLE, &one(6), &[]).await.map(drop) });
    tokio::task::yield_now().await;
    drop(hold);
    waiting.await.unwrap().unwrap();
}

/// A statement admitted before a split counts for both pieces.
#[tokio::test]
async fn a_hold_on_a_piece_waits_for_statements_of_the_whole() {
    let mut fixture = Fixture::new();
    let admission = fixture.admission.clone();
    let permit = admission.admit(TABLE, &one(5), &[]).await.unwrap();
    fixture.split(10);
    let hold = admission.hold(RangeId(2)).unwrap();
    assert!(!hold.drained(Duration::ZERO).await);
    drop(permit);
    assert!(hold.drained(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn an_interval_needs_every_range_it_crosses() {
    let mut fixture = Fixture::new();
    fixture.split(10);
    let admission = fixture.admission.clone();
    let across = Touches::Intervals(vec![KeyInterval::new(key(5), Some(key(15)))]);
    assert_eq!(admission.admit(TABLE, &across, &[]).await.unwrap().slots().len(), 2);
    fixture.fence(2, 2);
    assert!(matches!(admission.admit(TABLE, &across, &[]).await, Err(Failure::Moved { to: Some(ShardId(9)), .. })));
    let left = Touches::Intervals(vec![KeyInterval::new(Key::MIN, Some(key(10)))]);
    assert_eq!(admission.admit(TABLE, &left, &[]).await.unwrap().slots().len(), 1);
    assert!(matches!(admission.admit(TableId(2), &one(1), &[]).await, Err(Failure::Moved { to: None, .. })));
}

#[tokio::test]
async fn a_range_is_admitted_once_its_rows_are_in() {
    let fixture = Fixture::new();
    let admission = fixture.admission.clone();
    admission.follow(&fixture.state, &HashSet::from([RangeId(1)]));
    assert!(matches!(admission.admit(TABLE, &one(1), &[]).await, Err(Failure::Moved { .. })));
    admission.follow(&fixture.state, &HashSet::new());
    assert!(admission.admit(TABLE, &one(1), &[]).await.is_ok());
}
