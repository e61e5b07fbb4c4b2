//! The configuration of a gateway.

use crate::door::authentication::Verifier;
use crate::door::rules::{self, Rule};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A gateway's settings, as its file has them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The placement driver's REST URLs.
    pub endpoints: Vec<String>,
    /// The folder of the gateway's own PostgreSQL. It holds nothing that cannot be made again, and
    /// is emptied at every start.
    pub data_dir: PathBuf,
    /// The folder with PostgreSQL's programs; found if absent.
    #[serde(default)]
    pub postgres_bin: Option<PathBuf>,
    /// The certificate chain and its private key, both in PEM; no TLS if absent.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// Users and their verifiers, as PostgreSQL's `pg_authid` has them.
    #[serde(default)]
    pub users: BTreeMap<String, String>,
    /// Who may connect from where; passwords from anywhere if absent.
    #[serde(default = "rules::defaults")]
    pub rules: Vec<Rule>,
    /// Clients at a time.
    #[serde(default = "max_clients")]
    pub max_clients: usize,
}

/// A certificate and its key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate chain, in PEM.
    pub certificate: PathBuf,
    /// The private key, in PEM.
    pub key: PathBuf,
}

fn max_clients() -> usize {
    10_000
}

impl GatewayConfig {
    /// The users' verifiers.
    ///
    /// # Errors
    /// One line with the setting, its value and the accepted values.
    pub fn check(&self) -> Result<BTreeMap<String, Verifier>, String> {
        self.rules.iter().try_for_each(rules::check)?;
        if self.max_clients == 0 {
            return Err("max_clients: 0 is not accepted; expected a number from 1".into());
        }
        let each = self.users.iter().map(|(user, text)| match Verifier::parse(text) {
            Some(verifier) => Ok((user.clone(), verifier)),
            // The text is a secret, or nearly one: it is not repeated.
            None => {
                Err(format!("users: the verifier of {user:?} is none; expected SCRAM-SHA-256$iterations:salt$key:key"))
            }
        });
        each.collect()
    }
}
