//! The command line from outside: exit statuses, and one line on standard error for every mistake.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output, Stdio};

fn evenkeel(args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
    command.args(args).stdin(Stdio::null()).env_remove("EVENKEEL_URL").env_remove("RUST_LOG");
    for (name, value) in environment {
        command.env(name, value);
    }
    command.output().unwrap()
}

/// Asserts that the command fails with this status and one line that begins with `line`.
fn refused(args: &[&str], environment: &[(&str, &str)], status: i32, line: &str) {
    let output = evenkeel(args, environment);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {error}");
    assert!(error.starts_with(line), "{args:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_wrong_key_or_value_is_one_line_and_status_2() {
    refused(&["demo", "--workload", "nope"], &[], 2, "evenkeel: workload: unknown workload `nope`; accepted: mixgraph");
    refused(
        &["demo", "--rows", "many"],
        &[],
        2,
        "evenkeel: rows = many (flag --rows): accepted is a whole number from 1",
    );
    refused(
        &["demo", "--shards", "0"],
        &[],
        2,
        "evenkeel: shards = 0 (flag --shards): accepted is a whole number from 1",
    );
    refused(&["demo", "--idle", "--chaos"], &[], 2, "evenkeel: chaos = true");
    refused(&["demo", "--frob"], &[], 2, "evenkeel: unexpected argument '--frob' found");
    refused(&["frob"], &[], 2, "evenkeel: unrecognized subcommand 'frob'");
    refused(&["move", "1"], &[], 2, "evenkeel: the following required arguments were not provided: <SHARD>");
    refused(&["shard-node"], &[], 2, "evenkeel: shard is missing: give a whole number");
    refused(&["shard-node", "--replica", "x"], &[], 2, "evenkeel: replica = x (flag --replica)");
    refused(&["gateway"], &[], 2, "evenkeel: listen is missing: give an address");
    let gateway = ["gateway", "--listen", "127.0.0.1:0", "--data-dir", "/nowhere/gateway"];
    refused(&gateway, &[], 2, "evenkeel: url is missing: give the placement driver's URLs");
    refused(
        &[&gateway[..], &["--max-clients", "0"]].concat(),
        &[],
        2,
        "evenkeel: max_clients = 0 (flag --max-clients): accepted is a whole number from 1",
    );
    refused(&["replay"], &[], 2, "evenkeel: endpoints is missing");
    refused(&["demo"], &[("EVENKEEL_SHRADS", "3")], 2, "evenkeel: shrads (environment EVENKEEL_SHRADS): no such key");
    refused(
        &["kv", "put", "k", "v", "--create", "--if-match", "1"],
        &[],
        2,
        "evenkeel: the argument '--create' cannot be used with '--if-match <REVISION>'",
    );
    refused(&["demo", "--config", "/nowhere.toml"], &[], 2, "evenkeel: config = /nowhere.toml");
}

/// A file without useful content, and a path that can be neither read nor written.
fn files(folder: &std::path::Path) -> (String, String) {
    let (file, nowhere) = (folder.join("file.json"), folder.join("no/file.json"));
    std::fs::write(&file, "[]").unwrap();
    (file.to_str().unwrap().to_string(), nowhere.to_str().unwrap().to_string())
}

/// Refusals come before anything starts: there is no cluster, and none is waited for.
#[test]
fn a_run_that_cannot_be_is_refused_by_demo_and_replay_alike() {
    let folder = tempfile::tempdir().unwrap();
    let (file, nowhere) = files(folder.path());
    let (file, nowhere) = (file.as_str(), nowhere.as_str());
    let duration = "accepted is a time from 0.001 to 21600 seconds, plain or with a unit";
    let rate = "accepted is 0, or a number from 0.001 to 10000000";
    let with_trace = "(configuration): accepted only with a trace";
    for (flags, line) in [
        (&["--duration", "1e20"][..], format!("duration = 1e20 (flag --duration): {duration}")),
        (&["--duration", "7h"], format!("duration = 7h (flag --duration): {duration}")),
        (&["--duration", "0"], format!("duration = 0 (flag --duration): {duration}")),
        (&["--duration", "1e-300"], format!("duration = 1e-300 (flag --duration): {duration}")),
        (&["--rate", "0.0001"], format!("rate = 0.0001 (flag --rate): {rate}")),
        (&["--rate=-1"], format!("rate = -1 (flag --rate): {rate}")),
        (&["--rate", "nan"], format!("rate = nan (flag --rate): {rate}")),
        (
            &["--rows", "30000000"],
            "rows = 30000000 (flag --rows): accepted is a whole number from 1 to 10000000".into(),
        ),
        (&["--rows", "10"], "rows: workload `mixgraph` needs 30 to 10000000 rows, not 10".into()),
        (&["--workload", "zipf"], "workload: workload `zipf`: the parameter is ``".into()),
        (&["--table", "evenkeel_x"], "table = \"evenkeel_x\" (configuration): accepted is a table's name".into()),
        (&["--trace", nowhere], format!("trace = {nowhere} (configuration): accepted is a trace that can be replayed")),
        (&["--trace", file], "trace = ".into()),
        (
            &["--trace", file, "--trace-format", "xml"],
            "trace_format = xml (configuration): accepted is csv or twitter".into(),
        ),
        (&["--trace", file, "--workload", "uniform"], "trace and workload (flags): accepted is one of them".into()),
        (&["--update-share", "0.5"], format!("update_share = 0.5 {with_trace}")),
        (&["--trace-format", "twitter"], format!("trace_format = twitter {with_trace}")),
        (&["--report", nowhere], format!("report = {nowhere} (configuration): accepted is a file that can be written")),
        (&["--log", "foo=bar=baz"], "log = foo=bar=baz (flag --log): accepted is levels and modules".into()),
    ] {
        let line = format!("evenkeel: {line}");
        refused(&[&["demo"], flags].concat(), &[], 2, &line);
        refused(&[&["replay", "--url", "http://127.0.0.1:9"], flags].concat(), &[], 2, &line);
    }
}

#[test]
fn invalid_settings_are_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let (file, nowhere) = files(folder.path());
    let (file, nowhere) = (file.as_str(), nowhere.as_str());
    for (args, line) in [
        (
            &["demo", "--chaos", "--shards", "1"][..],
            "chaos = true (configuration): accepted is --chaos with two shards",
        ),
        (&["demo", "--idle", "--report", file], "report = "),
        (&["demo", "--endpoints", nowhere], "endpoints = "),
        (&["demo", "--data-dir", "/proc/evenkeel"], "data_dir = /proc/evenkeel (configuration): accepted is a folder"),
        (&["demo", "--postgres-bin", "/nowhere"], "PostgreSQL 15 or newer was not found"),
        (
            &["demo", "--shard-capacity", "0.5"],
            "shard_capacity = 0.5 (flag --shard-capacity): accepted is a number from 1",
        ),
        (&["replay", "--endpoints", nowhere], "endpoints: "),
        (&["replay", "--endpoints", file], "endpoints: "),
        (&["replay", "--url", "localhost:7101"], "url = localhost:7101 (flag --url): accepted is URLs"),
        (
            &["replay", "--url", "http://127.0.0.1:9", "--endpoints", file],
            "url and endpoints (flags): accepted is one of",
        ),
        (&["sql", "--url", "localhost:7101", "SELECT 1"], "invalid value 'localhost:7101' for '--url <URL>'"),
        (&["shards", "--url", "localhost:7101"], "invalid value 'localhost:7101' for '--url <URL>'"),
        (&["bench", "--duration", "1e20"], "duration = 1e20 (flag --duration): accepted is a time from"),
        (&["bench", "--json", nowhere], "json = "),
        (&["bench", "failover", "--json", nowhere], "json = "),
        (&["placement-driver", "--log-cap-bytes", "1"], "log_cap_bytes = 1 (flag --log-cap-bytes): accepted is"),
        (&["placement-driver", "--log-retention-bytes", "x"], "log_retention_bytes = x (flag"),
        (&["placement-driver", "--snapshot-every-entries", "0"], "snapshot_every_entries = 0 (flag"),
        (&["placement-driver", "--incarnation", "0"], "incarnation = 0 (flag"),
        // The flag of the log's addresses differs from the flag of the log filter.
        (&["placement-driver", "--log-addresses", "1=127.0.0.1:1"], "replica is missing"),
        (&["shard-node", "--log-addresses", "1=127.0.0.1:1", "--log", "a=b=c"], "log = a=b=c (flag --log)"),
    ] {
        refused(args, &[], 2, &format!("evenkeel: {line}"));
    }
    for (args, variable, line) in [
        (&["demo"][..], ("EVENKEEL_BALANCER__GOAL", "0.5"), "balancer.goal: 0.5; at least 1 is accepted"),
        (
            &["shards"],
            ("EVENKEEL_ULR", "http://127.0.0.1:9"),
            "ulr (environment EVENKEEL_ULR): no such key; accepted are url",
        ),
        (&["shards"], ("EVENKEEL_URL", "127.0.0.1:9"), "invalid value '127.0.0.1:9' for '--url <URL>'"),
        (&["shards"], ("RUST_LOG", "a=b=c"), "log = a=b=c (environment RUST_LOG): accepted is"),
    ] {
        refused(args, &[variable], 2, &format!("evenkeel: {line}"));
    }
}

#[test]
fn the_later_layer_says_where_the_cluster_is() {
    let folder = tempfile::tempdir().unwrap();
    let (file, missing) = (folder.path().join("replay.toml"), folder.path().join("missing.json"));
    let missing = missing.to_str().unwrap();
    std::fs::write(&file, format!("endpoints = '{missing}'")).unwrap();
    let args = ["replay", "--config", file.to_str().unwrap()];
    refused(&args, &[], 2, &format!("evenkeel: endpoints: {missing}"));
    let (url, line) = ("http://127.0.0.1:9", "evenkeel: no placement driver answers at http://127.0.0.1:9");
    refused(&args, &[("EVENKEEL_URL", url)], 1, line);
    refused(&["replay", "--url", url], &[("EVENKEEL_ENDPOINTS", missing)], 1, line);
    refused(
        &["replay", "--endpoints", missing],
        &[("EVENKEEL_URL", url)],
        2,
        &format!("evenkeel: endpoints: {missing}"),
    );
}

#[test]
fn a_file_s_mistake_is_named_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.toml");
    let path = path.to_str().unwrap();
    std::fs::write(
        path,
        "shard = 1\nreplica = 4\ndata_dir = '/tmp/x'\n[rpc]\n1 = '127.0.0.1:1'\n[log]\n1 = '127.0.0.1:2'\n",
    )
    .unwrap();
    refused(
        &["shard-node", "--config", path],
        &[],
        2,
        "evenkeel: replica = 4 (all layers): accepted is a number that rpc has",
    );
    std::fs::write(path, "balancer = 3").unwrap();
    refused(&["placement-driver", "--config", path], &[], 2, "evenkeel: balancer = 3 (file");
    std::fs::write(path, "[balancer]\ngoal = 'x'").unwrap();
    refused(&["placement-driver", "--config", path], &[], 2, "evenkeel: balancer.goal = \"x\" (file");
}

#[test]
fn a_cluster_that_is_not_there_is_status_1() {
    refused(
        &["routes", "--url", "http://127.0.0.1:9"],
        &[],
        1,
        "evenkeel: no placement driver answers at http://127.0.0.1:9",
    );
    refused(
        &["kv", "get", "a/b", "--url", "http://127.0.0.1:9"],
        &[],
        1,
        "evenkeel: no placement driver answers at http://127.0.0.1:9",
    );
}

#[test]
fn help_and_version_are_no_mistakes() {
    for args in [["--help"], ["--version"]] {
        let output = evenkeel(&args, &[]);
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("evenkeel"));
    }
}
