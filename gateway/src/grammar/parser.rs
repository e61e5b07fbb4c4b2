//! The threads on which the parser runs, and its limits.
//!
//! PostgreSQL's parser recurses; a deeply nested text needs a large stack. It takes tens of
//! microseconds for a short text and milliseconds for a long one, which would hold up a thread that
//! carries many connections.

use super::classify;
use super::statement::Statement;
use super::writes::{WriteForm, write_form};
// Only for its feature `no-recursion-limit`, without which the parser's trees of longer statements
// cannot be read.
use prost as _;

use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use tokio::sync::oneshot;

/// The longest text, in bytes.
pub const MAX_TEXT_BYTES: usize = 16 << 20;
/// The number of threads.
const THREADS: usize = 2;
/// The stack of each thread, in bytes. Texts nested a thousand deep need a good part of it.
const STACK_BYTES: usize = 64 << 20;
/// Texts that wait for a thread.
const MAX_WAITING: usize = 256;
/// The deepest nesting of parentheses and brackets.
const MAX_NESTING: usize = 1_000;

type Parsed = Result<Vec<Statement>, SqlError>;
/// What a thread is to do.
type Task = Box<dyn FnOnce() + Send>;

/// See the module. Clones share the threads.
#[derive(Clone)]
pub struct Parser {
    tasks: mpsc::SyncSender<Task>,
}

impl Parser {
    /// Starts the threads. They end with the last clone.
    ///
    /// # Errors
    /// The system starts no threads.
    pub fn start() -> std::io::Result<Parser> {
        let (tasks, waiting) = mpsc::sync_channel::<Task>(MAX_WAITING);
        let waiting = Arc::new(Mutex::new(waiting));
        for number in 0..THREADS {
            let waiting = waiting.clone();
            let named = std::thread::Builder::new().name(format!("parser-{number}")).stack_size(STACK_BYTES);
            named.spawn(move || {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(task) = next else { return };
                    task();
                }
            })?;
        }
        Ok(Parser { tasks })
    }

    /// The statements of a text.
    ///
    /// # Errors
    /// 42601: it does not parse. 54000, 54001: it is too long or too deeply nested. 53300: too many
    /// texts wait.
    pub async fn parse(&self, text: &Arc<str>) -> Parsed {
        let text = text.clone();
        self.have_done(text, classify::statements).await
    }

    /// The form of a statement that writes to several shards.
    ///
    /// # Errors
    /// As [`Parser::parse`]. 0A000: it cannot be executed there.
    pub async fn write_form(&self, text: &Arc<str>) -> Result<WriteForm, SqlError> {
        self.have_done(text.clone(), write_form).await
    }

    async fn have_done<T: Send + 'static>(
        &self,
        text: Arc<str>,
        parse: fn(&str) -> Result<T, SqlError>,
    ) -> Result<T, SqlError> {
        check(&text)?;
        let (answer, answered) = oneshot::channel();
        let too_many = |_| SqlError::new(codes::TOO_MANY, "too many statements wait for the parser");
        // Whoever asked may be gone when it is done.
        let task: Task = Box::new(move || _ = answer.send(parse(&text)));
        self.tasks.try_send(task).map_err(too_many)?;
        answered.await.unwrap_or_else(|_| Err(SqlError::new(codes::INTERNAL, "the parser has failed")))
    }
}

fn check(text: &str) -> Result<(), SqlError> {
    if text.len() > MAX_TEXT_BYTES {
        let message = format!("a text of {} bytes; at most {MAX_TEXT_BYTES} are possible", text.len());
        return Err(SqlError::new(codes::PROGRAM_LIMIT, message).hint("Use COPY, or parameters."));
    }
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > MAX_NESTING {
        return Err(SqlError::new("54001", "stack depth limit exceeded").hint("Nest the statement less deeply."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn limits_hold_before_the_parser_sees_a_text() {
        assert!(check(&"(".repeat(MAX_NESTING)).is_ok());
        assert_eq!(check(&"(".repeat(MAX_NESTING + 1)).unwrap_err().code, "54001");
        assert_eq!(check(&" ".repeat(MAX_TEXT_BYTES + 1)).unwrap_err().code, codes::PROGRAM_LIMIT);
    }

    #[tokio::test]
    async fn deep_nesting_is_parsed_or_refused() {
        let parser = Parser::start().unwrap();
        let text: Arc<str> = format!("SELECT {}1{}", "(".repeat(900), ")".repeat(900)).into();
        assert_eq!(parser.parse(&text).await.unwrap().len(), 1);
        let sum: Arc<str> = format!("SELECT 1{}", "+1".repeat(900)).into();
        assert_eq!(parser.parse(&sum).await.unwrap().len(), 1);
    }
}
