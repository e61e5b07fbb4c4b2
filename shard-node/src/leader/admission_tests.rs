#![allow(clippy::unwrap_used)]
use super::*;
use crate::log_entry::Control;
use crate::log_entry::image::Image;
use bytes::{Bytes, BytesMut};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::rows::{RowBuilder, put_value};
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{KeyValue, OperatorId, TableSchema};
use futures::FutureExt;

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
        self.admission.follow(&self.state, &HashSet::new(), Changed::Keys(self.state.changed_hands()));
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
    let inner = admission.admit(TABLE, &one(7), permit.slots()).await.unwrap();
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
    admission.follow(&fixture.state, &HashSet::from([RangeId(1)]), Changed::All);
    assert!(matches!(admission.admit(TABLE, &one(1), &[]).await, Err(Failure::Moved { .. })));
    admission.follow(&fixture.state, &HashSet::new(), Changed::All);
    assert!(admission.admit(TABLE, &one(1), &[]).await.is_ok());
}

/// Breaks if a fence waits for reads: a report query of half a second would keep its range here for ever (A9). And breaks if one that
/// runs on behind the fence is answered from a range that is being deleted.
#[tokio::test]
async fn a_fence_waits_for_no_read_and_a_read_is_answered_only_while_its_range_is_here() {
    let mut fixture = Fixture::new();
    let read = fixture.admission.admit_read(TABLE, &one(5)).await.unwrap();
    let hold = fixture.admission.hold(RangeId(1)).unwrap();
    assert!(hold.drained(Duration::from_millis(1)).await, "it does not wait for the read");
    assert!(read.is_current(), "before the fence is folded nothing has been deleted");
    fixture.fence(1, 1);
    drop(hold);
    assert!(!read.is_current());
    assert!(fixture.admission.admit_read(TABLE, &one(5)).await.is_err());
}

#[tokio::test]
async fn a_held_range_admits_no_read() {
    let fixture = Fixture::new();
    let hold = fixture.admission.hold(RangeId(1)).unwrap();
    assert!(fixture.admission.admit_read(TABLE, &one(5)).now_or_never().is_none(), "it waits");
    drop(hold);
    assert!(fixture.admission.admit_read(TABLE, &one(5)).await.is_ok());
}

/// Breaks if a read loses its range by a split (it has not gone), or keeps it when a piece leaves.
#[tokio::test]
async fn a_read_outlives_a_split_but_not_the_fence_of_a_piece() {
    let mut fixture = Fixture::new();
    let (left, right) = (
        fixture.admission.admit_read(TABLE, &one(5)).await.unwrap(),
        fixture.admission.admit_read(TABLE, &one(15)).await.unwrap(),
    );
    fixture.split(10);
    assert!(left.is_current() && right.is_current());
    let later = fixture.admission.admit_read(TABLE, &one(5)).await.unwrap();
    fixture.fence(2, 2);
    assert!(!right.is_current());
    assert!(!left.is_current(), "its snapshot was of both");
    assert!(later.is_current(), "its range is still here");
}

/// Breaks if a read from before a range's absence is answered after its return: meanwhile others may have written.
#[tokio::test]
async fn a_range_that_comes_back_is_another_one() {
    let mut fixture = Fixture::new();
    let read = fixture.admission.admit_read(TABLE, &one(5)).await.unwrap();
    fixture.fence(1, 1);
    fixture.fold(Control::TakeBack { operator: OperatorId(101) });
    assert!(fixture.admission.admit_read(TABLE, &one(5)).await.unwrap().is_current());
    assert!(!read.is_current());
}

/// Breaks if a transaction's permits grow with its statements, or if merging them gives its range up.
#[tokio::test]
async fn a_transaction_has_one_leave_per_range() {
    let fixture = Fixture::new();
    let mut permit = fixture.admission.admit(TABLE, &one(1), &[]).await.unwrap();
    for n in 0..1_000 {
        permit.join(fixture.admission.admit(TABLE, &one(n), permit.slots()).await.unwrap());
    }
    assert_eq!(permit.slots().len(), 1);
    let hold = fixture.admission.hold(RangeId(1)).unwrap();
    assert!(!hold.drained(Duration::from_millis(1)).await, "it is still there");
    drop(permit);
    assert!(hold.drained(Duration::from_millis(1)).await);
}

/// Breaks if the size of a range has to be read from its rows: it is what the log says of them, on every replica, and after a restart (A25).
#[tokio::test]
async fn sizes_are_what_the_log_says_and_go_along_with_ranges() {
    let mut fixture = Fixture::new();
    let admission = fixture.admission.clone();
    let row = |n: i64, image: fn(Bytes) -> Image| {
        let mut packed = BytesMut::new();
        put_value(&mut packed, Some(&[b'x'; 100]));
        Change { table: TABLE, key: key(n), image: image(packed.freeze()) }
    };
    let sizes = |admission: &Admission| -> Vec<(u64, u64)> {
        let mut slots = admission.slots();
        slots.sort_by(|a, b| a.range.interval.start.cmp(&b.range.interval.start));
        slots.iter().map(|slot| (slot.size().rows, slot.size().bytes)).collect()
    };
    admission.count(&(0..20).map(|n| row(n, Image::New)).collect::<Vec<_>>());
    assert_eq!(sizes(&admission), [(20, 20 * 128)]);
    fixture.split(10);
    admission.count(&(0..3).map(|n| row(n, |_| Image::Gone)).collect::<Vec<_>>());
    assert_eq!(sizes(&admission), [(7, 7 * 128), (10, 10 * 128)]);
    // A replica that starts goes on from what was stored.
    let restarted = Admission::default();
    restarted.restore(&fixture.state, admission.sizes());
    assert_eq!(sizes(&restarted), sizes(&admission));
    assert!(restarted.slots().iter().all(|slot| !slot.size().is_doubtful()));
    // What leaves and comes back has kept its size, through a restart too.
    fixture.fence(2, 2);
    restarted.restore(&fixture.state, admission.sizes());
    fixture.fold(Control::TakeBack { operator: OperatorId(102) });
    restarted.follow(&fixture.state, &HashSet::new(), Changed::Keys(fixture.state.changed_hands()));
    assert_eq!(sizes(&admission), [(7, 7 * 128), (10, 10 * 128)]);
    assert_eq!(sizes(&restarted), sizes(&admission));
}

/// Breaks if the size of a range that came in has to be read from its rows.
#[tokio::test]
async fn a_range_that_has_come_in_is_as_large_as_what_has_come() {
    let mut fixture = Fixture { state: ShardState::default(), admission: Arc::default(), position: 0 };
    let operator = OperatorId(5);
    let (range, interval, from) =
        (RangeId(7), KeyInterval::ALL, ShardInfo { id: ShardId(9), replicas: Default::default() });
    let opened = Control::IngestOpen { operator, schema: schema(), range, interval, epoch: Epoch(1), from };
    fixture.fold(opened);
    fixture.fold(Control::IngestAttempt { operator, attempt: 1, position: 3 });
    let mut rows = RowBuilder::new(1);
    (0..50).for_each(|_| rows.push([Some(&[0_u8; 8][..])]));
    let (interval, rows) = (KeyInterval::ALL, rows.finish());
    let checksum = RangeChecksum { rows: 50, sum: 0 };
    fixture.fold(Control::IngestChunk { operator, attempt: 1, interval, from: 3, position: 4, rows, checksum });
    fixture.fold(Control::Adopt { operator, attempt: 1, fence: 4, epoch: Epoch(2), held_since_us: 0 });
    let slots = fixture.admission.slots();
    let size = slots[0].size();
    assert_eq!((size.rows, size.bytes, size.is_doubtful()), (50, 50 * 36, false));
}
