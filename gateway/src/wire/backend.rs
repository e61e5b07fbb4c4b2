//! Messages to the client, encoded. Pure.

use bytes::{BufMut, Bytes, BytesMut};
use evenkeel_protocol::SqlError;

/// Authentication is complete.
pub const AUTHENTICATION_OK: i32 = 0;
/// The client shall choose a SASL mechanism.
pub const AUTHENTICATION_SASL: i32 = 10;
/// The next message of a SASL exchange.
pub const AUTHENTICATION_SASL_CONTINUE: i32 = 11;
/// The last message of a SASL exchange.
pub const AUTHENTICATION_SASL_FINAL: i32 = 12;

/// PostgreSQL's view of a session's transaction, as ReadyForQuery tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// None is open.
    Idle,
    /// One is open.
    InTransaction,
    /// One is open and has failed.
    Failed,
}

/// Appends a message with this tag.
pub fn message(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let start = out.len();
    out.put_i32(0);
    body(out);
    let length = (out.len() - start) as i32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

fn text(out: &mut BytesMut, text: &str) {
    // A NUL would end the text early and shift everything behind it.
    out.extend(text.bytes().filter(|byte| *byte != 0));
    out.put_u8(0);
}

/// An Authentication message with this code and body.
pub fn authentication(out: &mut BytesMut, code: i32, body: &[u8]) {
    message(out, b'R', |out| {
        out.put_i32(code);
        out.put_slice(body);
    });
}

/// ParameterStatus.
pub fn parameter_status(out: &mut BytesMut, name: &str, value: &str) {
    message(out, b'S', |out| {
        text(out, name);
        text(out, value);
    });
}

/// BackendKeyData.
pub fn backend_key_data(out: &mut BytesMut, process: i32, secret: &[u8]) {
    message(out, b'K', |out| {
        out.put_i32(process);
        out.put_slice(secret);
    });
}

/// NegotiateProtocolVersion: the newest minor version that is spoken, and the options that are not
/// known.
pub fn negotiate_protocol_version(out: &mut BytesMut, minor: i32, unknown: &[String]) {
    message(out, b'v', |out| {
        out.put_i32((3 << 16) | minor);
        out.put_i32(unknown.len() as i32);
        unknown.iter().for_each(|option| text(out, option));
    });
}

/// ReadyForQuery.
pub fn ready_for_query(out: &mut BytesMut, status: Status) {
    message(out, b'Z', |out| {
        out.put_u8(match status {
            Status::Idle => b'I',
            Status::InTransaction => b'T',
            Status::Failed => b'E',
        });
    });
}

/// CommandComplete.
pub fn command_complete(out: &mut BytesMut, tag: &str) {
    message(out, b'C', |out| text(out, tag));
}

/// A message without a body: ParseComplete `1`, BindComplete `2`, CloseComplete `3`, NoData `n`,
/// EmptyQueryResponse `I`, PortalSuspended `s`.
pub fn bare(out: &mut BytesMut, tag: u8) {
    message(out, tag, |_| {});
}

/// RowDescription of rows without columns.
pub fn no_columns(out: &mut BytesMut) {
    message(out, b'T', |out| out.put_i16(0));
}

/// ParameterDescription.
pub fn parameter_description(out: &mut BytesMut, types: &[u32]) {
    message(out, b't', |out| {
        out.put_i16(types.len() as i16);
        types.iter().for_each(|oid| out.put_u32(*oid));
    });
}

/// CopyInResponse for this number of columns.
pub fn copy_in_response(out: &mut BytesMut, binary: bool, columns: usize) {
    message(out, b'G', |out| {
        out.put_i8(i8::from(binary));
        out.put_i16(columns as i16);
        (0..columns).for_each(|_| out.put_i16(i16::from(binary)));
    });
}

/// ErrorResponse.
pub fn error_response(out: &mut BytesMut, error: &SqlError) {
    message(out, b'E', |out| fields(out, error, "ERROR"));
}

/// The same for an error that ends the session.
pub fn fatal(out: &mut BytesMut, error: &SqlError) {
    message(out, b'E', |out| fields(out, error, "FATAL"));
}

/// NoticeResponse, with a severity such as `WARNING`.
pub fn notice(out: &mut BytesMut, severity: &str, error: &SqlError) {
    message(out, b'N', |out| fields(out, error, severity));
}

fn fields(out: &mut BytesMut, error: &SqlError, severity: &str) {
    let empty = Default::default();
    let more = error.fields.as_deref().unwrap_or(&empty);
    let number = |number: Option<u32>| number.map(|number| number.to_string());
    let (position, internal_position) = (number(more.position), number(more.internal_position));
    let all: [(u8, Option<&str>); 15] = [
        (b'S', Some(severity)),
        (b'V', Some(severity)),
        (b'C', Some(&error.code)),
        (b'M', Some(&error.message)),
        (b'D', error.detail.as_deref()),
        (b'H', error.hint.as_deref()),
        (b'P', position.as_deref()),
        (b'p', internal_position.as_deref()),
        (b'q', more.internal_query.as_deref()),
        (b'W', more.context.as_deref()),
        (b's', more.schema.as_deref()),
        (b't', more.table.as_deref()),
        (b'c', more.column.as_deref()),
        (b'd', more.data_type.as_deref()),
        (b'n', more.constraint.as_deref()),
    ];
    for (kind, value) in all {
        if let Some(value) = value {
            out.put_u8(kind);
            text(out, value);
        }
    }
    out.put_u8(0);
}

/// A RowDescription with other formats: none for text, one for all columns, or one for each.
pub fn with_formats(description: &Bytes, formats: &[i16]) -> Bytes {
    let mut changed = BytesMut::from(&description[..]);
    let (Some(count), mut at) = (changed.get(5..7).map(|count| u16::from_be_bytes([count[0], count[1]])), 7) else {
        return description.clone();
    };
    for column in 0..usize::from(count) {
        // The column's name ends with a NUL; 18 bytes follow, of which the last two are the format.
        let Some(end) = changed.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == 0)) else { break };
        let place = at + end + 1 + 16;
        let format = match formats {
            [] => 0,
            [all] => *all,
            each => each.get(column).copied().unwrap_or(0),
        };
        let Some(bytes) = changed.get_mut(place..place + 2) else { break };
        bytes.copy_from_slice(&format.to_be_bytes());
        at = place + 2;
    }
    changed.freeze()
}
