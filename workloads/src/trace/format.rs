//! The formats of traces, by name.

/// A trace's format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TraceFormat {
    /// `time_us,op,key[,value_bytes]`; see [`csv`](super::csv).
    #[default]
    Csv,
    /// Twitter's cache traces; see [`twitter`](super::twitter).
    Twitter,
}

impl std::str::FromStr for TraceFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "csv" => Ok(Self::Csv),
            "twitter" => Ok(Self::Twitter),
            _ => Err(format!("unknown trace format `{name}`; accepted: csv, twitter")),
        }
    }
}
