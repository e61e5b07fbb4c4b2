//! From the settings of `gateway` to its configuration.
//!
//! The command has some settings of its own: URLs as all commands take them, a certificate and a
//! key side by side, and `trust_loopback`. It refuses what would delete somebody's data: a gateway
//! empties its folder at every start.

use crate::config::{ConfigError, Kind, Setting};
use evenkeel_gateway::GatewayConfig;
use evenkeel_gateway::{Method, Rule};
use evenkeel_local_cluster::endpoints::Endpoints;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The addresses that `trust_loopback` trusts.
const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];
/// What a gateway's PostgreSQL leaves in its folder.
const OWN_FILES: [&str; 6] = ["lock", "postgres", "postgres.damaged", "postgres.log", "postgres.log.1", "socket"];

/// The settings of `gateway`.
pub fn gateway_settings() -> Vec<Setting> {
    vec![
        Setting::required("listen", Kind::Address),
        Setting::optional("url", Kind::Urls),
        Setting::optional("endpoints", Kind::Path).instead_of("url"),
        Setting::required("data_dir", Kind::Path),
        Setting::optional("postgres_bin", Kind::Path),
        Setting::optional("tls_certificate", Kind::Path),
        Setting::optional("tls_key", Kind::Path),
        Setting::optional("trust_loopback", Kind::Flag),
        Setting::optional("max_clients", Kind::Count(1, i64::from(u32::MAX))),
        Setting::optional("users", Kind::Secrets),
        Setting::optional("rules", Kind::Tables(rule_keys())),
    ]
}

fn rule_keys() -> Vec<(&'static str, Kind)> {
    vec![
        ("from", Kind::Text),
        ("user", Kind::Text),
        ("encrypted", Kind::Flag),
        ("method", Kind::OneOf(&["trust", "scram-sha-256", "reject"])),
    ]
}

/// The settings as the layers give them. The rest is the gateway's own.
#[derive(Debug, Deserialize)]
pub struct GatewaySettings {
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    endpoints: Option<PathBuf>,
    #[serde(default)]
    tls_certificate: Option<PathBuf>,
    #[serde(default)]
    tls_key: Option<PathBuf>,
    #[serde(default)]
    trust_loopback: bool,
    #[serde(flatten)]
    own: serde_json::Map<String, serde_json::Value>,
}

/// The configuration. Reads the `--endpoints` file, if it is given, and looks into the data folder.
///
/// # Errors
/// One line with the key, the value and the accepted values.
pub fn complete(settings: GatewaySettings) -> Result<GatewayConfig, ConfigError> {
    let mut own = settings.own;
    own.insert("endpoints".into(), urls(settings.url.as_deref(), settings.endpoints.as_deref())?.into());
    match (settings.tls_certificate, settings.tls_key) {
        (Some(certificate), Some(key)) => {
            own.insert("tls".into(), serde_json::json!({ "certificate": certificate, "key": key }));
        }
        (None, None) => {}
        (certificate, key) => {
            let (given, missing) = if key.is_none() { ("certificate", "key") } else { ("key", "certificate") };
            let value = certificate.or(key).unwrap_or_default();
            let accepted = format!("one together with tls_{missing}");
            return Err(ConfigError::value(&format!("tls_{given}"), value.display(), "configuration", accepted));
        }
    }
    let mut config: GatewayConfig = serde_json::from_value(serde_json::Value::Object(own))
        .map_err(|error| ConfigError::new(format!("configuration: {error}")))?;
    if settings.trust_loopback {
        // Before the others: the first rule that fits decides.
        config.rules.splice(0..0, LOOPBACK.map(trust));
    }
    config.check().map_err(ConfigError::new)?;
    check_folder(&config.data_dir)?;
    Ok(config)
}

fn trust(from: &str) -> Rule {
    Rule { from: from.into(), user: None, encrypted: false, method: Method::Trust }
}

fn urls(url: Option<&str>, endpoints: Option<&Path>) -> Result<Vec<String>, ConfigError> {
    match (endpoints, url) {
        (Some(path), _) => {
            Ok(Endpoints::read(path).map_err(|error| ConfigError::new(format!("endpoints: {error}")))?.rest)
        }
        (None, Some(urls)) => Ok(urls.split(',').map(str::to_string).collect()),
        (None, None) => Err(ConfigError::new(
            "url is missing: give the placement driver's URLs as url in the file, EVENKEEL_URL or --url, or --endpoints with the \
             file that demo wrote",
        )),
    }
}

/// Refuses a folder that holds anything that is not a gateway's.
fn check_folder(folder: &Path) -> Result<(), ConfigError> {
    // A folder that is not there, or cannot be read, is for the start to deal with.
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    match names.into_iter().find(|name| !OWN_FILES.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let accepted = format!(
                "a folder for a gateway alone, which empties it at every start; in this one is {name}, which is not a gateway's"
            );
            Err(ConfigError::value("data_dir", folder.display(), "configuration", accepted))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::{Layers, resolve};

    const VERIFIER: &str = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const NEEDED: &str =
        "listen = '127.0.0.1:5432'\nurl = 'http://127.0.0.1:1,http://127.0.0.1:2'\ndata_dir = '/nowhere/gateway'\n";

    fn configured(more: &str, environment: &[(&str, &str)]) -> Result<GatewayConfig, String> {
        let layers = Layers {
            file: Some(("a.toml".into(), format!("{NEEDED}{more}"))),
            environment: environment.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            ..Layers::default()
        };
        let settings = resolve(&gateway_settings(), &layers).map_err(|error| error.to_string())?;
        complete(settings).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_is_trusted_unless_asked_for() {
        let config = configured("", &[]).unwrap();
        assert_eq!(config.endpoints, ["http://127.0.0.1:1", "http://127.0.0.1:2"]);
        assert!(config.rules.iter().all(|rule| rule.method == Method::ScramSha256));
        let trusting = configured("", &[("EVENKEEL_TRUST_LOOPBACK", "true")]).unwrap();
        let trusted = |rule: &Rule| (rule.method == Method::Trust).then(|| rule.from.clone());
        assert_eq!(trusting.rules.iter().filter_map(trusted).collect::<Vec<_>>(), LOOPBACK);
        assert_eq!(trusting.rules[LOOPBACK.len()..], config.rules);
        assert_eq!(trusting.rules[0].method, Method::Trust, "the others come after");
    }

    #[test]
    fn users_and_rules_are_in_the_file() {
        let file = format!(
            "max_clients = 7\n[users]\napp = '{VERIFIER}'\n[[rules]]\nfrom = '10.0.0.0/8'\nencrypted = true\nmethod = 'scram-sha-256'"
        );
        let config = configured(&file, &[]).unwrap();
        assert_eq!((config.max_clients, config.users.len()), (7, 1));
        assert_eq!((config.rules.len(), config.rules[0].encrypted), (1, true));
    }

    #[test]
    fn mistakes_are_named_and_secrets_are_not_repeated() {
        let refused = |file: &str, line: &str| {
            let error = configured(file, &[]).unwrap_err();
            assert!(error.starts_with(line) && !error.contains("secret"), "{error}");
        };
        refused("users = 'secret'", "users = … (file a.toml): accepted is a table of texts by name");
        refused("users.app = 5", "users.app = … (file a.toml): accepted is a text");
        refused("users.app = 'secret'", "users: the verifier of \"app\" is none");
        refused(
            "[[rules]]\nfrom = '::1'\nmethod = 'md5'",
            "rules.1.method = \"md5\" (file a.toml): accepted is trust,",
        );
        refused("[[rules]]\nfrom = '::1'\nhow = 'md5'", "rules.1.how = \"md5\" (file a.toml): accepted is nothing");
        refused("[[rules]]\nfrom = 'here'\nmethod = 'trust'", "rules: from \"here\" is no address");
        refused("[[rules]]\nfrom = '::1'", "configuration: missing field `method`");
        refused("tls_key = '/k'", "tls_key = /k (configuration): accepted is one together with tls_certificate");
        let error = configured("", &[("EVENKEEL_USERS", "secret")]).unwrap_err();
        assert_eq!(error, "users = … (environment EVENKEEL_USERS): accepted is a table of texts by name, in the file");
    }

    #[test]
    fn a_folder_of_something_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("postgres")).unwrap();
        check_folder(folder.path()).unwrap();
        check_folder(&folder.path().join("missing")).unwrap();
        std::fs::create_dir(folder.path().join("log")).unwrap();
        let error = check_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("in this one is log, which is not a gateway's"), "{error}");
    }
}
