//! The values of a row. Pure.

/// The most columns that space is made for before they are seen. PostgreSQL has at most 1,664.
const MAX_COLUMNS: usize = 1_664;

/// A row of values in the text format; `None` for null.
pub type TextRow = Vec<Option<String>>;

/// The values in the body of a DataRow, in the format that was asked for. `None` if it is
/// malformed.
pub fn values(body: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let count = usize::from(u16::from_be_bytes(*count));
    let mut values = Vec::with_capacity(count.min(MAX_COLUMNS));
    for _ in 0..count {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        rest = tail;
        values.push(match usize::try_from(i32::from_be_bytes(*length)) {
            Ok(length) => {
                let (value, tail) = rest.split_at_checked(length)?;
                rest = tail;
                Some(value)
            }
            // -1: null.
            Err(_) => None,
        });
    }
    rest.is_empty().then_some(values)
}

/// The same of a row in the text format.
pub fn text_row(body: &[u8]) -> Option<TextRow> {
    let text = |value: Option<&[u8]>| value.map(|value| String::from_utf8_lossy(value).into_owned());
    Some(values(body)?.into_iter().map(text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_and_lengths_not_believed() {
        let body = b"\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0";
        assert_eq!(values(body), Some(vec![Some(&b"ab"[..]), None, Some(&b""[..])]));
        for length in 0..body.len() {
            assert_eq!(values(&body[..length]), None, "{length}");
        }
        assert_eq!(values(b"\0\x01\x7f\xff\xff\xff"), None);
        assert_eq!(text_row(b"\0\x01\0\0\0\x01x"), Some(vec![Some("x".to_string())]));
    }
}
