//! A message of the server, and its tags.

use bytes::Bytes;

/// Tag and length of a message, in bytes.
pub const HEADER_BYTES: usize = 5;

/// One message, whole, as the server sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    whole: Bytes,
}

/// The server's view of the session's transaction, as each ReadyForQuery says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransactionStatus {
    /// There is none.
    #[default]
    Idle,
    /// One is open.
    Open,
    /// One is open and has failed: only ROLLBACK, or ROLLBACK TO a savepoint, goes on.
    Failed,
}

impl Message {
    /// A message with its header. `None` if it is shorter than that.
    pub fn new(whole: Bytes) -> Option<Message> {
        (whole.len() >= HEADER_BYTES).then_some(Message { whole })
    }

    /// Its tag (see [`tags`]).
    pub fn tag(&self) -> u8 {
        self.whole[0]
    }

    /// Everything behind tag and length.
    pub fn body(&self) -> Bytes {
        self.whole.slice(HEADER_BYTES..)
    }

    /// The whole message, to be relayed.
    pub fn whole(&self) -> &Bytes {
        &self.whole
    }

    /// The body's first text, such as the tag of a CommandComplete.
    pub fn text(&self) -> String {
        let body = &self.whole[HEADER_BYTES..];
        let end = body.iter().position(|byte| *byte == 0).unwrap_or(body.len());
        String::from_utf8_lossy(&body[..end]).into_owned()
    }
}

impl TransactionStatus {
    /// From the body of a ReadyForQuery.
    pub(crate) fn of(body: &[u8]) -> Option<TransactionStatus> {
        match body {
            b"I" => Some(TransactionStatus::Idle),
            b"T" => Some(TransactionStatus::Open),
            b"E" => Some(TransactionStatus::Failed),
            _ => None,
        }
    }
}

/// Tags of the server's messages.
pub mod tags {
    use postgres_protocol::message::backend;

    /// Asks for, or confirms, authentication.
    pub const AUTHENTICATION: u8 = backend::AUTHENTICATION_TAG;
    /// The session's key for cancelling.
    pub const BACKEND_KEY_DATA: u8 = backend::BACKEND_KEY_DATA_TAG;
    /// A Bind is done.
    pub const BIND_COMPLETE: u8 = backend::BIND_COMPLETE_TAG;
    /// A Close is done.
    pub const CLOSE_COMPLETE: u8 = backend::CLOSE_COMPLETE_TAG;
    /// A statement is done; its body is the command tag.
    pub const COMMAND_COMPLETE: u8 = backend::COMMAND_COMPLETE_TAG;
    /// The statement copies in both directions.
    pub const COPY_BOTH_RESPONSE: u8 = b'W';
    /// Data of a copy.
    pub const COPY_DATA: u8 = backend::COPY_DATA_TAG;
    /// A copy is at its end.
    pub const COPY_DONE: u8 = backend::COPY_DONE_TAG;
    /// The server waits for data of a copy.
    pub const COPY_IN_RESPONSE: u8 = backend::COPY_IN_RESPONSE_TAG;
    /// The server begins to send data of a copy.
    pub const COPY_OUT_RESPONSE: u8 = backend::COPY_OUT_RESPONSE_TAG;
    /// A row.
    pub const DATA_ROW: u8 = backend::DATA_ROW_TAG;
    /// The statement's text was empty.
    pub const EMPTY_QUERY_RESPONSE: u8 = backend::EMPTY_QUERY_RESPONSE_TAG;
    /// An error.
    pub const ERROR_RESPONSE: u8 = backend::ERROR_RESPONSE_TAG;
    /// The statement returns no rows.
    pub const NO_DATA: u8 = backend::NO_DATA_TAG;
    /// A notice.
    pub const NOTICE_RESPONSE: u8 = backend::NOTICE_RESPONSE_TAG;
    /// A notification by NOTIFY.
    pub const NOTIFICATION_RESPONSE: u8 = backend::NOTIFICATION_RESPONSE_TAG;
    /// The types of a statement's parameters.
    pub const PARAMETER_DESCRIPTION: u8 = backend::PARAMETER_DESCRIPTION_TAG;
    /// A setting's value.
    pub const PARAMETER_STATUS: u8 = backend::PARAMETER_STATUS_TAG;
    /// A Parse is done.
    pub const PARSE_COMPLETE: u8 = backend::PARSE_COMPLETE_TAG;
    /// The portal has given as many rows as were asked for.
    pub const PORTAL_SUSPENDED: u8 = backend::PORTAL_SUSPENDED_TAG;
    /// Everything up to a Sync is done.
    pub const READY_FOR_QUERY: u8 = backend::READY_FOR_QUERY_TAG;
    /// The columns of the rows that follow.
    pub const ROW_DESCRIPTION: u8 = backend::ROW_DESCRIPTION_TAG;
}
