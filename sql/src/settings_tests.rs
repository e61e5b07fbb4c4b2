//! Settings in SQL texts, as they are parsed.

#![allow(clippy::unwrap_used)]
use super::*;
use crate::{Command, parse};

fn read(sql: &str) -> SettingCommand {
    match parse(sql).unwrap() {
        Command::Setting(command) => command,
        other => panic!("{other:?}"),
    }
}

#[test]
fn settings_are_set_reset_and_shown() {
    let set = |setting| SettingCommand::Set { local: false, setting };
    for (sql, command) in [
        ("SET evenkeel.read_level = 'local'", set(Setting::ReadLevel(ReadLevel::Local))),
        ("set session evenkeel.read_level to leader;", set(Setting::ReadLevel(ReadLevel::Leader))),
        ("SET evenkeel.max_staleness = '500ms'", set(Setting::MaxStaleness(Some(500)))),
        ("SET evenkeel.max_staleness = 250", set(Setting::MaxStaleness(Some(250)))),
        ("SET evenkeel.max_staleness = 0", set(Setting::MaxStaleness(None))),
        ("SET EVENKEEL.Durability TO 'Memory'", set(Setting::Durability(Durability::Memory))),
        ("SET evenkeel.replica = 2", set(Setting::Replica(Some(2)))),
        (
            "SET LOCAL evenkeel.durability = disk",
            SettingCommand::Set { local: true, setting: Setting::Durability(Durability::Disk) },
        ),
        (
            "SET evenkeel.durability TO DEFAULT",
            SettingCommand::Reset { local: false, name: Some(SettingName::Durability) },
        ),
        ("RESET evenkeel.replica", SettingCommand::Reset { local: false, name: Some(SettingName::Replica) }),
        ("RESET ALL", SettingCommand::Reset { local: false, name: None }),
        ("SHOW evenkeel.max_staleness", SettingCommand::Show(SettingName::MaxStaleness)),
    ] {
        assert_eq!(read(sql), command, "{sql}");
    }
}

#[test]
fn an_unknown_setting_is_refused_by_name() {
    for (sql, code) in [
        ("SET evenkeel.durability = 'paper'", codes::INVALID_PARAMETER),
        ("SET evenkeel.max_staleness = '1 fortnight'", codes::INVALID_PARAMETER),
        ("SET evenkeel.replica = 'left'", codes::INVALID_PARAMETER),
        ("SET evenkeel.colour = 'red'", codes::UNDEFINED_SETTING),
        ("SHOW evenkeel.colour", codes::UNDEFINED_SETTING),
        ("SET evenkeel.durability 'disk'", codes::SYNTAX_ERROR),
        ("RESET evenkeel.durability now", codes::SYNTAX_ERROR),
        ("SET search_path = public", codes::FEATURE_NOT_SUPPORTED),
        ("RESET work_mem", codes::FEATURE_NOT_SUPPORTED),
        ("SHOW server_version", codes::FEATURE_NOT_SUPPORTED),
    ] {
        assert_eq!(parse(sql).unwrap_err().code, code, "{sql}");
    }
}
