//! The command line from outside: exit statuses, and one line on standard error for every mistake.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output, Stdio};

fn evenkeel(args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
    command.args(args).stdin(Stdio::null()).env_remove("EVENKEEL_URL");
    for (name, value) in environment {
        command.env(name, value);
    }
    command.output().unwrap()
}

/// Asserts that it fails with this status and one line that begins so.
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
