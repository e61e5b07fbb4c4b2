//! The latch protocol, and the sizes of ranges.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::log_entry::Control;
use crate::log_entry::image::Image;
use bytes::{Bytes, BytesMut};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::rows::{RowBuilder, put_value};
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{Epoch, Key, KeyInterval, KeyValue, OperatorId, ShardId, TableSchema};
use futures::FutureExt;

const TABLE: TableId = TableId(1);

fn schema() -> TableSchema {
    TableSchema {
        id: TABLE,
        name: "t".into(),
        columns: vec![ColumnSchema { name: "id".into(), type_name: "bigint".into(), type_oid: 20 }],
        key: vec![0],
        create_sql: "CREATE TABLE t (id bigint PRIMARY KEY)".into(),
        ..TableSchema::default()
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
    latches: Arc<LatchManager>,
    position: u64,
}

impl Fixture {
    fn new() -> Fixture {
        let mut fixture = Fixture { state: ShardState::default(), latches: Arc::default(), position: 0 };
        fixture.apply(Control::CreateTable { schema: schema(), range: RangeId(1) });
        fixture
    }

    fn apply(&mut self, control: Control) {
        self.position += 1;
        self.state.control(self.position, &control).unwrap();
        self.latches.follow(&self.state, &HashSet::new(), ChangedKeys::Only(self.state.changed_hands()));
    }

    fn split(&mut self, at: i64) {
        self.apply(Control::Split {
            operator: OperatorId(1),
            range: RangeId(1),
            epoch: Epoch(1),
            at: vec![(key(at), RangeId(2))],
        });
    }

    fn fence(&mut self, range: u64, epoch: u64) {
        let to = ShardInfo { id: ShardId(9), replicas: Default::default() };
        let operator = OperatorId(100 + range);
        self.apply(Control::MoveOpen { operator, range: RangeId(range), epoch: Epoch(epoch), to });
        self.apply(Control::Fence { operator, held_since_us: 0 });
    }
}

#[tokio::test]
async fn a_write_block_waits_for_earlier_statements_and_redirects_later_ones() {
    let mut fixture = Fixture::new();
    let latches = fixture.latches.clone();
    let handle = latches.acquire(TABLE, &one(5), &[]).await.unwrap();
    let block = latches.block(RangeId(1)).unwrap();
    assert!(latches.block(RangeId(1)).is_none(), "one block at a time");
    assert!(!block.drained(Duration::ZERO).await);
    let waiting = tokio::spawn({
        let latches = latches.clone();
        async move { latches.acquire(TABLE, &one(6), &[]).await.map(drop) }
    });
    // A transaction that holds a handle on the range passes: the block waits for it (R22).
    let inner = latches.acquire(TABLE, &one(7), handle.latches()).await.unwrap();
    drop((handle, inner));
    assert!(block.drained(Duration::from_secs(5)).await);
    fixture.fence(1, 1);
    let moved = waiting.await.unwrap().unwrap_err();
    assert_eq!(moved, Failure::Moved { to: Some(ShardId(9)), range: Some((RangeId(1), Epoch(2))) });
}

#[tokio::test]
async fn a_dropped_write_block_lets_statements_continue() {
    let fixture = Fixture::new();
    let block = fixture.latches.block(RangeId(1)).unwrap();
    let latches = fixture.latches.clone();
    let waiting = tokio::spawn(async move { latches.acquire(TABLE, &one(6), &[]).await.map(drop) });
    tokio::task::yield_now().await;
    drop(block);
    waiting.await.unwrap().unwrap();
}

/// A statement that was admitted before a split counts for both pieces.
#[tokio::test]
async fn a_block_on_a_piece_waits_for_statements_of_the_whole() {
    let mut fixture = Fixture::new();
    let latches = fixture.latches.clone();
    let handle = latches.acquire(TABLE, &one(5), &[]).await.unwrap();
    fixture.split(10);
    let block = latches.block(RangeId(2)).unwrap();
    assert!(!block.drained(Duration::ZERO).await);
    drop(handle);
    assert!(block.drained(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn an_interval_needs_every_range_it_crosses() {
    let mut fixture = Fixture::new();
    fixture.split(10);
    let latches = fixture.latches.clone();
    let across = Touches::Intervals(vec![KeyInterval::new(key(5), Some(key(15)))]);
    assert_eq!(latches.acquire(TABLE, &across, &[]).await.unwrap().latches().len(), 2);
    fixture.fence(2, 2);
    assert!(matches!(latches.acquire(TABLE, &across, &[]).await, Err(Failure::Moved { to: Some(ShardId(9)), .. })));
    let left = Touches::Intervals(vec![KeyInterval::new(Key::MIN, Some(key(10)))]);
    assert_eq!(latches.acquire(TABLE, &left, &[]).await.unwrap().latches().len(), 1);
    assert!(matches!(latches.acquire(TableId(2), &one(1), &[]).await, Err(Failure::Moved { to: None, .. })));
}

#[tokio::test]
async fn a_range_is_usable_once_its_rows_are_stored() {
    let fixture = Fixture::new();
    let latches = fixture.latches.clone();
    latches.follow(&fixture.state, &HashSet::from([RangeId(1)]), ChangedKeys::All);
    assert!(matches!(latches.acquire(TABLE, &one(1), &[]).await, Err(Failure::Moved { .. })));
    latches.follow(&fixture.state, &HashSet::new(), ChangedKeys::All);
    assert!(latches.acquire(TABLE, &one(1), &[]).await.is_ok());
}

/// Breaks if a fence waits for reads: report queries of half a second would keep their range here
/// for ever (A9). Breaks also if a read that continues after the fence is answered from a range
/// that is being deleted.
#[tokio::test]
async fn a_fence_waits_for_no_read_and_a_read_is_answered_only_while_its_range_is_here() {
    let mut fixture = Fixture::new();
    let read = fixture.latches.acquire_read(TABLE, &one(5)).await.unwrap();
    let block = fixture.latches.block(RangeId(1)).unwrap();
    assert!(block.drained(Duration::from_millis(1)).await, "it does not wait for the read");
    assert!(read.is_current(), "before the fence is applied nothing has been deleted");
    fixture.fence(1, 1);
    drop(block);
    assert!(!read.is_current());
    assert!(fixture.latches.acquire_read(TABLE, &one(5)).await.is_err());
}

#[tokio::test]
async fn a_blocked_range_admits_no_read() {
    let fixture = Fixture::new();
    let block = fixture.latches.block(RangeId(1)).unwrap();
    assert!(fixture.latches.acquire_read(TABLE, &one(5)).now_or_never().is_none(), "it waits");
    drop(block);
    assert!(fixture.latches.acquire_read(TABLE, &one(5)).await.is_ok());
}

/// Breaks if a split invalidates a read (the range is still here), or if the departure of a piece
/// does not.
#[tokio::test]
async fn a_read_outlives_a_split_but_not_the_fence_of_a_piece() {
    let mut fixture = Fixture::new();
    let (left, right) = (
        fixture.latches.acquire_read(TABLE, &one(5)).await.unwrap(),
        fixture.latches.acquire_read(TABLE, &one(15)).await.unwrap(),
    );
    fixture.split(10);
    assert!(left.is_current() && right.is_current());
    let later = fixture.latches.acquire_read(TABLE, &one(5)).await.unwrap();
    fixture.fence(2, 2);
    assert!(!right.is_current());
    assert!(!left.is_current(), "its snapshot covers both pieces");
    assert!(later.is_current(), "its range is still here");
}

/// Breaks if a read that began before a range left is answered after its return: in between,
/// another shard may have acknowledged writes.
#[tokio::test]
async fn a_range_that_comes_back_has_another_latch() {
    let mut fixture = Fixture::new();
    let read = fixture.latches.acquire_read(TABLE, &one(5)).await.unwrap();
    fixture.fence(1, 1);
    fixture.apply(Control::TakeBack { operator: OperatorId(101) });
    assert!(fixture.latches.acquire_read(TABLE, &one(5)).await.unwrap().is_current());
    assert!(!read.is_current());
}

/// Breaks if a transaction's handles grow with its statements, or if joining them releases its
/// range.
#[tokio::test]
async fn a_transaction_has_one_handle_per_range() {
    let fixture = Fixture::new();
    let mut handle = fixture.latches.acquire(TABLE, &one(1), &[]).await.unwrap();
    for n in 0..1_000 {
        handle.join(fixture.latches.acquire(TABLE, &one(n), handle.latches()).await.unwrap());
    }
    assert_eq!(handle.latches().len(), 1);
    let block = fixture.latches.block(RangeId(1)).unwrap();
    assert!(!block.drained(Duration::from_millis(1)).await, "it is still there");
    drop(handle);
    assert!(block.drained(Duration::from_millis(1)).await);
}

/// Breaks if the size of a range has to be read from its rows. It is computed from the log, on
/// every replica and after a restart (A25).
#[tokio::test]
async fn sizes_follow_the_log_and_the_ranges() {
    let mut fixture = Fixture::new();
    let latches = fixture.latches.clone();
    let row = |n: i64, image: fn(Bytes) -> Image| {
        let mut packed = BytesMut::new();
        put_value(&mut packed, Some(&[b'x'; 100]));
        Change { table: TABLE, key: key(n), image: image(packed.freeze()) }
    };
    let sizes = |latches: &LatchManager| -> Vec<(u64, u64)> {
        let mut slots = latches.latches();
        slots.sort_by(|a, b| a.range.interval.start.cmp(&b.range.interval.start));
        slots.iter().map(|slot| (slot.statistics.size().rows, slot.statistics.size().bytes)).collect()
    };
    latches.count(&(0..20).map(|n| row(n, Image::New)).collect::<Vec<_>>());
    assert_eq!(sizes(&latches), [(20, 20 * 128)]);
    fixture.split(10);
    latches.count(&(0..3).map(|n| row(n, |_| Image::Gone)).collect::<Vec<_>>());
    assert_eq!(sizes(&latches), [(7, 7 * 128), (10, 10 * 128)]);
    // A replica that starts continues from the stored sizes.
    let restarted = LatchManager::default();
    restarted.restore(&fixture.state, latches.sizes());
    assert_eq!(sizes(&restarted), sizes(&latches));
    assert!(restarted.latches().iter().all(|slot| !slot.statistics.size().is_doubtful()));
    // A range that leaves and comes back keeps its size, through a restart too.
    fixture.fence(2, 2);
    restarted.restore(&fixture.state, latches.sizes());
    fixture.apply(Control::TakeBack { operator: OperatorId(102) });
    restarted.follow(&fixture.state, &HashSet::new(), ChangedKeys::Only(fixture.state.changed_hands()));
    assert_eq!(sizes(&latches), [(7, 7 * 128), (10, 10 * 128)]);
    assert_eq!(sizes(&restarted), sizes(&latches));
}

/// Breaks if the size of an adopted range has to be read from its rows.
#[tokio::test]
async fn an_adopted_range_is_as_large_as_its_copy() {
    let mut fixture = Fixture { state: ShardState::default(), latches: Arc::default(), position: 0 };
    let operator = OperatorId(5);
    let (range, interval, from) =
        (RangeId(7), KeyInterval::ALL, ShardInfo { id: ShardId(9), replicas: Default::default() });
    let opened = Control::IngestOpen { operator, schema: schema(), range, interval, epoch: Epoch(1), from };
    fixture.apply(opened);
    fixture.apply(Control::IngestAttempt { operator, attempt: 1, position: 3 });
    let mut rows = RowBuilder::new(1);
    (0..50).for_each(|_| rows.push([Some(&[0_u8; 8][..])]));
    let (interval, rows) = (KeyInterval::ALL, rows.finish());
    let checksum = RangeChecksum { rows: 50, sum: 0 };
    fixture.apply(Control::IngestChunk { operator, attempt: 1, interval, from: 3, position: 4, rows, checksum });
    fixture.apply(Control::Adopt { operator, attempt: 1, fence: 4, epoch: Epoch(2), held_since_us: 0 });
    let slots = fixture.latches.latches();
    let size = slots[0].statistics.size();
    assert_eq!((size.rows, size.bytes, size.is_doubtful()), (50, 50 * 36, false));
}
