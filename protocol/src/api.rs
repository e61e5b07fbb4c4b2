//! REST types of the placement driver, shared by the server, the client and the command line.
//!
//! Keys appear twice: as the JSON values of their columns (for people) and as lower-case
//! hexadecimal of their encoding (exact, comparable as text). An absent bound is the end of the
//! table.

use crate::ids::{Epoch, OperatorId, RangeId, ShardId, TableId};
use crate::interval::KeyInterval;
use crate::key::Key;
use crate::report::RangeLoad;
use crate::routing::{Route, RouteVersion, RoutingTable, ShardInfo};
use crate::schema::TableSchema;
pub use crate::schema_change::{ChangedRelation, SchemaChange};
use crate::scrub::Difference;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// An error body, `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:evenkeel:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// A stable code, for programs: `unknown-table`, `bad-key`, `not-leader`, …
    pub code: String,
    /// A short title, the same for every occurrence.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The details of this occurrence.
    pub detail: String,
}

/// `GET /v1/members`, and the event `members` of `GET /v1/routes/watch`: the placement driver's own
/// replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersBody {
    /// Grows with every change of them.
    pub epoch: u32,
    /// The replica that leads, as far as the answering replica knows. Absent in the event, since it
    /// changes independently.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<u64>,
    /// The replicas.
    pub members: Vec<MemberBody>,
}

/// One replica of the placement driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberBody {
    /// Its number.
    pub replica: u64,
    /// Where it serves REST.
    pub rest: Option<SocketAddr>,
    /// Where shards report to it.
    pub rpc: Option<SocketAddr>,
    /// Where it listens for the other replicas.
    pub log: SocketAddr,
}

/// One range in `GET /v1/routes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteBody {
    /// The range.
    pub range: RangeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its table's id.
    pub table: TableId,
    /// Its table's name.
    pub table_name: String,
    /// The first key's columns; absent at the beginning of the table.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub start: Option<Vec<serde_json::Value>>,
    /// The columns of the first key after it; absent at the end of the table.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub end: Option<Vec<serde_json::Value>>,
    /// The first key, encoded, in hexadecimal; empty at the beginning of the table.
    pub start_hex: String,
    /// The first key after it, encoded, in hexadecimal; absent at the end of the table.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub end_hex: Option<String>,
    /// The shard that owns it.
    pub shard: ShardId,
}

impl RouteBody {
    /// The body for a route of this table.
    pub fn new(route: &Route, schema: &TableSchema) -> RouteBody {
        let codec = schema.codec();
        let columns = |key: &Key| crate::value::key_to_json(&codec, key).ok();
        RouteBody {
            range: route.range,
            epoch: route.epoch,
            table: route.table,
            table_name: schema.name.clone(),
            start: columns(&route.interval.start),
            end: route.interval.end.as_ref().and_then(columns),
            start_hex: route.interval.start.to_hex(),
            end_hex: route.interval.end.as_ref().map(Key::to_hex),
            shard: route.shard,
        }
    }

    /// The route; `None` if a bound is not hexadecimal.
    pub fn to_route(&self) -> Option<Route> {
        let end = match &self.end_hex {
            None => None,
            Some(hex) => Some(Key::from_hex(hex)?),
        };
        let interval = KeyInterval::new(Key::from_hex(&self.start_hex)?, end);
        Some(Route { range: self.range, epoch: self.epoch, table: self.table, interval, shard: self.shard })
    }
}

/// `GET /v1/routes`, and the data of an event of `GET /v1/routes/watch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesBody {
    /// The table's version: also the `ETag`, and the event's id.
    pub version: String,
    /// The version of the schema.
    #[serde(default)]
    pub schema_version: u64,
    /// Whether this is the whole table. With `?since=` or in a watch it may contain only the
    /// changes, to be merged into the client's table.
    pub complete: bool,
    /// Tables (with `complete` all of them, else the new ones).
    pub tables: Vec<Arc<TableSchema>>,
    /// Shards and where their replicas listen (with `complete` all of them, else the changed ones).
    pub shards: Vec<ShardInfo>,
    /// Shards that were removed since.
    #[serde(default)]
    pub removed_shards: Vec<ShardId>,
    /// Tables that were dropped since.
    #[serde(default)]
    pub removed_tables: Vec<TableId>,
    /// Ranges.
    pub routes: Vec<RouteBody>,
}

impl RoutesBody {
    /// Merges it into `table`, or replaces `table` if it is complete. An error names the malformed
    /// part in one sentence.
    pub fn apply_to(&self, table: &mut RoutingTable) -> Result<(), String> {
        let version: RouteVersion = self.version.parse()?;
        let routes = self
            .routes
            .iter()
            .map(|body| {
                body.to_route().ok_or_else(|| format!("range {} has a bound that is not hexadecimal", body.range))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if self.complete {
            *table = RoutingTable::new(version, self.tables.iter().cloned(), self.shards.iter().cloned(), routes);
            table.schema_version = self.schema_version;
            return Ok(());
        }
        for id in &self.removed_tables {
            table.remove_table(*id);
        }
        for schema in &self.tables {
            table.put_schema(schema.clone());
        }
        for shard in &self.shards {
            table.put_shard(shard.clone());
        }
        for shard in &self.removed_shards {
            table.remove_shard(*shard);
        }
        for route in routes {
            table.put_route(route);
        }
        table.version = table.version.max(version);
        table.schema_version = table.schema_version.max(self.schema_version);
        Ok(())
    }
}

/// `GET /v1/routes/{table}?key=…`: the range that holds the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteLookupBody {
    /// The table's version.
    pub version: String,
    /// The range.
    pub route: RouteBody,
    /// The shard and where its replicas listen.
    pub shard: ShardInfo,
    /// The replica that led it when it last reported.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub leader: Option<u64>,
}

/// `POST /v1/tables`: create a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTableBody {
    /// The table; its id is ignored.
    pub schema: TableSchema,
    /// The shard for its first range; absent for the one with the least load.
    #[serde(default)]
    pub shard: Option<ShardId>,
    /// Whether an equal name is a success (`IF NOT EXISTS`).
    #[serde(default)]
    pub if_not_exists: bool,
}

/// One element of `GET /v1/ranges`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RangeBody {
    /// Its route.
    #[serde(flatten)]
    pub route: RouteBody,
    /// Its load, if its shard has reported in this leadership of the placement driver.
    pub load: Option<LoadBody>,
    /// The operator working on it.
    pub operator: Option<OperatorId>,
}

/// A range's load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LoadBody {
    /// Statements that read, per second.
    pub reads_per_s: f64,
    /// Statements that write, per second.
    pub writes_per_s: f64,
    /// Rows, estimated.
    pub rows: u64,
    /// Bytes, estimated.
    pub bytes: u64,
    /// Microseconds of PostgreSQL per second.
    pub postgres_us_per_s: f64,
    /// The hottest key's share of the range's load, 0 to 1.
    pub hottest_share: f64,
}

impl From<&RangeLoad> for LoadBody {
    fn from(load: &RangeLoad) -> LoadBody {
        LoadBody {
            reads_per_s: load.reads_per_s,
            writes_per_s: load.writes_per_s,
            rows: load.rows,
            bytes: load.bytes,
            postgres_us_per_s: load.postgres_us_per_s,
            hottest_share: load.hot.first().map_or(0.0, |(_, share)| *share),
        }
    }
}

/// One element of `GET /v1/shards`, and the body of `POST /v1/shards`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardBody {
    /// The shard and where its replicas listen.
    #[serde(flatten)]
    pub info: ShardInfo,
    /// `active`, or `draining` while its ranges move away so that it can be removed.
    #[serde(default)]
    pub status: String,
    /// The replica that leads it, as far as it has reported.
    #[serde(default)]
    pub leader: Option<u64>,
    /// Ranges it owns.
    #[serde(default)]
    pub ranges: usize,
    /// Statements per second.
    #[serde(default)]
    pub statements_per_s: f64,
    /// Statements per second it admits at most, if limited.
    #[serde(default)]
    pub capacity_per_s: Option<f64>,
    /// How old its last report is, in milliseconds; absent if it never reported in this leadership.
    #[serde(default)]
    pub report_age_ms: Option<u64>,
    /// How far its leader's clock is from the median of all, in milliseconds: positive if it is
    /// fast. Absent if that cannot be judged.
    #[serde(default)]
    pub clock_off_ms: Option<i64>,
    /// Its replicas as its leader sees them.
    #[serde(default)]
    pub replicas_seen: Vec<crate::report::ReplicaReport>,
    /// The comparisons of replicas by its leader; absent if it never reported.
    #[serde(default)]
    pub scrub: Option<ScrubBody>,
}

/// The comparisons of replicas that a shard's leader has done since it leads.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ScrubBody {
    /// Rounds over all ranges that have come to their end.
    pub rounds: u64,
    /// Pieces compared.
    pub pieces: u64,
    /// The approximate size of their rows, in bytes.
    pub bytes: u64,
    /// Differences found, those that are gone included.
    pub found: u64,
    /// Those that were there when their keys were compared last.
    pub differences: Vec<DifferenceBody>,
}

/// Keys of which not all replicas hold the same rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DifferenceBody {
    /// The range.
    pub range: RangeId,
    /// The table's name.
    pub table: String,
    /// The first key: its columns' values; `null` for the table's first.
    pub start: Option<Vec<serde_json::Value>>,
    /// The first key behind; `null` for the table's end.
    pub end: Option<Vec<serde_json::Value>>,
    /// The replicas that differ from a majority; empty if no majority agrees.
    pub replicas: Vec<u64>,
    /// One sentence.
    pub detail: String,
}

impl DifferenceBody {
    /// The body for a difference in this table, if the table is known.
    pub fn new(difference: &Difference, schema: Option<&TableSchema>) -> DifferenceBody {
        let columns = |key: &Key| schema.and_then(|schema| crate::value::key_to_json(&schema.codec(), key).ok());
        DifferenceBody {
            range: difference.range,
            table: schema.map_or_else(|| difference.table.to_string(), |schema| schema.name.clone()),
            start: columns(&difference.interval.start),
            end: difference.interval.end.as_ref().and_then(columns),
            replicas: difference.replicas.clone(),
            detail: difference.detail.clone(),
        }
    }
}

/// `POST /v1/ranges/{id}/split`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitBody {
    /// Where to split: each the JSON values of the key columns. Empty: at the load's median.
    #[serde(default)]
    pub at: Vec<Vec<serde_json::Value>>,
}

/// `POST /v1/ranges/{id}/move`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveBody {
    /// The shard it goes to.
    pub to: ShardId,
}

/// The work of an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum OperatorKind {
    /// Creates a table.
    CreateTable {
        /// The table.
        table: TableId,
        /// The shard of its first range.
        shard: ShardId,
    },
    /// Splits a range.
    Split {
        /// The range.
        range: RangeId,
        /// The shard that owns it.
        shard: ShardId,
        /// The pieces' ids, from left to right.
        into: Vec<RangeId>,
    },
    /// Merges two neighbours on one shard.
    Merge {
        /// The range on the left, which stays.
        left: RangeId,
        /// The range on the right.
        right: RangeId,
        /// The shard that owns both.
        shard: ShardId,
    },
    /// Moves a range.
    Move {
        /// The range.
        range: RangeId,
        /// From this shard.
        from: ShardId,
        /// To this shard.
        to: ShardId,
    },
    /// Changes the schema.
    SchemaChange {
        /// The version after it.
        version: u64,
    },
}

/// One element of `GET /v1/operators`, and the answer to a split or move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperatorBody {
    /// The operator.
    pub id: OperatorId,
    /// Its work.
    #[serde(flatten)]
    pub kind: OperatorKind,
    /// The step it is at: `open`, `copy`, `switch`, `verify`, `purge`, … or how it ended.
    pub step: String,
    /// `running`, `cancelling`, `done`, `cancelled`, `failed` or `differs`.
    pub status: String,
    /// The condition it waits for, or the reason of its end.
    #[serde(default)]
    pub detail: Option<String>,
    /// The decision that made it; absent if an administrator did.
    #[serde(default)]
    pub decision: Option<u64>,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// When it ended, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub ended_ms: Option<u64>,
    /// Bytes moved.
    #[serde(default)]
    pub bytes: u64,
    /// Rows moved.
    #[serde(default)]
    pub rows: u64,
    /// How long writes to the range waited at the switch, in microseconds.
    #[serde(default)]
    pub pause_us: Option<u64>,
}

/// One element of `GET /v1/decisions`: why the balancer did something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionBody {
    /// Its number.
    pub id: u64,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The decision, in one sentence with its figures.
    pub why: String,
    /// The imbalance before.
    pub imbalance_before: f64,
    /// The imbalance it expects after.
    pub imbalance_expected: f64,
    /// The rejected alternatives, with reasons.
    pub alternatives: Vec<String>,
    /// The operators it made.
    pub operators: Vec<OperatorId>,
    /// Its result, once its operators have ended.
    #[serde(default)]
    pub outcome: Option<String>,
}

/// `GET /v1/decisions`: the decisions, newest first, and the rejections of the last round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionsBody {
    /// Newest first.
    pub decisions: Vec<DecisionBody>,
    /// For every shard and range without an action: the reason, as of the last round. Empty on a
    /// leader that has planned no round yet.
    #[serde(default)]
    pub now: Vec<RejectionBody>,
}

/// Why the balancer leaves a range, a shard or the whole cluster alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RejectionBody {
    /// The reason for programs, in kebab case: `balanced`, `silent`, `cooling-down`, … A code never
    /// changes its meaning. New codes come.
    pub code: String,
    /// The reason for people: one sentence with its figures.
    pub reason: String,
    /// The range, if it is about one.
    #[serde(default)]
    pub range: Option<RangeId>,
    /// The shard, or the range's. Absent if it is about the whole cluster.
    #[serde(default)]
    pub shard: Option<ShardId>,
    /// Load of the range, the shard or the cluster, in statements per second.
    pub statements_per_s: f64,
}

/// In one line: the subject, its load and the sentence.
impl fmt::Display for RejectionBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.range, self.shard) {
            (Some(range), Some(shard)) => write!(f, "range {range} on shard {shard}")?,
            (Some(range), None) => write!(f, "range {range}")?,
            (None, Some(shard)) => write!(f, "shard {shard}")?,
            (None, None) => write!(f, "the cluster")?,
        }
        write!(f, " ({:.0}/s): {}", self.statements_per_s, self.reason)
    }
}

/// Body of `POST /v1/schema`: a schema change, in SQL that each shard's PostgreSQL executes in one
/// transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchemaChangeBody {
    /// The version of the schema that the change was planned on. The change is refused with 409 if
    /// the schema has another version by then; otherwise it makes the next version.
    pub version: u64,
    /// One or several statements.
    pub sql: String,
    /// The user's settings that the statements depend on (`search_path`): names and values.
    #[serde(default)]
    pub settings: Vec<(String, String)>,
    /// The tables and sequences that are new or different afterwards.
    #[serde(default)]
    pub relations: Vec<ChangedRelation>,
    /// The names of the tables and sequences that are gone afterwards.
    #[serde(default)]
    pub dropped: Vec<String>,
}

/// Answer to `GET /v1/schema?after=VERSION`: the changes after a version, oldest first, at most
/// [`MAX_SCHEMA_CHANGES`] of them. `POST /v1/schema` answers with its own change alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaChangesBody {
    /// The schema's version now.
    pub version: u64,
    /// The changes.
    pub changes: Vec<SchemaChange>,
}

/// The most schema changes in one answer.
pub const MAX_SCHEMA_CHANGES: usize = 1_000;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn replicas_are_keyed_by_number_in_every_format() {
        let replicas = std::collections::BTreeMap::from([(1, SocketAddr::from(([127, 0, 0, 1], 5)))]);
        let info = ShardInfo { id: ShardId(3), replicas };
        let body = ShardBody {
            info: info.clone(),
            status: String::new(),
            leader: None,
            ranges: 0,
            statements_per_s: 0.0,
            capacity_per_s: None,
            report_age_ms: None,
            clock_off_ms: None,
            replicas_seen: Vec::new(),
            scrub: None,
        };
        let json = serde_json::to_string(&body).unwrap();
        assert!(json.starts_with(r#"{"id":3,"replicas":{"1":"127.0.0.1:5"}"#), "{json}");
        assert_eq!(serde_json::from_str::<ShardBody>(&json).unwrap(), body);
        assert_eq!(postcard::from_bytes::<ShardInfo>(&postcard::to_stdvec(&info).unwrap()).unwrap(), info);
    }

    #[test]
    fn a_shard_is_read_back_from_json_and_from_binary() {
        let replicas = [(1, ([127, 0, 0, 1], 7201).into()), (2, ([127, 0, 0, 1], 7202).into())].into();
        let info = ShardInfo { id: ShardId(3), replicas };
        // Flattened into its body, where JSON's textual keys do not become numbers by themselves.
        let body: ShardBody = serde_json::from_value(serde_json::to_value(&info).unwrap()).unwrap();
        assert_eq!(body.info, info);
        assert_eq!(serde_json::from_str::<ShardInfo>(&serde_json::to_string(&info).unwrap()).unwrap(), info);
        assert_eq!(postcard::from_bytes::<ShardInfo>(&postcard::to_stdvec(&info).unwrap()).unwrap(), info);
        let wrong = serde_json::json!({"id": 3, "replicas": {"one": "127.0.0.1:1"}});
        assert!(serde_json::from_value::<ShardBody>(wrong).unwrap_err().to_string().contains("a replica's number"));
    }
}
