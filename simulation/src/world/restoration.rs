//! Restoration of the placement driver from an old copy (R30), in some runs: all of its replicas
//! lose power at once and come back with the content that their disks had some time ago, while the
//! shards have gone on.
//!
//! The copy is taken while the cluster is being set up, before there is a table, or some time
//! later. In every other such run the configuration of the restored replicas says that they have
//! been restored; in the others they must find out.

use super::cluster::Cluster;
use super::options::Options;
use crate::hardware::{Disks, Hardware};
use crate::membership_model::MembershipModel;
use crate::process::{self, below};
use crate::registry::Registry;
use crate::topology::Group;
use std::path::PathBuf;

/// The placement driver is restored in one of this many runs.
const RESTORED_IN: u64 = 6;
/// In one of this many of those, the copy is from before the table.
const EARLY_IN: u64 = 3;
/// Between the copy and the restoration, in milliseconds, at least.
const APART_MS: u64 = 500;

/// The content of the replicas' disks.
pub(super) struct DiskCopy {
    disks: Disks,
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl DiskCopy {
    /// Copies the disks of the placement driver.
    pub fn take(cluster: &Cluster) -> DiskCopy {
        let machines: Vec<u32> = cluster.placement_drivers().iter().map(|part| part.machine()).collect();
        let folders = machines.iter().map(|machine| cluster.folder_of(*machine));
        let files = folders.flat_map(files_below).collect();
        DiskCopy { disks: cluster.hardware.copy_disks(&machines), files }
    }

    /// Puts the copy in the place of the disks; returns what failed, one sentence each.
    pub fn put_back(self, hardware: &Hardware) -> Vec<String> {
        hardware.put_disks(self.disks);
        let mut failed = Vec::new();
        for (path, bytes) in self.files {
            let folder = path.parent().map(std::fs::create_dir_all).transpose();
            if let Err(error) = folder.and_then(|_| std::fs::write(&path, bytes)) {
                failed.push(format!("{} cannot be restored: {error}", path.display()));
            }
        }
        failed
    }
}

/// A step of the restoration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RestorationStep {
    /// The copy is taken.
    Copy,
    /// The placement driver is restored.
    Restore,
}

/// See the module.
#[derive(Default)]
pub(super) struct Restoration {
    planned: bool,
    early: bool,
    announced: bool,
    shards: usize,
    hurt_ms: u64,
    copy_ms: Option<u64>,
    back_ms: Option<u64>,
    copy: Option<DiskCopy>,
    done: bool,
}

impl Restoration {
    /// Decided by the seed itself and not by a draw, so that the courses of other runs do not
    /// change.
    pub fn new(options: &Options, shards: u32, membership: &mut MembershipModel) -> Restoration {
        let planned = options.faults && (options.seed + 1).is_multiple_of(RESTORED_IN);
        if planned {
            membership.restored = true;
            // A replica that lost its disk, or that came since, has no copy.
            membership.disk_lost(Group::PlacementDriver);
        }
        let nth = options.seed / RESTORED_IN;
        let (early, announced) = (nth.is_multiple_of(EARLY_IN), nth.is_multiple_of(2));
        let (shards, hurt_ms) = (shards as usize, options.hurt_ms);
        Restoration { planned, early, announced, shards, hurt_ms, ..Restoration::default() }
    }

    /// Whether the restoration is planned and has not happened yet.
    pub fn is_pending(&self) -> bool {
        self.planned && !self.done
    }

    /// The steps that are due at this time, in order.
    pub fn due(&mut self, set_up: bool, registry: &Registry) -> Vec<RestorationStep> {
        let mut due = Vec::new();
        if !self.is_pending() {
            return due;
        }
        let now_ms = process::now_ms();
        if set_up && self.back_ms.is_none() {
            let half_ms = self.hurt_ms / 2;
            let copy_ms = now_ms + below(half_ms);
            self.copy_ms = Some(copy_ms);
            self.back_ms = Some(copy_ms + APART_MS + below(half_ms.saturating_sub(APART_MS)));
        }
        let all_shards = |state: &evenkeel_placement_driver::state::PlacementState| state.shards.len() == self.shards;
        let early = self.early && {
            let registry = registry.read();
            registry.len() >= 2 && registry.values().filter(|shared| all_shards(&shared.applied().state)).count() >= 2
        };
        if self.copy.is_none() && (early || self.copy_ms.is_some_and(|at| at <= now_ms)) {
            due.push(RestorationStep::Copy);
        }
        if self.back_ms.is_some_and(|at| at <= now_ms) {
            due.push(RestorationStep::Restore);
        }
        due
    }

    /// Keeps the copy.
    pub fn keep(&mut self, copy: DiskCopy) {
        self.copy = Some(copy);
    }

    /// The restoration happens now: gives the copy, if there is one.
    pub fn begin(&mut self) -> Option<DiskCopy> {
        self.done = true;
        self.copy.take()
    }

    /// The restore generation that the replicas are configured with.
    pub fn incarnation(&self) -> Option<u32> {
        (self.done && self.announced).then_some(2)
    }
}

/// Restores the placement driver from a copy.
pub(super) fn restore(cluster: &mut Cluster, copy: DiskCopy) {
    let replicas = cluster.placement_drivers();
    for part in &replicas {
        cluster.kill(*part, true);
        cluster.hardware.lose_disk(part.machine());
        // A missing folder need not be removed; a folder that cannot be removed shows below.
        std::fs::remove_dir_all(cluster.folder_of(part.machine())).ok();
    }
    let failed = copy.put_back(&cluster.hardware);
    cluster.wrong.extend(failed);
    cluster.membership.borrow_mut().count("placement drivers restored from an old copy");
    super::cluster::trace(&"the placement driver is restored");
    replicas.into_iter().for_each(|part| cluster.start(part));
}

fn files_below(folder: PathBuf) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(&folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let files = paths.into_iter().flat_map(|path| match std::fs::read(&path) {
        Ok(bytes) => vec![(path, bytes)],
        Err(_) => files_below(path),
    });
    files.collect()
}
