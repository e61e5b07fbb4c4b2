//! SCRAM-SHA-256, by pgwire's implementation, and the delay after a wrong password.
//!
//! Passwords are not stored. A user's verifier is what PostgreSQL keeps in `pg_authid`:
//! `SCRAM-SHA-256$iterations:salt$stored key:server key`. An unknown user is asked for a
//! password like any other, so that nobody learns who exists.

use crate::wire::backend;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BytesMut};
use evenkeel_protocol::SqlError;
use pgwire::api::auth::sasl::scram::{ScramSecret, ScramServerAuth};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long a wrong password is answered later, in milliseconds, for each of the last ones from the
/// same address.
const DELAY_MS: u64 = 250;
/// The longest such delay, in milliseconds.
const MAX_DELAY_MS: u64 = 5_000;
/// How long a wrong password is remembered, in milliseconds.
const REMEMBERED_MS: u64 = 60_000;
/// Addresses whose wrong passwords are remembered.
const MAX_ADDRESSES: usize = 10_000;
/// The longest message of an authentication, in bytes.
const MAX_MESSAGE_BYTES: usize = 16 << 10;
/// The method's name.
const SCRAM: &str = "SCRAM-SHA-256";

/// A user's verifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: usize,
    salt: Vec<u8>,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

impl Verifier {
    /// Reads a verifier as PostgreSQL writes it; `None` if it is none.
    pub fn parse(text: &str) -> Option<Verifier> {
        let rest = text.strip_prefix("SCRAM-SHA-256$")?;
        let (iterations, rest) = rest.split_once(':')?;
        let (salt, keys) = rest.split_once('$')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let verifier = Verifier {
            iterations: iterations.parse().ok()?,
            salt: base64(salt)?,
            stored_key: base64(stored_key)?,
            server_key: base64(server_key)?,
        };
        (verifier.stored_key.len() == 32 && verifier.server_key.len() == 32).then_some(verifier)
    }

    /// The verifier of nobody: no password fits.
    fn of_nobody(user: &str) -> Verifier {
        // The same salt whenever the same name is asked for, as a user who exists has.
        let mut salt: Vec<u8> = user.bytes().chain([0xa5; 16]).take(16).collect();
        salt.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(31).wrapping_add(7));
        Verifier {
            iterations: 4096,
            salt,
            stored_key: evenkeel_host::random::<[u8; 32]>().to_vec(),
            server_key: vec![0; 32],
        }
    }

    fn secret(&self) -> ScramSecret {
        ScramSecret::Verifier {
            salt: self.salt.clone(),
            iterations: self.iterations,
            stored_key: self.stored_key.clone(),
            server_key: self.server_key.clone(),
        }
    }
}

fn base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// The wrong passwords of each address.
#[derive(Debug, Default)]
pub struct WrongPasswords(Mutex<HashMap<IpAddr, (u32, Instant)>>);

impl WrongPasswords {
    /// Notes one, and returns how long its answer is to wait.
    pub fn note(&self, address: IpAddr, now: Instant) -> Duration {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_ADDRESSES {
            all.retain(|_, (_, at)| now.duration_since(*at) < Duration::from_millis(REMEMBERED_MS));
        }
        let entry = all.entry(address).or_insert((0, now));
        if now.duration_since(entry.1) >= Duration::from_millis(REMEMBERED_MS) {
            entry.0 = 0;
        }
        *entry = (entry.0 + 1, now);
        Duration::from_millis((DELAY_MS * u64::from(entry.0)).min(MAX_DELAY_MS))
    }
}

/// Has a user prove that it knows the password. `verifier` is `None` for an unknown user.
///
/// # Errors
/// 28P01: the password is wrong, or there is no such user. 08P01: the client's messages are
/// malformed or end.
pub async fn scram<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    buffer: &mut BytesMut,
    user: &str,
    verifier: Option<&Verifier>,
) -> Result<(), SqlError> {
    let wrong = || SqlError::new("28P01", format!("password authentication failed for user \"{user}\""));
    let mut out = BytesMut::new();
    backend::authentication(&mut out, backend::AUTHENTICATION_SASL, format!("{SCRAM}\0\0").as_bytes());
    send(stream, &mut out).await?;

    let first = password_message(stream, buffer).await?;
    let (mechanism, rest) = first.split_once_nul().ok_or_else(|| malformed("no SASL mechanism"))?;
    if mechanism != SCRAM.as_bytes() {
        return Err(malformed("another SASL mechanism than was offered"));
    }
    let data = rest.get(4..).ok_or_else(|| malformed("no SASL response"))?;
    let (nobody, known);
    let secret = match verifier {
        Some(verifier) => {
            known = verifier.secret();
            known
        }
        None => {
            nobody = Verifier::of_nobody(user).secret();
            nobody
        }
    };
    let server = ScramServerAuth::new();
    let (reply, waiting) = server.on_client_first_message_with_secret(data, secret).map_err(|_| malformed("SCRAM"))?;
    backend::authentication(&mut out, backend::AUTHENTICATION_SASL_CONTINUE, reply.as_bytes());
    send(stream, &mut out).await?;

    let last = password_message(stream, buffer).await?;
    let reply = waiting.on_client_final_message(&last).map_err(|_| wrong())?;
    if verifier.is_none() {
        return Err(wrong());
    }
    backend::authentication(&mut out, backend::AUTHENTICATION_SASL_FINAL, reply.as_bytes());
    send(stream, &mut out).await
}

trait SplitOnceNul {
    fn split_once_nul(&self) -> Option<(&[u8], &[u8])>;
}

impl SplitOnceNul for BytesMut {
    fn split_once_nul(&self) -> Option<(&[u8], &[u8])> {
        let end = self.iter().position(|byte| *byte == 0)?;
        Some((&self[..end], &self[end + 1..]))
    }
}

/// The body of the next message, which must be one of the password family.
async fn password_message<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut) -> Result<BytesMut, SqlError> {
    loop {
        if let Some(header) = buffer.first_chunk::<5>() {
            let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
            if header[0] != b'p' || !(4..=MAX_MESSAGE_BYTES).contains(&length) {
                return Err(malformed("another message than a password"));
            }
            if buffer.len() > length {
                let mut message = buffer.split_to(length + 1);
                message.advance(5);
                return Ok(message);
            }
        }
        if stream.read_buf(buffer).await.map_err(|error| malformed(&error.to_string()))? == 0 {
            return Err(malformed("the connection has ended"));
        }
    }
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, out: &mut BytesMut) -> Result<(), SqlError> {
    let sent = async {
        stream.write_all(out).await?;
        stream.flush().await
    };
    sent.await.map_err(|error: std::io::Error| malformed(&error.to_string()))?;
    out.clear();
    Ok(())
}

fn malformed(why: &str) -> SqlError {
    SqlError::new("08P01", format!("authentication failed: {why}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn verifiers_are_read_as_postgresql_writes_them() {
        let text = "SCRAM-SHA-256$4096:AAECAwQFBgcICQoLDA0ODw==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:\
                    //////////////////////////////////////////8=";
        let verifier = Verifier::parse(text).unwrap();
        assert_eq!((verifier.iterations, verifier.salt.len()), (4096, 16));
        assert_eq!(verifier.salt, (0..16).collect::<Vec<u8>>());
        assert_eq!(verifier.server_key, vec![255; 32]);
        for wrong in ["", "md5abc", "SCRAM-SHA-256$x:AA==$AA==:AA==", "SCRAM-SHA-256$4096:AA==$AA==:AA=="] {
            assert_eq!(Verifier::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn wrong_passwords_are_answered_later_and_later() {
        let (wrong, now) = (WrongPasswords::default(), evenkeel_host::now());
        let address = IpAddr::from([127, 0, 0, 1]);
        let delays: Vec<u64> = (0..30).map(|_| wrong.note(address, now).as_millis() as u64).collect();
        assert_eq!(delays[..3], [250, 500, 750]);
        assert_eq!(delays[29], MAX_DELAY_MS);
        let later = now + Duration::from_millis(REMEMBERED_MS);
        assert_eq!(wrong.note(address, later).as_millis(), 250);
    }
}
