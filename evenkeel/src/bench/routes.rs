//! `GET /v1/routes/{table}?key=` under wrk, beside nginx that serves a static file of the same
//! size.

use crate::bench::comparison::Measurement;
use evenkeel_local_cluster::loopback;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// wrk's threads: as many as the machine has cores, up to this.
const MAX_THREADS: usize = 4;

/// nginx with one file; dropping it ends it.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    address: SocketAddr,
    _root: tempfile::TempDir,
}

impl Nginx {
    /// Serves `body` as `/file`. An error is one line.
    pub async fn start(body: &[u8]) -> Result<Nginx, String> {
        let program = find_program("nginx")?;
        let root = tempfile::Builder::new().prefix("evenkeel-nginx-").tempdir().map_err(|e| e.to_string())?;
        let port = evenkeel_host::ports::reserve(1).map_err(|e| e.to_string())?[0];
        let address = loopback(port);
        let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
        let folder = root.path().display();
        let text = format!(
            "{user}daemon off;\nworker_processes auto;\npid {folder}/pid;\nerror_log {folder}/error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n  access_log off;\n  keepalive_requests 100000000;\n  sendfile on;\n  tcp_nopush on;\n  \
             open_file_cache max=10;\n  default_type application/json;\n  client_body_temp_path {folder}/a;\n  \
             proxy_temp_path {folder}/b;\n  fastcgi_temp_path {folder}/c;\n  uwsgi_temp_path {folder}/d;\n  \
             scgi_temp_path {folder}/e;\n  server {{ listen {address}; root {folder}/www; }}\n}}\n"
        );
        let write = || -> std::io::Result<()> {
            std::fs::create_dir(root.path().join("www"))?;
            std::fs::write(root.path().join("www/file"), body)?;
            std::fs::write(root.path().join("nginx.conf"), &text)
        };
        write().map_err(|e| format!("nginx's files: {e}"))?;
        let mut command = Command::new(program);
        command
            .arg("-p")
            .arg(root.path())
            .arg("-c")
            .arg(root.path().join("nginx.conf"))
            .arg("-e")
            .arg(root.path().join("error.log"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut nginx = Nginx { child: child.map_err(|e| format!("nginx: {e}"))?, address, _root: root };
        nginx.wait_ready(body.len()).await?;
        Ok(nginx)
    }

    /// Where the file is.
    pub fn url(&self) -> String {
        format!("http://{}/file", self.address)
    }

    async fn wait_ready(&mut self, size_bytes: usize) -> Result<(), String> {
        let deadline = evenkeel_host::now() + Duration::from_secs(10);
        loop {
            if let Ok(body) = fetch(&self.url()).await {
                return if body.len() == size_bytes { Ok(()) } else { Err("nginx serves another file".into()) };
            }
            if matches!(self.child.try_wait(), Ok(Some(_))) || evenkeel_host::now() >= deadline {
                return Err("nginx does not come up".into());
            }
            evenkeel_host::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGTERM lets the master end its workers.
        let pid = rustix::process::Pid::from_child(&self.child);
        if rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_ok()
            && let Err(error) = self.child.wait()
        {
            tracing::warn!(%error, "waiting for nginx");
        }
    }
}

/// The body of `url`.
pub async fn fetch(url: &str) -> Result<Vec<u8>, String> {
    let response = reqwest::get(url).await.map_err(|e| e.to_string())?;
    let response = response.error_for_status().map_err(|e| e.to_string())?;
    Ok(response.bytes().await.map_err(|e| e.to_string())?.to_vec())
}

/// Runs wrk against `url` and returns its measurement.
pub async fn wrk(url: &str, connections: usize, duration: Duration) -> Result<Measurement, String> {
    let program = find_program("wrk")?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(MAX_THREADS).min(connections);
    let seconds = duration.as_secs().max(1);
    let mut command = tokio::process::Command::new(program);
    command
        .args([format!("-t{threads}"), format!("-c{connections}"), format!("-d{seconds}s")])
        .args(["--latency", url]);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.map_err(|e| format!("wrk: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse(&text)
        .ok_or_else(|| format!("wrk's output cannot be understood:\n{text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// The measurement in wrk's report. Pure.
fn parse(text: &str) -> Option<Measurement> {
    let after = |label: &str| text.lines().find_map(|line| line.trim().strip_prefix(label)).map(str::trim);
    let failed = after("Non-2xx or 3xx responses:").map_or(Some(0), |n| n.parse().ok())?;
    let sockets = after("Socket errors:")
        .map_or(0, |line| line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok()).sum());
    Some(Measurement {
        per_s: after("Requests/sec:")?.parse().ok()?,
        p50_ms: milliseconds(after("50%")?)?,
        p99_ms: milliseconds(after("99%")?)?,
        failed: failed + sockets,
    })
}

fn milliseconds(text: &str) -> Option<f64> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[number.len()..] {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1000.0,
        "m" => 60_000.0,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

fn find_program(name: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/bin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join(name)).find(|program| Path::is_file(program));
    found.ok_or_else(|| format!("{name} is not installed; make bench installs it (Debian's package {name})"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const REPORT: &str = "Running 1s test @ http://127.0.0.1:1/\n  2 threads and 16 connections\n  Thread Stats   Avg\n  \
        Latency Distribution\n     50%  125.00us\n     75%    1.20ms\n     90%    2.00ms\n     99%    1.02s \n  \
        150 requests in 1.00s, 1MB read\n  Socket errors: connect 0, read 1, write 0, timeout 2\n  \
        Non-2xx or 3xx responses: 4\nRequests/sec:  42069.51\nTransfer/sec: 1MB\n";

    #[test]
    fn the_report_of_wrk_is_parsed() {
        let figure = parse(REPORT).unwrap();
        assert_eq!(figure, Measurement { per_s: 42_069.51, p50_ms: 0.125, p99_ms: 1020.0, failed: 7 });
        assert_eq!(parse("unable to connect"), None);
    }
}
