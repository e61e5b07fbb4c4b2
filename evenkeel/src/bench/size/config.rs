//! Settings of `bench size`.

use crate::config::{Kind, Setting};
use serde::Deserialize;
use std::path::PathBuf;

/// The configuration of `bench size`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct SizeConfig {
    /// A trace of large blocks; absent: a generated pattern.
    pub trace: Option<PathBuf>,
    /// The duration of the trace's load, in seconds.
    pub duration: f64,
    /// Gigabytes (10^9 bytes) of the smaller data set.
    pub gigabytes: f64,
    /// Gigabytes of the larger data set; 0: none.
    pub large_gigabytes: f64,
    /// Parts, separated by commas: `trace`, `moves`, `replicas`; or `reseed`, the part of
    /// `replicas` that re-seeds a wiped replica.
    pub only: String,
    /// The folder with PostgreSQL's programs; absent: searched for.
    pub postgres_bin: Option<PathBuf>,
    /// The file that receives the figures as JSON.
    pub json: Option<PathBuf>,
}

impl Default for SizeConfig {
    fn default() -> SizeConfig {
        SizeConfig {
            trace: None,
            duration: 30.0,
            gigabytes: 1.0,
            large_gigabytes: 5.0,
            only: "trace,moves,replicas".into(),
            postgres_bin: None,
            json: None,
        }
    }
}

/// The settings of `bench size`.
pub fn settings() -> Vec<Setting> {
    vec![
        Setting::optional("trace", Kind::Path),
        Setting::optional("duration", Kind::Seconds(1.0, 3_600.0)),
        Setting::optional("gigabytes", Kind::ZeroOr(0.001, 1_000.0)),
        Setting::optional("large_gigabytes", Kind::ZeroOr(0.001, 1_000.0)),
        Setting::optional("only", Kind::Text),
        Setting::optional("postgres_bin", Kind::Path),
        Setting::optional("json", Kind::Path),
    ]
}
