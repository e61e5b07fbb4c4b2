//! Parsing of one field of a line.

/// Parses one field of a line; the error names the field, its content and the expected form.
pub(super) fn field<T: std::str::FromStr>(name: &str, text: &str, expected: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| format!("{name} is `{}`, expected {expected}", shorten(text)))
}

/// A field as it may be shown in a message.
pub(super) fn shorten(text: &str) -> String {
    const SHOWN_CHARS: usize = 40;
    if text.chars().count() <= SHOWN_CHARS {
        text.to_owned()
    } else {
        text.chars().take(SHOWN_CHARS).chain("…".chars()).collect()
    }
}
