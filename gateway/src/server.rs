//! The gateway as a server: it accepts connections, and ends in order.

use crate::config::GatewayConfig;
use crate::door::authentication::{Verifier, WrongPasswords, scram};
use crate::door::rules::{Method, method};
use crate::door::startup::{Startup, Wish, receive};
use crate::door::tls;
use crate::front::server::FrontPostgres;
use crate::front::settings::Settings;
use crate::grammar::parser::Parser;
use crate::remote::endpoint::RemoteEndpoint;
use crate::session::context::SessionContext;
use crate::session::planner::Planner;
use crate::session::session::Session;
use crate::session::settings::{SessionSettings, check};
use crate::wire::backend;
use crate::wire::incoming::Incoming;
use crate::wire::outgoing::Outgoing;
use crate::wire::transport::Transport;
use bytes::BytesMut;
use evenkeel_client::{Client, ClientConfig};
use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsAcceptor;

/// How long a client may take to authenticate, in milliseconds.
const STARTUP_MS: u64 = 30_000;
/// How often the schema is asked for changes that other gateways have made, in milliseconds.
const FOLLOW_MS: u64 = 500;
/// How long a gateway that ends waits for open transactions, in milliseconds.
const DRAIN_MS: u64 = 30_000;
/// How often it looks whether they have ended, in milliseconds.
const DRAIN_CHECK_MS: u64 = 20;

/// What a cancel request has to know of a session, by its process number: the secret. And whom to
/// tell.
type CancelKeys = HashMap<i32, (Vec<u8>, Arc<Notify>)>;

struct Gateway {
    context: Arc<SessionContext>,
    config: GatewayConfig,
    users: BTreeMap<String, Verifier>,
    tls: Option<TlsAcceptor>,
    wrong_passwords: WrongPasswords,
    next_process: AtomicI32,
    clients: AtomicUsize,
    /// The sessions by process number, with their secrets, for cancel requests.
    sessions: Mutex<CancelKeys>,
    draining: watch::Sender<bool>,
}

/// Runs a gateway until `shutdown` is ready; then it ends in order.
///
/// # Errors
/// It cannot start; one sentence.
pub async fn run(config: GatewayConfig, shutdown: impl Future<Output = ()>) -> Result<(), String> {
    let users = config.check()?;
    let tls = config.tls.as_ref().map(|tls| tls::acceptor(&tls.certificate, &tls.key)).transpose()?;
    let client =
        Client::connect(ClientConfig::new(config.endpoints.clone())).await.map_err(|error| error.to_string())?;
    let front = FrontPostgres::start(client.clone(), &config.data_dir, config.postgres_bin.as_deref()).await?;
    let endpoint = RemoteEndpoint::bind(front.folder(), front.reading().clone())
        .map_err(|error| format!("{}: {error}", front.folder().display()))?;
    let endpoint = tokio::spawn(endpoint.run());
    let front = Arc::new(front);
    let parser = Parser::start().map_err(|error| error.to_string())?;
    let planner = Arc::new(Planner::new(client.clone(), front.clone(), parser));
    let listener = TcpListener::bind(config.listen).await.map_err(|error| format!("{}: {error}", config.listen))?;
    tracing::info!(listen = %config.listen, schema = front.version(), "the gateway serves");
    let follower = tokio::spawn(follow(front.clone()));
    let gateway = Arc::new(Gateway {
        context: Arc::new(SessionContext { client, front, planner }),
        config,
        users,
        tls,
        wrong_passwords: WrongPasswords::default(),
        next_process: AtomicI32::new(1),
        clients: AtomicUsize::new(0),
        sessions: Mutex::default(),
        draining: watch::Sender::new(false),
    });
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    tokio::spawn(gateway.clone().serve(stream, address));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    evenkeel_host::sleep(Duration::from_millis(DRAIN_CHECK_MS)).await;
                }
            },
        }
    }
    drop(listener);
    follower.abort();
    gateway.drain().await;
    endpoint.abort();
    Ok(())
}

/// Takes over changes of the schema that other gateways have made.
async fn follow(front: Arc<FrontPostgres>) {
    loop {
        evenkeel_host::sleep(Duration::from_millis(FOLLOW_MS)).await;
        if let Err(error) = front.sync().await {
            tracing::warn!(%error, "the schema cannot be followed");
        }
    }
}

impl Gateway {
    async fn serve(self: Arc<Self>, stream: TcpStream, address: SocketAddr) {
        let clients = self.clients.fetch_add(1, Ordering::Relaxed) + 1;
        metrics::gauge!("evenkeel_gateway_clients").set(clients as f64);
        let ended = self.serve_counted(stream, address, clients).await;
        tracing::trace!(%address, ?ended, "a connection has ended");
        let clients = self.clients.fetch_sub(1, Ordering::Relaxed) - 1;
        metrics::gauge!("evenkeel_gateway_clients").set(clients as f64);
    }

    async fn serve_counted(&self, stream: TcpStream, address: SocketAddr, clients: usize) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let limit = Duration::from_millis(STARTUP_MS);
        let received = evenkeel_host::timeout(limit, receive(stream, self.tls.as_ref())).await??;
        let mut startup = match received {
            Ok(Wish::Session(startup)) => startup,
            Ok(Wish::Cancel(process, secret)) => {
                self.cancel(process, &secret);
                return Ok(());
            }
            Err((transport, error)) => return refuse(transport, &error).await,
        };
        if clients > self.config.max_clients {
            let error = SqlError::new(codes::TOO_MANY, "sorry, too many clients already");
            return refuse(startup.transport, &error).await;
        }
        let admitted = evenkeel_host::timeout(limit, self.admit(&mut startup, address.ip())).await?;
        match admitted {
            Ok((settings, reported)) => self.session(startup, settings, reported).await,
            Err(error) => refuse(startup.transport, &error).await,
        }
    }

    /// Authenticates the user, and checks the settings of the start-up message.
    async fn admit(
        &self,
        startup: &mut Startup,
        address: IpAddr,
    ) -> Result<(SessionSettings, BTreeMap<String, String>), SqlError> {
        let user = startup.parameters.get("user").cloned().unwrap_or_default();
        if user.is_empty() {
            return Err(SqlError::new("28000", "no PostgreSQL user name specified in startup packet"));
        }
        let encrypted = startup.transport.is_encrypted();
        match method(&self.config.rules, address, &user, encrypted) {
            Method::Trust => {}
            Method::ScramSha256 => {
                let proven = scram(&mut startup.transport, &mut startup.read, &user, self.users.get(&user)).await;
                if let Err(error) = proven {
                    if error.code == "28P01" {
                        metrics::counter!("evenkeel_gateway_wrong_passwords_total").increment(1);
                        evenkeel_host::sleep(self.wrong_passwords.note(address, evenkeel_host::now())).await;
                    }
                    return Err(error);
                }
            }
            Method::Reject => {
                let encryption = if encrypted { "SSL encryption" } else { "no encryption" };
                let message = format!("no rule admits user \"{user}\" from {address}, {encryption}");
                return Err(SqlError::new("28000", message));
            }
        }
        let settings = settings(&startup.parameters)?;
        let session = self.context.front.session(&settings).await?;
        let reported = session.session.reported().clone();
        self.context.front.sessions().put_back(session);
        Ok((SessionSettings::new(settings), reported))
    }

    async fn session(
        &self,
        startup: Startup,
        settings: SessionSettings,
        mut reported: BTreeMap<String, String>,
    ) -> io::Result<()> {
        let user = startup.parameters.get("user").cloned().unwrap_or_default();
        reported.insert("session_authorization".into(), user);
        reported.insert("is_superuser".into(), "off".into());
        reported.insert("default_transaction_read_only".into(), "off".into());
        let process = self.next_process.fetch_add(1, Ordering::Relaxed).max(1);
        let random: [u8; 32] = evenkeel_host::random();
        let secret = if startup.minor >= 2 { random.to_vec() } else { random[..4].to_vec() };
        let cancel = Arc::new(Notify::new());
        self.sessions().insert(process, (secret.clone(), cancel.clone()));
        let (read, write) = tokio::io::split(startup.transport);
        let mut out = Outgoing::new(write);
        backend::authentication(&mut out.buffer, backend::AUTHENTICATION_OK, &[]);
        for (name, value) in &reported {
            backend::parameter_status(&mut out.buffer, name, value);
        }
        backend::backend_key_data(&mut out.buffer, process, &secret);
        let incoming = Incoming::start(read, startup.read);
        let draining = self.draining.subscribe();
        Session::new(self.context.clone(), incoming, out, settings, reported, cancel, draining).run().await;
        self.sessions().remove(&process);
        Ok(())
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, CancelKeys> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cancel(&self, process: i32, secret: &[u8]) {
        if let Some((own, cancel)) = self.sessions().get(&process)
            && own == secret
        {
            cancel.notify_waiters();
        }
    }

    /// Lets idle sessions end, and waits for the others.
    async fn drain(&self) {
        self.draining.send_replace(true);
        let ended = async {
            while self.clients.load(Ordering::Relaxed) > 0 {
                evenkeel_host::sleep(Duration::from_millis(DRAIN_CHECK_MS)).await;
            }
        };
        if evenkeel_host::timeout(Duration::from_millis(DRAIN_MS), ended).await.is_err() {
            tracing::warn!("transactions were still open when the gateway ended");
        }
    }
}

async fn refuse(mut transport: Transport, error: &SqlError) -> io::Result<()> {
    let mut out = BytesMut::new();
    backend::fatal(&mut out, error);
    transport.write_all(&out).await?;
    transport.shutdown().await
}

/// The settings of a start-up message: all parameters but those about the connection itself, and
/// those in `options` (`-c name=value`).
fn settings(parameters: &BTreeMap<String, String>) -> Result<Settings, SqlError> {
    let mut settings = Settings::new();
    for (name, value) in parameters {
        match name.to_ascii_lowercase().as_str() {
            "user" | "database" | "replication" => {}
            "options" => {
                for (name, value) in options(value) {
                    check(&name, Some(&value))?;
                    settings.insert(name, value);
                }
            }
            name => {
                check(name, Some(value))?;
                if name != "client_encoding" {
                    settings.insert(name.to_string(), value.clone());
                }
            }
        }
    }
    if parameters.get("replication").is_some_and(|value| !["false", "off", "no", "0"].contains(&value.as_str())) {
        return Err(SqlError::unsupported("the replication protocol is not supported", "read the tables"));
    }
    Ok(settings)
}

/// The settings in `options`. A backslash keeps a space.
fn options(text: &str) -> Vec<(String, String)> {
    let mut words = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let Some(word) = words.last_mut() else { break };
        match character {
            '\\' => word.extend(characters.next()),
            ' ' if word.is_empty() => {}
            ' ' => words.push(String::new()),
            other => word.push(other),
        }
    }
    let mut settings = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c").filter(|rest| !rest.is_empty()))
        {
            Some(setting) => Some(setting.to_string()),
            None if word == "-c" => words.next(),
            None => None,
        };
        if let Some((name, value)) = setting.as_deref().and_then(|setting| setting.split_once('=')) {
            settings.push((name.to_ascii_lowercase().replace('-', "_"), value.to_string()));
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_words() {
        let pair = |name: &str, value: &str| (name.to_string(), value.to_string());
        assert_eq!(
            options("-c search_path=a,b -cwork_mem=1MB --statement-timeout=5s -c application_name=a\\ b"),
            [
                pair("search_path", "a,b"),
                pair("work_mem", "1MB"),
                pair("statement_timeout", "5s"),
                pair("application_name", "a b")
            ]
        );
        assert_eq!(options(""), []);
    }
}
