#![allow(clippy::unwrap_used)]
use super::*;
use evenkeel_local_cluster::toml_text::to_toml;
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    replica: u64,
    data_dir: String,
    #[serde(default)]
    rpc: BTreeMap<u64, SocketAddr>,
    #[serde(default)]
    wait: Option<f64>,
    #[serde(default)]
    balancer: BTreeMap<String, f64>,
}

fn settings() -> Vec<Setting> {
    let defaults: toml::Table = "threshold = 1.5".parse().unwrap();
    vec![
        Setting::required("replica", Kind::Count(1, 255)),
        Setting::required("data_dir", Kind::Path),
        Setting::optional("rpc", Kind::Addresses),
        Setting::optional("wait", Kind::Seconds(0.001, 3600.0)),
        Setting::optional("balancer", Kind::Section(defaults)),
    ]
}

fn resolved(file: &str, environment: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<Sample, String> {
    let layers = Layers {
        file: Some(("a.toml".into(), file.into())),
        environment: environment.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        flags: flags.iter().map(|(k, v)| (*k, v.to_string())).collect(),
        other_commands_keys: vec!["shards"],
    };
    resolve(&settings(), &layers).map_err(|e| e.to_string())
}

#[test]
fn a_later_layer_overrides_an_earlier_one() {
    let file = "replica = 1\ndata_dir = '/a'\nwait = '2m'\n[rpc]\n1 = '127.0.0.1:1'\n[balancer]\nthreshold = 2";
    let one = resolved(file, &[], &[]).unwrap();
    assert_eq!((one.replica, one.data_dir.as_str(), one.wait), (1, "/a", Some(120.0)));
    assert_eq!(one.balancer["threshold"], 2.0);
    let env =
        [("EVENKEEL_REPLICA", "2"), ("EVENKEEL_BALANCER__THRESHOLD", "3"), ("PATH", "x"), ("EVENKEEL_SHARDS", "9")];
    let two = resolved(file, &env, &[]).unwrap();
    assert_eq!((two.replica, two.balancer["threshold"]), (2, 3.0));
    let three = resolved(file, &env, &[("replica", "3"), ("rpc", "1=127.0.0.1:7,2=[::1]:8")]).unwrap();
    assert_eq!((three.replica, three.rpc.len()), (3, 2));
}

#[test]
fn of_two_settings_that_stand_for_each_other_the_later_counts() {
    let settings =
        [Setting::optional("url", Kind::Urls).instead_of("endpoints"), Setting::optional("endpoints", Kind::Path)];
    let resolved = |file: &str, environment: &[(&str, &str)], flags: &[(&'static str, &str)]| {
        let layers = Layers {
            file: Some(("a.toml".into(), file.into())),
            environment: environment.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            flags: flags.iter().map(|(k, v)| (*k, v.to_string())).collect(),
            ..Layers::default()
        };
        let merged: Result<BTreeMap<String, String>, _> = resolve(&settings, &layers);
        merged.map(|merged| format!("{merged:?}")).map_err(|e| e.to_string())
    };
    let (file, url) = ("endpoints = '/e'", "http://127.0.0.1:1");
    assert_eq!(resolved(file, &[], &[]).unwrap(), r#"{"endpoints": "/e"}"#);
    assert_eq!(resolved(file, &[("EVENKEEL_URL", url)], &[]).unwrap(), format!(r#"{{"url": "{url}"}}"#));
    assert_eq!(resolved("", &[("EVENKEEL_URL", url)], &[("endpoints", "/f")]).unwrap(), r#"{"endpoints": "/f"}"#);
    assert_eq!(
        resolved(file, &[("EVENKEEL_ENDPOINTS", "/e"), ("EVENKEEL_URL", url)], &[("url", url)]).unwrap(),
        format!(r#"{{"url": "{url}"}}"#)
    );
    assert_eq!(
        resolved("", &[], &[("url", url), ("endpoints", "/f")]).unwrap_err(),
        "url and endpoints (flags): accepted is one of them"
    );
}

#[test]
fn a_configuration_survives_its_own_file() {
    let text = to_toml(&resolved("replica = 1\ndata_dir = '/a'\n[rpc]\n2 = '127.0.0.1:1'", &[], &[]).unwrap()).unwrap();
    let again = resolved(&text, &[], &[]).unwrap();
    assert_eq!(again.rpc[&2].port(), 1);
}

#[test]
fn a_mistake_is_one_line_with_key_value_and_accepted_values() {
    let base = "replica = 1\ndata_dir = '/a'\n";
    for (line, expected) in [
        ("shard = 1", "shard (file a.toml): no such key; accepted are replica, data_dir, rpc, wait, balancer"),
        (
            "wait = 'soon'",
            "wait = \"soon\" (file a.toml): accepted is a time from 0.001 to 3600 seconds, plain or with a unit: 500ms, 60s, 2m, 1h",
        ),
        ("wait = ", "a.toml, line 3:"),
        ("rpc = '1=nowhere'", "rpc = \"1=nowhere\" (file a.toml): accepted is addresses by replica number"),
        ("[rpc]\n1 = 5", "rpc.1 = 5 (file a.toml): accepted is a replica number and \"IP:PORT\""),
        (
            "[balancer]\ntreshold = 5",
            "balancer.treshold = 5 (file a.toml): accepted is nothing: no such key, but a section with threshold",
        ),
        ("[balancer]\nthreshold = 'x'", "balancer.threshold = \"x\" (file a.toml): accepted is a number"),
    ] {
        let error = resolved(&format!("{base}{line}"), &[], &[]).unwrap_err();
        assert!(error.starts_with(expected), "{line}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let error = resolved(base, &[("EVENKEEL_REPLICA", "0")], &[]).unwrap_err();
    assert_eq!(error, "replica = 0 (environment EVENKEEL_REPLICA): accepted is a whole number from 1 to 255");
    let error = resolved(base, &[("EVENKEEL_REPLIKA", "1")], &[]).unwrap_err();
    assert!(error.starts_with("replika (environment EVENKEEL_REPLIKA): no such key"), "{error}");
    let error = resolved(base, &[], &[("replica", "two")]).unwrap_err();
    assert_eq!(error, "replica = two (flag --replica): accepted is a whole number from 1 to 255");
    let error = resolved("replica = 1", &[], &[]).unwrap_err();
    assert_eq!(error, "data_dir is missing: give a path as data_dir in the file, EVENKEEL_DATA_DIR or --data-dir");
}

#[test]
fn members_are_numbered_without_gaps() {
    let map = |numbers: &[u64]| -> BTreeMap<u64, SocketAddr> {
        numbers.iter().map(|n| (*n, SocketAddr::from(([127, 0, 0, 1], 1)))).collect()
    };
    assert!(check_members(2, &[("log", &map(&[1, 2, 3]))]).is_ok());
    assert!(check_members(3, &[("log", &map(&[1, 3])), ("rpc", &map(&[1, 3]))]).is_ok());
    assert!(check_members(1, &[("log", &map(&[1, 3])), ("rpc", &map(&[1, 2]))]).is_err());
    assert!(check_members(2, &[("log", &map(&[1, 2, 256]))]).is_err());
    assert!(check_members(4, &[("log", &map(&[1, 2, 3]))]).is_err());
}
