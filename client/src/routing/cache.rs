//! The client's copy of the routing table: fetched whole, changed by the watch, and corrected by
//! redirects.
//!
//! It owns an immutable snapshot behind a lock that is held only to copy a pointer: a lookup never
//! waits for a fetch. It promises that a known route is not replaced by an older one (invariant 6:
//! epochs only grow), in whatever order fetches, watch events and redirects arrive. The table is a
//! hint all the same: shards decide.
//!
//! **Redirects.** A shard that says "range 5 went to shard 2 with epoch 8" does not say the bounds
//! of the range. Claiming too many keys for epoch 8 would keep out later news about the others. If
//! the table knows range 5 with epoch 7, exactly one move has happened since, and a move keeps the
//! bounds: the route is corrected at once. Otherwise the redirect is a hint for the current
//! statement, and the table is fetched.

use super::redirect::{Learning, RedirectHint};
use evenkeel_protocol::api::RoutesBody;
use evenkeel_protocol::interval::KeyInterval;
use evenkeel_protocol::routing::{Route, RouteVersion, RoutingTable};
use evenkeel_protocol::{Epoch, RangeId, ShardId, TableId};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// The largest number of routes learnt from redirects that the placement driver has not confirmed.
const MAX_LEARNT_ROUTES: usize = 1024;

/// The routing table with the corrections from redirects.
#[derive(Debug, Default)]
pub(crate) struct RouteCache {
    current: RwLock<Arc<RoutingTable>>,
    /// Routes learnt from redirects that the placement driver has not confirmed. Locked while the
    /// table is replaced, so that concurrent changes do not undo one another.
    learnt: Mutex<Vec<Route>>,
}

impl RouteCache {
    /// The current table.
    pub(crate) fn current(&self) -> Arc<RoutingTable> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn learnt(&self) -> MutexGuard<'_, Vec<Route>> {
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, table: RoutingTable) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    /// Merges news from the placement driver.
    ///
    /// # Errors
    /// One sentence on malformed news; the table is unchanged.
    pub(crate) fn merge_news(&self, news: &RoutesBody) -> Result<(), String> {
        let mut learnt = self.learnt();
        let known = self.current();
        let merged = merge(&known, news, &mut learnt)?;
        self.publish(merged);
        Ok(())
    }

    /// Merges a redirect of the shard `from`.
    pub(crate) fn redirected(&self, from: ShardId, to: Option<ShardId>, range: Option<(RangeId, Epoch)>) -> Learning {
        let mut learnt = self.learnt();
        let known = self.current();
        let Some(to) = to else {
            // The shard does not own the keys and does not know their owner: routes learnt for it
            // are wrong, or too early.
            learnt.retain(|route| route.shard != from);
            return Learning::Nothing;
        };
        let Some((range, epoch)) = range else { return Learning::Nothing };
        if to == from || known.shard(to).is_none() {
            return Learning::Nothing;
        }
        let hint = RedirectHint { shard: to, range, epoch };
        match moved(&known, hint) {
            Moved::KnownAlready => Learning::Routed,
            Moved::Unclear => Learning::Hint(hint),
            Moved::Routes(routes) => {
                let mut table = RoutingTable::clone(&known);
                for route in routes {
                    if table.put_route(route.clone()) && learnt.len() < MAX_LEARNT_ROUTES {
                        learnt.push(route);
                    }
                }
                self.publish(table);
                Learning::Routed
            }
        }
    }
}

/// The meaning of a redirect for a table.
#[derive(Debug, PartialEq, Eq)]
enum Moved {
    /// The table already knows it from another redirect or the watch.
    KnownAlready,
    /// Exactly one move has happened since the table was correct: these are the new routes.
    Routes(Vec<Route>),
    /// More has happened than the redirect says.
    Unclear,
}

fn moved(table: &RoutingTable, hint: RedirectHint) -> Moved {
    let known: Vec<&Route> = table.routes().filter(|route| route.range == hint.range).collect();
    if known.is_empty() {
        return Moved::Unclear;
    }
    if known.iter().all(|route| route.epoch >= hint.epoch) {
        return Moved::KnownAlready;
    }
    if known.iter().any(|route| route.epoch.next() != hint.epoch) {
        return Moved::Unclear;
    }
    Moved::Routes(known.into_iter().map(|r| Route { epoch: hint.epoch, shard: hint.shard, ..r.clone() }).collect())
}

/// Merges `news` into `known`. `learnt` keeps the routes that the news do not contain yet.
fn merge(known: &RoutingTable, news: &RoutesBody, learnt: &mut Vec<Route>) -> Result<RoutingTable, String> {
    let version: RouteVersion = news.version.parse()?;
    let mut table = known.clone();
    news.apply_to(&mut table)?;
    if !news.complete {
        if version.incarnation != known.version.incarnation {
            return Err(format!("changes of version {version} do not go on top of {}", known.version));
        }
        learnt.retain(|route| !knows_since(&table, route, route.epoch.next()));
        return Ok(table);
    }
    if version.incarnation != known.version.incarnation {
        // Restored from a backup (R30): its epochs are not comparable with earlier ones.
        learnt.clear();
        return Ok(table);
    }
    if version < known.version {
        // From a replica that is behind: it adds to the table and removes nothing.
        let mut table = known.clone();
        let mut added = RoutesBody { complete: false, ..news.clone() };
        if news.schema_version < known.schema_version {
            // It may have dropped or altered tables since.
            added.tables.clear();
        }
        added.apply_to(&mut table)?;
        return Ok(table);
    }
    learnt.retain(|route| {
        table.schema(route.table).is_some()
            && !knows_since(&table, route, route.epoch)
            && table.put_route(route.clone())
    });
    Ok(table)
}

/// Whether the table has routes for the route's keys with `epoch` or a later one. Each change of a
/// key's owner has a larger epoch than the one before: an equal epoch is the same route, a larger
/// epoch supersedes the route.
fn knows_since(table: &RoutingTable, route: &Route, epoch: Epoch) -> bool {
    table.overlapping(route.table, &route.interval).iter().any(|known| known.epoch >= epoch)
}

/// Whether the table has routes for all keys of `id`.
pub(crate) fn is_served(table: &RoutingTable, id: TableId) -> bool {
    let routes = table.overlapping(id, &KeyInterval::ALL);
    KeyInterval::ALL.is_partitioned_by(routes.iter().map(|route| &route.interval))
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
