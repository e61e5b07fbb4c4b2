//! The REST API over real sockets: three replicas with a real log, and fake shards.

use crate::cluster::{Cluster, bigint_table, eventually, schema};
use evenkeel_protocol::api::{RouteLookupBody, RoutesBody};
use evenkeel_protocol::report::RangeLoad;
use evenkeel_protocol::routing::RoutingTable;
use evenkeel_protocol::scrub::Difference;
use evenkeel_protocol::{KeyCodec, KeyInterval, KeyType, KeyValue, RangeId, TableSchema};
use futures::StreamExt;
use reqwest::header::HeaderValue;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;

fn key(n: i64) -> evenkeel_protocol::Key {
    KeyCodec::new(vec![KeyType::BigInt]).encode(&[KeyValue::Int(n)]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_created_split_moved_and_looked_up() {
    let cluster = Cluster::start(2).await;
    cluster.create_table(&bigint_table("t")).await;
    let again = json!({ "schema": bigint_table("t"), "if_not_exists": true });
    assert_eq!(cluster.post("/v1/tables", &again).await.0, StatusCode::OK);
    let again = json!({ "schema": bigint_table("t") });
    let (status, body) = cluster.post("/v1/tables", &again).await;
    assert_eq!((status, body["code"].as_str()), (StatusCode::CONFLICT, Some("table-exists")));

    let (status, operator) = cluster.post("/v1/ranges/1/split", &json!({ "at": [[100], [200]] })).await;
    assert_eq!((status, operator["kind"].as_str()), (StatusCode::ACCEPTED, Some("split")));
    assert_eq!(cluster.ended(&operator).await["status"], "done");
    let (status, operator) = cluster.post("/v1/ranges/2/move", &json!({ "to": 2 })).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let ended = cluster.ended(&operator).await;
    assert_eq!((&ended["status"], &ended["pause_us"], &ended["bytes"]), (&json!("done"), &json!(3000), &json!(1000)));
    assert_eq!(cluster.shards.world().owner(2), Some(2));
    // Requests may be repeated after a silence: they are idempotent.
    assert!(cluster.shards.world().count("Purge") >= 1);
    assert!(cluster.shards.world().count("MoveForget") >= 1);

    for (n, shard) in [(99, 1), (100, 2), (199, 2), (200, 1)] {
        for form in [format!("{n}"), format!("%5B{n}%5D")] {
            let (status, body) = cluster.get(&format!("/v1/routes/t?key={form}")).await;
            assert_eq!(status, StatusCode::OK, "{body}");
            let body: RouteLookupBody = serde_json::from_value(body).unwrap();
            assert_eq!(body.shard.id.0, shard, "{n}");
        }
    }
    let (_, ranges) = cluster.get("/v1/ranges").await;
    assert_eq!(ranges.as_array().unwrap().len(), 3);
    assert_eq!(ranges[1]["start"], json!([100]));
    eventually("the shards, with their leaders", || async {
        let (_, shards) = cluster.get("/v1/shards").await;
        (shards[0]["ranges"] == 2 && shards[1]["ranges"] == 1 && shards[0]["leader"] == 1).then_some(())
    })
    .await;
    let (_, tables) = cluster.get("/v1/tables").await;
    assert_eq!(tables[0]["name"], "t");
    let (_, operators) = cluster.get("/v1/operators").await;
    assert_eq!(operators.as_array().unwrap().len(), 3);
    assert_eq!(operators[0]["kind"], "move", "newest first");
    // A new leadership has no rejections yet.
    eventually("the balancer to say why it does nothing", || async {
        let (_, decisions) = cluster.get("/v1/decisions").await;
        let now = decisions["now"].as_array().filter(|now| !now.is_empty())?;
        let whole = |r: &Value| r["code"].is_string() && r["reason"].is_string() && r["statements_per_s"].is_number();
        assert!(now.iter().all(whole), "{decisions}");
        Some(())
    })
    .await;
    let (_, sums) = cluster.get("/v1/checksums").await;
    assert_eq!((&sums["differing"], &sums["owners_wrong"]), (&json!([]), &json!([])), "{sums}");
    assert_eq!(sums["shards"].as_array().unwrap().len(), 2);
    // Fake shards compare one range at a time, and all of them.
    assert_eq!(
        (&sums["shards"][0]["complete"], &sums["shards"][0]["ranges"].as_array().unwrap().len()),
        (&json!(true), &2)
    );
    cluster.stop().await;
}

// Differences that leaders find by themselves are reported, and so are those found on request
// (finding F5).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_differ_are_named_with_their_keys() {
    let cluster = Cluster::start(1).await;
    cluster.create_table(&bigint_table("t")).await;
    // A replica that is behind does not know it yet.
    let table = eventually("the table", || async {
        let (_, tables) = cluster.get("/v1/tables").await;
        serde_json::from_value(tables[0]["id"].clone()).ok()
    });
    let table = table.await;
    cluster.shards.world().difference = Some(Difference {
        range: RangeId(1),
        table,
        interval: KeyInterval::new(key(7), Some(key(8))),
        replicas: vec![2],
        detail: "replica 2 holds no row".into(),
    });
    let named = |body: &Value| {
        (body["table"] == "t" && body["start"] == json!([7]) && body["end"] == json!([8])).then_some(())?;
        (body["replicas"] == json!([2]) && body["range"] == 1).then_some(())
    };
    eventually("the difference in the shard's report", || async {
        let (_, shards) = cluster.get("/v1/shards").await;
        named(&shards[0]["scrub"]["differences"][0])
    })
    .await;
    let (_, sums) = cluster.get("/v1/checksums").await;
    assert!(named(&sums["differing"][0]).is_some() && sums["differing"][0]["shard"] == 1, "{sums}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_problems_with_stable_codes() {
    let cluster = Cluster::start(2).await;
    cluster.create_table(&bigint_table("t")).await;
    cluster.create_table(&schema("two", &[("a", "integer", 23), ("b", "text", 25)], vec![0, 1])).await;
    let (_, operator) = cluster.post("/v1/ranges/1/split", &json!({ "at": [[100]] })).await;
    cluster.ended(&operator).await;
    let big = vec![b' '; 70 << 10];
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let mut unknown_field = json!({ "schema": bigint_table("x") });
    unknown_field["shards"] = json!(1);
    let no_key = json!({ "schema": schema("x", &[("id", "bigint", 20)], vec![]) });
    let cases = [
        (Method::GET, "/v1/routes/nope?key=1", None, 404, "unknown-table"),
        (Method::GET, "/v1/routes/t?key=%22one%22", None, 400, "bad-key"),
        (Method::GET, "/v1/routes/t?key=one", None, 400, "bad-key"),
        (Method::GET, "/v1/routes/t?key=1.5", None, 400, "bad-key"),
        (Method::GET, "/v1/routes/t?key=null", None, 400, "bad-key"),
        (Method::GET, "/v1/routes/two?key=1", None, 400, "bad-key"),
        (Method::GET, "/v1/routes/two?key=%5B1,2%5D", None, 400, "bad-key"),
        (Method::GET, "/v1/routes/t", None, 400, "bad-request"),
        (Method::GET, "/v1/routes/t?kye=1", None, 400, "bad-request"),
        (Method::GET, "/v1/routes/t?key=%f", None, 400, "bad-request"),
        (Method::GET, "/v1/routes?since=yesterday", None, 400, "bad-request"),
        (Method::GET, "/v1/routes?table=nope", None, 404, "unknown-table"),
        (Method::GET, "/v1/nothing", None, 404, "unknown-path"),
        (Method::GET, "/v1/operators/999", None, 404, "unknown-operator"),
        (Method::GET, "/v1/operators/x", None, 400, "bad-request"),
        (Method::GET, "/v1/ranges/1/split", None, 405, "method-not-allowed"),
        (Method::PUT, "/v1/shards", text("{}"), 405, "method-not-allowed"),
        (Method::POST, "/v1/routes", text("{}"), 405, "method-not-allowed"),
        (Method::POST, "/v1/nothing", text("{}"), 404, "unknown-path"),
        (Method::POST, "/v1/ranges/1/split", text("{\"at\": [[100"), 400, "bad-request"),
        (Method::POST, "/v1/ranges/1/split", text("{\"at\": [[\"a\"]]}"), 400, "bad-key"),
        (Method::POST, "/v1/ranges/1/split", text("{\"at\": [[100]]}"), 400, "bad-split"),
        (Method::POST, "/v1/ranges/1/split", text("{\"at\": [[5000]]}"), 400, "bad-split"),
        (Method::POST, "/v1/ranges/1/split", text("{\"at\": [[5], [5]]}"), 400, "bad-split"),
        (Method::POST, "/v1/ranges/1/split", text("{\"where\": 1}"), 400, "bad-request"),
        (Method::POST, "/v1/ranges/1/split", None, 409, "no-median"),
        (Method::POST, "/v1/ranges/77/split", text("{\"at\": [[5]]}"), 404, "unknown-range"),
        (Method::POST, "/v1/ranges/1/move", text("{\"to\": 1}"), 409, "same-shard"),
        (Method::POST, "/v1/ranges/1/move", text("{\"to\": 9}"), 404, "unknown-shard"),
        (Method::POST, "/v1/ranges/1/move", text("{}"), 400, "bad-request"),
        (Method::POST, "/v1/ranges/one/move", text("{\"to\": 2}"), 400, "bad-request"),
        (Method::POST, "/v1/ranges/1/move", Some(big.clone()), 413, "body-too-large"),
        (Method::POST, "/v1/tables", Some(vec![b' '; 300 << 10]), 413, "body-too-large"),
        (Method::POST, "/v1/tables", text("[]"), 400, "bad-request"),
        (Method::POST, "/v1/tables", Some(unknown_field.to_string().into_bytes()), 400, "bad-request"),
        (Method::POST, "/v1/tables", Some(no_key.to_string().into_bytes()), 400, "bad-table"),
        (Method::POST, "/v1/shards", text("{\"id\": 3}"), 400, "bad-request"),
        (Method::POST, "/v1/shards", text("{\"id\": 3, \"replicas\": {}, \"x\": 1}"), 400, "bad-request"),
        (Method::POST, "/v1/balancer", text("{\"enabled\": 1}"), 400, "bad-request"),
        (Method::DELETE, "/v1/shards/9", None, 404, "unknown-shard"),
        (Method::DELETE, "/v1/operators/999", None, 404, "unknown-operator"),
        (Method::DELETE, "/v1/operators/1", None, 409, "not-cancellable"),
        (Method::POST, "/v1/shards/9/transfer-leader", None, 404, "unknown-shard"),
        (Method::POST, "/v1/shards/1/transfer-leader", text("{\"to\": 5}"), 409, "not-transferred"),
        // from_str_radix would take the plus.
        (Method::GET, "/v1/routes/%+1?key=1", None, 400, "bad-request"),
        (Method::POST, "/v1/members", text("{\"remove\": [1, 2, 3]}"), 409, "not-changed"),
        (Method::POST, "/v1/members", text("{\"remove\": [1, 2]}"), 409, "not-changed"),
        (Method::POST, "/v1/members", text("{}"), 400, "bad-request"),
        (Method::POST, "/v1/shards/1/replicas", text("{}"), 400, "bad-request"),
        (Method::POST, "/v1/shards/1/replicas", text("{\"remove\": 9}"), 409, "unknown-replica"),
        (Method::POST, "/v1/shards/9/replicas", text("{\"remove\": 1}"), 404, "unknown-shard"),
        (Method::POST, "/v1/shards/9/undrain", None, 404, "unknown-shard"),
    ];
    for (method, path, body, status, code) in cases {
        let length = body.as_ref().map_or(0, Vec::len);
        let began = evenkeel_host::now();
        let (found, problem) = cluster.send(method.clone(), path, body).await;
        let text = format!("{method} {path} ({length} bytes): {found} {problem}");
        assert!(evenkeel_host::elapsed(began) < Duration::from_secs(15), "a wrong request is refused at once: {text}");
        assert_eq!((found.as_u16(), problem["code"].as_str()), (status, Some(code)), "{text}");
        assert_eq!(problem["status"], status, "{text}");
        assert_eq!(problem["type"], format!("urn:evenkeel:problem:{code}"), "{text}");
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{text}");
    }
    let hint = cluster.get("/v1/routes/two?key=abc").await.1;
    assert!(hint["detail"].as_str().unwrap().contains("\"abc\""), "{hint}");
    let url = format!("{}/v1/routes/nope?key=1", cluster.url(1));
    let response = cluster.http.get(url).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_range_a_cancellation_and_a_fence() {
    let cluster = Cluster::start(2).await;
    cluster.create_table(&bigint_table("t")).await;
    cluster.shards.world().hold_copies = true;
    let (_, operator) = cluster.post("/v1/ranges/1/move", &json!({ "to": 2 })).await;
    cluster.at_step(&operator, "copy").await;
    let (status, body) = cluster.post("/v1/ranges/1/split", &json!({ "at": [[5]] })).await;
    assert_eq!((status, body["code"].as_str()), (StatusCode::CONFLICT, Some("operator-running")));
    let (status, _) = cluster.delete(&format!("/v1/operators/{}", operator["id"])).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(cluster.ended(&operator).await["status"], "cancelled");
    assert_eq!(cluster.shards.world().owner(1), Some(1));

    // R20: after the fence a move cannot be cancelled.
    cluster.shards.world().hold_copies = false;
    cluster.shards.world().hold_switches = true;
    let (_, operator) = cluster.post("/v1/ranges/1/move", &json!({ "to": 2 })).await;
    cluster.at_step(&operator, "switch").await;
    let (status, body) = cluster.delete(&format!("/v1/operators/{}", operator["id"])).await;
    assert_eq!((status, body["code"].as_str()), (StatusCode::CONFLICT, Some("not-cancellable")));
    cluster.shards.world().hold_switches = false;
    assert_eq!(cluster.ended(&operator).await["status"], "done");

    // R24: the stored copy differs from the copy that was sent. This is found before the fence.
    let purged = cluster.shards.world().count("Purge");
    cluster.shards.world().hold_copies = true;
    cluster.shards.world().differ = true;
    let (_, operator) = cluster.post("/v1/ranges/1/move", &json!({ "to": 1 })).await;
    let ended = cluster.ended(&operator).await;
    assert_eq!(ended["status"], "differs", "R24");
    assert_eq!(cluster.shards.world().owner(1), Some(2), "the range stays where it is");
    assert_eq!(cluster.shards.world().count("Purge"), purged, "R24: the source keeps its rows");
    cluster.shards.world().differ = false;

    // An orphaned copy is deleted on request.
    let copy = format!("/v1/operators/{}/copy", operator["id"]);
    let (status, body) = cluster.delete(&copy).await;
    assert_eq!((status, &body), (StatusCode::OK, &json!({ "operator": operator["id"], "shard": 2, "purged": true })));
    assert!(cluster.shards.world().count("Purge") > 0);
    assert_eq!(cluster.delete(&copy).await.0, StatusCode::OK, "asked again");
    for (path, status, code) in [
        ("/v1/operators/1/copy", 409, "no-copy"),
        ("/v1/operators/4711/copy", 404, "unknown-operator"),
        ("/v1/operators/x/copy", 400, "bad-request"),
    ] {
        let (found, body) = cluster.delete(path).await;
        assert_eq!((found.as_u16(), body["code"].as_str()), (status, Some(code)), "{path}: {body}");
    }
    cluster.shards.world().hold_copies = true;
    let (_, operator) = cluster.post("/v1/ranges/1/move", &json!({ "to": 1 })).await;
    cluster.at_step(&operator, "copy").await;
    let (status, body) = cluster.delete(&format!("/v1/operators/{}/copy", operator["id"])).await;
    assert_eq!((status, body["code"].as_str()), (StatusCode::CONFLICT, Some("operator-running")));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_are_watched_resumed_and_revalidated() {
    let cluster = Cluster::start(2).await;
    cluster.create_table(&bigint_table("t")).await;
    let follower = cluster.follower().await;
    eventually("the follower to know the table", || async {
        let url = format!("{}/v1/routes/t?key=1", cluster.url(follower));
        cluster.http.get(url).send().await.ok()?.status().is_success().then_some(())
    })
    .await;
    let url = format!("{}/v1/routes", cluster.url(follower));
    let response = cluster.http.get(&url).send().await.unwrap();
    let tag = response.headers()["etag"].clone();
    let whole: RoutesBody = response.json().await.unwrap();
    let mut table = RoutingTable::default();
    whole.apply_to(&mut table).unwrap();
    let unchanged = cluster.http.get(&url).header("if-none-match", &tag).send().await.unwrap();
    assert_eq!(unchanged.status(), StatusCode::NOT_MODIFIED);

    let watch = format!("{}/v1/routes/watch", cluster.url(follower));
    let response = cluster.http.get(&watch).header("last-event-id", &whole.version).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut events = Events { stream: Box::pin(response.bytes_stream()), text: String::new() };
    let (_, operator) = cluster.post("/v1/ranges/1/split", &json!({ "at": [[10], [20]] })).await;
    let (id, change) = events.next().await;
    assert!(!change.complete && change.routes.len() == 3, "{change:?}");
    assert_eq!(id, change.version);
    change.apply_to(&mut table).unwrap();
    cluster.ended(&operator).await;
    let (_, operator) = cluster.post("/v1/ranges/3/move", &json!({ "to": 2 })).await;
    let (_, change) = events.next().await;
    change.apply_to(&mut table).unwrap();
    assert_eq!(table.lookup(change.routes[0].table, &key(20)).unwrap().shard.0, 2);
    cluster.ended(&operator).await;

    cluster.create_table(&bigint_table("other")).await;
    let (_, since) = cluster.get(&format!("/v1/routes?since={id}&table=t")).await;
    assert_eq!((&since["complete"], since["routes"].as_array().unwrap().len()), (&json!(false), 1), "{since}");
    assert_eq!(since["tables"], json!([]), "{since}");
    let (_, since) = cluster.get(&format!("/v1/routes?since={id}&table=other")).await;
    assert_eq!((&since["tables"][0]["name"], &since["routes"][0]["shard"]), (&json!("other"), &json!(1)), "{since}");
    let (_, since) = cluster.get(&format!("/v1/routes?since={id}")).await;
    assert_eq!((&since["complete"], since["routes"].as_array().unwrap().len()), (&json!(false), 2));
    let (_, other) = cluster.get("/v1/routes?since=99.1").await;
    assert_eq!(other["complete"], true, "another incarnation's version says nothing");
    let changed = cluster.http.get(&url).header("if-none-match", &tag).send().await.unwrap();
    assert_eq!(changed.status(), StatusCode::OK);
    let fresh = cluster.http.get(&watch).send().await.unwrap();
    let mut events = Events { stream: Box::pin(fresh.bytes_stream()), text: String::new() };
    assert!(events.next().await.1.complete, "without a version a watch begins with the whole table");
    drop(events);
    cluster.stop().await;
}

struct Events {
    stream: std::pin::Pin<Box<dyn futures::Stream<Item = reqwest::Result<bytes::Bytes>>>>,
    text: String,
}

impl Events {
    async fn next(&mut self) -> (String, RoutesBody) {
        let read = async {
            loop {
                if let Some((event, rest)) = self.text.split_once("\n\n") {
                    let (event, rest) = (event.to_string(), rest.to_string());
                    self.text = rest;
                    let field = |name: &str| {
                        let line = event.lines().find_map(|line| line.strip_prefix(name));
                        line.map(|line| line.trim_start_matches(':').trim().to_string())
                    };
                    if let (Some(id), Some(data)) = (field("id"), field("data")) {
                        return (id, serde_json::from_str(&data).unwrap());
                    }
                    continue;
                }
                let chunk = self.stream.next().await.unwrap().unwrap();
                self.text.push_str(&String::from_utf8_lossy(&chunk));
            }
        };
        evenkeel_host::timeout(crate::cluster::PATIENCE, read).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_redirect_what_needs_the_leader() {
    let cluster = Cluster::start(2).await;
    // The last two are unknown to it; the leader may have created them a moment ago.
    let unknown = ["/v1/operators/4711", "/v1/routes/nowhere?key=1"];
    for path in
        ["/v1/ranges", "/v1/shards", "/v1/decisions", "/v1/checksums", "/v1/balancer"].into_iter().chain(unknown)
    {
        // On a busy machine leadership may move between two requests.
        eventually(path, || async {
            let (leader, follower) = (cluster.leader().await, cluster.follower().await);
            let response = cluster.http.get(format!("{}{path}", cluster.url(follower))).send().await.ok()?;
            let redirected = response.status() == StatusCode::TEMPORARY_REDIRECT;
            let location = response.headers().get("location")?.to_str().ok()?.to_string();
            let problem: Value = response.json().await.unwrap_or_default();
            assert!(!redirected || problem["code"] == "not-leader", "{path}: {problem}");
            (redirected && location == format!("{}{path}", cluster.url(leader))).then_some(())
        })
        .await;
    }
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let url = format!("{}/v1/balancer", cluster.url(follower));
    let response = cluster.http.post(&url).body("{\"enabled\": false}").send().await.unwrap();
    assert!([StatusCode::TEMPORARY_REDIRECT, StatusCode::OK].contains(&response.status()));
    assert_eq!(cluster.post("/v1/balancer", &json!({ "enabled": false })).await.0, StatusCode::OK);
    assert_eq!(cluster.get("/v1/balancer").await.1["enabled"], false);
    for path in ["/livez", "/readyz", "/metrics", "/v1/routes", "/v1/tables", "/v1/operators", "/v1/status"] {
        let response = cluster.http.get(format!("{}{path}", cluster.url(follower))).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
    }
    let response = cluster.http.get(format!("{}/metrics", cluster.url(leader))).send().await.unwrap();
    let metrics = response.text().await.unwrap();
    for name in ["evenkeel_placement_reports_total", "evenkeel_placement_leads", "evenkeel_placement_imbalance"] {
        assert!(metrics.contains(&format!("# TYPE {name} ")), "{name} in {metrics}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_is_drained_and_removed_and_the_last_one_is_not() {
    let cluster = Cluster::start(2).await;
    cluster.create_table(&bigint_table("t")).await;
    let (status, body) = cluster.delete("/v1/shards/1").await;
    assert_eq!((status, body["status"].as_str()), (StatusCode::ACCEPTED, Some("draining")));
    eventually("shard 1 to go", || async {
        let (_, shards) = cluster.get("/v1/shards").await;
        (shards.as_array()?.len() == 1).then_some(())
    })
    .await;
    assert_eq!(cluster.shards.world().owner(1), Some(2));
    let (_, decisions) = cluster.get("/v1/decisions").await;
    assert!(decisions["decisions"][0]["why"].as_str().unwrap().contains("draining"), "{decisions}");
    let (status, body) = cluster.delete("/v1/shards/2").await;
    assert_eq!((status, body["code"].as_str()), (StatusCode::CONFLICT, Some("last-shard")));
    cluster.stop().await;
}

/// The balancer from end to end: reports, decisions through the log, requests to shards, routes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_range_is_split_and_spread() {
    let cluster = Cluster::start(3).await;
    cluster.create_table(&bigint_table("t")).await;
    let hot = RangeLoad {
        observed_ms: 10_000,
        reads_per_s: 2000.0,
        sketch: (0..64).map(|n| (key(n * 10), 1.0 / 64.0)).collect(),
        ..RangeLoad::default()
    };
    cluster.shards.world().loads.insert(RangeId(1), hot);
    eventually("a split", || async {
        let (_, ranges) = cluster.get("/v1/ranges").await;
        (ranges.as_array()?.len() >= 12).then_some(())
    })
    .await;
    cluster.shards.world().loads = (1..40)
        .map(|id| {
            let load = RangeLoad { observed_ms: 10_000, reads_per_s: 166.0, ..RangeLoad::default() };
            (RangeId(id), load)
        })
        .collect();
    eventually("level shards", || async {
        let (_, shards) = cluster.get("/v1/shards").await;
        let loads: Vec<f64> = shards.as_array()?.iter().filter_map(|s| s["statements_per_s"].as_f64()).collect();
        let mean = loads.iter().sum::<f64>() / 3.0;
        (loads.iter().all(|load| *load < 1.25 * mean)).then_some(())
    })
    .await;
    let (_, decisions) = cluster.get("/v1/decisions").await;
    let why: Vec<&Value> = decisions["decisions"].as_array().unwrap().iter().map(|d| &d["why"]).collect();
    assert!(why.len() >= 2 && why.iter().all(|why| why.as_str().is_some_and(|why| !why.is_empty())), "{why:?}");
    cluster.stop().await;
}

/// R6: shards run only a definition in canonical form as superuser.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_s_definition_is_the_table_and_nothing_else() {
    let cluster = Cluster::start(1).await;
    let text = "CREATE TABLE x (id bigint PRIMARY KEY, v text)";
    let with = |create_sql: String| TableSchema { create_sql, ..bigint_table("x") };
    let mut other_type = bigint_table("x");
    other_type.columns[1].type_name = "text DEFAULT pg_read_file('/etc/passwd')".into();
    let mut other_oid = bigint_table("x");
    other_oid.columns[1].type_oid = 20;
    let mut other_key = bigint_table("x");
    other_key.key = vec![0, 1];
    let refused = [
        with(String::new()),
        with("…".into()),
        with("DROP TABLE x".into()),
        with(format!("{text}; DROP TABLE x")),
        with(format!("{text}; CREATE ROLE intruder SUPERUSER LOGIN")),
        with(format!("{text} TABLESPACE fast")),
        with("CREATE TABLE x AS SELECT pg_read_file('/etc/passwd') AS v, 1::bigint AS id".into()),
        with("CREATE TABLE y (id bigint PRIMARY KEY, v text)".into()),
        with("CREATE TABLE x (id bigint PRIMARY KEY, v text, w text)".into()),
        other_type,
        other_oid,
        other_key,
        bigint_table("evenkeel_x"),
        bigint_table("pg_x"),
        bigint_table("x_pkey"),
    ];
    for schema in refused {
        let (status, body) = cluster.post("/v1/tables", &json!({ "schema": schema })).await;
        assert_eq!((status, body["code"].as_str()), (StatusCode::BAD_REQUEST, Some("bad-table")), "{schema:?}: {body}");
    }
    assert_eq!(cluster.shards.world().count("CreateTable"), 0);
    let (status, body) = cluster.post("/v1/tables", &json!({ "schema": with(format!("{text};")) })).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    let ours = r#"CREATE TABLE IF NOT EXISTS "x" ("id" bigint NOT NULL, "v" text, PRIMARY KEY ("id"))"#;
    assert_eq!(body["create_sql"], ours);
    cluster.stop().await;
}

/// A GET with headers that are no text must not change anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_changes_nothing_whatever_its_headers() {
    let cluster = Cluster::start(2).await;
    cluster.create_table(&bigint_table("t")).await;
    assert_eq!(cluster.send(Method::PUT, "/v1/kv/jobs/leader", Some(b"a".to_vec())).await.0, StatusCode::CREATED);
    cluster.shards.world().hold_copies = true;
    let (_, operator) = cluster.post("/v1/ranges/1/move", &json!({ "to": 2 })).await;
    cluster.at_step(&operator, "copy").await;
    let operator = format!("/v1/operators/{}", operator["id"]);
    let leader = cluster.url(cluster.leader().await);
    for method in [Method::GET, Method::HEAD] {
        for header in ["last-event-id", "if-none-match"] {
            for path in
                ["/v1/kv/jobs/leader", operator.as_str(), "/v1/shards", "/v1/routes/t?key=1", "/v1/routes/watch"]
            {
                let odd = HeaderValue::from_bytes(b"\xff").unwrap();
                let request = cluster.http.request(method.clone(), format!("{leader}{path}")).header(header, odd);
                let response = request.send().await.unwrap();
                let (status, kind) = (response.status(), response.headers().get("content-type").cloned());
                let text = format!("{method} {path} with {header}: {status}");
                assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
                assert_eq!(kind.unwrap(), "application/problem+json", "{text}");
            }
        }
    }
    assert_eq!(cluster.get("/v1/kv/jobs/leader").await.0, StatusCode::OK);
    assert_eq!(cluster.get(&operator).await.1["status"], "running");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_is_answered_as_get_without_a_body() {
    let cluster = Cluster::start(2).await;
    cluster.create_table(&bigint_table("t")).await;
    let leader = cluster.url(cluster.leader().await);
    let ask = |method: Method, path: &str| cluster.http.request(method, format!("{leader}{path}")).send();
    for path in ["/livez", "/v1/routes", "/v1/routes/t?key=1", "/v1/shards", "/v1/nothing", "/v1/ranges/1/split"] {
        let (get, head) = (ask(Method::GET, path).await.unwrap(), ask(Method::HEAD, path).await.unwrap());
        assert_eq!(
            (head.status(), head.headers().get("content-type")),
            (get.status(), get.headers().get("content-type"))
        );
        assert!(head.bytes().await.unwrap().is_empty(), "{path}");
    }
    let refused = ask(Method::PUT, "/v1/shards").await.unwrap();
    assert_eq!(refused.headers()["allow"], "GET, HEAD, POST");
    cluster.stop().await;
}

/// A shard with mistyped addresses never reports. No table is placed on it, and a table that was
/// placed on it by name can be cancelled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistyped_shard_can_be_undone() {
    let cluster = Cluster::start(2).await;
    cluster.create_table(&bigint_table("first")).await;
    let mistyped = json!({ "id": 9, "replicas": { "1": "127.0.0.1:1" } });
    assert_eq!(cluster.post("/v1/shards", &mistyped).await.0, StatusCode::CREATED);
    for name in ["second", "third", "fourth"] {
        let (status, body) = cluster.post("/v1/tables", &json!({ "schema": bigint_table(name) })).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
    }
    let (_, ranges) = cluster.get("/v1/ranges").await;
    assert!(ranges.as_array().unwrap().iter().all(|range| range["shard"] != 9), "{ranges}");

    // A request that names the shard waits for it. A client that gives up cancels the operator.
    let url = format!("{}/v1/tables", cluster.url(cluster.leader().await));
    let there = json!({ "schema": bigint_table("there"), "shard": 9 }).to_string();
    let waiting = cluster.http.post(url).body(there).timeout(Duration::from_millis(500)).send().await;
    assert!(waiting.is_err(), "{waiting:?}");
    let (_, operators) = cluster.get("/v1/operators").await;
    assert_eq!((&operators[0]["kind"], &operators[0]["status"]), (&json!("create-table"), &json!("running")));
    let (status, body) = cluster.delete(&format!("/v1/operators/{}", operators[0]["id"])).await;
    assert_eq!((status, body["status"].as_str()), (StatusCode::ACCEPTED, Some("cancelled")), "{body}");
    cluster.create_table(&bigint_table("there")).await;

    let (status, body) = cluster.delete("/v1/shards/9").await;
    assert_eq!((status, body["status"].as_str()), (StatusCode::ACCEPTED, Some("draining")));
    eventually("the mistyped shard to go", || async {
        let (_, shards) = cluster.get("/v1/shards").await;
        (shards.as_array()?.len() == 2).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_only_when_that_is_asked_for() {
    let cluster = Cluster::start(2).await;
    cluster.create_table(&bigint_table("t")).await;
    cluster.shards.world().hold_copies = true;
    assert_eq!(cluster.delete("/v1/shards/1").await.0, StatusCode::ACCEPTED);
    let info = &cluster.shards.infos()[0];
    let again = json!({ "id": info.id, "replicas": info.replicas });
    let (status, body) = cluster.post("/v1/shards", &again).await;
    assert_eq!((status, body["status"].as_str()), (StatusCode::OK, Some("draining")), "{body}");
    let (status, body) = cluster.post("/v1/shards/1/undrain", &json!({})).await;
    assert_eq!((status, body["status"].as_str()), (StatusCode::OK, Some("active")), "{body}");
    let (status, body) = cluster.post("/v1/shards/1/undrain", &json!({})).await;
    assert_eq!((status, body["code"].as_str()), (StatusCode::CONFLICT, Some("shard-not-draining")), "{body}");
    cluster.stop().await;
}

/// A move that could not begin is refused at once, with a stable code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_to_a_shard_that_does_not_report_is_refused() {
    let cluster = Cluster::start(2).await;
    cluster.create_table(&bigint_table("t")).await;
    cluster.shards.world().dead.insert(evenkeel_protocol::ShardId(2));
    eventually("silence", || async {
        let (_, shards) = cluster.get("/v1/shards").await;
        let age_ms = shards.as_array()?[1]["report_age_ms"].as_u64();
        age_ms.is_none_or(|ms| ms > 1500).then_some(())
    })
    .await;
    let (status, body) = cluster.post("/v1/ranges/1/move", &json!({ "to": 2 })).await;
    assert_eq!((status, body["code"].as_str()), (StatusCode::CONFLICT, Some("shard-silent")), "{body}");
    cluster.stop().await;
}
