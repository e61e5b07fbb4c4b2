//! Scans over several ranges that are answered as a whole.
//!
//! It owns nothing. It promises that the answer is in key order (or in the reverse order if the
//! statement asks for that), that it has each key's row at most once, and that its size is at most
//! `max_answer_bytes`. Each range is read as of one moment; different ranges may be of different
//! moments.

use crate::answer::Answer;
use crate::core::ClientCore;
use crate::deliver::{Detour, ask_shard};
use crate::error::ClientError;
use crate::payload::Payload;
use crate::pieces::{ScanKeys, cut};
use crate::reply::rows;
use crate::retry::Attempts;
use crate::routing::Piece;
use crate::stats::add;
use bytes::BytesMut;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{ShardRequest, StatementReply, StatementRequest};
use evenkeel_protocol::{Column, RowBatch, ShardId, SqlError};
use futures::{StreamExt, TryStreamExt};
use std::collections::VecDeque;
use std::sync::Arc;

/// A scan over several ranges.
pub(crate) struct Scan<'a> {
    pub request: StatementRequest,
    pub keys: ScanKeys<'a>,
    /// Rows that are still to be read.
    pub limit: Option<u64>,
    /// The place of the replica that a `local` read asks first.
    pub prefer: u64,
}

/// Reads the pieces: with a limit one after the other until it is reached, otherwise several at a
/// time.
pub(crate) async fn read(
    core: &ClientCore,
    scan: Scan<'_>,
    pieces: Vec<Piece>,
    attempts: Attempts,
) -> Result<Answer, ClientError> {
    let shard = pieces.first().map_or(ShardId(0), |piece| piece.shard);
    let mut collected = CollectedRows { limit_bytes: core.config.max_answer_bytes, ..CollectedRows::default() };
    let mut retries = attempts.retries();
    match scan.limit {
        None => {
            let reads = pieces.into_iter().map(|piece| read_piece(core, &scan, piece, attempts.clone()));
            let mut reads = futures::stream::iter(reads).buffered(core.config.scan_parallelism);
            while let Some((replies, more)) = reads.try_next().await? {
                retries += more;
                collected.take(replies)?;
            }
        }
        Some(limit) => {
            for piece in pieces {
                let left = limit.saturating_sub(collected.rows);
                if left == 0 && collected.answered {
                    break;
                }
                let part = Scan { request: scan.request.clone(), limit: Some(left), ..scan };
                let (replies, more) = read_piece(core, &part, piece, attempts.clone()).await?;
                retries += more;
                collected.take(replies)?;
            }
        }
    }
    Ok(Answer::new(collected.finish(), shard, retries))
}

/// Reads one piece, which is cut into smaller ones if its ranges have split or moved. Also returns
/// the number of attempts after the first.
async fn read_piece(
    core: &ClientCore,
    scan: &Scan<'_>,
    piece: Piece,
    mut attempts: Attempts,
) -> Result<(Vec<StatementReply>, u32), ClientError> {
    let before = attempts.retries();
    let mut left = scan.limit;
    let mut replies: Vec<StatementReply> = Vec::new();
    let mut pending = VecDeque::from([piece]);
    while let Some(piece) = pending.pop_front() {
        if left == Some(0) && !replies.is_empty() {
            break;
        }
        let clip = Some(piece.clip.clone());
        let request = ShardRequest::Statement(StatementRequest { clip, limit: left, ..scan.request.clone() });
        let payload = Payload::of_read(&request, scan.request.read, scan.prefer);
        match ask_shard(core, piece.shard, &payload, &mut attempts).await {
            Ok(answered) => {
                let reply = rows(answered.reply)?;
                left = left.map(|left| left.saturating_sub(reply.rows.count.into()));
                replies.push(reply);
            }
            Err(Detour::GiveUp(error)) => {
                add(&core.counters.retries, (attempts.retries() - before).into());
                return Err(error);
            }
            Err(Detour::Reroute(hint)) => {
                if hint.is_some() {
                    core.refresh_until(attempts.deadline_ms()).await;
                }
                cut(core, scan.keys, &piece.clip, &mut pending, &mut attempts).await?;
            }
        }
    }
    let more = attempts.retries() - before;
    add(&core.counters.retries, more.into());
    Ok((replies, more))
}

/// The answers of a scan's pieces, in key order.
#[derive(Default)]
struct CollectedRows {
    columns: Arc<[Column]>,
    batches: Vec<RowBatch>,
    rows: u64,
    bytes: usize,
    limit_bytes: usize,
    answered: bool,
    staleness_ms: Option<u64>,
}

impl CollectedRows {
    fn take(&mut self, replies: Vec<StatementReply>) -> Result<(), ClientError> {
        for reply in replies {
            if !self.answered {
                self.columns = reply.columns;
                self.answered = true;
            }
            self.staleness_ms = self.staleness_ms.max(reply.staleness_ms);
            self.rows += u64::from(reply.rows.count);
            self.bytes += reply.rows.data.len();
            if self.bytes > self.limit_bytes {
                let message = format!("the answer is larger than {} bytes", self.limit_bytes);
                return Err(ClientError::Sql(
                    SqlError::new(codes::LIMIT_EXCEEDED, message)
                        .hint("Read it as a stream, add a LIMIT, or read a smaller interval of keys."),
                ));
            }
            if reply.rows.count > 0 {
                self.batches.push(reply.rows);
            }
        }
        Ok(())
    }

    /// All rows in one batch, with one allocation.
    fn finish(self) -> StatementReply {
        let rows = match self.batches.as_slice() {
            [] => RowBatch { width: self.columns.len() as u32, ..RowBatch::default() },
            [one] => one.clone(),
            batches => {
                let mut data = BytesMut::with_capacity(self.bytes);
                batches.iter().for_each(|batch| data.extend_from_slice(&batch.data));
                RowBatch { width: batches[0].width, count: self.rows as u32, data: data.freeze() }
            }
        };
        StatementReply { columns: self.columns, rows, affected: self.rows, staleness_ms: self.staleness_ms }
    }
}
