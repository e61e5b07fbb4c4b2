//! The REST interface over real sockets, on a real cluster. Invalid requests are refused with a
//! stable code, and streams of changes have no gaps.

use evenkeel_client::ClientError;
use evenkeel_local_cluster::ClusterOptions;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::api::{CreateTableBody, OperatorBody, RouteLookupBody, RoutesBody};
use evenkeel_sql as sql;
use evenkeel_tests::world::PATIENCE;
use evenkeel_tests::{ScenarioFailure, ScenarioResult, World, ensure, scenarios};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value as Json, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    evenkeel_tests::run(
        options,
        scenarios![
            bad_requests_are_refused_with_stable_codes,
            every_replica_serves_and_writes_reach_the_leader,
            routes_can_be_followed_by_etag_version_and_watch,
            a_range_is_split_and_moved_by_hand,
            a_table_that_postgresql_refuses_harms_nothing,
            the_interface_survives_the_death_of_its_leader,
        ],
    )
}

/// The balancer is off, so that ranges stay on the shards that the scenarios choose.
fn options(executable: PathBuf) -> ClusterOptions {
    let mut options = ClusterOptions::new(executable);
    options.balancer.insert("enabled".into(), false.into());
    options
}

fn url(world: &World, path: &str) -> String {
    format!("{}{path}", world.admin().urls().first().map_or("", String::as_str))
}

async fn request(
    world: &World,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<Response, ScenarioFailure> {
    request_at(&url(world, path), method, body).await
}

/// Repeats a request while there is no leader, as the refusal asks. Leadership may move at any
/// time.
async fn request_at(url: &str, method: Method, body: Option<Vec<u8>>) -> Result<Response, ScenarioFailure> {
    let deadline = evenkeel_host::now() + PATIENCE;
    loop {
        let mut request = Client::new().request(method.clone(), url);
        if let Some(body) = &body {
            request = request.header("content-type", "application/json").body(body.clone());
        }
        let response = request.send().await?;
        if response.status() != StatusCode::SERVICE_UNAVAILABLE || evenkeel_host::now() >= deadline {
            return Ok(response);
        }
        evenkeel_host::sleep(Duration::from_millis(20)).await;
    }
}

async fn bad_requests_are_refused_with_stable_codes(world: &World) -> ScenarioResult {
    world.create_table("CREATE TABLE bad (id bigint PRIMARY KEY, v text)", 1).await?;
    world.create_table("CREATE TABLE worse (a text, b uuid, v text, PRIMARY KEY (a, b))", 1).await?;
    let range = world.only_range("bad").await?.route.range;
    world.done(world.split(range, &[100]).await?.id).await?;
    let (split, moving) = (format!("/v1/ranges/{range}/split"), format!("/v1/ranges/{range}/move"));
    let get = |path: &'static str, status, code| (Method::GET, path.to_string(), None, status, code);
    let post = |path: &str, body: Json, status, code| (Method::POST, path.to_string(), Some(body), status, code);
    for (method, path, body, status, code) in [
        get("/v1/nothing", 404, "unknown-path"),
        get("/v1/routes/nowhere?key=1", 404, "unknown-table"),
        get("/v1/routes/bad?key=%22text%22", 400, "bad-key"),
        get("/v1/routes/bad?key=text", 400, "bad-key"),
        get("/v1/routes/bad?key=1.5", 400, "bad-key"),
        get("/v1/routes/bad?key=99999999999999999999", 400, "bad-key"),
        get("/v1/routes/bad?key=[1,2]", 400, "bad-key"),
        get("/v1/routes/worse?key=[%22a%22,%22no-uuid%22]", 400, "bad-key"),
        get("/v1/operators/999999", 404, "unknown-operator"),
        post(&split, json!({"at": [[100]]}), 400, "bad-split"),
        post(&split, json!({"at": [[5000]]}), 400, "bad-split"),
        post(&split, json!({"at": [["x"]]}), 400, "bad-key"),
        post(&split, json!({"where": [[5]]}), 400, "bad-request"),
        post("/v1/ranges/999999/split", json!({"at": [[5]]}), 404, "unknown-range"),
        post(&moving, json!({"to": 1}), 409, "same-shard"),
        post(&moving, json!({"to": 77}), 404, "unknown-shard"),
        post(&moving, json!({"to": "two"}), 400, "bad-request"),
        post("/v1/ranges/999999/move", json!({"to": 2}), 404, "unknown-range"),
        (Method::DELETE, "/v1/operators/999999".into(), None, 404, "unknown-operator"),
        (Method::DELETE, "/v1/shards/77".into(), None, 404, "unknown-shard"),
        (Method::PUT, "/v1/routes".into(), None, 405, "method-not-allowed"),
    ] {
        let bytes = body.as_ref().map(|b| b.to_string().into_bytes());
        let response = request(world, method.clone(), &path, bytes).await?;
        refusal(&format!("{method} {path} {body:?}"), response, status, code).await?;
    }
    let malformed = request(world, Method::POST, &split, Some(b"{\"at\": [[".to_vec())).await?;
    refusal("malformed JSON", malformed, 400, "bad-request").await?;
    let huge = request(world, Method::POST, &split, Some(vec![b' '; 2 << 20])).await?;
    refusal("an oversized body", huge, 413, "body-too-large").await
}

async fn refusal(what: &str, response: Response, status: u16, code: &str) -> ScenarioResult {
    let found = response.status().as_u16();
    let kind = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_string();
    let body = response.text().await?;
    ensure!(found == status, "{what}: status {found} instead of {status}: {body}");
    ensure!(kind == "application/problem+json", "{what}: content type {kind}");
    let problem: Json = serde_json::from_str(&body).map_err(|e| format!("{what}: {e}: {body}"))?;
    ensure!(problem["code"] == code, "{what}: code {} instead of {code}: {body}", problem["code"]);
    ensure!(problem["type"] == format!("urn:evenkeel:problem:{code}"), "{what}: {body}");
    ensure!(problem["detail"].as_str().is_some_and(|d| !d.is_empty()), "{what}: no detail: {body}");
    Ok(())
}

async fn every_replica_serves_and_writes_reach_the_leader(world: &World) -> ScenarioResult {
    for (number, base) in world.admin().urls().iter().enumerate() {
        for path in [
            "/livez",
            "/readyz",
            "/metrics",
            "/v1/routes",
            "/v1/tables",
            "/v1/shards",
            "/v1/ranges",
            "/v1/operators",
            "/v1/decisions",
        ] {
            let response = request_at(&format!("{base}{path}"), Method::GET, None).await?;
            ensure!(response.status() == StatusCode::OK, "{base}{path}: {}", response.status());
        }
        // A client that follows redirects needs no knowledge of leaders.
        let body = json!({ "enabled": false }).to_string().into_bytes();
        let response = request_at(&format!("{base}/v1/balancer"), Method::POST, Some(body)).await?;
        ensure!(response.status().is_success(), "a write at replica {}: {}", number + 1, response.status());
    }
    Ok(())
}

async fn routes_can_be_followed_by_etag_version_and_watch(world: &World) -> ScenarioResult {
    world.create_table("CREATE TABLE followed (id bigint PRIMARY KEY)", 1).await?;
    let whole = Client::new().get(url(world, "/v1/routes")).send().await?;
    let etag = whole.headers().get("etag").and_then(|v| v.to_str().ok()).unwrap_or_default().to_string();
    let before: RoutesBody = whole.json().await?;
    ensure!(etag.trim_matches('"') == before.version && before.complete, "ETag {etag}, version {}", before.version);
    let same = Client::new().get(url(world, "/v1/routes")).header("if-none-match", &etag).send().await?;
    ensure!(same.status() == StatusCode::NOT_MODIFIED, "nothing changed, but {}", same.status());

    let mut watch =
        Client::new().get(url(world, "/v1/routes/watch")).header("last-event-id", &before.version).send().await?;
    let range = world.only_range("followed").await?.route.range;
    world.done(world.split(range, &[10, 20]).await?.id).await?;

    let path = format!("/v1/routes?since={}", before.version);
    let since = world
        .until("this replica to know of the split", PATIENCE, async || {
            let text = |e: reqwest::Error| e.to_string();
            let since: RoutesBody =
                Client::new().get(url(world, &path)).send().await.map_err(text)?.json().await.map_err(text)?;
            if since.routes.is_empty() { Err("nothing yet".into()) } else { Ok(since) }
        })
        .await?;
    ensure!(!since.complete && since.routes.len() == 3, "the three pieces, and nothing else: {since:?}");
    let reading = async {
        let mut seen = String::new();
        while let Some(chunk) = watch.chunk().await? {
            seen.push_str(&String::from_utf8_lossy(&chunk));
            if seen.contains(&format!("id: {}", since.version)) || seen.contains(&format!("id:{}", since.version)) {
                return Ok(());
            }
        }
        Err(ScenarioFailure::new(format!("the watch ended after {seen}")))
    };
    evenkeel_host::timeout(PATIENCE, reading)
        .await
        .map_err(|_| ScenarioFailure::new("the watch told nothing of the split"))??;

    let lookup: RouteLookupBody =
        Client::new().get(url(world, "/v1/routes/followed?key=15")).send().await?.json().await?;
    ensure!(lookup.route.start == Some(vec![json!(10)]) && lookup.route.end == Some(vec![json!(20)]), "{lookup:?}");
    ensure!(lookup.shard.replicas.len() == 3, "{lookup:?}");
    Ok(())
}

async fn a_range_is_split_and_moved_by_hand(world: &World) -> ScenarioResult {
    world.create_table("CREATE TABLE byhand (id bigint PRIMARY KEY)", 1).await?;
    world.client.execute("INSERT INTO byhand VALUES (1), (2), (3)", &[]).await?;
    let range = world.only_range("byhand").await?.route.range;
    let response =
        request(world, Method::POST, &format!("/v1/ranges/{range}/split"), Some(b"{\"at\": [[2]]}".to_vec())).await?;
    ensure!(response.status() == StatusCode::ACCEPTED, "a split: {}", response.status());
    let begun: OperatorBody = response.json().await?;
    world.done(begun.id).await?;
    let pieces = world.ranges("byhand").await?;
    ensure!(pieces.len() == 2, "{pieces:?}");
    let moved = world.done(world.move_range(pieces[1].route.range, 3).await?.id).await?;
    ensure!(moved.rows == 2, "it moved {} rows: {moved:?}", moved.rows);
    let answer = world.client.execute("SELECT id FROM byhand", &[]).await?;
    let ids: Vec<Option<i64>> = (0..3).map(|row| answer.rows.int(row, 0)).collect();
    ensure!(ids == [Some(1), Some(2), Some(3)], "a scan over two shards gave {ids:?}");
    world.nothing_is_wrong().await
}

/// Invariant 5: such an entry, once decided, would end every replica of its shard.
async fn a_table_that_postgresql_refuses_harms_nothing(world: &World) -> ScenarioResult {
    const IMPOSSIBLE: &str = "CREATE TABLE impossible (id bigint PRIMARY KEY, n numeric(2000))";
    match world.client.execute(IMPOSSIBLE, &[]).await {
        Err(ClientError::Sql(error)) if error.code == "22023" => {}
        other => return Err(ScenarioFailure::new(format!("{IMPOSSIBLE} gave {other:?}"))),
    }
    let Ok(sql::Command::CreateTable { schema, .. }) = sql::parse(IMPOSSIBLE) else {
        return Err(ScenarioFailure::new("it does not parse"));
    };
    let body = CreateTableBody { schema, shard: Some(ShardId(1)), if_not_exists: false };
    let body = serde_json::to_vec(&body).map_err(|e| e.to_string())?;
    let refused = request(world, Method::POST, "/v1/tables", Some(body)).await?;
    refusal(IMPOSSIBLE, refused, 409, "not-created").await?;
    // The name is free again, and every shard serves.
    world.create_table("CREATE TABLE impossible (id bigint PRIMARY KEY, n numeric(1000))", 1).await?;
    world.client.execute("INSERT INTO impossible VALUES (1, 2)", &[]).await?;
    world.nothing_is_wrong().await
}

async fn the_interface_survives_the_death_of_its_leader(world: &World) -> ScenarioResult {
    let leader = world.placement_driver_leader().await?;
    let id = evenkeel_local_cluster::ProcessId::PlacementDriver(leader);
    world.kill(id)?;
    world
        .until("another leader to accept a write", PATIENCE, async || {
            let body = json!({ "enabled": false });
            world.admin().post::<_, Json>("/v1/balancer", &body).await.map(|_| ()).map_err(|e| e.to_string())
        })
        .await?;
    world.cluster.restart(id)?;
    world.cluster.wait_ready().await?;
    world.nothing_is_wrong().await
}
