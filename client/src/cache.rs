//! The routing table as this client knows it: fetched whole, changed by the watch, and corrected by redirects.
//!
//! It owns a snapshot behind a lock that is held for as long as it takes to copy a pointer, so looking up never waits for a
//! fetch; and it promises that a route once known is not replaced by an older one (invariant 6: epochs only grow), in
//! whatever order fetches, watch events and redirects come. It is a hint all the same: shards decide.
//!
//! **What a redirect teaches.** A shard that says "range 5 went to shard 2 with epoch 8" says nothing of the range's bounds, and
//! claiming too much for epoch 8 would keep later, true news about the rest out. But if this table knows range 5 with epoch 7,
//! only one thing can have happened since: one move, which keeps the bounds. Then the route is learned at once. Otherwise the
//! redirect serves the statement at hand as a hint, and the table is fetched.

use crate::retry::{Hint, Learning};
use evenkeel_protocol::api::RoutesBody;
use evenkeel_protocol::interval::KeyInterval;
use evenkeel_protocol::routing::{Route, RouteVersion, RoutingTable};
use evenkeel_protocol::{Epoch, RangeId, ShardId, TableId};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Redirects remembered until the placement driver's table has caught up with them.
const MAX_LEARNED_ROUTES: usize = 1024;

/// The routing table and what redirects have added to it.
#[derive(Debug, Default)]
pub(crate) struct RouteCache {
    current: RwLock<Arc<RoutingTable>>,
    /// Held while the table is replaced, so that two changes do not undo one another. Routes learned from redirects that no
    /// table from the placement driver has confirmed yet.
    learned: Mutex<Vec<Route>>,
}

impl RouteCache {
    /// The table now.
    pub(crate) fn current(&self) -> Arc<RoutingTable> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn learned(&self) -> MutexGuard<'_, Vec<Route>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, table: RoutingTable) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    /// Takes in what the placement driver says. An error is one sentence on what is malformed; nothing has changed then.
    pub(crate) fn take_in(&self, news: &RoutesBody) -> Result<(), String> {
        let mut learned = self.learned();
        let known = self.current();
        let merged = merge(&known, news, &mut learned)?;
        self.publish(merged);
        Ok(())
    }

    /// Takes in a redirect that shard `from` gave.
    pub(crate) fn redirected(&self, from: ShardId, to: Option<ShardId>, range: Option<(RangeId, Epoch)>) -> Learning {
        let mut learned = self.learned();
        let known = self.current();
        let Some(to) = to else {
            // It does not own the keys and does not know who does: what was learned about it is not so (yet).
            learned.retain(|route| route.shard != from);
            return Learning::Nothing;
        };
        let Some((range, epoch)) = range else { return Learning::Nothing };
        if to == from || known.shard(to).is_none() {
            return Learning::Nothing;
        }
        let hint = Hint { shard: to, range, epoch };
        match moved(&known, hint) {
            Moved::KnownAlready => Learning::Routed,
            Moved::Unclear => Learning::Hint(hint),
            Moved::Routes(routes) => {
                let mut table = RoutingTable::clone(&known);
                for route in routes {
                    if table.put_route(route.clone()) && learned.len() < MAX_LEARNED_ROUTES {
                        learned.push(route);
                    }
                }
                self.publish(table);
                Learning::Routed
            }
        }
    }
}

/// What a redirect means to a table.
#[derive(Debug, PartialEq, Eq)]
enum Moved {
    /// Another redirect, or the watch, was faster.
    KnownAlready,
    /// Exactly one move has happened since the table was right: these are the routes now.
    Routes(Vec<Route>),
    /// More has happened than the redirect says.
    Unclear,
}

fn moved(table: &RoutingTable, hint: Hint) -> Moved {
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

/// `known` with `news` on top. `learned` keeps what the news do not know yet.
fn merge(known: &RoutingTable, news: &RoutesBody, learned: &mut Vec<Route>) -> Result<RoutingTable, String> {
    let version: RouteVersion = news.version.parse()?;
    let mut table = known.clone();
    news.apply_to(&mut table)?;
    if !news.complete {
        if version.incarnation != known.version.incarnation {
            return Err(format!("changes of version {version} do not go on top of {}", known.version));
        }
        learned.retain(|route| !knows_since(&table, route, route.epoch.next()));
        return Ok(table);
    }
    if version.incarnation != known.version.incarnation {
        // Restored from a backup (R30): its epochs say nothing about those of before.
        learned.clear();
        return Ok(table);
    }
    if version < known.version {
        // From a replica that is behind: it can add to what is known, and take nothing away.
        let mut table = known.clone();
        RoutesBody { complete: false, ..news.clone() }.apply_to(&mut table)?;
        return Ok(table);
    }
    learned.retain(|route| {
        table.schema(route.table).is_some()
            && !knows_since(&table, route, route.epoch)
            && table.put_route(route.clone())
    });
    Ok(table)
}

/// Whether the table knows anything of the route's keys from `epoch` on. Along any key's history each change has a larger epoch
/// than the one before, so an equal epoch is the same route, and a larger one makes the route history.
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
