//! Telling damaged data from circumstances that keep a server from starting, by the server's
//! messages. Pure.
//!
//! The difference decides what happens next. Damage does not go away by itself: the data is made
//! again from a peer's. A full disk, a folder with the wrong owner or a lack of memory goes away,
//! and the data is intact; throwing it away would be harmful. Messages that are not known to mean
//! damage are therefore not taken for damage. (`lc_messages` is `C` from the start: `postgres` and
//! `initdb` run with `LC_ALL=C`.)

/// Messages about data that differs from what the server wrote.
const DAMAGE: &[&str] = &[
    "is not a valid data directory",
    "incorrect checksum in control file",
    "was initialized with PG_CONTROL_VERSION",
    "invalid checkpoint record",
    "could not locate a valid checkpoint record",
    "could not locate required checkpoint record",
    "WAL contains references to invalid pages",
    "invalid page in block",
    "could not read block",
    "could not access status of transaction",
    "contains incorrect checksum",
    "contains invalid data",
];
/// Messages about the disk, the account or the system; they decide even beside messages about
/// damage.
const CIRCUMSTANCES: &[&str] = &[
    "No space left on device",
    "Permission denied",
    "Input/output error",
    "Cannot allocate memory",
    "Disk quota exceeded",
];
/// How the server names files of its own: relative to its data folder.
const OWN_FILES: &[&str] = &["\"global/", "\"base/", "\"pg_"];

/// The line of `said` that shows that the data is damaged, if there is one.
pub(super) fn find(said: &str) -> Option<&str> {
    if CIRCUMSTANCES.iter().any(|text| said.contains(text)) {
        return None;
    }
    let lines = || said.lines().map(str::trim);
    let own_file = |line: &str| OWN_FILES.iter().any(|name| line.contains(name));
    let broken = |line: &str| line.contains("No such file or directory") || line.contains("could not read file");
    lines()
        .find(|line| DAMAGE.iter().any(|text| line.contains(text)))
        .or_else(|| lines().find(|line| fatal(line) && own_file(line) && broken(line)))
}

fn fatal(line: &str) -> bool {
    ["FATAL:", "PANIC:", "ERROR:"].iter().any(|severity| line.contains(severity))
}

/// Whether an error code of a session says that data is damaged: a page or an index that makes no
/// sense (class XX), or a file of a table that is not there.
pub(crate) fn is_damage(code: &str) -> bool {
    ["XX001", "XX002", "58P01"].contains(&code)
}

/// Whether an error code of a session means that the server has failed, and not that the statement
/// is wrong: no space on the disk, or a failure of the system.
pub(crate) fn is_illness(code: &str) -> bool {
    code == "53100" || code.starts_with("58") || is_damage(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_distinguished_from_circumstances() {
        // As PostgreSQL 15 says them.
        for damage in [
            "2026-01-01 00:00:00.000 UTC [7] FATAL:  incorrect checksum in control file",
            "[7] PANIC:  could not locate a valid checkpoint record",
            "[7] FATAL:  \"/d/postgres\" is not a valid data directory\n[7] DETAIL:  File \"/d/postgres/PG_VERSION\" is missing.",
            "[7] LOG:  starting\n[7] PANIC:  could not read file \"global/pg_control\": read 0 of 296",
            "[7] FATAL:  could not open file \"global/pg_filenode.map\": No such file or directory",
            "[7] FATAL:  database files are incompatible with server\n[7] DETAIL:  The database cluster was initialized with PG_CONTROL_VERSION 7",
        ] {
            assert!(find(damage).is_some(), "{damage}");
        }
        for circumstance in [
            "[7] FATAL:  could not write lock file \"postmaster.pid\": No space left on device",
            "[7] PANIC:  could not write to file \"pg_wal/xlogtemp.7\": No space left on device",
            "[7] FATAL:  data directory \"/d/postgres\" has wrong ownership",
            "[7] FATAL:  could not open file \"global/pg_control\": Permission denied",
            "[7] FATAL:  could not map anonymous shared memory: Cannot allocate memory",
            "[7] FATAL:  configuration file \"/d/postgres/postgresql.conf\" contains errors",
            "[7] LOG:  could not open file \"pg_stat/x\": No such file or directory",
            "",
        ] {
            assert_eq!(find(circumstance), None, "{circumstance}");
        }
    }

    #[test]
    fn a_statement_s_mistake_is_not_the_server_s_illness() {
        for code in ["53100", "58030", "58P01", "XX001", "XX002"] {
            assert!(is_illness(code), "{code}");
        }
        for code in ["23505", "22003", "57014", "53200", "53300", "55P03", "40P01", "XX000"] {
            assert!(!is_illness(code), "{code}");
        }
    }
}
