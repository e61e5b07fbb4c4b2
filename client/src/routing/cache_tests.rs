#![allow(clippy::unwrap_used)]
use super::*;
use crate::routing::router::tests::{key, schema, table};
use evenkeel_protocol::api::RouteBody;

const TABLE: TableId = TableId(1);

/// The placement driver's answer for a table.
fn body(table: &RoutingTable, complete: bool) -> RoutesBody {
    RoutesBody {
        version: table.version.to_string(),
        schema_version: table.schema_version,
        complete,
        tables: table.tables().cloned().collect(),
        shards: table.shards().cloned().collect(),
        removed_shards: vec![],
        removed_tables: vec![],
        routes: table.routes().map(|route| RouteBody::new(route, &schema())).collect(),
    }
}

fn cache(layout: &[(u32, i64)]) -> RouteCache {
    let cache = RouteCache::default();
    cache.merge_news(&body(&table(layout), true)).unwrap();
    cache
}

fn owner(cache: &RouteCache, n: i64) -> u32 {
    cache.current().lookup(TABLE, &key(n)).map_or(0, |route| route.shard.0)
}

fn redirect(cache: &RouteCache, from: u32, to: u32, range: u64, epoch: u64) -> Learning {
    cache.redirected(ShardId(from), Some(ShardId(to)), Some((RangeId(range), Epoch(epoch))))
}

#[test]
fn a_single_move_is_learnt_from_its_redirect() {
    let cache = cache(&[(1, 10), (2, 0)]);
    assert_eq!(redirect(&cache, 1, 3, 1, 2), Learning::Routed);
    assert_eq!((owner(&cache, 5), owner(&cache, 15)), (3, 2));
    assert_eq!(redirect(&cache, 1, 3, 1, 2), Learning::Routed, "the second to be redirected finds it known");
    assert_eq!(redirect(&cache, 1, 2, 1, 1), Learning::Routed, "older news change nothing");
    assert_eq!(owner(&cache, 5), 3);
}

/// Breaks if a redirect's epoch is claimed for bounds that it does not contain: the true routes, of
/// smaller epochs, would never be accepted.
#[test]
fn more_than_a_single_move_is_a_hint_only() {
    let cache = cache(&[(1, 10), (2, 0)]);
    // Split at 5 (epoch 2), the right piece split off as range 9 and moved (epoch 3); range 1 moved
    // twice (epoch 4).
    for (range, epoch) in [(9, 3), (1, 4)] {
        let hint = RedirectHint { shard: ShardId(3), range: RangeId(range), epoch: Epoch(epoch) };
        assert_eq!(redirect(&cache, 1, 3, range, epoch), Learning::Hint(hint));
    }
    assert_eq!(owner(&cache, 5), 1);
    assert_eq!(redirect(&cache, 1, 8, 1, 2), Learning::Nothing, "a shard without an address");
    assert_eq!(redirect(&cache, 1, 1, 1, 2), Learning::Nothing, "a shard that redirects to itself");
    assert_eq!(cache.redirected(ShardId(1), None, None), Learning::Nothing);
    assert_eq!(cache.redirected(ShardId(1), Some(ShardId(2)), None), Learning::Nothing);
}

#[test]
fn a_learnt_route_outlives_a_table_that_does_not_know_it_yet() {
    let stale = table(&[(1, 10), (2, 0)]);
    let cache = cache(&[(1, 10), (2, 0)]);
    redirect(&cache, 1, 3, 1, 2);
    for complete in [true, false] {
        cache.merge_news(&body(&stale, complete)).unwrap();
        assert_eq!(owner(&cache, 5), 3);
    }
    // The placement driver catches up and goes on: the range moves again.
    let mut later = stale.clone();
    later.version.number = 5;
    let mut route = later.lookup(TABLE, &key(5)).unwrap().clone();
    (route.epoch, route.shard) = (Epoch(3), ShardId(2));
    later.put_route(route);
    cache.merge_news(&body(&later, true)).unwrap();
    assert_eq!(owner(&cache, 5), 2);
    assert!(cache.learnt().is_empty());
    // A replica that is behind takes nothing away.
    cache.merge_news(&body(&stale, true)).unwrap();
    assert_eq!((owner(&cache, 5), cache.current().version.number), (2, 5));
}

#[test]
fn a_destination_that_disowns_the_range_is_unlearnt() {
    let stale = table(&[(1, 10), (2, 0)]);
    let cache = cache(&[(1, 10), (2, 0)]);
    redirect(&cache, 1, 3, 1, 2);
    // It declined the range; the source takes it back.
    assert_eq!(cache.redirected(ShardId(3), None, None), Learning::Nothing);
    cache.merge_news(&body(&stale, true)).unwrap();
    assert_eq!(owner(&cache, 5), 1);
}

/// R30: after a restore epochs may be smaller than those learnt before.
#[test]
fn another_incarnation_replaces_everything() {
    let cache = cache(&[(1, 10), (2, 0)]);
    redirect(&cache, 1, 3, 1, 2);
    let mut restored = table(&[(2, 10), (2, 0)]);
    restored.version.incarnation = 2;
    restored.version.number = 0;
    assert!(cache.merge_news(&body(&restored, false)).is_err(), "changes cannot go on top of another life's table");
    assert_eq!(owner(&cache, 5), 3);
    cache.merge_news(&body(&restored, true)).unwrap();
    assert_eq!(owner(&cache, 5), 2);
    assert!(cache.merge_news(&body(&table(&[(1, 10), (2, 0)]), false)).is_err(), "nor those of an earlier life");
    assert_eq!(owner(&cache, 5), 2);
}

#[test]
fn malformed_news_change_nothing() {
    let cache = cache(&[(1, 10), (2, 0)]);
    let mut bad = body(&table(&[(2, 10), (2, 0)]), true);
    bad.routes[1].start_hex = "zz".into();
    assert!(cache.merge_news(&bad).is_err());
    bad.version = "x".into();
    assert!(cache.merge_news(&bad).is_err());
    assert_eq!(owner(&cache, 5), 1);
}

#[test]
fn a_table_is_served_once_all_of_its_keys_have_routes() {
    let whole = table(&[(1, 10), (2, 0)]);
    assert!(is_served(&whole, TABLE));
    assert!(!is_served(&whole, TableId(2)));
    let half: Vec<Route> = whole.routes().take(1).cloned().collect();
    assert!(!is_served(&RoutingTable::new(whole.version, [], [], half), TABLE));
}
