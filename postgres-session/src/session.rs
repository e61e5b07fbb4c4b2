//! A session: start-up, sending and receiving, simple queries.

use crate::byte_stream::ByteStream;
use crate::cancel_key::CancelKey;
use crate::error_response;
use crate::framing::Input;
use crate::message::{Message, TransactionStatus, tags};
use crate::requests::Requests;
use crate::row::{TextRow, text_row};
use crate::session_error::SessionError;
use bytes::{Buf, BytesMut};
use postgres_protocol::message::frontend;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The most settings that a server may report; it reports about a dozen.
const MAX_REPORTED: usize = 1_000;

/// A session with a PostgreSQL server. It ends when it is dropped.
pub struct Session {
    /// Never locked: in a mutex a stream may be shared that only one owner uses.
    stream: Mutex<Box<dyn ByteStream>>,
    input: Input,
    output: BytesMut,
    /// What was written has been flushed.
    flushed: bool,
    /// ReadyForQuery messages that are still to come.
    awaited: usize,
    status: TransactionStatus,
    cancel_key: Option<CancelKey>,
    reported: BTreeMap<String, String>,
    broken: bool,
}

impl Session {
    /// Opens a session over `stream` as a user whom the server trusts. `options` are names and
    /// values of a start-up message, such as `application_name`, or `options` with `-c name=value`.
    ///
    /// # Errors
    /// The connection failed, or the server refused.
    pub async fn connect(
        stream: impl ByteStream + 'static,
        user: &str,
        database: &str,
        options: &[(&str, &str)],
    ) -> Result<Session, SessionError> {
        let mut output = BytesMut::new();
        let named = [("client_encoding", "UTF8"), ("user", user), ("database", database)];
        frontend::startup_message(named.into_iter().chain(options.iter().copied()), &mut output)?;
        let mut session = Session {
            stream: Mutex::new(Box::new(stream)),
            input: Input::default(),
            output,
            flushed: true,
            awaited: 1,
            status: TransactionStatus::Idle,
            cancel_key: None,
            reported: BTreeMap::new(),
            broken: false,
        };
        loop {
            let message = session.next().await?;
            match message.tag() {
                // 0: there is nothing to prove.
                tags::AUTHENTICATION if message.body()[..] == [0; 4] => {}
                tags::AUTHENTICATION => return Err(SessionError::Malformed("it asks for a password")),
                tags::BACKEND_KEY_DATA => session.cancel_key = CancelKey::of(&message.body()),
                tags::ERROR_RESPONSE => return Err(error_response::parse(&message.body()).into()),
                tags::READY_FOR_QUERY => return Ok(session),
                tags::PARAMETER_STATUS | tags::NOTICE_RESPONSE => {}
                // NegotiateProtocolVersion: the server is older than what it was asked for.
                _ => return Err(SessionError::Malformed("a message that does not belong to start-up")),
            }
        }
    }

    /// Adds requests to those that are to be sent. They are sent while a message is waited for, or
    /// by [`Session::flush`].
    pub fn send(&mut self, requests: Requests) {
        self.awaited += requests.syncs();
        if self.output.is_empty() {
            self.output = requests.into_bytes();
        } else {
            self.output.unsplit(requests.into_bytes());
        }
    }

    /// The next message, whatever it is. Sends waiting requests meanwhile. Nothing is lost if the
    /// future is dropped.
    ///
    /// # Errors
    /// The session is lost. An ErrorResponse is a message and no error of this function.
    pub async fn next(&mut self) -> Result<Message, SessionError> {
        let result = poll_fn(|context| self.poll_next(context)).await.and_then(|message| {
            self.look_at(&message)?;
            Ok(message)
        });
        self.broken |= result.is_err();
        result
    }

    /// Sends everything that is to be sent, without waiting for a message.
    ///
    /// # Errors
    /// The session is lost.
    pub async fn flush(&mut self) -> Result<(), SessionError> {
        let stream = self.stream.get_mut().unwrap_or_else(PoisonError::into_inner);
        let sent = async {
            while !self.output.is_empty() {
                stream.write_buf(&mut self.output).await?;
            }
            stream.flush().await
        };
        let sent = sent.await;
        self.broken |= sent.is_err();
        Ok(sent?)
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Message, SessionError>> {
        loop {
            if let Some(message) = self.input.take()? {
                return Poll::Ready(Ok(message));
            }
            let stream = self.stream.get_mut().unwrap_or_else(PoisonError::into_inner);
            // Both directions at once: a server that cannot send does not read, either.
            while !self.output.is_empty() {
                match Pin::new(&mut *stream).poll_write(context, &self.output)? {
                    Poll::Ready(0) => return Poll::Ready(Err(SessionError::Closed)),
                    Poll::Ready(written) => {
                        self.output.advance(written);
                        self.flushed = false;
                    }
                    Poll::Pending => break,
                }
            }
            if self.output.is_empty() && !self.flushed {
                self.flushed = Pin::new(stream).poll_flush(context)?.is_ready();
            }
            ready!(self.poll_read(context))?;
        }
    }

    /// Reads some bytes.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), SessionError>> {
        let stream = self.stream.get_mut().unwrap_or_else(PoisonError::into_inner);
        // The future keeps nothing from one poll to the next.
        match ready!(pin!(stream.read_buf(self.input.space())).poll(context))? {
            0 => Poll::Ready(Err(SessionError::Closed)),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// What each message says of the session.
    fn look_at(&mut self, message: &Message) -> Result<(), SessionError> {
        match message.tag() {
            tags::READY_FOR_QUERY => {
                let status = TransactionStatus::of(&message.body());
                self.status = status.ok_or(SessionError::Malformed("no status of a transaction"))?;
                self.awaited = self.awaited.saturating_sub(1);
            }
            tags::PARAMETER_STATUS => {
                let body = message.body();
                let mut parts = body.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned());
                if let (Some(name), Some(value)) = (parts.next(), parts.next())
                    && self.reported.len() < MAX_REPORTED
                {
                    self.reported.insert(name, value);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The status of the transaction, as of the last ReadyForQuery.
    pub fn status(&self) -> TransactionStatus {
        self.status
    }

    /// Whether everything that was sent has been answered, up to its last ReadyForQuery.
    pub fn is_ready(&self) -> bool {
        self.awaited == 0 && self.output.is_empty() && !self.broken
    }

    /// Whether the session has been found lost.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// For cancelling its statements; `None` if the server takes no such requests.
    pub fn cancel_key(&self) -> Option<CancelKey> {
        self.cancel_key
    }

    /// The settings that the server reports, such as `server_version`.
    pub fn reported(&self) -> &BTreeMap<String, String> {
        &self.reported
    }

    /// Takes messages until everything that was sent has been answered, and gives each to `see`.
    ///
    /// # Errors
    /// The first error that the server reported, or the session is lost.
    pub async fn until_ready(&mut self, mut see: impl FnMut(&Message)) -> Result<(), SessionError> {
        let mut first_error = None;
        while self.awaited > 0 {
            let message = self.next().await?;
            if message.tag() == tags::ERROR_RESPONSE {
                first_error.get_or_insert_with(|| error_response::parse(&message.body()));
            }
            see(&message);
        }
        first_error.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Executes statements of a text, one after the other, and returns their command tags.
    ///
    /// # Errors
    /// The error that the server reported, or the session is lost.
    pub async fn simple(&mut self, sql: &str) -> Result<Vec<String>, SessionError> {
        let mut requests = Requests::default();
        requests.query(sql)?;
        self.send(requests);
        let mut completed = Vec::new();
        self.until_ready(|message| {
            if message.tag() == tags::COMMAND_COMPLETE {
                completed.push(message.text());
            }
        })
        .await?;
        Ok(completed)
    }

    /// The rows of a query, in the text format.
    ///
    /// # Errors
    /// The error that the server reported, or the session is lost.
    pub async fn query_text(&mut self, sql: &str) -> Result<Vec<TextRow>, SessionError> {
        let mut requests = Requests::default();
        requests.query(sql)?;
        self.send(requests);
        let (mut rows, mut malformed) = (Vec::new(), false);
        self.until_ready(|message| {
            if message.tag() == tags::DATA_ROW {
                match text_row(&message.body()) {
                    Some(row) => rows.push(row),
                    None => malformed = true,
                }
            }
        })
        .await?;
        if malformed { Err(SessionError::Malformed("a row")) } else { Ok(rows) }
    }
}
