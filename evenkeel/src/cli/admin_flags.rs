//! Flags of every administrator's command: the placement driver's URLs, and the format of the
//! output.

use clap::{Args, ValueEnum};
use evenkeel_client::admin::{AdminClient, parse_url};

/// The format of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A table for people.
    Table,
    /// The placement driver's JSON.
    Json,
}

/// Where to find the placement driver, and how to print its answers.
#[derive(Debug, Clone, Args)]
pub struct AdminFlags {
    /// URLs of the placement driver's replicas, comma between
    #[arg(long, global = true, env = "EVENKEEL_URL", value_delimiter = ',', value_parser = parse_url, default_value = "http://127.0.0.1:7101")]
    url: Vec<String>,
    /// How the answer is shown
    #[arg(long, global = true, env = "EVENKEEL_FORMAT", value_enum, default_value = "table")]
    format: OutputFormat,
}

impl AdminFlags {
    /// A client of the placement driver.
    pub fn admin(&self) -> AdminClient {
        AdminClient::new(self.url.iter().cloned())
    }

    /// The URLs of the placement driver's replicas.
    pub fn urls(&self) -> &[String] {
        &self.url
    }

    /// The format of the output.
    pub fn format(&self) -> OutputFormat {
        self.format
    }
}
