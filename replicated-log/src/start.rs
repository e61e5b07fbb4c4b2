//! Starting a log: checks the configuration, opens the durable log, connects to the peers, and
//! starts the event loop.

use std::sync::{Arc, mpsc};

use tokio::sync::Notify;

use crate::clock;
use crate::command::Commands;
use crate::config::{GroupConfig, Limits};
use crate::core::{Core, CoreConfig};
use crate::error::StartError;
use crate::event_loop::EventLoop;
use crate::fatal::AbortOnPanic;
use crate::handle::LogHandle;
use crate::log_metrics;
use crate::membership::{self, Membership};
use crate::published::Published;
use crate::transport::TransportFactory;
use crate::wal::{Disk, FileDisk, Identity, Wal, WalError, WalLimits};

/// Opens the durable log in `config.dir`, connects to the peers and starts the event loop on a
/// thread of its own. Must be called from within a tokio runtime, which carries the sessions.
///
/// # Errors
/// [`StartError`]: a configuration that contradicts itself, a durable log that cannot be used, a
/// socket or thread that cannot be created.
pub fn start(config: GroupConfig) -> Result<LogHandle, StartError> {
    check(&config)?;
    if let Some(simulation) = evenkeel_host::simulation() {
        return start_simulated(config, simulation);
    }
    let wal = open_wal(&config, open_disk(&config)?)?;
    let (queue, inputs) = mpsc::channel();
    let commands = Commands::new(queue, None);
    let published = Published::new(config.limits.recent_bytes, wal.membership().clone());
    let handle = new_handle(&config, wal.store_id(), &commands, &published);
    let transports = TransportFactory::new(&config, wal.store_id(), commands)?;
    let (built, ready) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name(format!("log-{}-{}", config.group, config.me))
        .spawn(move || {
            let _guard = AbortOnPanic;
            let core = match Core::new(core_config(&config), wal, clock::now_ms()) {
                Ok(core) => core,
                Err(what) => return drop(built.send(Err(StartError::Config(what)))),
            };
            let transport = transports.connect(&config, core.membership());
            built.send(Ok(())).ok();
            EventLoop::new(config, core, published, transports, transport).run(&inputs);
        })
        .map_err(|source| StartError::Io { what: "starting the event loop's thread".to_owned(), source })?;
    ready.recv().unwrap_or_else(|_| Err(StartError::Config("the event loop ended at once".to_owned())))?;
    Ok(handle)
}

/// As [`start`] in a simulation: on its disk, and with the event loop as a task that it steps.
fn start_simulated(
    config: GroupConfig,
    simulation: &'static dyn evenkeel_host::Simulation,
) -> Result<LogHandle, StartError> {
    let opening = |source| StartError::Io { what: format!("opening the folder {}", config.dir.display()), source };
    let disk = simulation.disk(&config.dir, config.limits.segment_bytes).map_err(opening)?;
    let wal = open_wal(&config, disk)?;
    let wake = Arc::new(Notify::new());
    let (queue, inputs) = mpsc::channel();
    let commands = Commands::new(queue, Some(wake.clone()));
    let published = Published::new(config.limits.recent_bytes, wal.membership().clone());
    let handle = new_handle(&config, wal.store_id(), &commands, &published);
    let transports = TransportFactory::new(&config, wal.store_id(), commands)?;
    let core = Core::new(core_config(&config), wal, clock::now_ms()).map_err(StartError::Config)?;
    let transport = transports.connect(&config, core.membership());
    let event_loop = EventLoop::new(config, core, published, transports, transport);
    tokio::task::spawn_local(async move { event_loop.run_as_task(&inputs, &wake).await });
    Ok(handle)
}

fn new_handle(config: &GroupConfig, store_id: u64, commands: &Commands, published: &Arc<Published>) -> LogHandle {
    LogHandle {
        me: config.me,
        disk: store_id,
        commands: commands.clone(),
        published: published.clone(),
        limits: config.limits.clone(),
        lease_reads: log_metrics::lease_reads(config.group),
    }
}

fn core_config(config: &GroupConfig) -> CoreConfig {
    CoreConfig {
        me: config.me.0,
        unix_at_boot_ms: clock::unix_ms().saturating_sub(clock::now_ms()),
        timing: config.timing.clone(),
        limits: config.limits.clone(),
        #[cfg(test)]
        faults: Vec::new(),
    }
}

/// Checks the configuration (log rule 6 and limits) before anything is opened.
fn check(config: &GroupConfig) -> Result<(), StartError> {
    let wrong = |what: String| Err(StartError::Config(what));
    if let Err(what) = membership::check(&config.peers) {
        return wrong(what);
    }
    if !config.peers.contains_key(&config.me) {
        return wrong(format!("replica {} is not a member", config.me));
    }
    let timing = &config.timing;
    if timing.tick_ms == 0 || timing.election_timeout_ms < timing.tick_ms {
        return wrong("tick_ms is at least 1 and election_timeout_ms at least one tick".to_owned());
    }
    let limits = &config.limits;
    // Proposals wait from two of the largest segments below the cap, and compaction drops whole
    // segments from half of the cap on.
    if limits.log_cap_bytes < 4 * limits.segment_bytes {
        return wrong(format!(
            "a log's cap is at least four segments: {} bytes is less than 4 of {}",
            limits.log_cap_bytes, limits.segment_bytes
        ));
    }
    Ok(())
}

fn open_disk(config: &GroupConfig) -> Result<FileDisk, StartError> {
    FileDisk::open(&config.dir, config.limits.segment_bytes, config.limits.largest_segment_bytes()).map_err(|source| {
        if source.kind() == std::io::ErrorKind::WouldBlock {
            let what = format!("another process uses {}", config.dir.display());
            return StartError::Wal(WalError::WrongOwner(what));
        }
        StartError::Io { what: format!("opening the folder {}", config.dir.display()), source }
    })
}

fn open_wal<D: Disk>(config: &GroupConfig, disk: D) -> Result<Wal<D>, StartError> {
    let identity = Identity { group: config.group, me: config.me.0 };
    // A replica that joins is in configuration 0, in which there are no sessions.
    let configuration = u32::from(!config.join);
    let founding = Membership { configuration, members: config.peers.clone(), ..Membership::default() };
    let Limits { segment_bytes, recent_bytes, sync_bytes, .. } = config.limits;
    let limits = WalLimits { segment_bytes, recent_bytes, sync_bytes: sync_bytes as u64 };
    // 0 is not an identity.
    let store_id = evenkeel_host::unique_number().max(1);
    Ok(Wal::open(disk, identity, founding, store_id, limits)?)
}
