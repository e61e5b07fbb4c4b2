//! Triggers that report changes to the leader (R7). Pure.
//!
//! RETURNING shows what one statement on one table writes, and nothing of what cascades, triggers,
//! functions and writing CTEs do. So each table has statement triggers with transition tables. They
//! report *keys* in notices; the leader reads the rows of these keys again before it proposes them.
//! Rows cannot be reported as they are: a change may be undone within a function, and an outer
//! statement's row may be reported after the inner one's that came later. Tables without a key have
//! nothing to be read by; of those, whole rows are reported.
//!
//! A report is a notice of level INFO, which PostgreSQL sends whatever `client_min_messages` says,
//! with the code [`REPORT_CODE`] and a message of words: the table's number, the kind
//! ([`ReportKind`]), then up to [`REPORT_ROWS`] rows, each as the hexadecimal digits of
//! `record_send`. The rows' values are independent of every setting of the session, except for
//! those of types that users have created, which travel as text.
//!
//! Nobody but a superuser can turn the triggers off. They do not fire in replica sessions, which
//! are those that apply decided entries, and those that run analysed statements.

use super::statements::table_name;
use evenkeel_protocol::TableSchema;
use evenkeel_protocol::schema::{ColumnSchema, RelationKind};

/// The SQLSTATE of reports.
pub const REPORT_CODE: &str = "EVK01";
/// Rows in one report, at most.
const REPORT_ROWS: usize = 500;
/// The events that are reported, with the transition tables of each.
const EVENTS: [(&str, &str, &str); 4] = [
    ("insert", "INSERT", " REFERENCING NEW TABLE AS new_rows"),
    ("update", "UPDATE", " REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows"),
    ("delete", "DELETE", " REFERENCING OLD TABLE AS old_rows"),
    ("truncate", "TRUNCATE", ""),
];
/// The first part of the triggers' names: in the order of names, in which triggers fire, behind all
/// letters.
const TRIGGER_PREFIX: &str = "~evenkeel_";

/// The settings on which the text of a value depends, as the server has them by itself: values that
/// travel as text are written and read with these.
pub const TEXT_SETTINGS: [(&str, &str); 6] = [
    ("datestyle", "'ISO, YMD'"),
    ("timezone", "'UTC'"),
    ("intervalstyle", "'postgres'"),
    ("extra_float_digits", "'1'"),
    ("bytea_output", "'hex'"),
    ("xmloption", "'content'"),
];

/// What a report says of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportKind {
    /// Keys that rows had before they were changed or deleted.
    OldKeys,
    /// Keys of rows that were inserted or changed.
    NewKeys,
    /// Deleted rows of a table without a key.
    Deleted,
    /// Inserted rows of a table without a key.
    Inserted,
    /// The table was truncated; in place of rows comes the number of its file since.
    Truncated,
}

impl ReportKind {
    const ALL: [ReportKind; 5] =
        [ReportKind::OldKeys, ReportKind::NewKeys, ReportKind::Deleted, ReportKind::Inserted, ReportKind::Truncated];

    fn word(self) -> &'static str {
        match self {
            ReportKind::OldKeys => "o",
            ReportKind::NewKeys => "n",
            ReportKind::Deleted => "d",
            ReportKind::Inserted => "i",
            ReportKind::Truncated => "t",
        }
    }

    /// By its word in a report.
    pub fn of(word: &str) -> Option<ReportKind> {
        ReportKind::ALL.into_iter().find(|kind| kind.word() == word)
    }
}

/// Whether the first line of a notice's context says that a trigger of this module raised it. Users
/// can make no functions in the schema `evenkeel`.
pub fn is_report_context(line: &str) -> bool {
    let number = line.strip_prefix("PL/pgSQL function evenkeel.capture_");
    let rest = number.map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    rest.is_some_and(|rest| rest.starts_with("() line "))
}

/// A query for the tables that the transaction has written to: schema, name, and whether the table
/// has the triggers. Undone writes count.
pub const WRITTEN_TABLES: &str = "
    SELECT n.nspname, c.relname, EXISTS (
            SELECT FROM pg_catalog.pg_trigger AS g WHERE g.tgrelid = c.oid AND g.tgname = '~evenkeel_update')
        FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'evenkeel')
            AND pg_catalog.pg_stat_get_xact_tuples_inserted(c.oid) + pg_catalog.pg_stat_get_xact_tuples_updated(c.oid)
                + pg_catalog.pg_stat_get_xact_tuples_deleted(c.oid) > 0";
/// Makes the counts that [`WRITTEN_TABLES`] looks at those of one transaction: by itself PostgreSQL
/// keeps them for up to a second beyond a transaction's end.
pub const RESET_COUNTS: &str = "SELECT pg_catalog.pg_stat_force_next_flush()";

/// DDL that gives a table its triggers, or replaces them after its columns have changed. To be
/// executed by a superuser. Empty for a relation that has none.
pub fn capture_triggers(schema: &TableSchema) -> String {
    if schema.kind != RelationKind::Table {
        return String::new();
    }
    let (table, function) = (table_name(schema), function_name(schema));
    let (old, new, columns): (_, _, Vec<&ColumnSchema>) = if schema.key.is_empty() {
        (ReportKind::Deleted, ReportKind::Inserted, schema.columns.iter().collect())
    } else {
        (ReportKind::OldKeys, ReportKind::NewKeys, schema.key_columns().collect())
    };
    let raise = |kind: ReportKind, what: &str| {
        let head = format!("{} {} ", schema.id.0, kind.word());
        format!("RAISE INFO USING ERRCODE = '{REPORT_CODE}', MESSAGE = concat('{head}', {what});")
    };
    let report = |kind, rows: &str| {
        let names: Vec<String> = columns.iter().map(|column| TableSchema::quote(&column.name)).collect();
        let values = columns.iter().zip(&names).map(|(column, name)| match column.type_oid {
            0 => format!("r.{name}::text"),
            _ => format!("r.{name}"),
        });
        let values = values.collect::<Vec<_>>().join(", ");
        let names = names.iter().map(|name| format!("x.{name}")).collect::<Vec<_>>().join(", ");
        format!(
            "FOR reported IN SELECT string_agg(encode(record_send(ROW({values})), 'hex'), ' ')
            FROM (SELECT {names}, (row_number() OVER () - 1) / {REPORT_ROWS} AS \"~report\" FROM {rows} AS x) AS r
            GROUP BY r.\"~report\"
        LOOP
            {}
        END LOOP;",
            raise(kind, "reported")
        )
    };
    // As text, the values of a user's type may depend on these.
    let as_text = columns.iter().any(|column| column.type_oid == 0);
    let settings = if as_text {
        TEXT_SETTINGS.map(|(name, value)| format!(" SET {name} TO {value}")).concat()
    } else {
        String::new()
    };
    let mut sql = format!(
        "CREATE OR REPLACE FUNCTION {function} RETURNS trigger LANGUAGE plpgsql
    SET search_path TO pg_catalog, pg_temp{settings} AS $evenkeel$
#variable_conflict use_column
DECLARE
    reported text;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        {}
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        {}
    END IF;
    IF TG_OP <> 'DELETE' THEN
        {}
    END IF;
    RETURN NULL;
END $evenkeel$;
",
        raise(ReportKind::Truncated, "pg_relation_filenode(TG_RELID)"),
        report(old, "old_rows"),
        report(new, "new_rows"),
    );
    for (name, event, rows) in EVENTS {
        sql.push_str(&format!(
            "CREATE OR REPLACE TRIGGER \"{TRIGGER_PREFIX}{name}\" AFTER {event} ON {table}{rows}
    FOR EACH STATEMENT EXECUTE FUNCTION {function};
"
        ));
    }
    sql
}

/// DDL that removes what [`capture_triggers`] has made beside the table, once the table is dropped.
pub fn drop_capture(schema: &TableSchema) -> String {
    format!("DROP FUNCTION IF EXISTS {}", function_name(schema))
}

fn function_name(schema: &TableSchema) -> String {
    format!("evenkeel.capture_{}()", schema.id.0)
}

#[cfg(test)]
mod tests {
    use super::super::statements::tests::table;
    use super::*;

    #[test]
    fn a_table_s_triggers_report_its_key() {
        let schema = table("a\"b", &[("k1", "bigint", 20), ("v", "text", 25), ("k\"2", "mood", 0)], &[2, 0]);
        let sql = capture_triggers(&schema);
        assert!(sql.contains(r#"ROW(r."k""2"::text, r."k1")"#), "{sql}");
        assert!(sql.contains(r#"AFTER DELETE ON public."a""b" REFERENCING OLD TABLE AS old_rows"#), "{sql}");
        assert!(sql.contains("concat('1 n ', reported)") && !sql.contains(r#""v""#), "{sql}");
        assert_eq!(drop_capture(&schema), "DROP FUNCTION IF EXISTS evenkeel.capture_1()");
        assert!(WRITTEN_TABLES.contains(&format!("{TRIGGER_PREFIX}update")));
    }

    #[test]
    fn of_a_table_without_a_key_whole_rows_are_reported() {
        let sql = capture_triggers(&table("t", &[("a", "bigint", 20), ("b", "json", 114)], &[]));
        assert!(sql.contains(r#"ROW(r."a", r."b")"#) && sql.contains("concat('1 i ', reported)"), "{sql}");
        let sequence = TableSchema { kind: RelationKind::Sequence, ..TableSchema::default() };
        assert_eq!(capture_triggers(&sequence), "");
    }

    #[test]
    fn only_our_functions_report() {
        assert!(is_report_context("PL/pgSQL function evenkeel.capture_12() line 9 at RAISE"));
        for other in [
            "PL/pgSQL function evenkeel.capture_x() line 9 at RAISE",
            "PL/pgSQL function \"evenkeel.capture_1\"() line 9",
            "",
        ] {
            assert!(!is_report_context(other), "{other}");
        }
        for kind in ReportKind::ALL {
            assert_eq!(ReportKind::of(kind.word()), Some(kind));
        }
    }
}
