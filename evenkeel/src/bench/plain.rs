//! The reference of Evenkeel: a PostgreSQL primary with two streaming standbys, of which one must
//! have each commit on its disk before the client is answered (`synchronous_standby_names = 'ANY 1
//! (…)'`). The durability is the same: on two machines of three.
//!
//! Each server has the same programs, the same `shared_buffers` and the same `max_wal_size` as a
//! server of Evenkeel beside it. Clients use TCP on the loopback interface, as Evenkeel's do.

use evenkeel_local_cluster::loopback;
use evenkeel_shard_node::postgres::{Resources, find};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tokio_postgres::{Client, Config, NoTls};

/// The bound of connections, standbys and tools included.
const MAX_CONNECTIONS: u32 = 150;
/// How long the servers may take to start and to stream.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The three servers. Dropping this ends them.
#[derive(Debug)]
pub struct PlainPostgres {
    /// The folder with PostgreSQL's programs.
    programs: PathBuf,
    servers: Vec<Child>,
    account: Option<(u32, u32)>,
    root: tempfile::TempDir,
    ports: Vec<u16>,
    /// `shared_buffers` and `max_wal_size`, in MiB.
    sizes_mib: (u64, u64),
}

impl PlainPostgres {
    /// Creates and starts the servers, and waits until both standbys stream. Each is sized like one
    /// of `servers` shard replicas on this machine. An error is one line.
    pub async fn start(bin_dir: Option<&Path>, servers: u32) -> Result<PlainPostgres, String> {
        let programs = program_folder(bin_dir)?;
        let root = tempfile::Builder::new().prefix("evenkeel-bench-").tempdir().map_err(|e| e.to_string())?;
        let ports = evenkeel_host::ports::reserve(3).map_err(|e| e.to_string())?;
        let account = unprivileged_account()?;
        let free = rustix::fs::statvfs(root.path()).ok().map(|stat| stat.f_bavail * stat.f_frsize);
        let sizes_mib = Resources { servers, ..Resources::default() }.chosen_mib(free);
        let mut plain = PlainPostgres { programs, servers: Vec::new(), account, root, ports, sizes_mib };
        fs::set_permissions(plain.root.path(), fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
        plain.give(plain.root.path())?;
        plain.make_primary()?;
        plain.launch(0)?;
        plain.wait_for("SELECT 1::bigint", 1).await?;
        for standby in 1..=2 {
            plain.make_standby(standby)?;
            plain.launch(standby)?;
        }
        // With `quorum`, a commit waits for one of the two.
        let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'quorum'";
        plain.wait_for(streaming, 2).await?;
        Ok(plain)
    }

    /// A connection to the primary.
    pub async fn connect(&self) -> Result<Client, String> {
        let address = self.address();
        let mut config = Config::new();
        config.host(address.ip().to_string()).port(address.port()).user("postgres").dbname("postgres");
        let (client, connection) = config.connect(NoTls).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The process ids of the three servers.
    pub fn pids(&self) -> Vec<u32> {
        self.servers.iter().map(Child::id).collect()
    }

    fn address(&self) -> SocketAddr {
        loopback(self.ports[0])
    }

    fn data(&self, server: usize) -> PathBuf {
        self.root.path().join(if server == 0 { "primary".into() } else { format!("standby{server}") })
    }

    fn make_primary(&self) -> Result<(), String> {
        let data = self.data(0);
        self.run(
            "initdb",
            &["--no-sync", "--locale=C", "--encoding=UTF8", "--auth=trust", "--username=postgres", "-D"],
            &data,
        )?;
        let (buffers, wal) = self.sizes_mib;
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nmax_connections = {MAX_CONNECTIONS}\n\
             shared_buffers = {buffers}MB\nsynchronous_commit = on\nfsync = on\nfull_page_writes = on\n\
             synchronous_standby_names = 'ANY 1 (standby1, standby2)'\nwal_level = replica\nmax_wal_senders = 10\n\
             hot_standby = on\njit = off\nhuge_pages = off\nmax_wal_size = {wal}MB\ncheckpoint_timeout = 15min\n"
        );
        let path = data.join("postgresql.conf");
        let text = fs::read_to_string(&path).map_err(|e| e.to_string())? + &settings;
        fs::write(&path, text).map_err(|e| e.to_string())
    }

    fn make_standby(&self, number: usize) -> Result<(), String> {
        let from = format!("host=127.0.0.1 port={} user=postgres application_name=standby{number}", self.ports[0]);
        self.run("pg_basebackup", &["-d", &from, "-R", "--checkpoint=fast", "--no-sync", "-D"], &self.data(number))
    }

    fn run(&self, program: &str, args: &[&str], data: &Path) -> Result<(), String> {
        let output: Output =
            self.command(program).args(args).arg(data).output().map_err(|e| format!("{program}: {e}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }

    fn launch(&mut self, server: usize) -> Result<(), String> {
        let log = fs::File::create(self.root.path().join(format!("{server}.log"))).map_err(|e| e.to_string())?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data(server)).arg("-p").arg(self.ports[server].to_string());
        command.stderr(log).stdout(Stdio::null()).process_group(0);
        self.servers.push(command.spawn().map_err(|e| format!("postgres: {e}"))?);
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin").current_dir("/").stdin(Stdio::null());
        if let Some((uid, gid)) = self.account {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn give(&self, path: &Path) -> Result<(), String> {
        match self.account {
            Some((uid, gid)) => chown(path, Some(uid), Some(gid)).map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }

    /// Waits until `query` returns `expected` on the primary.
    async fn wait_for(&mut self, query: &str, expected: i64) -> Result<(), String> {
        let deadline = evenkeel_host::now() + START_TIMEOUT;
        loop {
            let seen = match self.connect().await {
                Ok(client) => client.query_one(query, &[]).await.map(|r| r.get::<_, i64>(0)).map_err(|e| e.to_string()),
                Err(error) => Err(error),
            };
            if seen == Ok(expected) {
                return Ok(());
            }
            let ended = self.servers.iter_mut().any(|s| matches!(s.try_wait(), Ok(Some(_))));
            if ended || evenkeel_host::now() >= deadline {
                let logs = (0..self.servers.len()).map(|n| self.root.path().join(format!("{n}.log")));
                let logs: Vec<String> = logs.filter_map(|path| fs::read_to_string(path).ok()).collect();
                return Err(format!("PostgreSQL is not up: {query} gives {seen:?}\n{}", logs.join("\n")));
            }
            evenkeel_host::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for PlainPostgres {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // SIGQUIT skips the checkpoint.
            if let Err(error) =
                rustix::process::kill_process(rustix::process::Pid::from_child(server), rustix::process::Signal::QUIT)
            {
                tracing::warn!(%error, "ending PostgreSQL {}", server.id());
            }
        }
        for server in &mut self.servers {
            if let Err(error) = server.wait() {
                tracing::warn!(%error, "waiting for PostgreSQL {}", server.id());
            }
        }
    }
}

/// The folder of PostgreSQL's programs. `PATH` may only have links to the server, and none to
/// `pg_basebackup`.
fn program_folder(bin_dir: Option<&Path>) -> Result<PathBuf, String> {
    let found = find(bin_dir, None).map_err(|e| e.to_string())?;
    let server = found.program("postgres").canonicalize().map_err(|e| e.to_string())?;
    Ok(server.parent().map_or(found.folder, Path::to_path_buf))
}

/// The account that PostgreSQL runs as, since it refuses to run as root. `None` if this process is
/// not root's.
fn unprivileged_account() -> Result<Option<(u32, u32)>, String> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd").map_err(|e| format!("/etc/passwd: {e}"))?;
    let account = |wanted: &str| {
        let mut fields = passwd.lines().find(|l| l.starts_with(&format!("{wanted}:")))?.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let found = account("postgres").or_else(|| account("nobody"));
    found.map(Some).ok_or_else(|| "there is neither a user postgres nor a user nobody to run PostgreSQL as".into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[tokio::test]
    async fn a_commit_waits_for_a_standby_and_nothing_is_left_behind() {
        let mut plain = PlainPostgres::start(None, 3).await.unwrap();
        let client = plain.connect().await.unwrap();
        client.batch_execute("CREATE TABLE t (id bigint)").await.unwrap();
        for standby in &mut plain.servers[1..] {
            rustix::process::kill_process(rustix::process::Pid::from_child(standby), rustix::process::Signal::QUIT)
                .unwrap();
            standby.wait().unwrap();
        }
        let insert = client.batch_execute("INSERT INTO t VALUES (1)");
        assert!(evenkeel_host::timeout(Duration::from_millis(300), insert).await.is_err(), "no standby had to confirm");
        let (root, primary) = (plain.root.path().to_path_buf(), plain.servers[0].id());
        drop(plain);
        assert!(!root.exists() && !Path::new(&format!("/proc/{primary}/cwd")).exists());
    }

    #[test]
    fn root_finds_an_unprivileged_account() {
        let account = unprivileged_account().unwrap();
        let me = fs::metadata("/proc/self").unwrap().uid();
        assert_eq!(account.is_some(), me == 0);
        assert!(account.is_none_or(|(uid, _)| uid != 0));
    }
}
