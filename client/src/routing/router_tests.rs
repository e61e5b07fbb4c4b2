#![allow(clippy::unwrap_used)]
//! Routes are written as `shard:end` pieces of a `bigint` table, left to right; the last piece has
//! no end.

use super::*;
use evenkeel_protocol::TableSchema;
use evenkeel_protocol::routing::{RouteVersion, ShardInfo};
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::{Epoch, KeyValue, RangeId};
use std::sync::Arc;

const TABLE: TableId = TableId(1);

pub(crate) fn schema() -> TableSchema {
    let column = |name: &str, type_name: &str, type_oid| ColumnSchema {
        name: name.into(),
        type_name: type_name.into(),
        type_oid,
    };
    TableSchema {
        id: TABLE,
        name: "t".into(),
        columns: vec![column("id", "bigint", 20), column("v", "text", 25)],
        key: vec![0],
        create_sql: String::new(),
        ..TableSchema::default()
    }
}

pub(crate) fn key(n: i64) -> Key {
    schema().codec().encode(&[KeyValue::Int(n)]).unwrap()
}

fn shard(id: u32) -> ShardInfo {
    ShardInfo { id: ShardId(id), replicas: [(1, ([127, 0, 0, 1], id as u16).into())].into() }
}

/// `[(1, 10), (2, 20), (1, 0)]`: shard 1 up to 10, shard 2 up to 20, shard 1 the rest.
pub(crate) fn table(layout: &[(u32, i64)]) -> RoutingTable {
    let mut start = Key::MIN;
    let mut routes = Vec::new();
    for (i, (shard, end)) in layout.iter().enumerate() {
        let end = (i + 1 < layout.len()).then(|| key(*end));
        let interval = KeyInterval::new(start, end.clone());
        let range = RangeId(i as u64 + 1);
        routes.push(Route { range, epoch: Epoch(1), table: TABLE, interval, shard: ShardId(*shard) });
        start = end.unwrap_or_default();
    }
    let version = RouteVersion { incarnation: 1, number: 1 };
    RoutingTable::new(version, [Arc::new(schema())], (1..=3).map(shard), routes)
}

fn keys(ids: &[i64]) -> Touches {
    Touches::Keys(ids.iter().map(|id| key(*id)).collect())
}

fn interval(start: Option<i64>, end: Option<i64>) -> KeyInterval {
    KeyInterval::new(start.map(key).unwrap_or_default(), end.map(key))
}

fn show(target: Result<Target, NoTarget>) -> String {
    let bound = |key: &Key| match schema().codec().decode(key) {
        Ok(values) => match values[0] {
            KeyValue::Int(n) => n.to_string(),
            _ => unreachable!(),
        },
        Err(_) => "min".into(),
    };
    match target {
        Ok(Target::OneShard(shard)) => format!("{shard}"),
        Ok(Target::RangeByRange(pieces)) => {
            let piece = |p: &Piece| {
                let end = p.clip.end.as_ref().map_or("max".to_string(), bound);
                format!("{}[{},{})", p.shard, bound(&p.clip.start), end)
            };
            pieces.iter().map(piece).collect::<Vec<_>>().join(" ")
        }
        Err(NoTarget::Unknown) => "unknown".into(),
        Err(NoTarget::Refused(error)) => format!("{}", error.code),
    }
}

#[test]
fn statements_go_where_their_keys_are() {
    let two = table(&[(1, 10), (2, 20), (1, 30), (1, 0)]);
    let scan = Across::RangeByRange;
    let write = Across::Writes(PlanKind::Insert);
    let all = || Touches::Intervals(vec![KeyInterval::ALL]);
    for (across, touches, expected) in [
        (write, keys(&[5]), "1"),
        (write, keys(&[10]), "2"),
        (write, keys(&[5, 9, 29]), "1"),
        (write, keys(&[5, 10]), "0A000"),
        (Across::Locks, keys(&[5, 10]), "0A000"),
        (Across::Whole, keys(&[5, 10]), "0A000"),
        (Across::Whole, Touches::Intervals(vec![interval(Some(20), None)]), "1"),
        (Across::Whole, all(), "0A000"),
        // Whole ranges; those of the same shard that adjoin make one piece.
        (scan, keys(&[5, 9, 10]), "1[min,10) 2[10,20)"),
        (scan, keys(&[5, 10, 25, 35]), "1[min,10) 2[10,20) 1[20,max)"),
        (scan, all(), "1[min,10) 2[10,20) 1[20,max)"),
        (
            scan,
            Touches::Intervals(vec![interval(Some(3), Some(7)), interval(Some(15), Some(40))]),
            "1[min,10) 2[10,20) 1[20,max)",
        ),
        (scan, Touches::Intervals(vec![interval(Some(3), Some(4)), interval(Some(7), Some(9))]), "1"),
        (write, Touches::Nothing, "1"),
    ] {
        assert_eq!(show(route(across, &touches, Some(TABLE), &two)), expected, "{across:?} {touches:?}");
    }
    assert_eq!(show(route(scan, &Touches::Nothing, None, &two)), "1");
    // A clip never reaches over another shard's range, touched or not.
    let three = table(&[(1, 10), (2, 20), (1, 30), (3, 0)]);
    assert_eq!(show(route(scan, &keys(&[5, 25, 35]), Some(TABLE), &three)), "1[min,10) 1[20,30) 3[30,max)");
}

#[test]
fn what_the_table_does_not_know_is_asked_for_not_guessed() {
    let mut gap = table(&[(1, 10), (2, 20), (1, 0)]);
    let routes: Vec<Route> = gap.routes().filter(|route| route.shard == ShardId(1)).cloned().collect();
    gap = RoutingTable::new(gap.version, [Arc::new(schema())], [shard(1)], routes);
    let all = Touches::Intervals(vec![KeyInterval::ALL]);
    assert_eq!(show(route(Across::RangeByRange, &keys(&[15]), Some(TABLE), &gap)), "unknown");
    assert_eq!(show(route(Across::RangeByRange, &keys(&[5, 15]), Some(TABLE), &gap)), "unknown");
    assert_eq!(show(route(Across::RangeByRange, &all, Some(TABLE), &gap)), "unknown");
    let inner = Touches::Intervals(vec![interval(Some(12), Some(14))]);
    assert_eq!(show(route(Across::RangeByRange, &inner, Some(TABLE), &gap)), "unknown");
    assert_eq!(show(route(Across::RangeByRange, &keys(&[5]), Some(TableId(9)), &gap)), "unknown");
    assert_eq!(show(route(Across::RangeByRange, &Touches::Nothing, None, &RoutingTable::default())), "unknown");
}

#[test]
fn a_refusal_says_what_to_do_instead() {
    let two = table(&[(1, 10), (2, 0)]);
    let refused = route(Across::Writes(PlanKind::Delete), &keys(&[5, 15]), Some(TABLE), &two);
    let Err(NoTarget::Refused(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.message, "this DELETE touches keys of t on several shards");
    assert!(error.hint.unwrap().contains("one DELETE per key"));
}

#[test]
fn pieces_cut_again_stay_within_their_piece() {
    let routes = table(&[(1, 10), (2, 20), (3, 0)]);
    let within = interval(Some(8), Some(15));
    let cut = |touches: Touches| {
        show(pieces(&touches, &within, TABLE, &routes).map(Target::RangeByRange).ok_or(NoTarget::Unknown))
    };
    assert_eq!(cut(Touches::Intervals(vec![KeyInterval::ALL])), "1[8,10) 2[10,15)");
    assert_eq!(cut(keys(&[1, 8, 9, 14, 15, 30])), "1[8,10) 2[10,15)");
    assert_eq!(cut(Touches::Intervals(vec![interval(Some(30), None)])), "");
}

#[test]
fn a_hint_serves_one_key_until_the_table_knows_better() {
    let mut routes = table(&[(1, 10), (2, 0)]);
    let hint = RedirectHint { shard: ShardId(3), range: RangeId(7), epoch: Epoch(4) };
    assert_eq!(hinted(hint, &keys(&[5]), Some(TABLE), &routes), Some(ShardId(3)));
    assert_eq!(hinted(hint, &keys(&[5, 6]), Some(TABLE), &routes), None);
    assert_eq!(hinted(hint, &Touches::Intervals(vec![KeyInterval::ALL]), Some(TABLE), &routes), None);
    let elsewhere = RedirectHint { shard: ShardId(9), ..hint };
    assert_eq!(hinted(elsewhere, &keys(&[5]), Some(TABLE), &routes), None, "a shard without an address");
    let interval = KeyInterval::new(Key::MIN, Some(key(10)));
    routes.put_route(Route { range: RangeId(1), epoch: Epoch(4), table: TABLE, interval, shard: ShardId(2) });
    assert_eq!(hinted(hint, &keys(&[5]), Some(TABLE), &routes), None);
}

/// Over every layout of up to five ranges on three shards and every pair of intervals: the pieces
/// cover exactly the touched keys, in order, and no piece contains keys of another shard.
#[test]
fn the_pieces_of_a_scan_cover_exactly_its_keys() {
    for layout in 0..3u32.pow(5) {
        let shards: Vec<(u32, i64)> = (0..5).map(|i| (layout / 3u32.pow(i) % 3 + 1, i64::from(i + 1) * 4)).collect();
        let routes = table(&shards);
        // The last two leave room for whole ranges that are not touched.
        for (a, b, c, d) in [(0, 3, 4, 20), (2, 9, 10, 13), (7, 17, 18, 19), (0, 3, 9, 20), (1, 3, 14, 20)] {
            let touches = vec![interval(Some(a), Some(b)), interval(Some(c), Some(d))];
            let pieces = pieces(&Touches::Intervals(touches.clone()), &KeyInterval::ALL, TABLE, &routes).unwrap();
            assert!(
                pieces.windows(2).all(|w| w[0].clip.end.as_ref().is_some_and(|end| *end <= w[1].clip.start)),
                "{pieces:?}"
            );
            for n in -1..25 {
                let k = key(n);
                let in_pieces: Vec<_> = pieces.iter().filter(|piece| piece.clip.contains(&k)).collect();
                let touched = touches.iter().any(|interval| interval.contains(&k));
                assert!(in_pieces.len() <= 1 && (!touched || in_pieces.len() == 1), "{n}: {pieces:?}");
                if let Some(piece) = in_pieces.first() {
                    assert_eq!(piece.shard, routes.lookup(TABLE, &k).unwrap().shard, "{n}: {pieces:?}");
                }
            }
        }
    }
}
