//! A session against a server that says what a script has.

#![allow(clippy::unwrap_used)]

use evenkeel_postgres_session::{Requests, Session, SessionError, TransactionStatus, tags};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// Room for bytes on their way, in each direction: less than the large messages below.
const ROOM_BYTES: usize = 1_000;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag], &(body.len() as i32 + 4).to_be_bytes()[..], body].concat()
}

fn welcome() -> Vec<u8> {
    let key = [&7_i32.to_be_bytes()[..], &9_i32.to_be_bytes()].concat();
    let parts = [(b'R', &[0; 4][..]), (b'S', b"server_version\x0015.4\0"), (b'K', &key), (b'Z', b"I")];
    parts.into_iter().flat_map(|(tag, body)| message(tag, body)).collect()
}

/// A session, and its server's end after the start-up.
async fn open() -> (Session, DuplexStream) {
    let (client, mut server) = duplex(ROOM_BYTES);
    let serve = async {
        let length = server.read_i32().await.unwrap();
        let mut start = vec![0; length as usize - 4];
        server.read_exact(&mut start).await.unwrap();
        let asked = String::from_utf8(start[4..].to_vec()).unwrap();
        assert_eq!(asked, "client_encoding\0UTF8\0user\0me\0database\0postgres\0application_name\0test\0\0");
        server.write_all(&welcome()).await.unwrap();
        server
    };
    let (session, server) =
        tokio::join!(Session::connect(client, "me", "postgres", &[("application_name", "test")]), serve);
    (session.unwrap(), server)
}

#[tokio::test]
async fn a_session_starts_and_answers() {
    let (mut session, mut server) = open().await;
    assert_eq!(session.reported()["server_version"], "15.4");
    assert_eq!(session.cancel_key().unwrap().process(), 7);
    assert!(session.is_ready());
    let serve = async {
        let mut query = [0; 14];
        server.read_exact(&mut query).await.unwrap();
        assert_eq!(&query, b"Q\0\0\0\x0dSELECT 1\0");
        let row = message(b'D', b"\0\x02\0\0\0\x01\x31\xff\xff\xff\xff");
        let done = [row, message(b'C', b"SELECT 1\0"), message(b'Z', b"T")].concat();
        server.write_all(&done).await.unwrap();
    };
    let (rows, ()) = tokio::join!(session.query_text("SELECT 1"), serve);
    assert_eq!(rows.unwrap(), [[Some("1".to_string()), None]]);
    assert_eq!(session.status(), TransactionStatus::Open);
}

#[tokio::test]
async fn an_error_is_returned_when_the_session_is_ready_again() {
    let (mut session, mut server) = open().await;
    let serve = async {
        server.write_all(&message(b'E', b"SERROR\0C42601\0Msyntax error\0P3\0\0")).await.unwrap();
        server.write_all(&message(b'Z', b"E")).await.unwrap();
    };
    let (failed, ()) = tokio::join!(session.simple("SELEC"), serve);
    let failed = failed.unwrap_err();
    assert!(matches!(&failed, SessionError::Refused(error) if error.code == "42601"));
    assert!(!failed.is_fatal() && session.is_ready() && session.status() == TransactionStatus::Failed);
    drop(server);
    assert!(matches!(session.simple("SELECT 1").await.unwrap_err(), SessionError::Io(_) | SessionError::Closed));
    assert!(session.is_broken() && !session.is_ready());
}

// Breaks if a session writes all of its requests before it reads: a server that cannot send its
// answers does not read, either.
#[tokio::test]
async fn requests_and_answers_that_no_buffer_holds_pass_each_other() {
    let (mut session, mut server) = open().await;
    let mut requests = Requests::default();
    let text = "x".repeat(50 * ROOM_BYTES);
    requests.query(&text).unwrap();
    session.send(requests);
    let serve = async {
        let answer = message(b'D', &vec![7; 20 * ROOM_BYTES]);
        server.write_all(&answer).await.unwrap();
        let mut asked = vec![0; text.len() + 6];
        server.read_exact(&mut asked).await.unwrap();
        server.write_all(&message(b'Z', b"I")).await.unwrap();
    };
    let asked = async {
        let row = session.next().await.unwrap();
        assert_eq!((row.tag(), row.whole().len()), (tags::DATA_ROW, 20 * ROOM_BYTES + 5));
        assert_eq!(session.next().await.unwrap().tag(), tags::READY_FOR_QUERY);
        assert!(session.is_ready());
    };
    tokio::join!(asked, serve);
}
