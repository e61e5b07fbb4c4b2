//! Messages of a client after its start-up, decoded with every length checked. Pure.
//!
//! The bytes are a stranger's. Whatever they are, decoding ends with a message or an error and
//! never panics: a panic would end the gateway for everybody.

use bytes::Bytes;
use evenkeel_protocol::SqlError;

/// A message of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientMessage {
    /// A text of the simple protocol.
    Query(String),
    /// Prepare a statement.
    Parse(Parse),
    /// Bind a prepared statement to a portal.
    Bind(Bind),
    /// Describe a prepared statement or a portal.
    Describe(Target),
    /// Execute a portal: its name, and at most how many rows; 0 for all.
    Execute(String, u32),
    /// Close a prepared statement or a portal.
    Close(Target),
    /// Send all that there is.
    Flush,
    /// The end of a series of messages.
    Sync,
    /// Data of a COPY.
    CopyData(Bytes),
    /// The end of the data of a COPY.
    CopyDone,
    /// The COPY is given up, for this reason.
    CopyFail(String),
    /// The client leaves.
    Terminate,
}

/// Prepare a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parse {
    /// The statement's name; empty for the unnamed one.
    pub name: String,
    /// The text.
    pub text: String,
    /// The types of the first parameters, as object ids; 0 for "not given".
    pub types: Vec<u32>,
}

/// Bind a prepared statement to a portal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// The portal's name.
    pub portal: String,
    /// The statement's name.
    pub statement: String,
    /// The formats of the parameters: none, one for all, or one for each.
    pub formats: Vec<i16>,
    /// The parameters; `None` for null.
    pub parameters: Vec<Option<Bytes>>,
    /// The formats of the result's columns, likewise.
    pub result_formats: Vec<i16>,
}

/// A prepared statement or a portal, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A prepared statement.
    Statement(String),
    /// A portal.
    Portal(String),
}

/// The message with this tag and body.
///
/// # Errors
/// 08P01: it is malformed, or of an unknown kind.
pub fn decode(tag: u8, body: Bytes) -> Result<ClientMessage, SqlError> {
    let mut fields = Fields(body);
    let message = message(tag, &mut fields).ok_or_else(|| malformed("a field ends early, or is no UTF-8"))?;
    if fields.0.is_empty() { Ok(message) } else { Err(malformed("bytes are left behind its fields")) }
}

fn message(tag: u8, fields: &mut Fields) -> Option<ClientMessage> {
    Some(match tag {
        b'Q' => ClientMessage::Query(fields.text()?),
        b'P' => ClientMessage::Parse(Parse {
            name: fields.text()?,
            text: fields.text()?,
            types: fields.list(|fields| fields.array().map(u32::from_be_bytes))?,
        }),
        b'B' => ClientMessage::Bind(Bind {
            portal: fields.text()?,
            statement: fields.text()?,
            formats: fields.list(|fields| fields.array().map(i16::from_be_bytes))?,
            parameters: fields.list(Fields::value)?,
            result_formats: fields.list(|fields| fields.array().map(i16::from_be_bytes))?,
        }),
        b'D' => ClientMessage::Describe(fields.target()?),
        b'E' => {
            let portal = fields.text()?;
            let most = fields.array().map(i32::from_be_bytes)?;
            // As PostgreSQL, which takes a number below 1 for "all".
            ClientMessage::Execute(portal, u32::try_from(most).unwrap_or(0))
        }
        b'C' => ClientMessage::Close(fields.target()?),
        b'H' => ClientMessage::Flush,
        b'S' => ClientMessage::Sync,
        b'd' => ClientMessage::CopyData(std::mem::take(&mut fields.0)),
        b'c' => ClientMessage::CopyDone,
        b'f' => ClientMessage::CopyFail(fields.text()?),
        b'X' => ClientMessage::Terminate,
        _ => return None,
    })
}

/// The rest of a message's body.
struct Fields(Bytes);

impl Fields {
    fn take(&mut self, bytes: usize) -> Option<Bytes> {
        (bytes <= self.0.len()).then(|| self.0.split_to(bytes))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?[..].try_into().ok()
    }

    /// A text that ends with a NUL.
    fn text(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let text = String::from_utf8(self.take(end)?.to_vec()).ok()?;
        self.take(1)?;
        Some(text)
    }

    /// A value with its length; −1 is null.
    fn value(&mut self) -> Option<Option<Bytes>> {
        match i32::from_be_bytes(self.array()?) {
            -1 => Some(None),
            length => Some(Some(self.take(usize::try_from(length).ok()?)?)),
        }
    }

    /// A counted list. Memory is taken as its elements come, not as its count claims.
    fn list<T>(&mut self, mut element: impl FnMut(&mut Fields) -> Option<T>) -> Option<Vec<T>> {
        let count = u16::from_be_bytes(self.array()?);
        (0..count).map(|_| element(self)).collect()
    }

    fn target(&mut self) -> Option<Target> {
        match self.array()? {
            [b'S'] => Some(Target::Statement(self.text()?)),
            [b'P'] => Some(Target::Portal(self.text()?)),
            _ => None,
        }
    }
}

/// 08P01.
pub fn malformed(why: &str) -> SqlError {
    SqlError::new("08P01", format!("a message of the client is malformed: {why}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn decoded(tag: u8, body: &'static [u8]) -> Result<ClientMessage, SqlError> {
        decode(tag, Bytes::from_static(body))
    }

    #[test]
    fn a_bind_has_its_values() {
        let body = b"p\0s\0\0\x01\0\x01\0\x02\0\0\0\x02ab\xff\xff\xff\xff\0\0";
        let ClientMessage::Bind(bind) = decoded(b'B', body).unwrap() else { panic!() };
        assert_eq!((bind.portal.as_str(), bind.statement.as_str(), &bind.formats[..]), ("p", "s", &[1][..]));
        assert_eq!(bind.parameters, [Some(Bytes::from_static(b"ab")), None]);
        for length in 0..body.len() {
            assert_eq!(decode(b'B', Bytes::from_static(&body[..length])).unwrap_err().code, "08P01", "{length}");
        }
    }

    #[test]
    fn what_does_not_fit_is_malformed() {
        let negative = b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0";
        for (tag, body) in [(b'B', &negative[..]), (b'Q', b"no end"), (b'S', b"more"), (b'D', b"X\0"), (b'?', b"")] {
            assert!(decode(tag, Bytes::copy_from_slice(body)).is_err(), "{tag}");
        }
        assert_eq!(decoded(b'E', b"\0\xff\xff\xff\xff").unwrap(), ClientMessage::Execute(String::new(), 0));
    }

    proptest! {
        /// A stranger's bytes never end the gateway.
        #[test]
        fn no_bytes_panic(tag in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(tag, body.into());
        }
    }
}
