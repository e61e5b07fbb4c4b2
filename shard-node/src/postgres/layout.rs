//! Where a node's PostgreSQL keeps its files, whose they are, and how they come to be.
//!
//! ```text
//! DATA_DIR/lock              held by the node's process for as long as it lives (R2)
//! DATA_DIR/postgres/ the server's data; made beside and renamed, so that it is there whole or not
//! at all DATA_DIR/postgres.damaged/ data that was of no use, until the replica is whole again
//! DATA_DIR/postgres.log what the server says, and DATA_DIR/postgres.log.1 the piece before it
//! DATA_DIR/socket/ the only way in: a Unix socket in a folder only the server's account can enter
//! ```
//!
//! The system limits a socket's path to about a hundred bytes. If DATA_DIR is too long for that (or
//! has characters that the server's configuration would need quoted), the socket lies in
//! `/tmp/evenkeel-<hash of DATA_DIR>` instead, also mode 0700; a folder found there that is not
//! ours is refused, not used.
//!
//! PostgreSQL refuses to run as root. A node started as root runs it as `postgres` if the system
//! has that account, else as `nobody`, and gives it the folders above. It adds search permission
//! for that account's group on DATA_DIR itself, and never touches the folders above DATA_DIR.

use super::error::PostgresError;
use super::find::Binaries;
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The longest path of a socket's folder: `sockaddr_un` holds 108 bytes, of which `/.s.PGSQL.5432`
/// takes 14 and the closing zero one.
const MAX_SOCKET_DIR_BYTES: usize = 90;
/// The server's log is rotated when it is longer than this.
const MAX_LOG_BYTES: u64 = 4 << 20;
/// How much of the log's end an error shows.
const LOG_TAIL_BYTES: u64 = 2048;
/// The name of the server's superuser.
pub(super) const ADMIN: &str = "evenkeel";

/// The account that the server runs as when the node runs as root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

/// A node's folders.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub pgdata: PathBuf,
    pub socket_dir: PathBuf,
    pub log: PathBuf,
    /// `None`: the server runs as the account that runs the node.
    pub account: Option<Account>,
}

impl Layout {
    /// Makes and checks the folders. `data_dir` exists afterwards and is searchable for the
    /// server's account.
    pub fn prepare(data_dir: &Path) -> Result<Layout, PostgresError> {
        std::fs::create_dir_all(data_dir).map_err(|e| PostgresError::unusable(data_dir, e))?;
        let data_dir = data_dir.canonicalize().map_err(|e| PostgresError::unusable(data_dir, e))?;
        let account = server_account()?;
        if let Some(account) = &account {
            admit(&data_dir, account)?;
        }
        let socket_dir = socket_dir(&data_dir);
        let layout =
            Layout { pgdata: data_dir.join("postgres"), socket_dir, log: data_dir.join("postgres.log"), account };
        layout.make_private_dir(&layout.socket_dir)?;
        Ok(layout)
    }

    /// The major version of the data that is there; `None` before the first start.
    pub fn data_version(&self) -> Option<u32> {
        std::fs::read_to_string(self.pgdata.join("PG_VERSION")).ok()?.trim().parse().ok()
    }

    /// Runs `initdb` if there is no data yet. A crash at any point leaves either nothing or
    /// everything: the data is made under another name, brought to the disk, and renamed.
    pub fn initialise(&self, binaries: &Binaries) -> Result<(), PostgresError> {
        if self.pgdata.exists() {
            return Ok(());
        }
        let making = self.fresh_name()?;
        let unusable = |e: std::io::Error| PostgresError::unusable(&making, e);
        self.make_private_dir(&making)?;
        let output = self
            .command(&binaries.program("initdb"))
            .arg("-D")
            .arg(&making)
            .args(["--no-sync", "--no-instructions", "--locale=C", "--encoding=UTF8", "--auth=trust"])
            .arg(format!("--username={ADMIN}"))
            .output()
            .map_err(|e| PostgresError::failed("initdb", e))?;
        if !output.status.success() {
            return Err(PostgresError::failed("initdb", String::from_utf8_lossy(&output.stderr).trim()));
        }
        // One sync of the whole file system is cheaper than one for each of initdb's thousand
        // files.
        let folder = File::open(&making).map_err(unusable)?;
        rustix::fs::syncfs(&folder).map_err(|e| unusable(e.into()))?;
        std::fs::rename(&making, &self.pgdata).map_err(unusable)?;
        let parent = self.pgdata.parent().unwrap_or(Path::new("/"));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(unusable)
    }

    /// A name to make the data under; removes what interrupted attempts have left. The name is new
    /// each time, because an `initdb` whose node was killed may still be writing.
    fn fresh_name(&self) -> Result<PathBuf, PostgresError> {
        let parent = self.pgdata.parent().unwrap_or(Path::new("/"));
        let unusable = |e: std::io::Error| PostgresError::unusable(parent, e);
        for entry in std::fs::read_dir(parent).map_err(unusable)?.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b"postgres.new-") {
                std::fs::remove_dir_all(entry.path()).map_err(unusable)?;
            }
        }
        Ok(self.pgdata.with_extension(format!("new-{}", evenkeel_host::wall_time().as_nanos())))
    }

    /// Writes a file of the server's configuration, readable for the server's account alone.
    pub fn write_config(&self, name: &str, text: &str) -> Result<(), PostgresError> {
        let path = self.pgdata.join(name);
        let write = || {
            std::fs::write(&path, text)?;
            std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            self.give(&path)
        };
        write().map_err(|e| PostgresError::unusable(&path, e))
    }

    /// Removes what a server that no longer runs has left and that would stop the next one from
    /// starting: its files with process ids, which may meanwhile be those of unrelated processes.
    pub fn remove_stale_files(&self) -> Result<(), PostgresError> {
        let sockets = std::fs::read_dir(&self.socket_dir).map_err(|e| PostgresError::unusable(&self.socket_dir, e))?;
        let stale = sockets.flatten().map(|entry| entry.path()).chain([self.pgdata.join("postmaster.pid")]);
        for path in stale {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(PostgresError::unusable(&path, e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// A command that runs as the server's account, with nothing of the node's environment that
    /// could change what the server does.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
        if let Some(libraries) = std::env::var_os("LD_LIBRARY_PATH") {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command.current_dir("/").stdin(Stdio::null());
        if let Some(account) = &self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    /// Opens the server's log for appending, rotating it first if it is long.
    pub fn open_log(&self) -> Result<File, PostgresError> {
        let open = || {
            if std::fs::metadata(&self.log).is_ok_and(|m| m.len() > MAX_LOG_BYTES) {
                std::fs::rename(&self.log, self.rotated_log())?;
            }
            OpenOptions::new().create(true).append(true).open(&self.log)
        };
        open().map_err(|e| PostgresError::unusable(&self.log, e))
    }

    /// Rotates a log that has grown long under a running server. The server appends, so that it
    /// goes on at the new end; what it writes between the two steps is lost, which a log can bear.
    pub fn bound_log(&self) {
        let bound = || -> std::io::Result<()> {
            if std::fs::metadata(&self.log)?.len() > MAX_LOG_BYTES {
                std::fs::copy(&self.log, self.rotated_log())?;
                OpenOptions::new().write(true).open(&self.log)?.set_len(0)?;
            }
            Ok(())
        };
        if let Err(error) = bound() {
            tracing::warn!(log = %self.log.display(), %error, "cannot bound the PostgreSQL log");
        }
    }

    /// How long the server's log is, in bytes.
    pub fn log_length(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |found| found.len())
    }

    /// The end of the server's log, at most back to `from` (in bytes).
    pub fn log_tail(&self, from: u64) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES).max(from.min(length))))?;
            let mut tail = Vec::new();
            file.take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
            Ok(String::from_utf8_lossy(&tail).trim().to_string())
        };
        read().unwrap_or_else(|e| format!("{}: {e}", self.log.display()))
    }

    /// Whether the data's folder is still the one with this device and inode, with data in it.
    pub fn is_there(&self, folder: (u64, u64)) -> bool {
        let same = std::fs::metadata(&self.pgdata).is_ok_and(|found| (found.dev(), found.ino()) == folder);
        same && self.pgdata.join("PG_VERSION").exists()
    }

    /// Bytes free where the data lies, or will.
    pub fn free_bytes(&self) -> Result<u64, PostgresError> {
        let parent = self.pgdata.parent().unwrap_or(Path::new("/"));
        let place = if self.pgdata.exists() { self.pgdata.as_path() } else { parent };
        let found = rustix::fs::statvfs(place).map_err(|e| PostgresError::unusable(place, e))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Puts the data out of the way, in place of what was put there before.
    pub fn discard(&self) -> Result<(), PostgresError> {
        self.forget_discarded()?;
        std::fs::rename(&self.pgdata, self.discarded()).map_err(|e| PostgresError::unusable(&self.pgdata, e))
    }

    /// Deletes what was put out of the way.
    pub fn forget_discarded(&self) -> Result<(), PostgresError> {
        match std::fs::remove_dir_all(self.discarded()) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(PostgresError::unusable(&self.discarded(), e)),
            _ => Ok(()),
        }
    }

    fn discarded(&self) -> PathBuf {
        self.pgdata.with_extension("damaged")
    }

    fn rotated_log(&self) -> PathBuf {
        self.log.with_extension("log.1")
    }

    fn give(&self, path: &Path) -> std::io::Result<()> {
        match &self.account {
            Some(account) => chown(path, Some(account.uid), Some(account.gid)),
            None => Ok(()),
        }
    }

    /// Makes a folder with mode 0700 for the server's account, or checks that the one that is there
    /// is such a folder.
    fn make_private_dir(&self, path: &Path) -> Result<(), PostgresError> {
        let unusable = |e: std::io::Error| PostgresError::unusable(path, e);
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => self.give(path).map_err(unusable),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                let found = std::fs::symlink_metadata(path).map_err(unusable)?;
                let node = rustix::process::geteuid().as_raw();
                let owner = self.account.as_ref().map_or(node, |account| account.uid);
                if !found.is_dir() || (found.uid() != owner && found.uid() != node) {
                    return Err(PostgresError::unusable(path, "it is not a folder of this node's"));
                }
                std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(unusable)?;
                self.give(path).map_err(unusable)
            }
            Err(e) => Err(unusable(e)),
        }
    }
}

/// Takes the exclusive lock on `data_dir` (R2). It lasts until the file is dropped or the process
/// ends, however it ends.
///
/// A lock that its owner has just given up can stay for a moment: a process that is being started
/// holds a copy of every descriptor from its fork to its exec. So it is asked for again before
/// somebody else is blamed.
pub(super) fn lock(data_dir: &Path) -> Result<File, PostgresError> {
    let unusable = |e: std::io::Error| PostgresError::unusable(data_dir, e);
    std::fs::create_dir_all(data_dir).map_err(unusable)?;
    let path = data_dir.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(unusable)?;
    let begun = evenkeel_host::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if evenkeel_host::elapsed(begun) < LOCK_WAIT => {
                evenkeel_host::sleep_thread(LOCK_RETRY)
            }
            Err(TryLockError::WouldBlock) => return Err(PostgresError::InUse { path: data_dir.to_path_buf() }),
            Err(TryLockError::Error(e)) => return Err(unusable(e)),
        }
    }
}

/// How long the lock is asked for, and how often: much longer than from a fork to its exec.
const LOCK_WAIT: Duration = Duration::from_millis(1_000);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// The account to run the server as; `None` unless the node runs as root.
fn server_account() -> Result<Option<Account>, PostgresError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let path = Path::new("/etc/passwd");
    let passwd = std::fs::read_to_string(path).map_err(|e| PostgresError::unusable(path, e))?;
    let found = ["postgres", "nobody"].iter().find_map(|name| find_account(&passwd, name));
    found.map(Some).ok_or_else(|| {
        let reason = "PostgreSQL refuses to run as root, and there is no account `postgres` or `nobody` to run it as";
        PostgresError::unusable(path, reason)
    })
}

fn find_account(passwd: &str, name: &str) -> Option<Account> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2).map(|field| field.parse().ok());
    Some(Account { name: name.to_string(), uid: fields.next()??, gid: fields.next()?? })
}

/// Lets `account` pass through `data_dir`, which is the node's own; checks that it can pass through
/// what lies above.
fn admit(data_dir: &Path, account: &Account) -> Result<(), PostgresError> {
    let unusable = |e: std::io::Error| PostgresError::unusable(data_dir, e);
    let found = std::fs::metadata(data_dir).map_err(unusable)?;
    if !searchable(&found, account) {
        chown(data_dir, None, Some(account.gid)).map_err(unusable)?;
        std::fs::set_permissions(data_dir, Permissions::from_mode(found.mode() | 0o010)).map_err(unusable)?;
    }
    for folder in data_dir.ancestors().skip(1) {
        let found = std::fs::metadata(folder).map_err(|e| PostgresError::unusable(folder, e))?;
        if !searchable(&found, account) {
            let reason = format!(
                "PostgreSQL runs as {} here and cannot pass through it to the data folder below; chmod o+x it, or choose another data_dir",
                account.name
            );
            return Err(PostgresError::unusable(folder, reason));
        }
    }
    Ok(())
}

fn searchable(folder: &std::fs::Metadata, account: &Account) -> bool {
    let bit = match () {
        () if folder.uid() == account.uid => 0o100,
        () if folder.gid() == account.gid => 0o010,
        () => 0o001,
    };
    folder.mode() & bit != 0
}

/// Where the socket goes; see the module's page.
fn socket_dir(data_dir: &Path) -> PathBuf {
    let inside = data_dir.join("socket");
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-".contains(b);
    let bytes = inside.as_os_str().as_encoded_bytes();
    if bytes.len() <= MAX_SOCKET_DIR_BYTES && bytes.iter().all(plain) {
        return inside;
    }
    // FNV-1a: short, and the same in every build, so that a restarted node finds and reuses its
    // folder.
    let hash = data_dir
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    PathBuf::from(format!("/tmp/evenkeel-{hash:016x}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_socket_path_always_fits() {
        assert_eq!(socket_dir(Path::new("/srv/node-1")), Path::new("/srv/node-1/socket"));
        for unfit in [format!("/{}", "long/".repeat(30)), "/with space".to_string(), "/a,b".to_string()] {
            let dir = socket_dir(Path::new(&unfit));
            assert!(dir.starts_with("/tmp") && dir.as_os_str().len() <= MAX_SOCKET_DIR_BYTES, "{dir:?}");
            assert_ne!(dir, socket_dir(&Path::new(&unfit).join("other")));
        }
    }

    #[test]
    fn accounts_are_read_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\npostgres:x:101:104:a,,b:/var/lib/postgresql:/bin/bash\n";
        let account = Account { name: "postgres".into(), uid: 101, gid: 104 };
        assert_eq!(find_account(passwd, "postgres"), Some(account));
        assert_eq!(find_account(passwd, "nobody"), None);
        assert_eq!(find_account("postgres:x:many:1::", "postgres"), None);
    }

    /// R2: two nodes never share a data directory.
    #[test]
    fn the_lock_is_exclusive_and_ends_with_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(PostgresError::InUse { .. })));
        drop(held);
        lock(dir.path()).unwrap();
    }

    #[test]
    fn a_long_log_is_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout {
            pgdata: dir.path().join("postgres"),
            socket_dir: dir.path().join("socket"),
            log: dir.path().join("postgres.log"),
            account: None,
        };
        std::fs::write(&layout.log, vec![b'x'; MAX_LOG_BYTES as usize + 1]).unwrap();
        layout.bound_log();
        assert_eq!(std::fs::metadata(&layout.log).unwrap().len(), 0);
        assert_eq!(std::fs::metadata(dir.path().join("postgres.log.1")).unwrap().len(), MAX_LOG_BYTES + 1);
        std::fs::write(&layout.log, "first\nlast\n").unwrap();
        layout.bound_log();
        assert_eq!(layout.log_tail(0), "first\nlast");
    }
}
