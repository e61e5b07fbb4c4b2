//! Updates of the routing table by redirects, by the watch and by fetches; and the creation of
//! tables.

use crate::world::Cluster;
use crate::{BUMP, INSERT, READ, config, connect, until};
use evenkeel_client::{Client, ClientConfig, ClientError};
use evenkeel_protocol::routing::RoutingTable;

/// The placement driver does not know ten moves; only the shards' redirects lead to the range. A
/// redirect does not contain the range's bounds, so it serves the current statement only; the table
/// is correct once the placement driver knows.
#[tokio::test]
async fn a_stale_client_arrives_after_ten_moves() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    client.execute(INSERT, &[1.into()]).await.unwrap();
    for turn in 0..10 {
        cluster.world().move_range(1, [2, 3, 1][turn % 3]);
    }
    let answer = client.execute(BUMP, &[1.into()]).await.unwrap();
    assert_eq!((answer.shard.0, cluster.value(1)), (2, Some(2)));
    let way = client.stats().redirects;
    assert!((1..=10).contains(&way), "{way} redirects");
    assert_eq!(client.execute(READ, &[1.into()]).await.unwrap().shard.0, 2);
    cluster.publish();
    let owner = || client.routes().lookup(crate::world::TABLE, &crate::world::key(1)).unwrap().shard.0;
    until("the table is right", || owner() == 2).await;
    assert_eq!(client.execute(READ, &[1.into()]).await.unwrap().retries, 0);
    assert_eq!(client.stats().failures, 0);
}

/// Single moves are learnt without the placement driver.
#[tokio::test]
async fn each_single_move_costs_one_redirect_and_no_fetch() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    client.execute(INSERT, &[1.into()]).await.unwrap();
    let before = client.stats();
    for (turn, shard) in [2, 3, 1, 3, 2, 1, 2, 1, 3, 2].into_iter().enumerate() {
        cluster.world().move_range(1, shard);
        let answer = client.execute(BUMP, &[1.into()]).await.unwrap();
        assert_eq!((answer.shard.0, answer.retries), (shard, 1), "move {turn}");
    }
    let after = client.stats();
    assert_eq!((after.redirects - before.redirects, after.refreshes - before.refreshes), (10, 0));
    assert_eq!((cluster.value(1), after.failures), (Some(11), 0));
}

#[tokio::test]
async fn a_range_that_nobody_seems_to_own_is_looked_for() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = Client::connect(ClientConfig { statement_timeout_ms: 300, ..config(&cluster) }).await.unwrap();
    cluster.put([1]);
    // Fenced at the source, not yet adopted: shard 3 neither owns it nor knows its owner.
    cluster.world().move_range(1, 3);
    let adopted = std::mem::take(&mut cluster.world().shards.get_mut(&3).unwrap().owned);
    let error = client.execute(READ, &[1.into()]).await.unwrap_err();
    assert!(matches!(error, ClientError::Unavailable(_)), "{error}");
    let client = connect(&cluster).await;
    let waiting = tokio::spawn(async move { client.execute(BUMP, &[1.into()]).await });
    until("it is looked for", || cluster.world().seen.len() > 10).await;
    cluster.world().shards.get_mut(&3).unwrap().owned = adopted;
    assert_eq!(waiting.await.unwrap().unwrap().shard.0, 3);
}

#[tokio::test]
async fn the_watch_tells_before_a_redirect_has_to() {
    let cluster = Cluster::start(&[(1, 10), (2, 0)]).await;
    let client = connect(&cluster).await;
    cluster.put([5]);
    let owner = |n: i64| client.routes().lookup(crate::world::TABLE, &crate::world::key(n)).unwrap().shard.0;
    cluster.world().move_range(1, 3);
    cluster.publish();
    until("the watch has told", || owner(5) == 3).await;
    // After a cut the watch continues at another endpoint, after its last event; changes meanwhile
    // arrive then.
    cluster.placement.iter().for_each(|endpoint| endpoint.cut_watches());
    cluster.world().split(2, 15, 9);
    cluster.world().move_range(9, 1);
    cluster.publish();
    until("the watch has told again", || owner(20) == 1 && owner(12) == 2).await;
    let answer = client.execute(BUMP, &[5.into()]).await.unwrap();
    assert_eq!((answer.shard.0, client.stats().redirects), (3, 0));
    let opened: Vec<Vec<String>> =
        cluster.placement.iter().map(|endpoint| endpoint.resumed_from.lock().unwrap().clone()).collect();
    let all: Vec<&String> = opened.iter().flatten().collect();
    assert!(all.len() >= 2 && all.contains(&&"1.1".to_string()) && all.contains(&&"1.2".to_string()), "{opened:?}");
    assert!(client.stats().watched > 0);
}

#[tokio::test]
async fn one_endpoint_suffices() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    cluster.placement[0].stop();
    // At any endpoint that a client begins with.
    for _ in 0..4 {
        let client = connect(&cluster).await;
        client.refresh().await.unwrap();
        client.execute(READ, &[1.into()]).await.unwrap();
    }
    cluster.placement[1].stop();
    let config = ClientConfig { statement_timeout_ms: 100, ..config(&cluster) };
    let Err(error) = Client::connect(config).await else { panic!("connected to nothing") };
    assert!(matches!(&error, ClientError::Unavailable(e) if e.code == "08006"), "{error}");
}

/// All configured replicas of the placement driver can be replaced while a client runs.
#[tokio::test]
async fn endpoints_that_the_watch_tells_of_are_learned() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    cluster.world().members = vec![cluster.placement[1].address];
    let endpoints = vec![format!("http://{}", cluster.placement[0].address)];
    let client = Client::connect(ClientConfig { endpoints, ..config(&cluster) }).await.unwrap();
    // The client has learnt the new endpoint once the watch continues there.
    let told = || !cluster.placement[1].resumed_from.lock().unwrap().is_empty();
    until("it goes on at the other endpoint", || {
        cluster.placement[0].cut_watches();
        told()
    })
    .await;
    cluster.placement[0].stop();
    for _ in 0..3 {
        client.refresh().await.unwrap();
    }
    cluster.world().move_range(1, 3);
    cluster.publish();
    let owner = || client.routes().lookup(crate::world::TABLE, &crate::world::key(1)).unwrap().shard.0;
    until("the watch goes on", || owner() == 3).await;
}

/// Callers that arrive during a fetch share the next one.
#[tokio::test]
async fn fetches_are_shared() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    let before = client.stats().refreshes;
    let all = (0..200).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.refresh().await })
    });
    for one in all.collect::<Vec<_>>() {
        one.await.unwrap().unwrap();
    }
    let fetches = client.stats().refreshes - before;
    assert!((1..=10).contains(&fetches), "{fetches} fetches");
}

const CREATE: &str = "CREATE TABLE u (id bigint PRIMARY KEY, v text)";

#[tokio::test]
async fn a_table_is_created_once_and_known_at_once() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    let other = connect(&cluster).await;
    let answer = client.execute(CREATE, &[]).await.unwrap();
    assert_eq!((answer.shard.0, answer.affected), (2, 0));
    assert!(client.routes().table("u").is_some());
    let error = client.execute(CREATE, &[]).await.unwrap_err();
    assert_eq!(error.code(), "42P07");
    client.execute("CREATE TABLE IF NOT EXISTS u (id bigint PRIMARY KEY, v text)", &[]).await.unwrap();
    // Another client, which does not know the table, asks before it reports that there is no such
    // table.
    let error = other.execute("SELECT * FROM v", &[]).await.unwrap_err();
    assert_eq!(error.code(), "42P01");
    assert!(other.routes().table("u").is_some());
}

#[tokio::test]
async fn a_creation_whose_answer_is_lost_is_found_out_about() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    // Twice there is no leader; then the table is created, and the answer reports a failure.
    cluster.world().table_faults.extend([503, 503, 503, 500]);
    client.execute(CREATE, &[]).await.unwrap();
    cluster.world().table_faults.extend(std::iter::repeat_n(503, 1000));
    let client = Client::connect(ClientConfig { statement_timeout_ms: 1_000, ..config(&cluster) }).await.unwrap();
    let error = client.execute("CREATE TABLE w (id bigint PRIMARY KEY)", &[]).await.unwrap_err();
    // Which of the two depends on whether the deadline cancelled the last request.
    assert!(matches!(error, ClientError::Unavailable(_) | ClientError::OutcomeUnknown(_)), "{error}");
    assert!(client.routes().table("w").is_none());
}

/// A replica of the placement driver that was started just now knows no table yet. Breaks if the
/// client takes its word for it.
#[tokio::test]
async fn a_table_that_one_endpoint_does_not_know_yet_is_asked_for_at_the_others() {
    let (cluster, behind) = (Cluster::start(&[(1, 0)]).await, Cluster::start(&[(1, 0)]).await);
    let mut version = cluster.world().published.version;
    version.number = 0;
    behind.world().published = RoutingTable::new(version, [], [], []);
    cluster.put([1]);
    let endpoints = behind.endpoints().into_iter().take(1).chain(cluster.endpoints());
    let config = ClientConfig { endpoints: endpoints.collect(), ..config(&cluster) };
    // Clients begin at random endpoints.
    for _ in 0..12 {
        let client = Client::connect(config.clone()).await.unwrap();
        assert_eq!(client.execute(READ, &[1.into()]).await.unwrap().rows.count, 1);
        let error = client.execute("SELECT * FROM nowhere", &[]).await.unwrap_err();
        assert_eq!(error.code(), "42P01");
    }
}

/// Breaks if a table is said not to exist because nobody could be asked.
#[tokio::test]
async fn an_unknown_table_is_not_said_to_be_missing_while_no_endpoint_answers() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = Client::connect(ClientConfig { statement_timeout_ms: 300, ..config(&cluster) }).await.unwrap();
    cluster.placement.iter().for_each(crate::placement::Endpoint::stop);
    let gone = |endpoint: &String| std::net::TcpStream::connect(endpoint.trim_start_matches("http://")).is_err();
    until("the endpoints are gone", || cluster.endpoints().iter().all(gone)).await;
    let error = client.execute("SELECT * FROM nowhere", &[]).await.unwrap_err();
    assert!(matches!(error, ClientError::Unavailable(_)), "{error}");
}

/// A replica of the placement driver that has lost its disk knows neither tables nor shards. Breaks
/// if that is taken for the state of the cluster.
#[tokio::test]
async fn a_table_is_not_said_to_be_missing_by_a_replica_that_knows_nothing() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let published = std::mem::take(&mut cluster.world().published);
    let client = Client::connect(ClientConfig { statement_timeout_ms: 300, ..config(&cluster) }).await.unwrap();
    let error = client.execute(READ, &[1.into()]).await.unwrap_err();
    assert!(matches!(error, ClientError::Unavailable(_)), "{error}");
    cluster.world().published = published;
    cluster.put([1]);
    assert_eq!(client.execute(READ, &[1.into()]).await.unwrap().rows.count, 1);
}
