//! Schema changes over REST: tried on every shard, decided, made by every shard (R34).

use crate::cluster::{Cluster, bigint_table, eventually};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::api::{RoutesBody, SchemaChangesBody};
use evenkeel_protocol::routing::RoutingTable;
use reqwest::StatusCode;
use serde_json::{Value, json};

fn relation(name: &str, pinned: bool) -> Value {
    let mut schema = json!(bigint_table(name));
    schema["create_sql"] = json!("");
    schema["pinned"] = json!(pinned);
    json!({ "schema": schema })
}

fn change(version: u64, sql: &str, relations: Vec<Value>, dropped: &[&str]) -> Value {
    json!({ "version": version, "sql": sql, "settings": [["search_path", "public"]], "relations": relations, "dropped": dropped })
}

async fn made(cluster: &Cluster, body: &Value) -> SchemaChangesBody {
    let (status, answer) = cluster.post("/v1/schema", body).await;
    assert_eq!(status, StatusCode::OK, "{body}: {answer}");
    serde_json::from_value(answer).unwrap()
}

async fn refused(cluster: &Cluster, body: &Value) -> (u16, String, String) {
    let (status, answer) = cluster.post("/v1/schema", body).await;
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_string();
    (status.as_u16(), text("code"), text("detail"))
}

/// The routing table, once it is of this version of the schema: a replica that follows may be
/// behind.
async fn routes(cluster: &Cluster, version: u64) -> RoutingTable {
    eventually("the routes of a version", || async {
        let (_, body) = cluster.get("/v1/routes").await;
        let mut table = RoutingTable::default();
        serde_json::from_value::<RoutesBody>(body).unwrap().apply_to(&mut table).unwrap();
        (table.schema_version == version).then_some(table)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_made_by_every_shard_and_then_published() {
    let cluster = Cluster::start(2).await;
    cluster.create_table(&bigint_table("old")).await;
    let first =
        change(0, "CREATE TABLE a …; CREATE TABLE b …", vec![relation("a", true), relation("app.b", false)], &[]);
    let answer = made(&cluster, &first).await;
    assert_eq!((answer.version, answer.changes.len(), answer.changes[0].version), (1, 1, 1));
    for shard in [1, 2] {
        let world = cluster.shards.world();
        assert_eq!(world.schemas[&ShardId(shard)].len(), 1, "shard {shard}");
        assert!(!world.prepared.contains_key(&ShardId(shard)));
    }
    let table = routes(&cluster, 1).await;
    let shards = |table: &RoutingTable| table.routes().map(|route| (route.table.0, route.shard)).collect::<Vec<_>>();
    let home = table.routes().find(|route| route.table.0 == 2).unwrap().shard;
    assert!(shards(&table).contains(&(3, home)), "all new ranges are on one shard");

    // The same request again is answered as done, another one for the same version is not.
    assert_eq!(made(&cluster, &first).await, answer);
    let (status, code, _) = refused(&cluster, &change(0, "CREATE TABLE c …", vec![relation("c", false)], &[])).await;
    assert_eq!((status, code.as_str()), (409, "schema-version"));
    for (body, expected) in [
        (change(1, "…", vec![relation("a", false)], &[]), "table-exists"),
        (change(1, "…", vec![relation("old", false)], &[]), "table-exists"),
        (change(1, "…", vec![], &["nothing"]), "unknown-relation"),
        (change(1, "…", vec![], &["old"]), "bad-table"),
        (json!({ "version": 1, "sql": "…", "more": 1 }), "bad-request"),
    ] {
        assert_eq!(refused(&cluster, &body).await.1, expected, "{body}");
    }

    // Rename and alter one, drop the other. A name that becomes free can be taken at once.
    let mut altered = relation("c", false);
    altered["was"] = json!("app.b");
    let second = change(1, "ALTER …; DROP …; CREATE …", vec![altered, relation("app.b", false)], &["a"]);
    made(&cluster, &second).await;
    let table = routes(&cluster, 2).await;
    assert_eq!(table.table("c").map(|schema| schema.id.0), Some(3));
    assert_eq!(table.table("app.b").map(|schema| schema.id.0), Some(4));
    assert!(table.table("a").is_none());
    assert_eq!(shards(&table).into_iter().map(|(table, _)| table).collect::<Vec<_>>().len(), 3);
    let (_, list) = cluster.get("/v1/schema?after=1").await;
    assert_eq!((&list["version"], &list["changes"][0]["version"]), (&json!(2), &json!(2)));
    let (_, list) = cluster.get("/v1/schema").await;
    assert_eq!(list["changes"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_shard_refuses_is_made_by_none() {
    let cluster = Cluster::start(3).await;
    cluster.shards.world().refuse_schema = Some(ShardId(2));
    let body = change(0, "CREATE TABLE a …", vec![relation("a", true)], &[]);
    let (status, code, detail) = refused(&cluster, &body).await;
    assert_eq!((status, code.as_str()), (422, "schema-refused"));
    assert!(detail.starts_with("shard 2:"), "{detail}");
    eventually("the shards release their tables", || async {
        cluster.shards.world().prepared.is_empty().then_some(())
    })
    .await;
    assert!(cluster.shards.world().schemas.values().all(Vec::is_empty));
    cluster.shards.world().refuse_schema = None;
    made(&cluster, &body).await;

    // A pinned table neither splits nor moves, and its shard cannot be drained.
    let route = routes(&cluster, 1).await.routes().next().unwrap().clone();
    let (range, home) = (route.range, route.shard);
    let (status, answer) = cluster.post(&format!("/v1/ranges/{range}/split"), &json!({ "at": [[5]] })).await;
    assert_eq!((status, answer["code"].as_str()), (StatusCode::CONFLICT, Some("pinned")));
    let to = if home.0 == 1 { 2 } else { 1 };
    let (status, answer) = cluster.post(&format!("/v1/ranges/{range}/move"), &json!({ "to": to })).await;
    assert_eq!((status, answer["code"].as_str()), (StatusCode::CONFLICT, Some("pinned")));
    let (status, answer) = cluster.delete(&format!("/v1/shards/{home}")).await;
    assert_eq!((status, answer["code"].as_str()), (StatusCode::CONFLICT, Some("shard-has-pinned-tables")), "{answer}");
}

/// A shard that joins makes all versions, and one whose answer was lost is asked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_joins_is_brought_up_to_date() {
    let mut cluster = Cluster::start(1).await;
    for version in 0..3 {
        let name = format!("t{version}");
        made(&cluster, &change(version, "CREATE …", vec![relation(&name, false)], &[])).await;
    }
    cluster.add_shard(2).await;
    eventually("the new shard makes all versions", || async {
        let world = cluster.shards.world();
        let made = world.schemas.get(&ShardId(2)).map(Vec::len);
        (made == Some(3)).then_some(())
    })
    .await;
    // It takes part in the next one.
    made(&cluster, &change(3, "CREATE …", vec![relation("t3", false)], &[])).await;
    assert_eq!(cluster.shards.world().schemas[&ShardId(2)].len(), 4);
}

/// A decided change is made, whatever becomes of the placement driver's leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_leader_goes_on_with_a_decided_change() {
    let mut cluster = Cluster::start(2).await;
    cluster.shards.world().hold_schema = true;
    let body = change(0, "CREATE TABLE a …", vec![relation("a", true)], &[]);
    let leader = cluster.leader().await;
    let post = cluster.http.post(format!("{}/v1/schema", cluster.url(leader))).body(body.to_string()).send();
    let asked = tokio::spawn(post);
    eventually("the change is decided", || async { (cluster.shards.world().count("ApplySchema") >= 2).then_some(()) })
        .await;
    let (_, list) = cluster.get("/v1/schema").await;
    assert_eq!(list["version"], 0, "it is not published before the shards have made it");
    cluster.kill(leader).await;
    asked.abort();
    let other = change(0, "CREATE TABLE b …", vec![relation("b", true)], &[]);
    assert_eq!(refused(&cluster, &other).await.1, "schema-change-running");
    cluster.shards.world().hold_schema = false;
    assert_eq!(made(&cluster, &body).await.version, 1);
    assert_eq!(routes(&cluster, 1).await.routes().count(), 1);
}
