//! Survey of a trace before it is replayed: the keys to load, the share of the hottest key.

use std::collections::HashMap;
use std::io::BufRead;

use super::error::TraceError;
use super::reader::TraceReader;
use crate::operation::OperationKind;

/// One pass over a trace: bounded by its number of keys, not by its length.
#[derive(Clone, Debug, PartialEq)]
pub struct Survey {
    /// Operations in the trace.
    pub operations: u64,
    /// Different keys in the trace.
    pub distinct_keys: u64,
    /// Keys to load before the replay, ascending, each with the first value size that the trace
    /// names (0: none). A key whose first operation is an insert is not among them.
    pub initial_rows: Vec<(i64, u32)>,
    /// The hottest key's share (0 to 1) of the operations.
    pub hottest_key_share: f64,
    /// Whether every operation has a time.
    pub has_times: bool,
}

struct KeyFacts {
    touches: u64,
    value_bytes: u32,
    starts_with_insert: bool,
}

impl Survey {
    /// Reads the whole trace. Fails with [`TraceError::TooManyKeys`] past `max_keys` different
    /// keys, and with [`TraceError::Empty`] if there is nothing to replay.
    pub fn take(reader: &mut TraceReader<impl BufRead>, max_keys: usize) -> Result<Self, TraceError> {
        let mut keys: HashMap<i64, KeyFacts> = HashMap::new();
        let (mut operations, mut has_times) = (0u64, true);
        while let Some(record) = reader.next_record()? {
            operations += 1;
            has_times &= record.time.is_some();
            let operation = record.operation;
            let starts_with_insert = operation.kind == OperationKind::Insert;
            let facts =
                keys.entry(operation.key).or_insert(KeyFacts { touches: 0, value_bytes: 0, starts_with_insert });
            facts.touches += 1;
            if facts.value_bytes == 0 {
                facts.value_bytes = operation.value_bytes;
            }
            if keys.len() > max_keys {
                return Err(TraceError::TooManyKeys { line: reader.line(), max_keys });
            }
        }
        if operations == 0 {
            return Err(TraceError::Empty);
        }
        let hottest = keys.values().map(|facts| facts.touches).max().unwrap_or(0);
        let mut initial_rows: Vec<(i64, u32)> = keys
            .iter()
            .filter(|(_, facts)| !facts.starts_with_insert)
            .map(|(key, facts)| (*key, facts.value_bytes))
            .collect();
        initial_rows.sort_unstable();
        Ok(Self {
            operations,
            distinct_keys: keys.len() as u64,
            initial_rows,
            hottest_key_share: hottest as f64 / operations as f64,
            has_times,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::trace::TraceFormat;

    fn survey(text: &str, max_keys: usize) -> Result<Survey, TraceError> {
        Survey::take(&mut TraceReader::new(text.as_bytes(), TraceFormat::Csv), max_keys)
    }

    #[test]
    fn keys_shares_and_first_sizes() {
        let found = survey("1,read,5\n2,update,5,70\n,insert,3,9\n4,read,-1,8\n", 10).unwrap();
        assert_eq!(found.operations, 4);
        assert_eq!(found.distinct_keys, 3);
        assert_eq!(found.initial_rows, [(-1, 8), (5, 70)]);
        assert_eq!(found.hottest_key_share, 0.5);
        assert!(!found.has_times);
    }

    #[test]
    fn keys_are_limited_and_nothing_is_an_error() {
        let error = survey(",read,1\n,read,2\n,read,3\n", 2).unwrap_err();
        assert_eq!(error.to_string(), "line 3 of the trace brings more than 2 different keys");
        assert!(matches!(survey("time_us,op,key\n", 2), Err(TraceError::Empty)));
    }

    #[test]
    fn the_public_trace_is_what_its_notes_say() {
        // The trace (CC BY 4.0, too large for the repository) is used where it is: EVENKEEL_TRACES
        // names its folder.
        let Some(folder) = std::env::var_os("EVENKEEL_TRACES") else {
            return;
        };
        let path = std::path::Path::new(&folder).join("orm-busy-1m.csv.gz");
        let found = Survey::take(&mut TraceReader::open(&path, TraceFormat::Csv).unwrap(), 100_000).unwrap();
        assert_eq!((found.operations, found.distinct_keys), (1_000_000, 44_178));
        assert!(!found.has_times);
        assert!((0.0..0.05).contains(&found.hottest_key_share), "{}", found.hottest_key_share);
    }
}
