//! Small disks that can be filled: a tmpfs in place of a replica's folder.
//!
//! Mounting needs root. Without it the scenario is skipped.

use evenkeel_tests::leadership;
use evenkeel_tests::{ReplicaName, ScenarioFailure, ScenarioResult, World};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The sizes of the writes that fill a disk, in bytes, first and last.
const PIECES_BYTES: [usize; 3] = [1 << 20, 4 << 10, 1];

/// A small disk under a folder of a replica. Dropping it unmounts it and loses its content.
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts a disk of this size at the folder `name` of a replica and copies the folder's
    /// content. Stops and starts the replica. If mounting fails, the scenario is skipped.
    pub async fn under(
        world: &World,
        replica: ReplicaName,
        name: &str,
        size_bytes: u64,
    ) -> Result<SmallDisk, ScenarioFailure> {
        let at = replica.data_dir(world)?.join(name);
        super::stop(world, replica).await?;
        let disk = SmallDisk::mount(at, size_bytes);
        world.cluster.restart(replica.id())?;
        leadership::caught_up(world, replica, None).await?;
        disk
    }

    fn mount(at: PathBuf, size_bytes: u64) -> Result<SmallDisk, ScenarioFailure> {
        let kept = kept(&at);
        // The disk is mounted elsewhere and filled first, so that nothing is lost if it is too
        // small.
        std::fs::create_dir(&kept).map_err(|e| failed("making a folder", e))?;
        let options = format!("size={size_bytes},mode=0700");
        let mounted = run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&kept));
        if let Err(why) = mounted {
            std::fs::remove_dir(&kept).map_err(|e| failed("removing a folder", e))?;
            return Err(ScenarioFailure::skipped(format!("no disk can be mounted here: {why}")));
        }
        let copied = run(Command::new("cp").arg("-a").arg(at.join(".")).arg(&kept));
        let bound = copied.and_then(|()| run(Command::new("mount").arg("--bind").arg(&kept).arg(&at)));
        run(Command::new("umount").arg(&kept))?;
        std::fs::remove_dir(&kept).map_err(|e| failed("removing a folder", e))?;
        bound.map(|()| SmallDisk { at })
    }

    /// Writes until the disk is full, repeatedly, because space may become free meanwhile.
    pub fn fill(&self) -> ScenarioResult {
        let ballast = File::options().create(true).append(true).open(self.ballast());
        let mut ballast = ballast.map_err(|e| failed("making ballast", e))?;
        for bytes in PIECES_BYTES {
            let piece = vec![0; bytes];
            while ballast.write_all(&piece).is_ok() {}
        }
        Ok(())
    }

    /// Frees the space.
    pub fn empty(&self) -> ScenarioResult {
        std::fs::remove_file(self.ballast()).map_err(|e| failed("removing ballast", e))
    }

    /// Unmounts the disk and copies its content to the folder. Stops and starts the replica.
    pub async fn remove(self, world: &World, replica: ReplicaName) -> ScenarioResult {
        super::stop(world, replica).await?;
        // After a failed scenario the disk may still be full.
        drop(std::fs::remove_file(self.ballast()));
        let kept = kept(&self.at);
        run(Command::new("cp").arg("-a").arg(&self.at).arg(&kept))?;
        run(Command::new("umount").arg(&self.at))?;
        std::fs::remove_dir_all(&self.at).map_err(|e| failed("removing what was under the disk", e))?;
        std::fs::rename(&kept, &self.at).map_err(|e| failed("putting the folder back", e))?;
        world.cluster.restart(replica.id())?;
        leadership::caught_up(world, replica, None).await
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Unmounted already, in the normal case.
        drop(run(Command::new("umount").arg("--lazy").arg(&self.at)));
    }
}

fn kept(at: &Path) -> PathBuf {
    at.with_extension("kept")
}

fn run(command: &mut Command) -> ScenarioResult {
    let output = command.output().map_err(|e| failed("running a command", e))?;
    if output.status.success() {
        return Ok(());
    }
    Err(ScenarioFailure::new(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

fn failed(what: &str, error: std::io::Error) -> ScenarioFailure {
    ScenarioFailure::new(format!("{what}: {error}"))
}
