//! The coordination store over real sockets: three replicas with their real log.

use crate::cluster::{Cluster, eventually};
use evenkeel_protocol::coordination::{KvEventBody, KvListBody, KvMarkBody, KvWrittenBody, MAX_VALUE_BYTES};
use reqwest::header::{HeaderMap, HeaderName};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::Value;

/// A client that follows redirects, as curl -L does.
fn following() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    async fn of(response: Response) -> Answer {
        let (status, headers) = (response.status(), response.headers().clone());
        Answer { status, headers, body: response.bytes().await.unwrap().to_vec() }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn revision(&self) -> u64 {
        self.header("evenkeel-revision").parse().unwrap()
    }

    fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    #[track_caller]
    fn refused(&self, status: u16, code: &str) {
        let problem: Value = self.json();
        assert_eq!((self.status.as_u16(), problem["code"].as_str()), (status, Some(code)), "{problem}");
        assert_eq!(self.header("content-type"), "application/problem+json");
    }
}

/// One request to a replica. The client follows redirects, and repeats the request while there is
/// no leader, as the problem's text says: on a busy machine the leadership may change at any time.
async fn ask(base: &str, method: Method, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let headers: HeaderMap =
        headers.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect();
    eventually(path, || async {
        let request = following().request(method.clone(), format!("{base}{path}"));
        let answer = Answer::of(request.headers(headers.clone()).body(body.to_vec()).send().await.unwrap()).await;
        let leaderless =
            answer.status == StatusCode::SERVICE_UNAVAILABLE && answer.json::<Value>()["code"] == "no-leader";
        (!leaderless).then_some(answer)
    })
    .await
}

async fn put(base: &str, key: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    ask(base, Method::PUT, &format!("/v1/kv/{key}"), headers, body).await
}

async fn get(base: &str, path: &str) -> Answer {
    ask(base, Method::GET, path, &[], b"").await
}

async fn delete(base: &str, key: &str, headers: &[(&str, &str)]) -> Answer {
    ask(base, Method::DELETE, &format!("/v1/kv/{key}"), headers, b"").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_written_read_and_deleted_at_any_replica() {
    let cluster = Cluster::start(1).await;
    let bytes: Vec<u8> = (0..=255).collect();
    let follower = cluster.url(cluster.follower().await);
    let written = put(&follower, "conf/a%20b/%C3%A4", &[("content-type", "image/x-test")], &bytes).await;
    assert_eq!(written.status, StatusCode::CREATED);
    assert_eq!(written.json::<KvWrittenBody>(), KvWrittenBody { revision: 1, created: true });
    assert_eq!((written.header("etag"), written.revision()), ("\"1\"", 1));
    for replica in cluster.alive() {
        let url = cluster.url(replica);
        for query in ["", "?consistency=linearizable", "?consistency=sequential&min_revision=1"] {
            let read = get(&url, &format!("/v1/kv/conf/a%20b/%C3%A4{query}")).await;
            assert_eq!((read.status, &read.body), (StatusCode::OK, &bytes), "{query}");
            assert_eq!((read.header("content-type"), read.header("etag")), ("image/x-test", "\"1\""));
            assert_eq!((read.revision(), read.header("x-content-type-options")), (1, "nosniff"));
        }
        let known = ask(&url, Method::GET, "/v1/kv/conf/a%20b/%C3%A4", &[("if-none-match", "\"1\"")], b"").await;
        assert_eq!(known.status, StatusCode::NOT_MODIFIED);
    }
    // Without a type it is bytes; an empty value is a value.
    assert_eq!(put(&follower, "empty", &[], b"").await.status, StatusCode::CREATED);
    let read = get(&follower, "/v1/kv/empty").await;
    assert_eq!((read.status, read.header("content-type")), (StatusCode::OK, "application/octet-stream"));
    assert!(read.body.is_empty());
    assert_eq!(delete(&follower, "empty", &[]).await.json::<KvWrittenBody>().revision, 3);
    let gone = get(&follower, "/v1/kv/empty").await;
    gone.refused(404, "unknown-key");
    assert_eq!(gone.revision(), 3);
    delete(&follower, "empty", &[]).await.refused(404, "unknown-key");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_are_checked_in_the_log_and_repetitions_recognised() {
    let cluster = Cluster::start(1).await;
    let url = cluster.url(cluster.follower().await);
    let create = [("if-none-match", "*"), ("idempotency-key", "order-17")];
    let first = put(&url, "lock", &create, b"me").await;
    assert_eq!(first.status, StatusCode::CREATED);
    // The answer was lost and the client repeats the request: the answer says that it has the lock.
    let again = put(&url, "lock", &create, b"me").await;
    assert_eq!((again.status, again.header("etag"), &again.body), (StatusCode::CREATED, "\"1\"", &first.body));
    put(&url, "lock", &create, b"you").await.refused(422, "idempotency-key-reused");
    let lost = put(&url, "lock", &[("if-none-match", "*")], b"you").await;
    lost.refused(412, "revision-mismatch");
    assert_eq!(lost.header("etag"), "\"1\"");
    assert_eq!(put(&url, "lock", &[("if-match", "\"1\"")], b"me too").await.revision(), 2);
    put(&url, "lock", &[("if-match", "\"1\"")], b"late").await.refused(412, "revision-mismatch");
    put(&url, "nothing", &[("if-match", "*")], b"").await.refused(412, "revision-mismatch");
    delete(&url, "lock", &[("if-match", "\"1\"")]).await.refused(412, "revision-mismatch");
    assert_eq!(delete(&url, "lock", &[("if-match", "\"2\"")]).await.revision(), 3);

    // Of many that compare and set, exactly one wins each revision.
    put(&url, "counter", &[], b"0").await;
    let adders = (0..6).map(|_| {
        let url = url.clone();
        tokio::spawn(async move {
            let mut added = 0;
            while added < 5 {
                let read = get(&url, "/v1/kv/counter").await;
                let value: u64 = String::from_utf8(read.body.clone()).unwrap().parse().unwrap();
                let tag = read.header("etag").to_string();
                let next = (value + 1).to_string();
                let wrote = put(&url, "counter", &[("if-match", &tag)], next.as_bytes()).await;
                added += u64::from(wrote.status == StatusCode::OK);
            }
        })
    });
    for adder in adders.collect::<Vec<_>>() {
        adder.await.unwrap();
    }
    assert_eq!(get(&url, "/v1/kv/counter").await.body, b"30");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_are_refused_with_a_stable_code() {
    let cluster = Cluster::start(1).await;
    let url = cluster.url(cluster.leader().await);
    put(&url, "", &[], b"").await.refused(400, "bad-key");
    put(&url, "%ff", &[], b"").await.refused(400, "bad-request");
    put(&url, &"k".repeat(513), &[], b"").await.refused(414, "key-too-long");
    get(&url, &format!("/v1/kv/{}", "k".repeat(513))).await.refused(414, "key-too-long");
    assert_eq!(put(&url, "large", &[], &vec![7; MAX_VALUE_BYTES]).await.status, StatusCode::CREATED);
    put(&url, "large", &[], &vec![7; MAX_VALUE_BYTES + 1]).await.refused(413, "body-too-large");
    put(&url, "k", &[("if-match", "W/\"1\"")], b"").await.refused(400, "bad-request");
    put(&url, "k", &[("if-match", "\"1\""), ("if-none-match", "*")], b"").await.refused(400, "bad-request");
    put(&url, "k", &[("idempotency-key", &"i".repeat(65))], b"").await.refused(400, "bad-request");
    put(&url, "k?x=1", &[], b"").await.refused(400, "bad-request");
    get(&url, "/v1/kv/k?consistency=some").await.refused(400, "bad-request");
    get(&url, "/v1/kv/k?min_revision=3").await.refused(400, "bad-request");
    get(&url, "/v1/kv?limit=0").await.refused(400, "bad-request");
    get(&url, "/v1/watch/kv?since=x").await.refused(400, "bad-request");
    let posted = ask(&url, Method::POST, "/v1/kv/k", &[], b"").await;
    posted.refused(405, "method-not-allowed");
    assert_eq!(posted.header("allow"), "GET, HEAD, PUT, DELETE");
    // A revision that no replica has reached: nothing is made up.
    get(&url, "/v1/kv/k?consistency=sequential&min_revision=99").await.refused(503, "behind");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_listed_by_prefix_page_by_page() {
    let cluster = Cluster::start(1).await;
    let url = cluster.url(cluster.follower().await);
    for n in 0..7 {
        put(&url, &format!("members/{n}"), &[("content-type", "text/plain")], format!("m{n}").as_bytes()).await;
    }
    put(&url, "members0", &[], b"not one").await;
    put(&url, "members/binary", &[], &[0xFF]).await;
    let (mut keys, mut after, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page: KvListBody = get(&url, &format!("/v1/kv?prefix=members/&limit=3{after}")).await.json();
        pages += 1;
        assert_eq!(page.revision, 9);
        keys.extend(page.entries.iter().map(|entry| (entry.key.clone(), entry.value.bytes().unwrap())));
        match page.next {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!((keys.len(), pages), (8, 3));
    assert_eq!(keys[2], ("members/2".into(), b"m2".to_vec()));
    assert_eq!(keys[7], ("members/binary".into(), vec![0xFF]));
    let bare: KvListBody = get(&url, "/v1/kv?prefix=members/1&values=false").await.json();
    assert_eq!((bare.entries.len(), bare.entries[0].value.bytes(), bare.entries[0].bytes), (1, None, 2));
    cluster.stop().await;
}

/// Reads server-sent events, as much of them as is needed here: (name, id, data).
struct Events {
    response: Response,
    buffer: String,
}

impl Events {
    async fn open(url: &str, path: &str, last: Option<u64>) -> Option<Events> {
        let mut request = following().get(format!("{url}{path}"));
        if let Some(last) = last {
            request = request.header("last-event-id", last.to_string());
        }
        let response = request.send().await.ok()?;
        (response.status() == StatusCode::OK).then(|| Events { response, buffer: String::new() })
    }

    async fn next(&mut self) -> Option<(String, u64, String)> {
        loop {
            if let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let (block, rest) = (block.to_string(), rest.to_string());
                self.buffer = rest;
                let field = |name: &str| {
                    let mut lines = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                    lines.next().map(|value| value.trim_start().to_string())
                };
                if let (Some(name), Some(id), Some(data)) = (field("event"), field("id"), field("data")) {
                    return Some((name, id.parse().unwrap(), data));
                }
                continue;
            }
            let chunk = evenkeel_host::timeout(crate::cluster::PATIENCE, self.response.chunk()).await.ok()?.ok()??;
            self.buffer.push_str(&String::from_utf8_lossy(&chunk));
        }
    }
}

/// A watcher changes replicas whenever its stream breaks, and a leader dies while keys are written.
/// Every change of the prefix arrives exactly once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_sees_every_change_once_across_reconnects_and_failover() {
    let mut cluster = Cluster::start(1).await;
    let leader = cluster.leader().await;
    let mut written = Vec::new();
    let mut seen: Vec<(u64, String, Option<Vec<u8>>)> = Vec::new();
    let mut last = Some(0);
    let mut watch: Option<Events> = None;
    for n in 0..30 {
        if n == 12 {
            cluster.kill(leader).await;
        }
        if n == 20 {
            cluster.revive(leader);
        }
        let (method, path) = match n % 5 {
            4 => (Method::DELETE, format!("/v1/kv/w/{}", (n - 1) % 3)),
            _ => (Method::PUT, format!("/v1/kv/w/{}", n % 3)),
        };
        let body = format!("{n}").into_bytes();
        let value = (method == Method::PUT).then(|| body.clone());
        let (status, answer) = cluster.send(method, &path, Some(body)).await;
        if status.is_success() {
            written.push((answer["revision"].as_u64().unwrap(), path["/v1/kv/".len()..].to_string(), value));
        }
        cluster.send(Method::PUT, "/v1/kv/other", Some(b"x".to_vec())).await;
        if n % 6 == 0 {
            watch = None;
        }
        // Take the events that are ready after each write, and change replicas when the stream is
        // gone.
        while seen.len() < written.len() {
            let Some(events) = &mut watch else {
                let alive = cluster.alive();
                let url = cluster.url(alive[n % alive.len()]);
                watch = Events::open(&url, "/v1/watch/kv?prefix=w/", last).await;
                continue;
            };
            let Some((name, id, data)) = events.next().await else {
                watch = None;
                continue;
            };
            last = Some(id);
            if name == "put" || name == "delete" {
                let event: KvEventBody = serde_json::from_str(&data).unwrap();
                assert_eq!((event.revision, event.entry.is_some()), (id, name == "put"));
                seen.push((id, event.key, event.entry.map(|entry| entry.value.bytes().unwrap())));
            }
        }
    }
    assert_eq!(seen, written);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_is_too_far_behind_learns_that() {
    let cluster = Cluster::start(1).await;
    let url = cluster.url(cluster.leader().await);
    let mut slow = Events::open(&url, "/v1/watch/kv", None).await.unwrap();
    assert_eq!(slow.next().await.unwrap().0, "begin");
    // More changes than the history keeps.
    for n in 0..40_u32 {
        let value = vec![n as u8; MAX_VALUE_BYTES];
        assert!(put(&url, "large", &[], &value).await.status.is_success());
    }
    get(&url, "/v1/watch/kv?since=1").await.refused(410, "compacted");
    let list: KvListBody = get(&url, "/v1/kv?values=false").await.json();
    let mut again = Events::open(&url, "/v1/watch/kv", Some(list.revision)).await.unwrap();
    let (name, id, data) = again.next().await.unwrap();
    assert_eq!((name.as_str(), id, serde_json::from_str::<KvMarkBody>(&data).unwrap().revision), ("begin", 40, 40));
    // A watcher that did not read for long has received all changes, or learns where they break
    // off.
    let mut last = 0;
    while let Some((name, id, _)) = slow.next().await {
        assert!(id > last, "{name} {id} after {last}");
        last = id;
        if name == "compacted" || id == 40 {
            break;
        }
        assert_eq!(name, "put");
    }
    cluster.stop().await;
}

/// Every replica ends and restarts. A replica that was away for too long fetches the state from
/// another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_in_the_snapshot_and_in_the_state_transfer() {
    let mut cluster = Cluster::start_with(1, |config| {
        config.snapshot_every_entries = 5;
        config.log_retention_bytes = 0;
        // Half of this is less than the test writes: the log then waits for no replica.
        config.log_cap_bytes = 2 << 20;
    })
    .await;
    let away = cluster.follower().await;
    cluster.kill(away).await;
    for n in 0..60 {
        let path = format!("/v1/kv/k/{}", n % 20);
        let (status, _) = cluster.send(Method::PUT, &path, Some(vec![n; 20_000])).await;
        assert!(status.is_success());
    }
    let leader = cluster.url(cluster.leader().await);
    eventually("the log to be compacted", || async {
        let status: Value = get(&leader, "/v1/status").await.json();
        (status["log"]["first"].as_u64()? > 20).then_some(())
    })
    .await;
    let expected: KvListBody = get(&leader, "/v1/kv?limit=1000").await.json();
    assert_eq!((expected.entries.len(), expected.revision), (20, 60));
    cluster.revive(away);
    let url = cluster.url(away);
    eventually("the returned replica to have everything", || async {
        let path = format!("{url}/v1/kv?limit=1000&consistency=sequential&min_revision=60");
        let read = Answer::of(following().get(path).send().await.ok()?).await;
        (read.status == StatusCode::OK && read.json::<KvListBody>() == expected).then_some(())
    })
    .await;
    // The history came with the state: a watcher can continue here.
    let mut watch = Events::open(&url, "/v1/watch/kv", Some(50)).await.unwrap();
    let mut ids = Vec::new();
    while ids.last() != Some(&60) {
        ids.push(watch.next().await.unwrap().1);
    }
    assert_eq!(ids, (50..=60).collect::<Vec<_>>());
    drop(watch);
    for replica in cluster.alive() {
        cluster.kill(replica).await;
    }
    for replica in 1..=3 {
        cluster.revive(replica);
    }
    let url = cluster.url(cluster.leader().await);
    assert_eq!(get(&url, "/v1/kv?limit=1000").await.json::<KvListBody>(), expected);
    assert_eq!(put(&url, "k/0", &[], b"on").await.revision(), 61);
    cluster.stop().await;
}
