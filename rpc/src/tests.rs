#![allow(clippy::unwrap_used)]
use super::*;
use crate::budget::{Budget, kibibytes};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;

struct Echo {
    release: Notify,
    waiting: AtomicUsize,
    /// Requests whose callers were noticed to be gone.
    gone: AtomicUsize,
}

impl Service for Echo {
    type Request = String;
    type Reply = String;
    type Session = ();

    fn opened(&self, _: std::net::SocketAddr) {}

    async fn call(self: Arc<Self>, _: Arc<()>, request: String, mut replier: Replier<String>) {
        match request.as_str() {
            "drop" => {}
            "until gone" => {
                let gone = replier.gone();
                self.waiting.fetch_add(1, Ordering::SeqCst);
                gone.gone().await;
                self.gone.fetch_add(1, Ordering::SeqCst);
                replier.reply(&request).await;
            }
            _ if request.starts_with("never") => {
                let released = self.release.notified();
                self.waiting.fetch_add(1, Ordering::SeqCst);
                released.await;
                replier.reply(&request).await;
            }
            "count" => {
                for n in 0..100 {
                    assert!(replier.item(&n.to_string()).await);
                }
                replier.reply(&"end".to_string()).await;
            }
            "long" => replier.reply_or(&"x".repeat(MAX_FRAME_BYTES), |_| "too long".into()).await,
            _ => replier.reply(&request).await,
        }
    }
}

async fn start() -> (Connection<String, String>, Arc<Echo>, tokio::task::JoinHandle<()>) {
    start_within(MAX_REQUEST_BYTES).await
}

async fn start_within(bytes: usize) -> (Connection<String, String>, Arc<Echo>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let echo = Arc::new(Echo { release: Notify::new(), waiting: AtomicUsize::new(0), gone: AtomicUsize::new(0) });
    let server = tokio::spawn(server::serve_within(listener.into(), echo.clone(), std::future::pending(), bytes));
    (Connection::connect(address, Duration::from_secs(5)).await.unwrap(), echo, server)
}

#[tokio::test]
async fn replies_find_their_requests_in_whatever_order() {
    let (connection, echo, _server) = start().await;
    let slow = tokio::spawn({
        let connection = connection.clone();
        async move { connection.call(&"never".to_string()).await }
    });
    let calls = (0..500).map(|n| {
        let connection = connection.clone();
        tokio::spawn(async move { assert_eq!(connection.call(&n.to_string()).await.unwrap(), n.to_string()) })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    echo.release.notify_one();
    assert_eq!(slow.await.unwrap().unwrap(), "never");
}

#[tokio::test]
async fn a_stream_comes_whole_and_in_order() {
    let (connection, _, _server) = start().await;
    let mut stream = connection.stream(&"count".to_string()).await.unwrap();
    // The stream keeps its connection.
    drop(connection);
    for n in 0..100 {
        assert_eq!(stream.next().await.unwrap(), n.to_string());
    }
    assert_eq!(stream.next().await.unwrap(), "end");
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn a_request_without_an_answer_is_lost_and_the_connection_lives() {
    let (connection, _, _server) = start().await;
    assert!(matches!(connection.call(&"drop".to_string()).await, Err(RpcError::Lost(_))));
    assert_eq!(connection.call(&"hello".to_string()).await.unwrap(), "hello");
}

#[tokio::test]
async fn the_end_of_the_server_ends_what_waits() {
    let (connection, _, server) = start().await;
    let waiting = tokio::spawn({
        let connection = connection.clone();
        async move { connection.call(&"never".to_string()).await }
    });
    assert_eq!(connection.call(&"hello".to_string()).await.unwrap(), "hello");
    server.abort();
    assert!(matches!(waiting.await.unwrap(), Err(RpcError::Lost(_))));
    assert!(connection.is_closed());
    assert!(matches!(connection.call(&"hello".to_string()).await, Err(RpcError::Lost(_))));
}

#[tokio::test]
async fn a_request_that_is_too_long_is_never_sent() {
    let (connection, _, _server) = start().await;
    let long = "x".repeat(MAX_FRAME_BYTES + 1);
    assert!(matches!(connection.call(&long).await, Err(RpcError::Unsendable(_))));
    assert_eq!(connection.call(&"hello".to_string()).await.unwrap(), "hello");
}

#[tokio::test]
async fn garbage_ends_the_connection() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (connection, _, _server) = start().await;
    let mut raw = tokio::net::TcpStream::connect(connection.address()).await.unwrap();
    raw.write_all(&[0xFF; 64]).await.unwrap();
    assert_eq!(raw.read(&mut [0; 8]).await.unwrap(), 0);
}

/// Requests in execution occupy at most the given memory together; further ones wait with their
/// sender and are served later.
#[tokio::test]
async fn requests_together_are_bounded_in_bytes() {
    const EACH: usize = 64 << 10;
    let (connection, echo, _server) = start_within(8 * EACH).await;
    let address = connection.address();
    // Each of these is read and not answered; together they occupy all memory.
    let blocked = (0..8).map(|_| {
        tokio::spawn(async move {
            let connection: Connection<String, String> =
                Connection::connect(address, Duration::from_secs(5)).await.unwrap();
            connection.call(&format!("never{}", " ".repeat(EACH - 64))).await
        })
    });
    let blocked: Vec<_> = blocked.collect();
    while echo.waiting.load(Ordering::SeqCst) < blocked.len() {
        evenkeel_host::sleep(Duration::from_millis(5)).await;
    }
    let mut further = tokio::spawn(async move { connection.call(&"further".to_string()).await });
    // It cannot be answered while all of them wait; the end of one makes room for it.
    assert!(evenkeel_host::timeout(Duration::from_millis(200), &mut further).await.is_err());
    echo.release.notify_one();
    assert_eq!(further.await.unwrap().unwrap(), "further");
    echo.release.notify_waiters();
    for call in blocked {
        call.await.unwrap().unwrap();
    }
}

/// Breaks if a frame that never arrives whole keeps its memory: nothing would be read after its
/// peer's machine has failed.
#[tokio::test(start_paused = true)]
async fn requests_that_never_arrive_whole_give_their_room_back() {
    use tokio::io::AsyncWriteExt;
    const EACH: usize = 1 << 20;
    let room = Budget::of_bytes(2 * EACH);
    // Each announces 1 MiB, of which only `bytes` arrive.
    let begun = |bytes: usize| {
        let (near, mut far) = tokio::io::duplex(2 * EACH);
        let room = room.clone();
        let reading = tokio::spawn(async move {
            let mut reader = frame::FrameReader::new(near);
            let length = reader.length().await?.unwrap();
            server::admit(&mut reader, length, &room).await
        });
        async move {
            far.write_all(&(EACH as u32).to_le_bytes()).await.unwrap();
            far.write_all(&vec![0; bytes]).await.unwrap();
            (far, reading)
        }
    };
    let mut stuck = Vec::new();
    for bytes in [0, 0, EACH / 2, EACH / 2] {
        stuck.push(begun(bytes).await);
    }
    // A request whose bytes all arrive gets its memory in time.
    let (_far, whole) = begun(EACH).await;
    assert!(whole.await.unwrap().is_ok());
    for (_far, reading) in stuck {
        assert_eq!(reading.await.unwrap().unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    }
    assert_eq!(room.free(), kibibytes(2 * EACH) as usize);
}

/// Breaks if a request that has only begun reserves the memory of the whole.
#[tokio::test(start_paused = true)]
async fn a_large_request_takes_little_room_before_its_beginning_is_there() {
    use tokio::io::AsyncWriteExt;
    let room = Budget::of_bytes(1 << 20);
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let (taken, within) = (room.clone(), Duration::from_secs(1));
    let mut reader = frame::FrameReader::new(near);
    far.write_all(&(1u32 << 20).to_le_bytes()).await.unwrap();
    let length = reader.length().await.unwrap().unwrap();
    assert!(evenkeel_host::timeout(within, server::admit(&mut reader, length, &taken)).await.is_err());
    let admitting = tokio::spawn(async move { server::admit(&mut reader, length, &taken).await.map(drop) });
    tokio::task::yield_now().await;
    assert_eq!(room.free(), 1024 - 64);
    drop(far);
    assert!(admitting.await.unwrap().is_err());
}

/// Breaks if a server writes for ever to a peer that reads nothing.
#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_loses_its_connection() {
    let (near, _far) = tokio::io::duplex(1024);
    let (frames, queue) = tokio::sync::mpsc::channel(4);
    let writing = tokio::spawn(frame::write_all(near, queue));
    frames.send(vec![0; 4096].into()).await.unwrap();
    assert_eq!(writing.await.unwrap().unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

/// Replies that their reader does not take occupy at most the given memory.
#[tokio::test]
async fn replies_that_nobody_reads_are_bounded_in_bytes() {
    let (frames, mut queue) = tokio::sync::mpsc::channel(16);
    let room = Budget::of_bytes(100 << 10);
    let replier = || Replier::<String>::new(1, frames.clone(), room.clone(), Arc::default());
    let long = "x".repeat(40 << 10);
    replier().reply(&long).await;
    replier().reply(&long).await;
    let (third, text) = (replier(), long.clone());
    let third = tokio::spawn(async move { third.reply(&text).await });
    // There is memory for two; the third waits until one of them has been written.
    assert_eq!(room.free(), 100 - 2 * 41);
    drop(queue.recv().await.unwrap());
    third.await.unwrap();
    assert!(queue.recv().await.is_some() && queue.recv().await.is_some());
}

/// A reply that is too long for a frame is replaced; the connection and its other requests
/// continue.
#[tokio::test]
async fn a_reply_that_is_too_long_is_replaced() {
    let (connection, _, _server) = start().await;
    assert_eq!(connection.call(&"long".to_string()).await.unwrap(), "too long");
    assert_eq!(connection.call(&"short".to_string()).await.unwrap(), "short");
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = evenkeel_host::tokio_now() + Duration::from_secs(30);
    while !is_so() {
        assert!(evenkeel_host::tokio_now() < deadline, "not within half a minute: {what}");
        tokio::task::yield_now().await;
    }
}

// E3: a request whose caller has stopped waiting can be ended while its connection goes on.
#[tokio::test]
async fn a_caller_that_stops_waiting_is_noticed() {
    let (connection, echo, _server) = start().await;
    let call = tokio::spawn({
        let connection = connection.clone();
        async move { connection.call(&"until gone".to_string()).await }
    });
    let stream = connection.stream(&"until gone".to_string()).await.unwrap();
    until("both are under way", || echo.waiting.load(Ordering::SeqCst) == 2).await;
    assert_eq!(echo.gone.load(Ordering::SeqCst), 0);
    call.abort();
    until("the call is given up", || echo.gone.load(Ordering::SeqCst) == 1).await;
    drop(stream);
    until("the stream is given up", || echo.gone.load(Ordering::SeqCst) == 2).await;
    assert_eq!(connection.call(&"hello".to_string()).await.unwrap(), "hello");
    let last = connection.stream(&"until gone".to_string()).await.unwrap();
    until("the last is under way", || echo.waiting.load(Ordering::SeqCst) == 3).await;
    // The end of a connection is the end of all of its callers.
    drop((connection, last));
    until("the connection's end is noticed", || echo.gone.load(Ordering::SeqCst) == 3).await;
}

// E21: an urgent request gets through a connection that is full of others.
#[tokio::test]
async fn an_urgent_request_overtakes_all_that_wait() {
    let (connection, echo, _server) = start().await;
    let ordinary = MAX_REQUESTS_PER_CONNECTION - URGENT_REQUESTS_PER_CONNECTION;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..2 * MAX_REQUESTS_PER_CONNECTION {
        let connection = connection.clone();
        calls.spawn(async move { connection.call(&format!("never {n}")).await });
    }
    until("as many as may be are under way", || echo.waiting.load(Ordering::SeqCst) == ordinary).await;
    assert_eq!(connection.call_urgently(&"commit".to_string()).await.unwrap(), "commit");
    // Their places are taken until the server has answered them, whether anybody waits for that or
    // not.
    calls.shutdown().await;
    let late = connection.call_within(&"late".to_string(), Duration::from_millis(50)).await;
    assert!(matches!(late, Err(RpcError::TimedOut(_))), "{late:?}");
    echo.release.notify_waiters();
    assert_eq!(connection.call(&"late".to_string()).await.unwrap(), "late");
}
