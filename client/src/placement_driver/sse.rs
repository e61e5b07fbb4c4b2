//! A parser of server-sent events as the WHATWG defines them: `id`, `event` and `data` fields,
//! comments, and all three line ends. Pure and bounded: bytes in, events out.

/// The longest event, in bytes: a whole routing table of some ten thousand ranges.
pub(super) const MAX_EVENT_BYTES: usize = 16 << 20;

/// One event of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// The last id seen up to and including this event.
    pub id: Option<String>,
    /// The name; empty if the event has none.
    pub name: String,
    /// The data lines, joined by line feeds.
    pub data: String,
}

/// An event is longer than [`MAX_EVENT_BYTES`], or not UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a stream of events: {0}")]
pub(super) struct Malformed(&'static str);

/// Collects bytes into events.
#[derive(Debug, Default)]
pub(super) struct EventParser {
    line: Vec<u8>,
    /// Whether the last byte was a carriage return: a line feed that follows ends no further line.
    after_return: bool,
    id: Option<String>,
    name: String,
    data: Option<String>,
}

impl EventParser {
    /// Adds bytes and returns the events that they complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<SseEvent>, Malformed> {
        let mut events = Vec::new();
        for &byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => {
                    let line = std::mem::take(&mut self.line);
                    let line = std::str::from_utf8(&line).map_err(|_| Malformed("a line is not UTF-8"))?;
                    events.extend(self.end_of_line(line));
                }
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.as_ref().map_or(0, String::len) > MAX_EVENT_BYTES {
                return Err(Malformed("an event is too long"));
            }
        }
        Ok(events)
    }

    fn end_of_line(&mut self, line: &str) -> Option<SseEvent> {
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            return self.data.take().map(|data| SseEvent { id: self.id.clone(), name, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" if !value.contains('\0') => self.id = Some(value.to_string()),
            "event" => self.name = value.to_string(),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                none => *none = Some(value.to_string()),
            },
            // Comments (an empty field name) and unused fields.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(chunks: &[&str]) -> Vec<(Option<String>, String, String)> {
        let mut parser = EventParser::default();
        let events = chunks.iter().flat_map(|chunk| parser.push(chunk.as_bytes()).unwrap());
        events.map(|event| (event.id, event.name, event.data)).collect()
    }

    #[test]
    fn events_are_the_same_however_the_bytes_come() {
        let text = ": hello\n\nid: 1.4\ndata: a\ndata:b\n\nevent: x\r\ndata:  c\r\n\r\nid\rdata\r\rdata: cut";
        let expected = vec![
            (Some("1.4".to_string()), String::new(), "a\nb".to_string()),
            (Some("1.4".to_string()), "x".to_string(), " c".to_string()),
            (Some(String::new()), String::new(), String::new()),
        ];
        assert_eq!(parse(&[text]), expected);
        let bytes: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(parse(&bytes.iter().map(String::as_str).collect::<Vec<_>>()), expected);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = EventParser::default();
        let chunk = vec![b'x'; 1 << 20];
        let refused = (0..20).find_map(|_| parser.push(&chunk).err());
        assert_eq!(refused, Some(Malformed("an event is too long")));
        assert!(EventParser::default().push(&[0xFF, b'\n']).is_err());
    }
}
