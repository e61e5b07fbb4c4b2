//! Statements that are sent before earlier ones are answered.

use super::StoreError;
use futures::future::BoxFuture;
use std::task::Poll;
use tokio_postgres::Error;

/// Statements on their way, oldest first.
#[derive(Default)]
pub(super) struct Pipeline<'a> {
    waiting: Vec<BoxFuture<'a, Result<u64, Error>>>,
}

impl<'a> Pipeline<'a> {
    /// Sends a statement: the driver does that when the future is first polled. An error here means
    /// that it was not sent.
    pub(super) async fn send(&mut self, mut statement: BoxFuture<'a, Result<u64, Error>>) -> Result<(), StoreError> {
        match futures::poll!(&mut statement) {
            Poll::Ready(result) => {
                result?;
            }
            Poll::Pending => self.waiting.push(statement),
        }
        Ok(())
    }

    /// Waits for all answers; the first error is returned; later ones only say that
    /// the transaction has failed.
    pub(super) async fn drain(&mut self) -> Result<(), StoreError> {
        let mut first = Ok(());
        for statement in self.waiting.drain(..) {
            if let (Err(error), Ok(())) = (statement.await, &first) {
                first = Err(error.into());
            }
        }
        first
    }
}
