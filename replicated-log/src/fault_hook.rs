//! Fault hooks: faults that tests inject into a running process and no other process could cause.
//! They are a disk that is slow to sync, and a wall clock that is wrong.
//!
//! The hooks do nothing unless the process was started with [`FOLDER_VARIABLE`] in its environment.
//! Then the folder named there may hold [`SYNC_DELAY_MS`] and [`CLOCK_OFFSET_MS`], each with one
//! number. The files are read at every use, so a disk can become slow and a clock jump while the
//! process runs. A file that is missing, or holds no number, has no effect.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

/// The environment variable that names the folder.
pub const FOLDER_VARIABLE: &str = "TEST_FAULT_HOOK";
/// The file with the delay of each sync of the log, in milliseconds.
pub const SYNC_DELAY_MS: &str = "sync-delay-ms";
/// The file with the number of milliseconds that the wall clock is ahead (negative: behind).
pub const CLOCK_OFFSET_MS: &str = "clock-offset-ms";

/// The longest delay of one sync, in milliseconds.
const MAX_SYNC_DELAY_MS: i64 = 5_000;

static FOLDER: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from));

fn number(file: &str) -> i64 {
    let Some(folder) = &*FOLDER else { return 0 };
    std::fs::read_to_string(folder.join(file)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Called before each sync of the log.
pub(crate) fn before_sync() {
    let delay_ms = number(SYNC_DELAY_MS).clamp(0, MAX_SYNC_DELAY_MS);
    if delay_ms > 0 {
        evenkeel_host::sleep_thread(Duration::from_millis(delay_ms as u64));
    }
}

/// Milliseconds since the Unix epoch by the machine's wall clock, which may be set at any time.
pub(crate) fn wall_ms() -> u64 {
    evenkeel_host::wall_ms().saturating_add_signed(number(CLOCK_OFFSET_MS))
}
