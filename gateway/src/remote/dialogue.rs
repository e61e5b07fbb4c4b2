//! What postgres_fdw sends. Pure.
//!
//! It speaks a few fixed forms. Whatever else comes is refused: only scans are expected, since the
//! engine database's sessions are read-only.

/// A command of postgres_fdw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteCommand {
    /// A setting of the session. Each scan has settings of its own, with which these agree.
    Set,
    /// A transaction begins.
    Begin,
    /// It ends: whether it is committed. There is nothing to commit.
    End(bool),
    /// A command on a savepoint. The user's transaction makes its own.
    Savepoint(&'static str),
    /// A scan under this name.
    Declare {
        /// The cursor.
        cursor: String,
        /// The SELECT.
        query: String,
    },
    /// The next rows of a scan.
    Fetch {
        /// The cursor.
        cursor: String,
        /// At most this many.
        rows: u32,
    },
    /// A scan begins again.
    Rewind(String),
    /// A scan ends.
    Close(String),
    /// Prepared statements are forgotten. There are none.
    Deallocate,
}

/// The command of a text; `None` if it is of none of these forms.
pub fn command(text: &str) -> Option<RemoteCommand> {
    let text = text.trim().trim_end_matches(';').trim_end();
    let words: Vec<&str> = text.split_whitespace().take(6).collect();
    Some(match words[..] {
        ["SET", ..] => RemoteCommand::Set,
        ["START", "TRANSACTION", ..] => RemoteCommand::Begin,
        ["COMMIT", "TRANSACTION"] => RemoteCommand::End(true),
        ["ABORT", "TRANSACTION"] => RemoteCommand::End(false),
        ["SAVEPOINT", _] => RemoteCommand::Savepoint("SAVEPOINT"),
        ["RELEASE", "SAVEPOINT", _] => RemoteCommand::Savepoint("RELEASE"),
        // It releases the savepoint in the same text.
        ["ROLLBACK", "TO", "SAVEPOINT", ..] => RemoteCommand::Savepoint("ROLLBACK"),
        ["DECLARE", cursor, "CURSOR", "FOR", ..] => {
            let (_, query) = text.split_once(" CURSOR FOR")?;
            RemoteCommand::Declare { cursor: cursor.into(), query: query.trim().into() }
        }
        ["FETCH", rows, "FROM", cursor] => {
            let rows = rows.parse().ok().filter(|rows| *rows > 0)?;
            RemoteCommand::Fetch { cursor: cursor.into(), rows }
        }
        ["MOVE", "BACKWARD", "ALL", "IN", cursor] => RemoteCommand::Rewind(cursor.into()),
        ["CLOSE", cursor] => RemoteCommand::Close(cursor.into()),
        ["DEALLOCATE", _] => RemoteCommand::Deallocate,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_postgres_fdw_are_known() {
        let declare = "DECLARE c1 CURSOR FOR\nSELECT id FROM evenkeel_remote.t1 WHERE ((v = ' CURSOR FOR'))";
        let query = "SELECT id FROM evenkeel_remote.t1 WHERE ((v = ' CURSOR FOR'))".to_string();
        let cursor = || "c1".to_string();
        for (text, expected) in [
            ("SET search_path = pg_catalog", RemoteCommand::Set),
            ("START TRANSACTION ISOLATION LEVEL REPEATABLE READ", RemoteCommand::Begin),
            (declare, RemoteCommand::Declare { cursor: cursor(), query }),
            ("FETCH 2000 FROM c1", RemoteCommand::Fetch { cursor: cursor(), rows: 2000 }),
            ("MOVE BACKWARD ALL IN c1", RemoteCommand::Rewind(cursor())),
            ("CLOSE c1", RemoteCommand::Close(cursor())),
            ("ROLLBACK TO SAVEPOINT s2; RELEASE SAVEPOINT s2", RemoteCommand::Savepoint("ROLLBACK")),
            ("COMMIT TRANSACTION", RemoteCommand::End(true)),
            ("ABORT TRANSACTION", RemoteCommand::End(false)),
            ("DEALLOCATE ALL", RemoteCommand::Deallocate),
        ] {
            assert_eq!(command(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in ["", "INSERT INTO t VALUES (1)", "SELECT 1", "FETCH ALL FROM c1", "FETCH 0 FROM c1", "DECLARE c1"] {
            assert_eq!(command(text), None, "{text}");
        }
    }
}
