//! REST API.
//!
//! Every replica serves the routing table, tables, operators and its own status. Writes, and reads
//! of load, need the leader: another replica answers 307 with the leader's URL (`curl -L` follows
//! it), or 503 while there is no leader. Every error is `application/problem+json` with a stable
//! code ([`problem`]).
//!
//! | request | answer | module |
//! |---|---|---|
//! | `GET /v1/routes` | `RoutesBody`; `?since=`, `?table=`, `ETag`/`If-None-Match` | `routes` |
//! | `GET /v1/routes/{table}?key=` | `RouteLookupBody` | `routes` |
//! | `GET /v1/routes/watch` | server-sent events of `RoutesBody`; resumable by `Last-Event-ID` | `routes_watch` |
//! | `GET /v1/tables` | a list | `tables` |
//! | `POST /v1/tables` | 201 and the table | `tables` |
//! | `GET /v1/schema?after=` | `SchemaChangesBody`: the schema changes after a version | `schema` |
//! | `POST /v1/schema` | 200 and the change, once every shard that can be reached has made it | `schema` |
//! | `GET /v1/ranges` | a list | `ranges` |
//! | `POST /v1/ranges/{id}/split`, `/move` | 202 and the operator | `ranges` |
//! | `GET /v1/shards` | a list | `shards` |
//! | `POST /v1/shards` | 201, or 200 if the shard is known; a shard that drains continues to drain | `shards` |
//! | `DELETE /v1/shards/{id}` | 202: the shard drains, and is removed afterwards | `shards` |
//! | `POST /v1/shards/{id}/undrain` | 200: the shard no longer drains | `shards` |
//! | `POST /v1/shards/{id}/transfer-leader` | 200 | `shards` |
//! | `POST /v1/shards/{id}/replicas` | 200, once the change is done | `shard_replicas` |
//! | `GET /v1/operators`, `GET /v1/operators/{id}` | a list, newest first; one operator | `operators` |
//! | `DELETE /v1/operators/{id}` | 202 and the operator | `operators` |
//! | `POST /v1/operators/{id}/take-back` | 202 and the operator: the destination is lost for good | `take_back` |
//! | `DELETE /v1/operators/{id}/copy` | 200, once the copy is deleted | `orphaned_copies` |
//! | `GET /v1/decisions` | decisions, newest first | `decisions` |
//! | `GET`, `POST /v1/balancer` | imbalance; on or off | `balancer` |
//! | `GET /v1/checksums` | one object | `checksums` |
//! | `GET`, `POST /v1/members` | the placement driver's own replicas | `placement_members` |
//! | `GET`, `PUT`, `DELETE /v1/kv/{key}` | values without an envelope, `ETag`, `If-Match`, `If-None-Match` | `coordination` |
//! | `GET /v1/kv?prefix=` | `KvListBody` | `coordination` |
//! | `GET /v1/watch/kv?prefix=` | server-sent events of `KvEventBody`; resumable by `Last-Event-ID` | `coordination_watch` |
//! | `GET /v1/status` | one object | `status` |
//! | `GET /livez`, `/readyz`, `/metrics` | text | `status` |
//!
//! A request passes `serve` (HTTP), `dispatch` (path and method) and the handler of
//! its resource. Handlers use `request`, `response` and `leader_access`.
//!
//! Not done: authentication, pages of long lists.

mod balancer;
mod checksums;
mod cluster_lists;
mod context;
mod coordination;
mod coordination_watch;
mod decisions;
mod dispatch;
mod failure;
mod leader_access;
mod operators;
mod orphaned_copies;
mod placement_members;
pub mod problem;
mod ranges;
mod request;
mod response;
mod routes;
mod routes_watch;
mod schema;
mod serve;
mod shard_replicas;
mod shards;
mod status;
mod tables;
mod take_back;
mod watch_limit;

pub use dispatch::{MAX_BODY_BYTES, MAX_SCHEMA_BODY_BYTES, MAX_TABLE_BODY_BYTES};
pub use problem::ApiProblem;
pub use serve::serve;
