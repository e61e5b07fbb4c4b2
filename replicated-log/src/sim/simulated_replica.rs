//! One simulated replica: its disk, which outlives its process, the process, and an application
//! that applies the log.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use rand::Rng;
use rand::rngs::StdRng;

use crate::core::{Core, CoreConfig, Input, Lease, Ready};
use crate::ids::{LogIndex, ReplicaId};
use crate::membership::{Members, Membership};
use crate::old_entries::OldEntries;
use crate::role::Role;
use crate::wal::{Identity, Wal, WalLimits};

use super::oracle::{AppState, Checked, Oracle, Violation, ensure};
use evenkeel_host::ForgetfulDisk as SimDisk;

pub(super) fn members(ids: impl IntoIterator<Item = u64>) -> Members {
    let address = |id: u64| SocketAddr::from(([10, 0, 0, id as u8], 1));
    ids.into_iter().map(|id| (ReplicaId(id), address(id).into())).collect()
}

pub(super) struct Node {
    pub(super) id: u64,
    pub(super) disk: SimDisk,
    pub(super) config: CoreConfig,
    /// Its configuration at the first start: the founding one, or 0.
    pub(super) founding: Membership,
    /// The identity of its disk.
    pub(super) store: u64,
    /// Lost in a crash.
    pub(super) process: Option<Process>,
    /// The application's state as it would be after a crash.
    pub(super) durable: AppState,
    pub(super) up_at_ms: u64,
    /// How much faster its clock runs than real time.
    pub(super) drift_permille: i64,
    /// Inputs from replicas of other configurations.
    pub(super) told: VecDeque<Input>,
}

/// The point of a turn at which a process was frozen.
pub(super) enum Frozen {
    /// The inputs have come and the clock has been read.
    Before(VecDeque<(u64, Input)>),
    /// The core has taken them in.
    Fed,
    /// The part before the sync has been carried out, and the disk is slow. Later inputs wait.
    Syncing { ready: Box<Ready>, lost_role: Option<Role>, inputs: VecDeque<(u64, Input)> },
}

/// State that a crash destroys.
pub(super) struct Process {
    pub(super) core: Core<SimDisk>,
    pub(super) store: u64,
    pub(super) role: Role,
    pub(super) state: AppState,
    pub(super) next_tick_ms: u64,
    pub(super) paused_until_ms: u64,
    pub(super) frozen: Option<Frozen>,
    /// The published lease and decided position.
    pub(super) read_lease: Lease,
    pub(super) shown_decided: u64,
    /// Own writes that wait for their outcome.
    pub(super) writes: BTreeMap<u64, ()>,
    /// Own writes that wait for a memory acknowledgement.
    pub(super) tracked: BTreeMap<u64, ()>,
    /// Waiting reads, with the position that a client knew before each.
    pub(super) barriers: BTreeMap<u64, u64>,
    /// Confirmed reads that wait until their position is applied.
    pub(super) reads: Vec<u64>,
    pub(super) lease: Option<u64>,
    pub(super) compacted: u64,
}

impl Node {
    /// Its clock at a moment of real time.
    pub(super) fn clock_ms(&self, now_ms: u64) -> u64 {
        (now_ms as i64 * (1_000 + self.drift_permille) / 1_000) as u64
    }

    pub(super) fn start(&mut self, now_ms: u64) -> Checked<()> {
        let identity = Identity { group: 1, me: self.id };
        let limits = WalLimits {
            segment_bytes: self.config.limits.segment_bytes,
            recent_bytes: self.config.limits.recent_bytes,
            sync_bytes: self.config.limits.sync_bytes as u64,
        };
        let wal = Wal::open(self.disk.clone(), identity, self.founding.clone(), self.store, limits)
            .map_err(|e| Violation(format!("replica {} cannot start: {e}", self.id)))?;
        let now_ms = self.clock_ms(now_ms);
        let core = Core::new(self.config.clone(), wal, now_ms).map_err(Violation)?;
        let role = core.role().clone();
        self.told.clear();
        self.process = Some(Process {
            core,
            store: self.store,
            role,
            state: self.durable,
            next_tick_ms: now_ms,
            paused_until_ms: 0,
            frozen: None,
            read_lease: Lease::default(),
            shown_decided: 0,
            writes: BTreeMap::new(),
            tracked: BTreeMap::new(),
            barriers: BTreeMap::new(),
            reads: Vec::new(),
            lease: None,
            compacted: 0,
        });
        Ok(())
    }

    /// Its disk is replaced by an empty one.
    pub(super) fn wipe(&mut self, empty: SimDisk, store: u64, up_at_ms: u64) {
        self.process = None;
        self.disk = empty;
        self.store = store;
        self.durable = AppState::default();
        self.up_at_ms = up_at_ms;
    }

    pub(super) fn membership(&self) -> Option<&Membership> {
        self.process.as_ref().map(|process| process.core.membership())
    }

    pub(super) fn crash(&mut self, up_at_ms: u64, rng: &mut StdRng) {
        self.process = None;
        self.disk.crash(&mut |below| rng.random_range(0..below));
        self.up_at_ms = up_at_ms;
    }

    /// Pulls decided entries as a subscriber does, and acknowledges writes and completes reads.
    pub(super) fn apply(&mut self, oracle: &mut Oracle, rng: &mut StdRng) -> Checked<()> {
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        let max_bytes = rng.random_range(0..2_000);
        let from = LogIndex(process.state.applied).next();
        let read = process.core.old_entries(from, max_bytes);
        match read.map_err(|e| Violation(format!("replica {} cannot read: {e}", self.id)))? {
            OldEntries::Entries(entries) => {
                for entry in &entries {
                    oracle.delivered(self.id, entry)?;
                    process.state.apply(entry);
                    process.acknowledge(entry, oracle);
                }
            }
            OldEntries::OnDisk(_) => return Err(Violation("a simulated disk is read by the event loop".to_owned())),
            OldEntries::Trimmed(trimmed) => {
                // Compaction goes only where the application has durably been (R16).
                ensure(matches!(process.role, Role::Behind { .. }), || {
                    format!("replica {} trimmed to {trimmed} what it had not applied: {:?}", self.id, self.durable)
                })?;
            }
        }
        ensure(process.state == oracle.state_at(process.state.applied), || {
            format!("replica {}: {:?} is not a state of the log", self.id, process.state)
        })?;
        let applied = process.state.applied;
        process.reads.retain(|read| {
            let done = *read <= applied;
            if done {
                oracle.known = oracle.known.max(applied);
            }
            !done
        });
        Ok(())
    }
}

impl Process {
    fn acknowledge(&mut self, entry: &crate::Entry, oracle: &mut Oracle) {
        if let crate::Body::Data(payload) = &entry.body
            && self.writes.remove(&super::oracle::write_id(payload)).is_some()
            && entry.effective
        {
            oracle.known = oracle.known.max(entry.index.0);
        }
    }

    /// Leads, and has applied its own `LeaderStart`: may serve (invariant 4).
    pub(super) fn serves(&self) -> Option<crate::Term> {
        match self.role {
            Role::Leader { term, start } if self.state.applied >= start.0 => Some(term),
            _ => None,
        }
    }
}
