//! Statements that control a transaction, recognised in a user's text. Pure.
//!
//! A text that is passed through is not parsed. Only its first words are looked at: a text that
//! would end the transaction past the log is refused (R6), savepoints are followed, and a text that
//! would take the session's prepared statements away is refused.
//!
//! Promises: whatever PostgreSQL takes for one of these statements is recognised, since comments,
//! white space and empty statements in front of it are passed over as its scanner does.

/// What a text does to its transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlText {
    /// Nothing that is looked for.
    Other,
    /// `SAVEPOINT` of this name.
    Savepoint(String),
    /// `ROLLBACK TO` this savepoint.
    RollbackTo(String),
    /// `RELEASE` of this savepoint.
    Release(String),
    /// It changes settings, or may: later texts may mean something else.
    Sets,
    /// `COPY`.
    Copy,
    /// It must not be passed through.
    Refused,
}

/// The first words of texts that end a transaction or begin another.
const ENDING: [&str; 6] = ["begin", "start", "commit", "end", "abort", "prepare"];
/// The first words of texts that change what a session has beside its transaction.
const OF_THE_SESSION: [&str; 5] = ["deallocate", "discard", "listen", "unlisten", "load"];

impl ControlText {
    /// Of a text.
    pub fn of(sql: &str) -> ControlText {
        let mut words = Words { rest: sql };
        let Some(first) = words.next_word() else { return ControlText::Other };
        if first.quoted {
            return ControlText::Other;
        }
        let first = first.text;
        if ENDING.contains(&&*first) || OF_THE_SESSION.contains(&&*first) {
            return ControlText::Refused;
        }
        match &*first {
            "savepoint" => words.name().map_or(ControlText::Other, ControlText::Savepoint),
            "release" => words.savepoint_name().map_or(ControlText::Other, ControlText::Release),
            "rollback" => {
                let mut next = words.next_word();
                if next.as_ref().is_some_and(|word| word.is("work") || word.is("transaction")) {
                    next = words.next_word();
                }
                let to_savepoint = next.is_some_and(|word| word.is("to"));
                let name = if to_savepoint { words.savepoint_name() } else { None };
                name.map_or(ControlText::Refused, ControlText::RollbackTo)
            }
            "set" | "reset" | "do" | "call" => ControlText::Sets,
            "copy" => ControlText::Copy,
            _ => ControlText::Other,
        }
    }
}

/// A word, as PostgreSQL's scanner has it: in lower case unless it was quoted.
#[derive(Debug)]
struct Word {
    text: String,
    quoted: bool,
}

impl Word {
    fn is(&self, keyword: &str) -> bool {
        !self.quoted && self.text == keyword
    }
}

/// The words of a text.
struct Words<'a> {
    rest: &'a str,
}

impl Words<'_> {
    /// Passes over white space, comments and empty statements.
    fn skip(&mut self) {
        loop {
            self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}', '\u{b}', ';']);
            if let Some(comment) = self.rest.strip_prefix("--") {
                self.rest = comment.find(['\n', '\r']).map_or("", |end| &comment[end..]);
            } else if self.rest.starts_with("/*") {
                self.rest = after_comment(self.rest);
            } else {
                return;
            }
        }
    }

    fn next_word(&mut self) -> Option<Word> {
        self.skip();
        if let Some(quoted) = self.rest.strip_prefix('"') {
            return self.quoted(quoted);
        }
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then(|| Word { text: word.to_ascii_lowercase(), quoted: false })
    }

    /// A name in double quotes, of which the first has been passed.
    fn quoted(&mut self, mut rest: &str) -> Option<Word> {
        let mut text = String::new();
        loop {
            let end = rest.find('"')?;
            text.push_str(&rest[..end]);
            rest = &rest[end + 1..];
            match rest.strip_prefix('"') {
                Some(more) => {
                    text.push('"');
                    rest = more;
                }
                None => break,
            }
        }
        self.rest = &self.rest[self.rest.len() - rest.len()..];
        Some(Word { text, quoted: true })
    }

    fn name(&mut self) -> Option<String> {
        self.next_word().map(|word| word.text)
    }

    /// A name that the word SAVEPOINT may precede.
    fn savepoint_name(&mut self) -> Option<String> {
        let word = self.next_word()?;
        if !word.is("savepoint") {
            return Some(word.text);
        }
        // A savepoint may have the name `savepoint`.
        Some(self.name().unwrap_or(word.text))
    }
}

/// What follows a comment that may contain others.
fn after_comment(text: &str) -> &str {
    let (mut depth, mut rest) = (0_u32, text);
    loop {
        let Some(at) = rest.find(['/', '*']) else { return "" };
        rest = &rest[at..];
        if rest.starts_with("/*") {
            depth += 1;
            rest = &rest[2..];
        } else if rest.starts_with("*/") {
            depth -= 1;
            rest = &rest[2..];
            if depth == 0 {
                return rest;
            }
        } else {
            rest = &rest[1..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_end_the_transaction_are_refused_however_they_are_written() {
        for text in [
            "COMMIT",
            "  commit;",
            ";;\n\tEnd",
            "-- a comment\nABORT",
            "-- a comment\rABORT",
            "/* a /* nested */ one */ RollBack",
            "ROLLBACK WORK",
            "rollback transaction and chain",
            "BEGIN",
            "START TRANSACTION",
            "PREPARE TRANSACTION 'x'",
            "DEALLOCATE ALL",
            "DISCARD ALL",
            "LISTEN x",
            "rollback to",
        ] {
            assert_eq!(ControlText::of(text), ControlText::Refused, "{text}");
        }
    }

    #[test]
    fn savepoints_are_followed_by_their_names() {
        let of = ControlText::of;
        assert_eq!(of("SAVEPOINT A"), ControlText::Savepoint("a".into()));
        assert_eq!(of("savepoint \"A\"\"b\""), ControlText::Savepoint("A\"b".into()));
        assert_eq!(of("ROLLBACK TO a"), ControlText::RollbackTo("a".into()));
        assert_eq!(of("rollback work/**/to savepoint a;"), ControlText::RollbackTo("a".into()));
        assert_eq!(of("ROLLBACK TO SAVEPOINT savepoint"), ControlText::RollbackTo("savepoint".into()));
        assert_eq!(of("rollback to savepoint"), ControlText::RollbackTo("savepoint".into()));
        assert_eq!(of("RELEASE a"), ControlText::Release("a".into()));
        assert_eq!(of("RELEASE SAVEPOINT \"to\""), ControlText::Release("to".into()));
    }

    #[test]
    fn other_texts_are_left_alone() {
        for text in ["", "SELECT 1", "\"commit\"", "commits", "(SELECT 1)", "/* COMMIT", "-- COMMIT", "'commit'"] {
            assert_eq!(ControlText::of(text), ControlText::Other, "{text}");
        }
        assert_eq!(ControlText::of("set local x to 1"), ControlText::Sets);
        assert_eq!(ControlText::of("copy t from stdin"), ControlText::Copy);
    }
}
