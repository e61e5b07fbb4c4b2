//! The placement driver is restored from an old copy (R30), in some runs: all of its replicas lose power at once and come back with what their
//! disks held some time ago, while the shards have gone on.
//!
//! The copy is taken while the cluster is being set up, before there is a table, or some time later. In every other such run the restored
//! replicas are told that they have been restored; in the others they must find out.

use super::{Options, Part, World};
use crate::process::{self, below};
use crate::site::{Group, Site};
use evenkeel_host::ForgetfulDisk;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// In one run of so many the placement driver is restored.
const RESTORED_IN: u64 = 6;
/// Of those, in one of so many the copy is of before the table.
const EARLY_IN: u64 = 3;
/// Between the copy and the restoration, in milliseconds, at least.
const APART_MS: u64 = 500;

/// What the replicas' disks held.
struct Copy {
    disks: BTreeMap<(u32, PathBuf), ForgetfulDisk>,
    files: Vec<(PathBuf, Vec<u8>)>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Restore {
    wanted: bool,
    early: bool,
    told: bool,
    copy_ms: Option<u64>,
    back_ms: Option<u64>,
    copy: Option<Copy>,
    done: bool,
}

impl Restore {
    /// By the seed itself: the courses of the other runs stay as they are without this.
    pub(super) fn of(options: &Options, site: &mut Site) -> Restore {
        let wanted = options.faults && (options.seed + 1).is_multiple_of(RESTORED_IN);
        if wanted {
            site.restored = true;
            // Who lost a disk would come back without it, and who came since would have no copy.
            site.disk_lost(Group::PlacementDriver);
        }
        let nth = options.seed / RESTORED_IN;
        Restore { wanted, early: nth.is_multiple_of(EARLY_IN), told: nth.is_multiple_of(2), ..Restore::default() }
    }

    /// What the replicas are told.
    pub(super) fn incarnation(&self) -> Option<u32> {
        (self.done && self.told).then_some(2)
    }
}

impl World {
    /// Takes the copy, or goes back to it, when it is time to.
    pub(super) fn look_after_copy(&mut self) {
        if !self.restore.wanted || self.restore.done {
            return;
        }
        let now_ms = process::now_ms();
        if self.told.borrow().set_up && self.restore.back_ms.is_none() {
            let half_ms = self.options.hurt_ms / 2;
            let copy_ms = now_ms + below(half_ms);
            self.restore.copy_ms = Some(copy_ms);
            self.restore.back_ms = Some(copy_ms + APART_MS + below(half_ms.saturating_sub(APART_MS)));
        }
        let all_shards =
            |state: &evenkeel_placement_driver::state::PlacementState| state.shards.len() == self.shards as usize;
        let early = self.restore.early && {
            let registry = self.registry.borrow();
            registry.len() >= 2 && registry.values().filter(|shared| all_shards(&shared.applied().state)).count() >= 2
        };
        if self.restore.copy.is_none() && (early || self.restore.copy_ms.is_some_and(|at| at <= now_ms)) {
            self.restore.copy = Some(self.copy_drivers());
        }
        if self.restore.back_ms.is_some_and(|at| at <= now_ms) {
            self.restore_drivers();
        }
    }

    /// Before everything is healed it has happened.
    pub(super) fn restore_at_last(&mut self) {
        if self.restore.wanted && !self.restore.done {
            self.restore_drivers();
        }
    }

    fn drivers(&self) -> Vec<Part> {
        self.parts.iter().copied().filter(|part| part.group() == Group::PlacementDriver).collect()
    }

    fn copy_drivers(&self) -> Copy {
        let machines: Vec<u32> = self.drivers().iter().map(|part| part.machine()).collect();
        let disks = self.hardware.disks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let disks = disks.iter().filter(|((machine, _), _)| machines.contains(machine));
        let disks = disks.map(|(at, disk)| (at.clone(), disk.copy())).collect();
        let folders = machines.iter().map(|machine| self.folder.join(machine.to_string()));
        Copy { disks, files: folders.flat_map(files_below).collect() }
    }

    fn restore_drivers(&mut self) {
        self.restore.done = true;
        let Some(copy) = self.restore.copy.take() else { return };
        let drivers = self.drivers();
        for part in &drivers {
            self.kill(*part, true);
            self.hardware.lose_disk(part.machine());
            // What is not there need not be removed; what cannot be is seen below.
            std::fs::remove_dir_all(self.folder.join(part.machine().to_string())).ok();
        }
        self.hardware.disks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(copy.disks);
        for (path, bytes) in copy.files {
            let folder = path.parent().map(std::fs::create_dir_all).transpose();
            if let Err(error) = folder.and_then(|_| std::fs::write(&path, bytes)) {
                self.report.wrong.push(format!("{} cannot be restored: {error}", path.display()));
            }
        }
        self.site.borrow_mut().count("placement drivers restored from an old copy");
        self.trace(&"the placement driver is restored");
        drivers.into_iter().for_each(|part| self.start(part));
    }
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
