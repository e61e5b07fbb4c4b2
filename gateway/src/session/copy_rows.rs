//! Whole rows out of the data of a COPY, which arrives cut anywhere. Pure.
//!
//! A shard gets the data in pieces, each of which is a COPY of its own in the same transaction.

use crate::grammar::statement::{CopyFormat, CopyKind};
use bytes::{Bytes, BytesMut};
use evenkeel_protocol::SqlError;

/// The size at which a piece ends, in bytes, as soon as a row does.
const PIECE_BYTES: usize = 256 << 10;
/// The longest row, in bytes.
const MAX_ROW_BYTES: usize = 64 << 20;
/// How a copy in the binary format begins.
const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";

/// See the module.
pub struct CopyRows {
    kind: CopyKind,
    quote: u8,
    escape: u8,
    /// What every piece begins with: the line of names, or the header of the binary format.
    head: Option<Bytes>,
    needs_head: bool,
    data: BytesMut,
    /// Up to where `data` consists of whole rows.
    whole: usize,
    /// Up to where `data` has been looked at.
    seen: usize,
    quoted: bool,
    escaped: bool,
    /// Whether the data's own end mark has come: what follows does not count.
    ended: bool,
}

impl CopyRows {
    /// No data has come.
    pub fn new(format: &CopyFormat) -> CopyRows {
        CopyRows {
            kind: format.format,
            quote: format.quote,
            escape: format.escape,
            head: None,
            needs_head: format.header || format.format == CopyKind::Binary,
            data: BytesMut::new(),
            whole: 0,
            seen: 0,
            quoted: false,
            escaped: false,
            ended: false,
        }
    }

    /// Takes data.
    ///
    /// # Errors
    /// 22P04: it is not in the format. 54000: a row is too long.
    pub fn add(&mut self, data: &[u8]) -> Result<(), SqlError> {
        if self.ended {
            return Ok(());
        }
        self.data.extend_from_slice(data);
        match self.kind {
            CopyKind::Binary => self.scan_binary()?,
            CopyKind::Text | CopyKind::Csv => self.scan_lines(),
        }
        if self.data.len() - self.whole > MAX_ROW_BYTES {
            return Err(SqlError::new("54000", format!("a row of more than {MAX_ROW_BYTES} bytes")));
        }
        Ok(())
    }

    /// The next piece, if there are rows enough.
    pub fn piece(&mut self) -> Option<Bytes> {
        (self.whole >= PIECE_BYTES).then(|| self.cut(self.whole))
    }

    /// The rest, at the end of the data; `None` if there is none. A last line needs no end.
    pub fn rest(&mut self) -> Option<Bytes> {
        let upto = if self.ended || self.kind == CopyKind::Binary { self.whole } else { self.data.len() };
        (upto > 0).then(|| self.cut(upto))
    }

    fn cut(&mut self, upto: usize) -> Bytes {
        let rows = self.data.split_to(upto);
        self.whole = 0;
        self.seen = self.seen.saturating_sub(upto);
        let mut piece = BytesMut::new();
        piece.extend_from_slice(self.head.as_deref().unwrap_or_default());
        piece.extend_from_slice(&rows);
        if self.kind == CopyKind::Binary {
            piece.extend_from_slice(&(-1i16).to_be_bytes());
        }
        piece.freeze()
    }

    fn scan_lines(&mut self) {
        while self.seen < self.data.len() {
            let byte = self.data[self.seen];
            self.seen += 1;
            match self.kind {
                CopyKind::Csv => {
                    // An escape that is the quote itself toggles twice, which is right.
                    if self.escaped {
                        self.escaped = false;
                    } else if self.quoted && byte == self.escape && self.escape != self.quote {
                        self.escaped = true;
                    } else if byte == self.quote {
                        self.quoted = !self.quoted;
                    }
                }
                _ if self.escaped => {
                    self.escaped = false;
                    // A line end behind a backslash belongs to the value.
                    continue;
                }
                _ => self.escaped = byte == b'\\',
            }
            if byte == b'\n' && !self.quoted && !self.escaped && self.line_ends() {
                return;
            }
        }
    }

    /// A line ends at `seen`. Whether the data ends with it.
    fn line_ends(&mut self) -> bool {
        let line = &self.data[self.whole..self.seen];
        if matches!(line, b"\\.\n" | b"\\.\r\n") {
            self.ended = true;
            self.data.truncate(self.whole);
            return true;
        }
        if self.needs_head {
            self.needs_head = false;
            // Only whole lines come before it: none.
            self.head = Some(self.data.split_to(self.seen).freeze());
            self.seen = 0;
        } else {
            self.whole = self.seen;
        }
        false
    }

    fn scan_binary(&mut self) -> Result<(), SqlError> {
        let wrong = || SqlError::new("22P04", "COPY data is not in the binary format");
        if self.needs_head {
            let Some(extension) = self.data.get(15..19) else { return Ok(()) };
            if self.data[..11] != SIGNATURE[..] {
                return Err(SqlError::new("22P04", "COPY file signature not recognized"));
            }
            let extension = u32::from_be_bytes([extension[0], extension[1], extension[2], extension[3]]) as usize;
            if extension > MAX_ROW_BYTES {
                return Err(wrong());
            }
            if self.data.len() < 19 + extension {
                return Ok(());
            }
            self.head = Some(self.data.split_to(19 + extension).freeze());
            self.needs_head = false;
        }
        while let Some(count) = self.data.get(self.whole..self.whole + 2) {
            let count = i16::from_be_bytes([count[0], count[1]]);
            if count < 0 {
                self.ended = true;
                self.data.truncate(self.whole);
                return Ok(());
            }
            let mut at = self.whole + 2;
            for _ in 0..count {
                let Some(length) = self.data.get(at..at + 4) else { return Ok(()) };
                let length = i32::from_be_bytes([length[0], length[1], length[2], length[3]]);
                at += 4 + usize::try_from(length.max(0)).unwrap_or(0);
                if length < -1 || at - self.whole > MAX_ROW_BYTES {
                    return Err(wrong());
                }
            }
            if at > self.data.len() {
                return Ok(());
            }
            self.whole = at;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn format(format: CopyKind, header: bool) -> CopyFormat {
        CopyFormat { table: "t".into(), columns: None, format, quote: b'"', escape: b'"', header }
    }

    /// All pieces of data that arrives in steps of this size, if each row were a piece.
    fn pieces(format: &CopyFormat, data: &[u8], step: usize) -> Vec<Vec<u8>> {
        let mut rows = CopyRows::new(format);
        let mut pieces = Vec::new();
        for part in data.chunks(step) {
            rows.add(part).unwrap();
            while rows.whole > 0 {
                pieces.push(rows.cut(rows.whole).to_vec());
            }
        }
        pieces.extend(rows.rest().map(|rest| rest.to_vec()));
        pieces
    }

    #[test]
    fn lines_end_outside_of_escapes_and_quotes() {
        let text = b"a\\\\\tb\nc\\\nd\ne";
        for step in 1..text.len() {
            let joined: Vec<u8> = pieces(&format(CopyKind::Text, false), text, step).concat();
            assert_eq!(joined, text, "{step}");
        }
        assert_eq!(pieces(&format(CopyKind::Text, false), text, 1), [&b"a\\\\\tb\n"[..], b"c\\\nd\n", b"e"]);
        let csv = b"1,\"a\nb\"\"\n\"\n2,x\n";
        assert_eq!(pieces(&format(CopyKind::Csv, false), csv, 1), [&b"1,\"a\nb\"\"\n\"\n"[..], b"2,x\n"]);
    }

    #[test]
    fn every_piece_begins_with_the_names() {
        assert_eq!(pieces(&format(CopyKind::Csv, true), b"id\n1\n2\n", 3), [&b"id\n1\n"[..], b"id\n2\n"]);
    }

    #[test]
    fn the_end_mark_ends_the_data() {
        assert_eq!(pieces(&format(CopyKind::Text, false), b"1\n\\.\nrubbish\n", 2), [&b"1\n"[..]]);
    }

    #[test]
    fn binary_pieces_are_whole_copies() {
        let head = [&SIGNATURE[..], &[0; 8]].concat();
        let row = |n: u8| [&1i16.to_be_bytes()[..], &1i32.to_be_bytes(), &[n]].concat();
        let end = (-1i16).to_be_bytes();
        let data = [&head[..], &row(1), &row(2), &end].concat();
        for step in 1..data.len() {
            let all = pieces(&format(CopyKind::Binary, false), &data, step);
            let rows: usize = all.iter().map(|piece| (piece.len() - head.len() - 2) / 7).sum();
            assert_eq!(rows, 2, "{step}");
            assert!(all.iter().all(|piece| piece.starts_with(&head) && piece.ends_with(&end)), "{step}");
        }
        let mut wrong = CopyRows::new(&format(CopyKind::Binary, false));
        assert!(wrong.add(&[0; 19]).is_err());
    }
}
