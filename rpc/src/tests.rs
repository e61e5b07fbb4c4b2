#![allow(clippy::unwrap_used)]
use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;

struct Echo {
    release: Notify,
    waiting: AtomicUsize,
}

impl Service for Echo {
    type Request = String;
    type Reply = String;
    type Session = ();

    fn opened(&self, _: std::net::SocketAddr) {}

    async fn call(self: Arc<Self>, _: Arc<()>, request: String, mut replier: Replier<String>) {
        match request.as_str() {
            "drop" => {}
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
    let echo = Arc::new(Echo { release: Notify::new(), waiting: AtomicUsize::new(0) });
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
async fn what_is_too_long_is_never_sent() {
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

/// Requests under way may take so much together and no more; what is beyond waits with its sender and is served later.
#[tokio::test]
async fn requests_together_are_bounded_in_bytes() {
    const EACH: usize = 64 << 10;
    let (connection, echo, _server) = start_within(8 * EACH).await;
    let address = connection.address();
    // Each of these is taken in and not answered; together they take all that there is.
    let blocked = (0..8).map(|_| {
        tokio::spawn(async move {
            let connection: Connection<String, String> =
                Connection::connect(address, Duration::from_secs(5)).await.unwrap();
            connection.call(&format!("never{}", " ".repeat(EACH - 64))).await
        })
    });
    let blocked: Vec<_> = blocked.collect();
    while echo.waiting.load(Ordering::SeqCst) < blocked.len() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut further = tokio::spawn(async move { connection.call(&"further".to_string()).await });
    // It cannot be answered as long as all of them wait; one of them ending makes room for it.
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut further).await.is_err());
    echo.release.notify_one();
    assert_eq!(further.await.unwrap().unwrap(), "further");
    echo.release.notify_waiters();
    for call in blocked {
        call.await.unwrap().unwrap();
    }
}

/// Replies that their reader does not take may take so much and no more.
#[tokio::test]
async fn replies_that_nobody_reads_are_bounded_in_bytes() {
    let (frames, mut queue) = tokio::sync::mpsc::channel(16);
    let room = Arc::new(tokio::sync::Semaphore::new(frame::room_of(100 << 10) as usize));
    let replier = || Replier::<String>::new(1, frames.clone(), room.clone());
    let long = "x".repeat(40 << 10);
    replier().reply(&long).await;
    replier().reply(&long).await;
    let (third, text) = (replier(), long.clone());
    let third = tokio::spawn(async move { third.reply(&text).await });
    // There is room for two; the third waits until one of them has been written.
    assert_eq!(room.available_permits(), 100 - 2 * 41);
    drop(queue.recv().await.unwrap());
    third.await.unwrap();
    assert!(queue.recv().await.is_some() && queue.recv().await.is_some());
}

/// A reply that no frame can hold is answered otherwise; the connection, and the other requests on it, live on.
#[tokio::test]
async fn a_reply_that_is_too_long_is_replaced() {
    let (connection, _, _server) = start().await;
    assert_eq!(connection.call(&"long".to_string()).await.unwrap(), "too long");
    assert_eq!(connection.call(&"short".to_string()).await.unwrap(), "short");
}
