//! Answers in the retry window (R14): the kept part of an answer, and the reply that is rebuilt
//! from it.

use crate::log_entry::{Answered, KeptReply};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::StatementReply;
use evenkeel_protocol::{Failure, Key, SqlError, TableId, TxnId};

/// The most bytes of returned rows that are kept.
const MAX_KEPT_REPLY_BYTES: usize = 4 << 10;

/// The kept answer of a statement or transaction that wrote `key`.
pub(super) fn answered(id: TxnId, table: TableId, key: Key, reply: &StatementReply) -> Answered {
    let kept = if reply.columns.is_empty() {
        KeptReply::Nothing
    } else if reply.rows.data.len() > MAX_KEPT_REPLY_BYTES {
        KeptReply::Omitted
    } else {
        // Encoding our own values into memory cannot fail.
        postcard::to_stdvec(reply).map_or(KeptReply::Omitted, |rows| KeptReply::Rows(rows.into()))
    };
    Answered { id, table, key, affected: reply.affected, reply: kept }
}

/// The reply to a statement that was executed before under the same id.
pub(super) fn reply_again(kept: &Answered) -> Result<StatementReply, Failure> {
    match &kept.reply {
        KeptReply::Nothing => Ok(StatementReply { affected: kept.affected, ..StatementReply::default() }),
        KeptReply::Rows(rows) => postcard::from_bytes(rows)
            .map_err(|error| SqlError::new(codes::INTERNAL, format!("a kept reply cannot be decoded: {error}")).into()),
        // With a code that no client takes for "not executed".
        KeptReply::Omitted => Err(SqlError::new(
            codes::OUTCOME_UNKNOWN,
            format!(
                "the statement has been executed and changed {} row(s), but the rows it returned were not kept for its repetition",
                kept.affected
            ),
        )
        .hint("Do not execute it again: read the rows.")
        .into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bytes::Bytes;
    use evenkeel_protocol::{Column, RowBatch};

    fn kept(columns: usize, bytes: usize) -> Answered {
        let column = Column { name: "v".into(), type_oid: 25 };
        let rows = RowBatch { width: 1, count: 1, data: Bytes::from(vec![7; bytes]) };
        let reply =
            StatementReply { affected: 3, columns: vec![column; columns].into(), rows, ..StatementReply::default() };
        answered(TxnId { client: 1, sequence: 2, first_sent_ms: 3 }, TableId(4), Key::MIN, &reply)
    }

    /// Breaks if a repeated statement whose rows were too many is answered like one that returns
    /// none.
    #[test]
    fn rows_that_were_not_kept_are_an_error_and_not_an_empty_answer() {
        let small = reply_again(&kept(1, MAX_KEPT_REPLY_BYTES)).unwrap();
        assert_eq!((small.affected, small.columns.len(), small.rows.data.len()), (3, 1, MAX_KEPT_REPLY_BYTES));
        let none = reply_again(&kept(0, 0)).unwrap();
        assert_eq!((none.affected, none.columns.len()), (3, 0));
        let Failure::Sql(error) = reply_again(&kept(1, MAX_KEPT_REPLY_BYTES + 1)).unwrap_err() else { panic!() };
        assert_eq!(error.code, codes::OUTCOME_UNKNOWN);
        assert!(error.message.contains("has been executed and changed 3 row(s)"), "{}", error.message);
    }

    /// Breaks if the window, stored and read again, no longer knows that there were rows.
    #[test]
    fn what_was_omitted_stays_omitted_in_the_log_and_in_store() {
        let mut encoded = bytes::BytesMut::new();
        kept(1, MAX_KEPT_REPLY_BYTES + 1).encode_into(&mut encoded);
        assert_eq!(Answered::decode(&mut encoded.freeze()).unwrap().reply, KeptReply::Omitted);
    }
}
