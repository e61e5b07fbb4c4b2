//! The session's settings, which follow its transactions: a change by SET lasts if its transaction
//! commits, a change by SET LOCAL ends with it. Pure.

use crate::front::settings::Settings;
use crate::grammar::statement::Modes;
use evenkeel_protocol::SqlError;

/// Settings that a user cannot have: they would change whose statement it is, or how the store
/// captures and replicates it.
const FORBIDDEN: [&str; 4] = ["session_replication_role", "role", "session_authorization", "allow_system_table_mods"];

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct SessionSettings {
    /// What RESET restores: the values of the start-up message.
    began_with: Settings,
    /// In force, without SET LOCAL.
    session: Settings,
    /// In force only in the transaction.
    local: Settings,
    /// As they were when the transaction began, and at its savepoints.
    saved: Vec<(String, Settings, Settings)>,
    in_transaction: Option<(Settings, Settings)>,
}

impl SessionSettings {
    /// The settings of a start-up message.
    pub fn new(began_with: Settings) -> SessionSettings {
        SessionSettings { session: began_with.clone(), began_with, ..SessionSettings::default() }
    }

    /// All that are in force.
    pub fn current(&self) -> Settings {
        let mut all = self.session.clone();
        all.extend(self.local.clone());
        all
    }

    /// One that is in force and differs from the server's default.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.local.get(name).or_else(|| self.session.get(name)).map(String::as_str)
    }

    /// Changes a setting; `None` for its default.
    pub fn set(&mut self, name: &str, value: Option<String>, local: bool) {
        let value = value.or_else(|| self.began_with.get(name).cloned());
        let settings = if local { &mut self.local } else { &mut self.session };
        match value {
            Some(value) => _ = settings.insert(name.to_string(), value),
            None => _ = settings.remove(name),
        }
        if !local {
            self.local.remove(name);
        }
    }

    /// RESET ALL.
    pub fn reset_all(&mut self) {
        self.session = self.began_with.clone();
        self.local.clear();
    }

    /// A transaction begins.
    pub fn begin(&mut self) {
        self.in_transaction = Some((self.session.clone(), self.local.clone()));
    }

    /// The transaction ends.
    pub fn end(&mut self, committed: bool) {
        if let (Some((session, _)), false) = (self.in_transaction.take(), committed) {
            self.session = session;
        }
        self.local.clear();
        self.saved.clear();
    }

    /// A savepoint.
    pub fn save(&mut self, name: &str) {
        self.saved.push((name.to_string(), self.session.clone(), self.local.clone()));
    }

    /// Back to a savepoint, if it is known.
    pub fn back_to(&mut self, name: &str) {
        if let Some(at) = self.saved.iter().rposition(|(other, ..)| other == name) {
            let (_, session, local) = self.saved[at].clone();
            (self.session, self.local) = (session, local);
            self.saved.truncate(at + 1);
        }
    }

    /// The modes of a transaction that gives these: the rest by the session's defaults.
    pub fn modes(&self, given: &Modes) -> Modes {
        let read_only =
            self.get("default_transaction_read_only").map(|value| ["on", "true", "yes", "1"].contains(&value));
        Modes {
            isolation: given
                .isolation
                .clone()
                .or_else(|| self.get("default_transaction_isolation").map(str::to_lowercase)),
            read_only: given.read_only.or(read_only),
        }
    }
}

/// Refuses a setting that a user cannot have.
///
/// # Errors
/// 42501 or 0A000.
pub fn check(name: &str, value: Option<&str>) -> Result<(), SqlError> {
    if FORBIDDEN.contains(&name) || name.starts_with("evenkeel.") {
        return Err(SqlError::new("42501", format!("permission denied to set parameter \"{name}\"")));
    }
    let utf8 = |value: &str| ["utf8", "utf-8", "unicode", "default"].contains(&value.to_ascii_lowercase().as_str());
    if name == "client_encoding" && value.is_some_and(|value| !utf8(value)) {
        return Err(SqlError::unsupported(
            "another client encoding than UTF8 is not supported",
            "SET client_encoding TO UTF8",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_follow_transactions_and_savepoints() {
        let mut settings = SessionSettings::new(Settings::from([("timezone".into(), "UTC".into())]));
        settings.begin();
        settings.set("search_path", Some("a".into()), false);
        settings.save("s");
        settings.set("search_path", Some("b".into()), true);
        assert_eq!(settings.get("search_path"), Some("b"));
        settings.back_to("s");
        assert_eq!(settings.get("search_path"), Some("a"));
        settings.set("work_mem", Some("1MB".into()), true);
        settings.end(true);
        assert_eq!((settings.get("search_path"), settings.get("work_mem")), (Some("a"), None));
        settings.begin();
        settings.set("search_path", Some("c".into()), false);
        settings.end(false);
        assert_eq!(settings.get("search_path"), Some("a"));
        settings.set("timezone", Some("Asia/Tokyo".into()), false);
        settings.set("timezone", None, false);
        assert_eq!(settings.get("timezone"), Some("UTC"));
    }

    #[test]
    fn what_the_store_relies_on_cannot_be_set() {
        assert!(check("session_replication_role", Some("replica")).is_err());
        assert!(check("evenkeel.capture", Some("off")).is_err());
        assert!(check("client_encoding", Some("LATIN1")).is_err() && check("client_encoding", Some("UTF-8")).is_ok());
    }
}
