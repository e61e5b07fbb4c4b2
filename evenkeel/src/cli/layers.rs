//! The layers of a command's configuration, read from the file, the environment and the flags.

use crate::config::{ConfigError, Kind, Layers, Setting, resolve};
use crate::{bench, demo, gateway_config, replay, roles};
use std::path::Path;

/// The keys of all commands. The environment is shared: a key of another command is no mistake
/// there.
fn all_keys() -> Vec<&'static str> {
    let all = [
        roles::placement_driver_settings(),
        roles::shard_node_settings(),
        gateway_config::gateway_settings(),
        demo::settings(),
        replay::settings(),
        bench::settings(),
        bench::failover::settings(),
        bench::size::settings(),
    ];
    all.iter().flatten().map(|s| s.key).collect()
}

/// The layers of a command: this file, the process's environment, these flags.
pub fn layers(file: Option<&Path>, flags: Vec<(&'static str, String)>) -> Result<Layers, ConfigError> {
    let file = match file {
        None => None,
        Some(path) => {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|e| {
                ConfigError::value("config", &name, "flag --config", format!("a TOML file; this one: {e}"))
            })?;
            Some((name, text))
        }
    };
    Ok(Layers { file, environment: environment(), flags, other_commands_keys: all_keys() })
}

/// Checks the environment of an administrator's command, which reads no file and knows two
/// variables. A mistyped variable must not send the command to the wrong cluster.
pub fn check_environment() -> Result<(), ConfigError> {
    let settings = [Setting::optional("url", Kind::Urls), Setting::optional("format", Kind::Text)];
    let layers = Layers { environment: environment(), other_commands_keys: all_keys(), ..Layers::default() };
    resolve::<serde_json::Value>(&settings, &layers).map(drop)
}

fn environment() -> Vec<(String, String)> {
    let lossy = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    };
    std::env::vars_os().map(lossy).collect()
}
