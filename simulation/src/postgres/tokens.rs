//! SQL text, cut into tokens.

/// A token.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Word(String),
    Name(String),
    Parameter(usize),
    Number(i64),
    Text(String),
    Sign(String),
}

/// The tokens of a statement.
pub(super) fn tokens(sql: &str) -> Result<Vec<Token>, String> {
    let chars: Vec<char> = sql.chars().collect();
    let mut found = Vec::new();
    let mut at = 0;
    let quoted = |mut at: usize, quote: char| {
        let mut text = String::new();
        loop {
            match (chars.get(at), chars.get(at + 1)) {
                (Some(c), Some(next)) if *c == quote && *next == quote => {
                    text.push(quote);
                    at += 2;
                }
                (Some(c), _) if *c == quote => return Ok((text, at + 1)),
                (Some(c), _) => {
                    text.push(*c);
                    at += 1;
                }
                (None, _) => return Err("an open quote".to_string()),
            }
        }
    };
    while let Some(&c) = chars.get(at) {
        let word = |from: usize, fits: fn(char) -> bool| {
            let end = chars[from..].iter().position(|c| !fits(*c)).map_or(chars.len(), |n| from + n);
            (chars[from..end].iter().collect::<String>(), end)
        };
        match c {
            _ if c.is_whitespace() => at += 1,
            '"' => {
                let (text, next) = quoted(at + 1, '"')?;
                found.push(Token::Name(text));
                at = next;
            }
            '\'' => {
                let (text, next) = quoted(at + 1, '\'')?;
                found.push(Token::Text(text));
                at = next;
            }
            '$' if chars.get(at + 1).is_some_and(char::is_ascii_digit) => {
                let (digits, next) = word(at + 1, |c| c.is_ascii_digit());
                found.push(Token::Parameter(digits.parse::<usize>().map_err(|e| e.to_string())? - 1));
                at = next;
            }
            _ if c.is_ascii_digit() => {
                let (digits, next) = word(at, |c| c.is_ascii_digit());
                found.push(Token::Number(digits.parse().map_err(|_| format!("number {digits}"))?));
                at = next;
            }
            _ if c.is_alphabetic() || c == '_' => {
                let (text, next) = word(at, |c| c.is_alphanumeric() || c == '_');
                found.push(Token::Word(text.to_lowercase()));
                at = next;
            }
            _ => {
                let two: String = chars[at..(at + 2).min(chars.len())].iter().collect();
                let sign = if ["<=", ">=", "::", "[]"].contains(&two.as_str()) { two } else { c.to_string() };
                at += sign.len();
                found.push(Token::Sign(sign));
            }
        }
    }
    Ok(found)
}
