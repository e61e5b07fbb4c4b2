//! Who may connect from where, and how a user proves who it is. Pure.
//!
//! Rules are tried in order, as in PostgreSQL's `pg_hba.conf`; the first that fits decides. Where
//! none fits, the connection is refused.

use serde::Deserialize;
use std::net::IpAddr;

/// How a user proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Not at all.
    Trust,
    /// By a password that never crosses the network.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// It cannot connect.
    Reject,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The addresses: `127.0.0.1`, `10.0.0.0/8`, `::/0`.
    pub from: String,
    /// The user; all users if absent.
    pub user: Option<String>,
    /// Whether only encrypted connections fit.
    #[serde(default)]
    pub encrypted: bool,
    /// The method.
    pub method: Method,
}

/// Passwords from anywhere: what holds if no rule is configured.
pub fn defaults() -> Vec<Rule> {
    let from = |from: &str| Rule { from: from.into(), user: None, encrypted: false, method: Method::ScramSha256 };
    vec![from("0.0.0.0/0"), from("::/0")]
}

/// The method by the first rule that fits.
pub fn method(rules: &[Rule], address: IpAddr, user: &str, encrypted: bool) -> Method {
    let fits = |rule: &&Rule| {
        (rule.user.is_none() || rule.user.as_deref() == Some(user))
            && (encrypted || !rule.encrypted)
            && contains(&rule.from, address)
    };
    rules.iter().find(fits).map_or(Method::Reject, |rule| rule.method)
}

/// Checks a rule's addresses.
///
/// # Errors
/// One sentence.
pub fn check(rule: &Rule) -> Result<(), String> {
    match network(&rule.from) {
        Some(_) => Ok(()),
        None => Err(format!("rules: from {:?} is no address; expected for example 127.0.0.1 or 10.0.0.0/8", rule.from)),
    }
}

fn network(text: &str) -> Option<(IpAddr, u32)> {
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Some(most), |bits| bits.parse().ok())?;
    (bits <= most).then_some((address, bits))
}

fn contains(from: &str, address: IpAddr) -> bool {
    let Some((network, bits)) = network(from) else { return false };
    let same = |a: u128, b: u128, width: u32| bits == 0 || (a ^ b) >> (width - bits) == 0;
    match (network, address.to_canonical()) {
        (IpAddr::V4(network), IpAddr::V4(address)) => same(u32::from(network).into(), u32::from(address).into(), 32),
        (IpAddr::V6(network), IpAddr::V6(address)) => same(network.into(), address.into(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rule = |from: &str, user: Option<&str>, encrypted, method| Rule {
            from: from.into(),
            user: user.map(Into::into),
            encrypted,
            method,
        };
        let rules = [
            rule("127.0.0.1", Some("eve"), false, Method::Reject),
            rule("127.0.0.0/8", None, false, Method::Trust),
            rule("0.0.0.0/0", None, true, Method::ScramSha256),
        ];
        let method = |address: &str, user, encrypted| method(&rules, address.parse().unwrap(), user, encrypted);
        assert_eq!(method("127.0.0.1", "eve", false), Method::Reject);
        assert_eq!(method("127.1.2.3", "eve", false), Method::Trust);
        assert_eq!(method("::ffff:127.0.0.1", "app", false), Method::Trust);
        assert_eq!(method("10.0.0.1", "app", true), Method::ScramSha256);
        assert_eq!(method("10.0.0.1", "app", false), Method::Reject);
        assert_eq!(method("::1", "app", true), Method::Reject);
    }

    #[test]
    fn addresses_are_checked() {
        let from = |from: &str| check(&Rule { from: from.into(), ..defaults()[0].clone() });
        assert!(from("10.0.0.0/8").is_ok() && from("::1").is_ok());
        assert!(from("10.0.0.0/33").is_err() && from("localhost").is_err() && from("10.0.0.0/").is_err());
    }
}
