//! The first messages of a connection: a request for TLS, a cancel request, or the start-up
//! message.

use crate::wire::backend;
use crate::wire::transport::Transport;
use bytes::{Buf, BytesMut};
use evenkeel_protocol::SqlError;
use std::collections::BTreeMap;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// The longest such message, in bytes.
const MAX_STARTUP_BYTES: usize = 10_000;
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;
/// The newest minor version of protocol 3 that is spoken.
const NEWEST_MINOR: i32 = 2;

/// What a connection wants.
pub enum Wish {
    /// A session.
    Session(Startup),
    /// To cancel the statement of the session with this process number and secret.
    Cancel(i32, Vec<u8>),
}

/// A start-up message.
pub struct Startup {
    /// The connection.
    pub transport: Transport,
    /// Bytes behind the message that have been read.
    pub read: BytesMut,
    /// The minor version of the protocol that both sides speak.
    pub minor: i32,
    /// The parameters: `user`, `database`, and settings.
    pub parameters: BTreeMap<String, String>,
}

/// Reads the first messages of a connection.
///
/// # Errors
/// The connection ended, or what came is no start of a session. `Err(Ok(error))` is to be sent.
pub async fn receive(tcp: TcpStream, tls: Option<&TlsAcceptor>) -> io::Result<Result<Wish, (Transport, SqlError)>> {
    let mut transport = Transport::Plain(tcp);
    // A client of PostgreSQL 17 may begin with TLS at once.
    if let (Transport::Plain(tcp), Some(_)) = (&transport, tls) {
        let mut first = [0];
        if tcp.peek(&mut first).await? == 1 && first[0] == 0x16 {
            transport = encrypt(transport, tls).await?;
        }
    }
    begin(transport, tls).await
}

/// The same for a connection that does not begin with TLS at once.
///
/// # Errors
/// As [`receive`].
pub async fn begin(
    mut transport: Transport,
    tls: Option<&TlsAcceptor>,
) -> io::Result<Result<Wish, (Transport, SqlError)>> {
    let mut read = BytesMut::new();
    loop {
        let mut message = match next_message(&mut transport, &mut read).await? {
            Ok(message) => message,
            Err(error) => return Ok(Err((transport, error))),
        };
        match message.get_u32() {
            SSL_REQUEST if tls.is_some() && !transport.is_encrypted() => {
                // What was sent behind the request was sent in the clear, and may be an attacker's.
                if !read.is_empty() {
                    return Ok(Err((transport, protocol("bytes follow the request for TLS"))));
                }
                transport.write_all(b"S").await?;
                transport = encrypt(transport, tls).await?;
            }
            SSL_REQUEST | GSS_REQUEST => transport.write_all(b"N").await?,
            CANCEL_REQUEST if message.len() >= 5 => {
                let process = message.get_i32();
                return Ok(Ok(Wish::Cancel(process, message.to_vec())));
            }
            version if version >> 16 == 3 => {
                let asked = (version & 0xffff) as i32;
                return Ok(match parameters(&message) {
                    Some(parameters) => start(transport, read, asked, parameters).await?,
                    None => Err((transport, protocol("the start-up message is malformed"))),
                });
            }
            version => {
                let message = format!("unsupported frontend protocol {}.{}", version >> 16, version & 0xffff);
                return Ok(Err((transport, SqlError::new("0A000", message))));
            }
        }
    }
}

async fn start(
    mut transport: Transport,
    read: BytesMut,
    asked: i32,
    mut parameters: BTreeMap<String, String>,
) -> io::Result<Result<Wish, (Transport, SqlError)>> {
    // 3.1 was never spoken.
    let minor = if asked >= NEWEST_MINOR { NEWEST_MINOR } else { 0 };
    let unknown: Vec<String> = parameters.keys().filter(|name| name.starts_with("_pq_.")).cloned().collect();
    if asked > NEWEST_MINOR || asked == 1 || !unknown.is_empty() {
        let mut out = BytesMut::new();
        backend::negotiate_protocol_version(&mut out, minor, &unknown);
        transport.write_all(&out).await?;
    }
    parameters.retain(|name, _| !name.starts_with("_pq_."));
    Ok(Ok(Wish::Session(Startup { transport, read, minor, parameters })))
}

async fn encrypt(transport: Transport, tls: Option<&TlsAcceptor>) -> io::Result<Transport> {
    match (transport, tls) {
        (Transport::Plain(tcp), Some(acceptor)) => Ok(Transport::Tls(Box::new(acceptor.accept(tcp).await?))),
        (other, _) => Ok(other),
    }
}

/// The next message without its length.
async fn next_message(transport: &mut Transport, read: &mut BytesMut) -> io::Result<Result<BytesMut, SqlError>> {
    loop {
        if let Some(length) = read.first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            if !(8..=MAX_STARTUP_BYTES).contains(&length) {
                return Ok(Err(protocol("the start-up message has a wrong length")));
            }
            if read.len() >= length {
                let mut message = read.split_to(length);
                message.advance(4);
                return Ok(Ok(message));
            }
        }
        if transport.read_buf(read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Pairs of texts that end with a NUL each; another NUL ends them.
fn parameters(bytes: &[u8]) -> Option<BTreeMap<String, String>> {
    let bytes = bytes.strip_suffix(&[0])?;
    if bytes.is_empty() {
        return Some(BTreeMap::new());
    }
    let texts: Option<Vec<String>> =
        bytes.strip_suffix(&[0])?.split(|byte| *byte == 0).map(|text| String::from_utf8(text.to_vec()).ok()).collect();
    let texts = texts?;
    (texts.len() % 2 == 0).then(|| texts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
}

fn protocol(message: &str) -> SqlError {
    SqlError::new("08P01", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_pairs_of_texts() {
        let pair = |a: &str, b: &str| BTreeMap::from([(a.to_string(), b.to_string())]);
        assert_eq!(parameters(b"user\0app\0\0"), Some(pair("user", "app")));
        assert_eq!(parameters(b"options\0\0\0"), Some(pair("options", "")));
        assert_eq!(parameters(b"\0"), Some(BTreeMap::new()));
        for wrong in [&b""[..], b"user\0\0", b"user\0app", b"user\0\xff\0\0"] {
            assert_eq!(parameters(wrong), None, "{wrong:?}");
        }
    }
}
