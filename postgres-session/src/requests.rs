//! Requests to the server, encoded. Pure.
//!
//! Promises: a request that cannot be encoded leaves what was there before as it was.

use bytes::{Bytes, BytesMut};
use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend::{self, BindError};
use std::io;

/// The longest text or value that one request carries, in bytes. PostgreSQL itself takes no more
/// than 1 GiB.
const MAX_REQUEST_BYTES: usize = 1 << 30;

/// Requests that are sent together.
#[derive(Debug, Default)]
pub struct Requests {
    bytes: BytesMut,
    syncs: usize,
}

/// What a Bind gives a prepared statement.
#[derive(Debug, Clone, Copy, Default)]
pub struct Values<'a> {
    /// The formats of the parameters: none, one for all, or one for each.
    pub formats: &'a [i16],
    /// The parameters; `None` for null.
    pub parameters: &'a [Option<Bytes>],
    /// The formats of the result's columns: none, one for all, or one for each.
    pub result_formats: &'a [i16],
}

/// What a Describe or Close names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named<'a> {
    /// A prepared statement.
    Statement(&'a str),
    /// A portal.
    Portal(&'a str),
}

impl Requests {
    /// A simple query.
    ///
    /// # Errors
    /// 22021: the text contains a NUL.
    pub fn query(&mut self, sql: &str) -> Result<(), SqlError> {
        self.add(sql.len(), |out| frontend::query(sql, out))?;
        self.syncs += 1;
        Ok(())
    }

    /// Prepares a statement under a name; the empty name is the unnamed statement.
    ///
    /// # Errors
    /// 22021: the text contains a NUL. 54000: too many types.
    pub fn parse(&mut self, name: &str, sql: &str, types: &[u32]) -> Result<(), SqlError> {
        self.add(sql.len(), |out| frontend::parse(name, sql, types.iter().copied(), out))
    }

    /// Binds a prepared statement to a portal.
    ///
    /// # Errors
    /// 54000: too many or too long parameters.
    pub fn bind(&mut self, portal: &str, statement: &str, values: Values<'_>) -> Result<(), SqlError> {
        let bytes = values.parameters.iter().flatten().map(Bytes::len).sum();
        self.add(bytes, |out| {
            let put = |value: &Option<Bytes>, out: &mut BytesMut| {
                Ok(match value {
                    Some(value) => {
                        out.extend_from_slice(value);
                        IsNull::No
                    }
                    None => IsNull::Yes,
                })
            };
            let (formats, results) = (values.formats.iter().copied(), values.result_formats.iter().copied());
            frontend::bind(portal, statement, formats, values.parameters, put, results, out).map_err(
                |error| match error {
                    BindError::Serialization(error) => error,
                    BindError::Conversion(error) => io::Error::other(error),
                },
            )
        })
    }

    /// Describes a prepared statement or a portal.
    ///
    /// # Errors
    /// 22021: the name contains a NUL.
    pub fn describe(&mut self, what: Named<'_>) -> Result<(), SqlError> {
        let (kind, name) = what.parts();
        self.add(0, |out| frontend::describe(kind, name, out))
    }

    /// Executes a portal, up to `max_rows` rows; 0 for all.
    ///
    /// # Errors
    /// 22021: the name contains a NUL.
    pub fn execute(&mut self, portal: &str, max_rows: u32) -> Result<(), SqlError> {
        let max_rows = i32::try_from(max_rows).unwrap_or(i32::MAX);
        self.add(0, |out| frontend::execute(portal, max_rows, out))
    }

    /// Closes a prepared statement or a portal.
    ///
    /// # Errors
    /// 22021: the name contains a NUL.
    pub fn close(&mut self, what: Named<'_>) -> Result<(), SqlError> {
        let (kind, name) = what.parts();
        self.add(0, |out| frontend::close(kind, name, out))
    }

    /// Data of a copy into a table.
    ///
    /// # Errors
    /// 54000: too long.
    pub fn copy_data(&mut self, data: &[u8]) -> Result<(), SqlError> {
        self.add(data.len(), |out| frontend::CopyData::new(data).map(|data| data.write(out)))
    }

    /// The end of a copy.
    pub fn copy_done(&mut self) {
        frontend::copy_done(&mut self.bytes);
    }

    /// Gives a copy up; the server answers with an error that has this text.
    ///
    /// # Errors
    /// 22021: the text contains a NUL.
    pub fn copy_fail(&mut self, reason: &str) -> Result<(), SqlError> {
        self.add(reason.len(), |out| frontend::copy_fail(reason, out))
    }

    /// Ends a series of requests: after an error the server passes over everything before it.
    pub fn sync(&mut self) {
        frontend::sync(&mut self.bytes);
        self.syncs += 1;
    }

    /// Has the server send what it has, without ending the series.
    pub fn flush(&mut self) {
        frontend::flush(&mut self.bytes);
    }

    /// Ends the session.
    pub fn terminate(&mut self) {
        frontend::terminate(&mut self.bytes);
    }

    /// Appends other requests.
    pub fn append(&mut self, other: Requests) {
        self.bytes.unsplit(other.bytes);
        self.syncs += other.syncs;
    }

    /// The bytes to be sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many ReadyForQuery will answer them.
    pub fn syncs(&self) -> usize {
        self.syncs
    }

    pub(crate) fn into_bytes(self) -> BytesMut {
        self.bytes
    }

    fn add(
        &mut self,
        bytes: usize,
        encode: impl FnOnce(&mut BytesMut) -> Result<(), io::Error>,
    ) -> Result<(), SqlError> {
        if bytes > MAX_REQUEST_BYTES {
            return Err(SqlError::new(codes::PROGRAM_LIMIT, format!("the request is {bytes} bytes long")));
        }
        let before = self.bytes.len();
        encode(&mut self.bytes).map_err(|error| {
            self.bytes.truncate(before);
            match error.to_string() {
                text if text.contains("null") => SqlError::new("22021", "a text contains a NUL character"),
                text => SqlError::new(codes::PROGRAM_LIMIT, format!("the request is too large: {text}")),
            }
        })
    }
}

impl<'a> Named<'a> {
    fn parts(self) -> (u8, &'a str) {
        match self {
            Named::Statement(name) => (b'S', name),
            Named::Portal(name) => (b'P', name),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_refused_request_leaves_the_others() {
        let mut requests = Requests::default();
        requests.parse("a", "SELECT 1", &[23]).unwrap();
        let before = requests.bytes().to_vec();
        assert_eq!(requests.parse("b", "SELECT '\0'", &[]).unwrap_err().code, "22021");
        let many = vec![None; 70_000];
        let values = Values { parameters: &many, ..Values::default() };
        assert_eq!(requests.bind("", "a", values).unwrap_err().code, codes::PROGRAM_LIMIT);
        assert_eq!((requests.bytes(), requests.syncs()), (&before[..], 0));
    }

    #[test]
    fn requests_are_encoded_as_the_protocol_says() {
        let mut requests = Requests::default();
        let parameters = [Some(Bytes::from_static(b"x")), None];
        let values = Values { formats: &[1], parameters: &parameters, result_formats: &[0, 1] };
        requests.bind("p", "s", values).unwrap();
        requests.execute("p", 7).unwrap();
        requests.sync();
        let bind = b"B\0\0\0\x1dp\0s\0\0\x01\0\x01\0\x02\0\0\0\x01x\xff\xff\xff\xff\0\x02\0\0\0\x01";
        let execute = b"E\0\0\0\x0ap\0\0\0\0\x07";
        assert_eq!(requests.bytes(), [&bind[..], execute, b"S\0\0\0\x04"].concat());
        assert_eq!(requests.syncs(), 1);
    }
}
