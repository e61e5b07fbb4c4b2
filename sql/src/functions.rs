//! The functions that statements may call.
//!
//! An allow-list: PostgreSQL's built-in functions include some that write, lock, sleep, signal
//! other sessions, read the server's files or change settings, and a change that a function makes
//! escapes capture (R7).

use evenkeel_protocol::error::SqlError;

/// What calling a function means for the statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Its result depends on its arguments (and on settings, which are the same on every replica).
    Fixed,
    /// Its result depends on when or how often it is called. Statements may call it, because only
    /// the leader runs them and followers get the rows; a CHECK, which every replica evaluates, may
    /// not (invariant 5).
    Moving,
    /// Its result depends on many rows.
    Aggregate,
    /// As `Fixed`; its second argument is how long the result gets.
    Sized,
}

/// The longest text, in characters, that a function with a size may be asked for.
pub(super) const MAX_SIZED_CHARS: u64 = 10_000;

/// Words that PostgreSQL evaluates like functions, written without parentheses.
pub(super) fn is_bare(name: &str) -> bool {
    matches!(name, "current_timestamp" | "current_date" | "current_time" | "localtime" | "localtimestamp")
}

/// The class of a function, by its lower-case name.
pub(super) fn class(name: &str) -> Result<Class, SqlError> {
    Ok(match name {
        // Conditions.
        "coalesce" | "nullif" | "greatest" | "least" | "num_nulls" | "num_nonnulls"
        // Numbers.
        | "abs" | "ceil" | "ceiling" | "floor" | "round" | "trunc" | "mod" | "div" | "gcd" | "lcm" | "power" | "pow"
        | "sqrt" | "cbrt" | "exp" | "ln" | "log" | "log10" | "sign" | "pi" | "sin" | "cos" | "tan" | "asin" | "acos"
        | "atan" | "atan2" | "degrees" | "radians" | "width_bucket"
        // Text and bytes.
        | "length" | "char_length" | "character_length" | "octet_length" | "bit_length" | "lower" | "upper" | "initcap"
        | "trim" | "btrim" | "ltrim" | "rtrim" | "substr" | "substring" | "left" | "right" | "replace" | "reverse"
        | "translate" | "concat" | "concat_ws" | "position" | "strpos" | "starts_with" | "split_part" | "ascii" | "chr"
        | "md5" | "sha224" | "sha256" | "sha384" | "sha512" | "encode" | "decode" | "to_hex" | "overlay"
        | "regexp_replace" | "regexp_match" | "regexp_like" | "regexp_count" | "regexp_substr" | "array_to_string"
        | "string_to_array" | "get_byte" | "set_byte" | "hashtext" | "hashtextextended"
        // Times.
        | "date_trunc" | "date_part" | "date_bin" | "to_char" | "to_date" | "to_timestamp" | "to_number" | "make_date"
        | "make_time" | "make_timestamp" | "make_timestamptz" | "make_interval" | "justify_days" | "justify_hours"
        | "justify_interval" | "isfinite" | "timezone"
        // JSON.
        | "to_json" | "to_jsonb" | "json_build_object" | "jsonb_build_object" | "json_build_array"
        | "jsonb_build_array" | "json_typeof" | "jsonb_typeof" | "json_array_length" | "jsonb_array_length"
        | "json_extract_path" | "jsonb_extract_path" | "json_extract_path_text" | "jsonb_extract_path_text"
        | "jsonb_set" | "jsonb_insert" | "jsonb_strip_nulls" | "json_strip_nulls" | "jsonb_pretty" => Class::Fixed,
        "repeat" | "lpad" | "rpad" => Class::Sized,
        "now" | "current_timestamp" | "current_date" | "current_time" | "localtime" | "localtimestamp"
        | "transaction_timestamp" | "statement_timestamp" | "clock_timestamp" | "timeofday" | "age" | "random"
        | "gen_random_uuid" | "version" => Class::Moving,
        "count" | "sum" | "avg" | "min" | "max" | "bool_and" | "bool_or" | "every" | "bit_and" | "bit_or" | "string_agg"
        | "array_agg" | "json_agg" | "jsonb_agg" | "json_object_agg" | "jsonb_object_agg" | "stddev" | "stddev_pop"
        | "stddev_samp" | "variance" | "var_pop" | "var_samp" | "corr" => Class::Aggregate,
        // R11: a sequence is not in the row images.
        "nextval" | "currval" | "lastval" | "setval" => {
            return Err(SqlError::unsupported(
                "sequences are not supported yet",
                "draw keys in the client, such as uuids",
            ));
        }
        "current_user" | "session_user" | "user" | "current_role" | "current_catalog" | "current_schema"
        | "current_database" | "system_user" => {
            return Err(SqlError::unsupported(
                format!("{name} is not supported: all clients share one role and one database"),
                "pass what you need as a parameter",
            ));
        }
        "generate_series" | "unnest" | "jsonb_each" | "jsonb_array_elements" | "json_array_elements"
        | "jsonb_array_elements_text" | "regexp_matches" | "regexp_split_to_table" | "jsonb_object_keys" => {
            return Err(SqlError::unsupported(
                format!("the function {name} is not supported, because it returns many rows"),
                "expand the values in the application",
            ));
        }
        "pg_sleep" | "pg_sleep_for" | "pg_sleep_until" => {
            return Err(SqlError::unsupported(
                format!("the function {name} is not supported, because it holds up other sessions' statements"),
                "wait in the application",
            ));
        }
        _ => {
            return Err(SqlError::unsupported(
                format!("the function {name} is not supported"),
                "compute it in the application",
            ));
        }
    })
}
