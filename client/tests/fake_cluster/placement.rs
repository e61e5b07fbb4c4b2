//! One REST endpoint of a placement driver that serves what the world publishes: routes, their
//! watch, and the creation of tables.

use crate::world::World;
use evenkeel_protocol::api::{CreateTableBody, MemberBody, MembersBody, Problem, RouteBody, RoutesBody};
use evenkeel_protocol::interval::KeyInterval;
use evenkeel_protocol::routing::Route;
use evenkeel_protocol::{Epoch, RangeId, ShardId, TableId};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub struct Endpoint {
    pub address: SocketAddr,
    news: Arc<watch::Sender<u64>>,
    cut: watch::Sender<u64>,
    stop: watch::Sender<bool>,
    _port: TcpSocket,
    /// The `Last-Event-ID` of every opened watch.
    pub resumed_from: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone)]
struct Shared {
    world: Arc<Mutex<World>>,
    news: watch::Receiver<u64>,
    cut: watch::Receiver<u64>,
    resumed_from: Arc<Mutex<Vec<String>>>,
}

impl Endpoint {
    pub fn start(world: Arc<Mutex<World>>) -> Endpoint {
        let (listener, _port) = crate::shards::listen();
        let address = listener.local_addr().unwrap();
        let (news, news_seen) = watch::channel(0);
        let (cut, cut_seen) = watch::channel(0);
        let (stop, mut stopping) = watch::channel(false);
        let resumed_from = Arc::<Mutex<Vec<String>>>::default();
        let shared = Shared { world, news: news_seen, cut: cut_seen, resumed_from: resumed_from.clone() };
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    _ = stopping.wait_for(|stop| *stop) => return,
                    accepted = listener.accept() => {
                        connections.spawn(serve(accepted.unwrap().0, shared.clone()));
                    }
                }
            }
        });
        Endpoint { address, news: Arc::new(news), cut, stop, _port, resumed_from }
    }

    /// The published routes have changed.
    pub fn tell(&self) {
        self.news.send_modify(|n| *n += 1);
    }

    /// Ends every open watch.
    pub fn cut_watches(&self) {
        self.cut.send_modify(|n| *n += 1);
    }

    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve(stream: TcpStream, mut shared: Shared) {
    let mut stream = BufReader::new(stream);
    let (mut request, mut length, mut last_event_id) = (String::new(), 0, String::new());
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ").unwrap_or((line, ""));
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "last-event-id" => last_event_id = value.to_string(),
            _ if request.is_empty() => request = line.to_string(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let request = request.trim_end_matches(" HTTP/1.1").to_string();
    match request.as_str() {
        "GET /v1/routes" => {
            let body = routes(&shared.world.lock().unwrap(), true);
            answer(&mut stream, 200, &serde_json::to_string(&body).unwrap()).await;
        }
        "GET /v1/routes/watch" => {
            shared.resumed_from.lock().unwrap().push(last_event_id.clone());
            watch_routes(&mut stream, &mut shared, last_event_id).await;
        }
        "POST /v1/tables" => {
            let (status, text) = create_table(&shared, serde_json::from_slice(&body).unwrap());
            answer(&mut stream, status, &text).await;
        }
        other => answer(&mut stream, 404, &problem(404, other)).await,
    }
}

fn routes(world: &World, complete: bool) -> RoutesBody {
    let table = &world.published;
    let body = |route: &Route| RouteBody::new(route, table.schema(route.table).unwrap());
    RoutesBody {
        version: table.version.to_string(),
        schema_version: table.schema_version,
        complete,
        tables: table.tables().cloned().collect(),
        shards: table.shards().cloned().collect(),
        removed_shards: (1..=3).map(ShardId).filter(|id| table.shard(*id).is_none()).collect(),
        removed_tables: vec![],
        routes: table.routes().map(body).collect(),
    }
}

async fn watch_routes(stream: &mut BufReader<TcpStream>, shared: &mut Shared, last_event_id: String) {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: hello\n\n";
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    let members = shared.world.lock().unwrap().members.clone();
    if !members.is_empty() {
        let member = |(rest, replica)| MemberBody { replica, rest: Some(rest), rpc: None, log: rest };
        let body = MembersBody { epoch: 2, leader: None, members: members.into_iter().zip(1..).map(member).collect() };
        let event = format!("event: members\ndata: {}\n\n", serde_json::to_string(&body).unwrap());
        if stream.write_all(event.as_bytes()).await.is_err() {
            return;
        }
    }
    let mut sent = last_event_id;
    let cut_before = *shared.cut.borrow_and_update();
    loop {
        let news = routes(&shared.world.lock().unwrap(), false);
        if news.version != sent {
            let event = format!("id: {}\ndata: {}\n\n", news.version, serde_json::to_string(&news).unwrap());
            if stream.write_all(event.as_bytes()).await.is_err() {
                return;
            }
            sent = news.version;
        }
        tokio::select! {
            // Changes after a cut go to the next watch.
            biased;
            _ = shared.cut.wait_for(|cut| *cut != cut_before) => return,
            changed = shared.news.changed() => if changed.is_err() { return },
        }
    }
}

/// The next status of the script: below 500, or none, does the work; 500 does the work and reports
/// a failure; 503 does nothing.
fn create_table(shared: &Shared, body: CreateTableBody) -> (u16, String) {
    let mut world = shared.world.lock().unwrap();
    let fault = world.table_faults.pop_front().unwrap_or(201);
    if fault == 503 {
        return (503, problem(503, "no leader"));
    }
    if world.published.table(&body.schema.name).is_some() {
        return match body.if_not_exists {
            true => (200, "{}".into()),
            false => (409, problem(409, "it exists")),
        };
    }
    let mut schema = body.schema;
    schema.id = TableId(world.published.tables().count() as u32 + 1);
    let route = Route {
        range: RangeId(1000 + u64::from(schema.id.0)),
        epoch: Epoch(1),
        table: schema.id,
        interval: KeyInterval::ALL,
        shard: ShardId(2),
    };
    world.published.put_schema(Arc::new(schema));
    world.published.put_route(route);
    world.published.version.number += 1;
    if fault == 500 { (500, problem(500, "as the script says")) } else { (201, "{}".into()) }
}

fn problem(status: u16, detail: &str) -> String {
    let problem = Problem {
        kind: "urn:evenkeel:problem:test".into(),
        code: "test".into(),
        title: "test".into(),
        status,
        detail: detail.into(),
    };
    serde_json::to_string(&problem).unwrap()
}

async fn answer(stream: &mut BufReader<TcpStream>, status: u16, body: &str) {
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
}
