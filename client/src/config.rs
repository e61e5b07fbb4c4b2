//! The settings of a client: the addresses of the placement driver, and limits. Each limit bounds
//! one thing that could otherwise grow or wait without end.

use serde::{Deserialize, Serialize};

/// A client's settings. Only `endpoints` has no useful default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientConfig {
    /// The placement driver's REST URLs (`http://127.0.0.1:7101`). One replica suffices, several
    /// are better; the client learns the URLs of further replicas while it runs.
    pub endpoints: Vec<String>,
    /// RPC connections to each shard replica, from 1. Statements share them; a transaction uses one
    /// of them.
    pub connections_per_replica: usize,
    /// How long a statement may take, with retries and waits, in milliseconds. Shards recognise ids
    /// for about 20 s (R14); a write that is retried later ends in 08007.
    pub statement_timeout_ms: u64,
    /// How long a stream may take from its beginning to its last row, in milliseconds. Each of its
    /// pieces may take `statement_timeout_ms`.
    pub stream_timeout_ms: u64,
    /// How long a statement that an overloaded shard refuses is retried before it fails with 53300,
    /// in milliseconds; at most `statement_timeout_ms`. The time is short so that users learn early
    /// of the overload.
    pub overload_patience_ms: u64,
    /// How long [`crate::Client::connect`] waits for a placement driver that answers, in
    /// milliseconds.
    pub connect_patience_ms: u64,
    /// How long one attempt to connect to a replica may take, in milliseconds.
    pub connect_timeout_ms: u64,
    /// After this time without an answer the client asks the shard's other replicas which of them
    /// leads, in milliseconds. It waits for a slow leader, and leaves a deposed one.
    pub silence_ms: u64,
    /// How long one REST request may take, in milliseconds. The watch is not bound by it.
    pub rest_timeout_ms: u64,
    /// The shortest time between two fetches of the routing table, in milliseconds. Requests in
    /// between share the next fetch.
    pub refresh_interval_ms: u64,
    /// After this time without a byte the watch is opened again, in milliseconds. The placement
    /// driver sends comments more often than that.
    pub watch_silence_ms: u64,
    /// The number of cached statement analyses, each of at most 8 KiB of SQL.
    pub statement_cache_entries: usize,
    /// The number of ranges of one scan that are read at the same time. A scan with a `LIMIT` reads
    /// one after the other.
    pub scan_parallelism: usize,
    /// The largest answer that is collected over several ranges, in bytes.
    pub max_answer_bytes: usize,
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        ClientConfig {
            endpoints: Vec::new(),
            connections_per_replica: 2,
            statement_timeout_ms: 10_000,
            stream_timeout_ms: 3_600_000,
            overload_patience_ms: 1_000,
            connect_patience_ms: 10_000,
            connect_timeout_ms: 1_000,
            silence_ms: 100,
            rest_timeout_ms: 1_500,
            refresh_interval_ms: 20,
            watch_silence_ms: 30_000,
            statement_cache_entries: 512,
            scan_parallelism: 4,
            max_answer_bytes: 64 << 20,
        }
    }
}

impl ClientConfig {
    /// Settings for a cluster whose placement driver serves REST at these URLs.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> ClientConfig {
        ClientConfig { endpoints: endpoints.into_iter().map(Into::into).collect(), ..ClientConfig::default() }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// One line with the setting, its value and the accepted values.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.endpoints.is_empty() {
            return Err("endpoints: none given; expected at least one URL, for example http://127.0.0.1:7101".into());
        }
        if let Some(bad) = self.endpoints.iter().find(|e| !e.starts_with("http://")) {
            return Err(format!("endpoints: {bad:?} is not accepted; expected http://HOST:PORT"));
        }
        for (name, value) in [
            ("connections_per_replica", self.connections_per_replica as u64),
            ("statement_timeout_ms", self.statement_timeout_ms),
            ("stream_timeout_ms", self.stream_timeout_ms),
            ("connect_patience_ms", self.connect_patience_ms),
            ("connect_timeout_ms", self.connect_timeout_ms),
            ("silence_ms", self.silence_ms),
            ("rest_timeout_ms", self.rest_timeout_ms),
            ("watch_silence_ms", self.watch_silence_ms),
            ("statement_cache_entries", self.statement_cache_entries as u64),
            ("scan_parallelism", self.scan_parallelism as u64),
            ("max_answer_bytes", self.max_answer_bytes as u64),
        ] {
            if value == 0 {
                return Err(format!("{name}: 0 is not accepted; expected a number from 1"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_wrong_setting_is_named_with_its_value() {
        assert_eq!(ClientConfig::new(["http://127.0.0.1:1"]).check(), Ok(()));
        let wrong = |change: fn(&mut ClientConfig)| {
            let mut config = ClientConfig::new(["http://127.0.0.1:1"]);
            change(&mut config);
            config.check().unwrap_err()
        };
        assert!(wrong(|c| c.endpoints.clear()).starts_with("endpoints: none"));
        assert!(wrong(|c| c.endpoints.push("127.0.0.1:7".into())).contains("\"127.0.0.1:7\""));
        assert!(wrong(|c| c.silence_ms = 0).starts_with("silence_ms: 0"));
    }
}
