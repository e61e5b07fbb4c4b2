//! Configurations as TOML text.

use crate::error::ClusterError;

/// A configuration as the text of a TOML file. Absent settings are left out.
pub fn to_toml<T: serde::Serialize>(config: &T) -> Result<String, ClusterError> {
    let json = serde_json::to_value(config).map_err(|e| ClusterError::Text(e.to_string()))?;
    let value = json_to_toml(&json).unwrap_or_else(|| toml::Value::Table(toml::Table::new()));
    toml::to_string(&value).map_err(|e| ClusterError::Text(e.to_string()))
}

/// JSON's `null` has no counterpart in TOML.
fn json_to_toml(json: &serde_json::Value) -> Option<toml::Value> {
    Some(match json {
        serde_json::Value::Null => return None,
        serde_json::Value::Bool(v) => toml::Value::Boolean(*v),
        serde_json::Value::Number(n) => match n.as_i64() {
            Some(n) => toml::Value::Integer(n),
            None => toml::Value::Float(n.as_f64()?),
        },
        serde_json::Value::String(text) => toml::Value::String(text.clone()),
        serde_json::Value::Array(items) => toml::Value::Array(items.iter().filter_map(json_to_toml).collect()),
        serde_json::Value::Object(map) => {
            toml::Value::Table(map.iter().filter_map(|(k, v)| Some((k.clone(), json_to_toml(v)?))).collect())
        }
    })
}
