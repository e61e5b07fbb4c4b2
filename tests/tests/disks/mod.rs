//! Small disks that can be filled: a tmpfs in place of one of a replica's folders.
//!
//! Mounting takes root. Without it there is no such disk, and the scenario counts as skipped.

use evenkeel_tests::leadership;
use evenkeel_tests::{Failure, ReplicaName, ScenarioResult, World};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How much is written at a time to fill a disk, in bytes, first and last.
const PIECES_BYTES: [usize; 3] = [1 << 20, 4 << 10, 1];

/// A small disk under a folder of a replica. Dropped, it is unmounted, and what was on it is gone.
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Puts a disk of this size under the folder `name` of a replica, with what is in that folder now; the replica is stopped and
    /// started. If nothing can be mounted here the scenario is skipped.
    pub async fn under(world: &World, replica: ReplicaName, name: &str, size_bytes: u64) -> Result<SmallDisk, Failure> {
        let at = replica.data_dir(world)?.join(name);
        super::stop(world, replica).await?;
        let disk = SmallDisk::mount(at, size_bytes);
        world.cluster.restart(replica.id())?;
        leadership::caught_up(world, replica, None).await?;
        disk
    }

    fn mount(at: PathBuf, size_bytes: u64) -> Result<SmallDisk, Failure> {
        let kept = kept(&at);
        // The mount is made beside and filled first, so that nothing is lost if there is not enough room.
        std::fs::create_dir(&kept).map_err(|e| failed("making a folder", e))?;
        let options = format!("size={size_bytes},mode=0700");
        let mounted = run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&kept));
        if let Err(why) = mounted {
            std::fs::remove_dir(&kept).map_err(|e| failed("removing a folder", e))?;
            return Err(Failure::skipped(format!("no disk can be mounted here: {why}")));
        }
        let copied = run(Command::new("cp").arg("-a").arg(at.join(".")).arg(&kept));
        let bound = copied.and_then(|()| run(Command::new("mount").arg("--bind").arg(&kept).arg(&at)));
        run(Command::new("umount").arg(&kept))?;
        std::fs::remove_dir(&kept).map_err(|e| failed("removing a folder", e))?;
        bound.map(|()| SmallDisk { at })
    }

    /// Writes until there is no room; again, until what has become free since is taken too.
    pub fn fill(&self) -> ScenarioResult {
        let ballast = File::options().create(true).append(true).open(self.ballast());
        let mut ballast = ballast.map_err(|e| failed("making ballast", e))?;
        for bytes in PIECES_BYTES {
            let piece = vec![0; bytes];
            while ballast.write_all(&piece).is_ok() {}
        }
        Ok(())
    }

    /// Makes room again.
    pub fn empty(&self) -> ScenarioResult {
        std::fs::remove_file(self.ballast()).map_err(|e| failed("removing ballast", e))
    }

    /// Takes the disk away; what is on it stays in the folder. The replica is stopped and started.
    pub async fn remove(self, world: &World, replica: ReplicaName) -> ScenarioResult {
        super::stop(world, replica).await?;
        // If the scenario has failed it may still be full.
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
    Err(Failure::new(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

fn failed(what: &str, error: std::io::Error) -> Failure {
    Failure::new(format!("{what}: {error}"))
}
