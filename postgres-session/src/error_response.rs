//! Errors and notices with all their fields. Pure.

use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::{ErrorFields, codes};

/// The error in the body of an ErrorResponse, or the same of a NoticeResponse.
///
/// Whatever is missing or malformed is left out: an error stays an error.
pub fn parse(body: &[u8]) -> SqlError {
    let mut fields = ErrorFields::default();
    let mut error = SqlError::new(codes::INTERNAL, "PostgreSQL reports an error without a text");
    let mut rest = body;
    while let Some((kind, tail)) = rest.split_first().filter(|(kind, _)| **kind != 0) {
        let end = tail.iter().position(|byte| *byte == 0).unwrap_or(tail.len());
        let text = String::from_utf8_lossy(&tail[..end]).into_owned();
        rest = tail.get(end + 1..).unwrap_or_default();
        match kind {
            // In the server's language; `V` is the same in English and comes from every server that
            // is supported.
            b'S' if fields.severity.is_empty() => fields.severity = text,
            b'V' => fields.severity = text,
            b'C' => error.code = text.into(),
            b'M' => error.message = text,
            b'D' => error.detail = Some(text),
            b'H' => error.hint = Some(text),
            b'P' => fields.position = text.parse().ok(),
            b'p' => fields.internal_position = text.parse().ok(),
            b'q' => fields.internal_query = Some(text),
            b'W' => fields.context = Some(text),
            b's' => fields.schema = Some(text),
            b't' => fields.table = Some(text),
            b'c' => fields.column = Some(text),
            b'd' => fields.data_type = Some(text),
            b'n' => fields.constraint = Some(text),
            // File, line and routine of the server's source; and what later versions add.
            _ => {}
        }
    }
    error.fields = Some(Box::new(fields));
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Option<String> {
        Some(text.to_string())
    }

    #[test]
    fn all_fields_are_found() {
        let body = b"SFEHLER\0VERROR\0C23505\0Mdoppelt\0DKey (a)=(1)\0Hhint\0P15\0p3\0qSELECT 1\0Wcontext\0\
                     spublic\0tt\0cc\0dd\0nt_pkey\0Fnbtinsert.c\0L666\0R_bt\0\0";
        let error = parse(body);
        assert_eq!((error.code.as_ref(), error.message.as_str()), ("23505", "doppelt"));
        assert_eq!((error.detail, error.hint), (text("Key (a)=(1)"), text("hint")));
        let expected = ErrorFields {
            severity: "ERROR".into(),
            position: Some(15),
            internal_position: Some(3),
            internal_query: text("SELECT 1"),
            context: text("context"),
            schema: text("public"),
            table: text("t"),
            column: text("c"),
            data_type: text("d"),
            constraint: text("t_pkey"),
        };
        assert_eq!(error.fields.as_deref(), Some(&expected));
    }

    // Any prefix of an error is an error, too.
    #[test]
    fn an_error_that_ends_early_is_an_error() {
        let body = b"SERROR\0VERROR\0C22012\0Mdivision by zero\0\0";
        for length in 0..body.len() {
            let error = parse(&body[..length]);
            assert!(!error.message.is_empty() || length > 0, "{length}");
        }
        assert_eq!(parse(b"C22\xff\0\0").code, "22\u{fffd}");
    }
}
