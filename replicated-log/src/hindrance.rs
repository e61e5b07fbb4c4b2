//! What tests do to a running process that no other process can do to it: a disk that is slow to sync, a wall clock that is wrong.
//!
//! Nothing, unless the process was started with [`FOLDER_VARIABLE`] in its environment. Then the folder that it names may hold
//! [`SYNC_DELAY_MS`] and [`CLOCK_OFFSET_MS`], each with one number, looked at every time: so a disk can become slow and a clock jump
//! while the process runs. A file that is not there, or holds no number, hinders nothing.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The environment variable that names the folder.
pub const FOLDER_VARIABLE: &str = "TEST_HINDRANCE";
/// The file that says by how many milliseconds each sync of the log takes longer.
pub const SYNC_DELAY_MS: &str = "sync-delay-ms";
/// The file that says how many milliseconds the wall clock is ahead (negative: behind).
pub const CLOCK_OFFSET_MS: &str = "clock-offset-ms";

/// The longest that one sync is delayed, in milliseconds.
const MAX_SYNC_DELAY_MS: i64 = 5_000;

static FOLDER: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from));

fn number(file: &str) -> i64 {
    let Some(folder) = &*FOLDER else { return 0 };
    std::fs::read_to_string(folder.join(file)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Before each sync of the log.
pub(crate) fn before_sync() {
    let delay_ms = number(SYNC_DELAY_MS).clamp(0, MAX_SYNC_DELAY_MS);
    if delay_ms > 0 {
        std::thread::sleep(Duration::from_millis(delay_ms as u64));
    }
}

/// Milliseconds since the Unix epoch by the machine's wall clock, which may be set at any time.
pub(crate) fn wall_ms() -> u64 {
    let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    wall_ms.saturating_add_signed(number(CLOCK_OFFSET_MS))
}
