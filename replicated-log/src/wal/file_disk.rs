//! The real disk: segments as files, behind the interface `evenkeel_host::Disk`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use evenkeel_host::{Disk, SegmentReader};

/// A segment that fills faster than this is followed by one twice as large.
const FAST_SEGMENT: Duration = Duration::from_secs(2);
/// One that takes longer is followed by one half as large.
const SLOW_SEGMENT: Duration = Duration::from_secs(60);
/// Removed segments that are kept for recycling.
const MAX_RECYCLED: usize = 2;
/// The least size of a footer, in bytes; a segment of many records has a longer one.
const FOOTER_BYTES: u64 = 4 << 10;
/// The beginning of the name of a segment that waits for recycling.
const RECYCLED: &str = "spare-";

/// Segments as files `NNNNNNNNNNNNNNNN.log` in a folder, which is locked while this lives.
///
/// A sync that neither extends a file nor allocates a block does not wait for the file system's
/// journal, for which every other writer on the machine waits too. Measured on ext4 beside other
/// writers, nine syncs in ten took 0.13 ms instead of 4 to 8 ms. Therefore a segment's blocks exist
/// before its use: a segment is a removed one under a new name, or a file filled with zeros. A
/// thread of its own prepares the next segment, with a durable name, while the current one fills.
#[derive(Debug)]
pub(crate) struct FileDisk {
    least_bytes: u64,
    most_bytes: u64,
    files: BTreeMap<u64, Segment>,
    /// The segment being prepared, and the channel of the result.
    next: Option<(u64, mpsc::Receiver<io::Result<Segment>>)>,
    /// When the current segment was begun, and the wanted size of the next.
    begun: Option<Instant>,
    wanted_bytes: u64,
    helper: Helper,
    /// Holds the folder's lock until it is closed.
    _lock: File,
}

#[derive(Debug)]
struct Segment {
    file: Arc<File>,
    /// Its size: the bytes that it takes without growing.
    room_bytes: u64,
}

impl FileDisk {
    /// Opens the folder, and creates it if it does not exist. Segments have `least_bytes`, and up
    /// to `most_bytes` under heavy writes.
    ///
    /// `Err` of kind [`io::ErrorKind::WouldBlock`] means that another process uses it.
    pub(crate) fn open(dir: &Path, least_bytes: u64, most_bytes: u64) -> io::Result<FileDisk> {
        std::fs::create_dir_all(dir)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        let (mut files, mut recycled) = (BTreeMap::new(), Vec::new());
        for name in std::fs::read_dir(dir)? {
            let name = name?.file_name();
            let Some(name) = name.to_str() else { continue };
            let number = name.strip_suffix(".log").and_then(|n| u64::from_str_radix(n, 16).ok());
            if let Some(number) = number {
                files.insert(number, open_segment(&path(dir, number))?);
            } else if name.starts_with(RECYCLED) {
                recycled.push(dir.join(name));
            }
        }
        Ok(FileDisk {
            least_bytes,
            most_bytes: most_bytes.max(least_bytes),
            files,
            next: None,
            begun: None,
            wanted_bytes: least_bytes,
            helper: Helper::start(dir.to_owned(), recycled, most_bytes.max(least_bytes))?,
            _lock: lock,
        })
    }

    fn file(&self, segment: u64) -> io::Result<&Arc<File>> {
        let found = self.files.get(&segment).map(|segment| &segment.file);
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("segment {segment}")))
    }

    fn prepare(&mut self, segment: u64) -> io::Result<()> {
        let (reply, prepared) = mpsc::sync_channel(1);
        self.helper.ask(Job::Prepare { segment, bytes: self.wanted_bytes, reply })?;
        self.next = Some((segment, prepared));
        Ok(())
    }

    /// A segment begins. Adapts the size of the next one to the time that the previous one took.
    fn adapt(&mut self) {
        let now = evenkeel_host::now();
        if let Some(begun) = self.begun.replace(now) {
            let took = now.duration_since(begun);
            if took < FAST_SEGMENT {
                self.wanted_bytes = (self.wanted_bytes * 2).min(self.most_bytes);
            } else if took > SLOW_SEGMENT {
                self.wanted_bytes = (self.wanted_bytes / 2).max(self.least_bytes);
            }
        }
    }
}

fn path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:016x}.log"))
}

fn open_segment(path: &Path) -> io::Result<Segment> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let room_bytes = file.metadata()?.len();
    Ok(Segment { file: Arc::new(file), room_bytes })
}

impl Disk for FileDisk {
    fn segments(&self) -> io::Result<Vec<u64>> {
        Ok(self.files.keys().copied().collect())
    }

    fn create(&mut self, segment: u64) -> io::Result<()> {
        if !self.files.contains_key(&segment) {
            if self.next.as_ref().is_none_or(|(number, _)| *number != segment) {
                self.prepare(segment)?;
            }
            let (_, prepared) = self.next.take().ok_or_else(stopped)?;
            self.files.insert(segment, prepared.recv().map_err(|_| stopped())??);
        }
        self.adapt();
        self.expect(segment + 1);
        Ok(())
    }

    fn expect(&mut self, segment: u64) {
        let waiting = self.next.as_ref().is_some_and(|(number, _)| *number == segment);
        if !waiting && !self.files.contains_key(&segment) {
            // If it fails, `create` tries again and returns the error.
            self.prepare(segment).ok();
        }
    }

    fn room(&self, segment: u64) -> Option<u64> {
        self.files.get(&segment).map(|segment| segment.room_bytes)
    }

    fn write(&mut self, segment: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file(segment)?.write_all_at(data, offset)
    }

    fn sync(&mut self, segment: u64) -> io::Result<()> {
        crate::fault_hook::before_sync();
        self.file(segment)?.sync_data()
    }

    fn seal(&mut self, segment: u64) {
        if let Ok(file) = self.file(segment) {
            // Without the helper thread the system writes the file back later.
            self.helper.ask(Job::Sync(file.clone())).ok();
        }
    }

    fn read(&self, segment: u64, offset: u64, len: usize) -> io::Result<Bytes> {
        read(self.file(segment)?, offset, len)
    }

    fn reader(&self, segment: u64) -> Option<Arc<dyn SegmentReader>> {
        let file = self.file(segment).ok()?;
        Some(Arc::new(Reader(file.clone())))
    }

    fn len(&self, segment: u64) -> io::Result<u64> {
        Ok(self.file(segment)?.metadata()?.len())
    }

    fn remove(&mut self, segment: u64) -> io::Result<()> {
        match self.files.remove(&segment) {
            Some(Segment { file, .. }) => self.helper.ask(Job::Remove { segment, file }),
            // It is removed already.
            None => Ok(()),
        }
    }
}

/// Holds the file: meanwhile the segment is not recycled, only deleted.
#[derive(Debug)]
struct Reader(Arc<File>);

impl SegmentReader for Reader {
    fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        read(&self.0, offset, len)
    }
}

fn read(file: &File, offset: u64, len: usize) -> io::Result<Bytes> {
    let mut data = vec![0; len];
    file.read_exact_at(&mut data, offset)?;
    Ok(Bytes::from(data))
}

fn stopped() -> io::Error {
    io::Error::other("the thread that prepares segments has stopped")
}

/// Slow work that the event loop does not wait for.
#[derive(Debug)]
enum Job {
    /// A segment of at least `bytes`, its name durable.
    Prepare { segment: u64, bytes: u64, reply: mpsc::SyncSender<io::Result<Segment>> },
    /// Sync the last bytes of a sealed segment.
    Sync(Arc<File>),
    /// Recycle or delete the segment.
    Remove { segment: u64, file: Arc<File> },
}

/// The thread that does the jobs, in order.
#[derive(Debug)]
struct Helper {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    fn start(dir: PathBuf, recycled: Vec<PathBuf>, most_bytes: u64) -> io::Result<Helper> {
        let (jobs, waiting) = mpsc::channel();
        let mut folder = Folder { dir, recycled, named: 0, most_bytes };
        let thread = std::thread::Builder::new().name("log-segments".to_owned()).spawn(move || {
            while let Ok(job) = waiting.recv() {
                folder.work(job);
            }
        })?;
        Ok(Helper { jobs: Some(jobs), thread: Some(thread) })
    }

    fn ask(&self, job: Job) -> io::Result<()> {
        self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or_else(stopped)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // The thread works in the folder, whose lock is about to go.
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// The helper thread's view of the folder.
struct Folder {
    dir: PathBuf,
    recycled: Vec<PathBuf>,
    named: u64,
    /// Larger segments are not recycled, in bytes: one that took a whole synchronisation would make
    /// later ones as large.
    most_bytes: u64,
}

impl Folder {
    fn work(&mut self, job: Job) {
        match job {
            // A caller that no longer waits is shutting down.
            Job::Prepare { segment, bytes, reply } => drop(reply.send(self.prepare(segment, bytes))),
            Job::Sync(file) => {
                // Recovery reads the records if the footer is lost.
                if let Err(error) = file.sync_data() {
                    tracing::warn!(%error, "a sealed segment cannot be synced");
                }
            }
            Job::Remove { segment, file } => {
                if let Err(error) = self.remove(segment, file) {
                    tracing::warn!(segment, %error, "a segment cannot be removed");
                }
            }
        }
    }

    fn prepare(&mut self, segment: u64, bytes: u64) -> io::Result<Segment> {
        let unused = match self.recycled.pop() {
            Some(recycled) => recycled,
            None => self.new_recycled_name(),
        };
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&unused)?;
        let there_bytes = file.metadata()?.len();
        if there_bytes < bytes {
            fill_with_zeros(&file, there_bytes, bytes)?;
        }
        std::fs::rename(&unused, path(&self.dir, segment))?;
        // The file's name must be as durable as its contents will be.
        File::open(&self.dir)?.sync_all()?;
        Ok(Segment { file: Arc::new(file), room_bytes: there_bytes.max(bytes) })
    }

    /// Keeps the segment for recycling, unless there are enough, it is too large or it is being
    /// read.
    fn remove(&mut self, segment: u64, file: Arc<File>) -> io::Result<()> {
        let path = path(&self.dir, segment);
        let fits = file.metadata()?.len() <= self.most_bytes + self.most_bytes / 8 + FOOTER_BYTES;
        if self.recycled.len() < MAX_RECYCLED && fits && Arc::try_unwrap(file).is_ok() {
            let recycled = self.new_recycled_name();
            std::fs::rename(path, &recycled)?;
            self.recycled.push(recycled);
            return Ok(());
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    fn new_recycled_name(&mut self) -> PathBuf {
        loop {
            self.named += 1;
            let name = self.dir.join(format!("{RECYCLED}{}", self.named));
            if !self.recycled.contains(&name) {
                return name;
            }
        }
    }
}

/// Writes zeros from `offset` up to `end` and syncs.
fn fill_with_zeros(file: &File, mut offset: u64, end: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while offset < end {
        let some = (end - offset).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..some as usize], offset)?;
        offset += some;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use tempfile::TempDir;

    const SEGMENT_BYTES: u64 = 4096;

    fn inode(dir: &TempDir, segment: u64) -> u64 {
        std::fs::metadata(path(dir.path(), segment)).unwrap().ino()
    }

    fn blocks_zeroed(dir: &TempDir) -> usize {
        std::fs::read_dir(dir.path()).unwrap().filter(|f| f.as_ref().unwrap().file_name() != "lock").count()
    }

    // Each byte of the log is written once: after the first few segments no file is created any
    // more.
    #[test]
    fn removed_segments_are_recycled() {
        let dir = TempDir::new().unwrap();
        let mut disk = FileDisk::open(dir.path(), SEGMENT_BYTES, SEGMENT_BYTES).unwrap();
        let mut inodes = std::collections::BTreeSet::new();
        for segment in 1..40 {
            disk.create(segment).unwrap();
            inodes.insert(inode(&dir, segment));
            disk.write(segment, 0, &[7; 100]).unwrap();
            disk.sync(segment).unwrap();
            if segment > 2 {
                disk.remove(segment - 2).unwrap();
            }
        }
        assert!(inodes.len() <= 5, "{} files were made for 39 segments", inodes.len());
        drop(disk);
        assert!(blocks_zeroed(&dir) <= 3 + MAX_RECYCLED);
        // They survive a restart.
        let recycled = std::fs::read_dir(dir.path()).unwrap().filter(|f| is_recycled(f.as_ref().unwrap())).count();
        let disk = FileDisk::open(dir.path(), SEGMENT_BYTES, SEGMENT_BYTES).unwrap();
        assert_eq!(disk.segments().unwrap().last(), Some(&40));
        drop(disk);
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().filter(|f| is_recycled(f.as_ref().unwrap())).count(),
            recycled
        );
    }

    fn is_recycled(file: &std::fs::DirEntry) -> bool {
        file.file_name().to_str().unwrap().starts_with(RECYCLED)
    }

    // Breaks if one synchronisation makes all later segments as large as it was.
    #[test]
    fn a_segment_that_had_to_grow_is_not_recycled() {
        let dir = TempDir::new().unwrap();
        let mut disk = FileDisk::open(dir.path(), SEGMENT_BYTES, 2 * SEGMENT_BYTES).unwrap();
        disk.create(1).unwrap();
        disk.write(1, 0, &[7; 10 * SEGMENT_BYTES as usize]).unwrap();
        disk.create(2).unwrap();
        disk.remove(1).unwrap();
        for segment in 3..6 {
            disk.create(segment).unwrap();
            assert!(disk.room(segment).unwrap() <= 3 * SEGMENT_BYTES);
        }
    }

    #[test]
    fn a_segment_that_is_read_is_not_recycled() {
        let dir = TempDir::new().unwrap();
        let mut disk = FileDisk::open(dir.path(), SEGMENT_BYTES, SEGMENT_BYTES).unwrap();
        disk.create(1).unwrap();
        disk.write(1, 0, b"old").unwrap();
        let reader = disk.reader(1).unwrap();
        disk.remove(1).unwrap();
        for segment in 2..10 {
            disk.create(segment).unwrap();
            disk.write(segment, 0, b"new").unwrap();
            disk.remove(segment).unwrap();
        }
        assert_eq!(&reader.read(0, 3).unwrap()[..], b"old");
    }

    #[test]
    fn segments_that_fill_fast_are_followed_by_larger_ones() {
        let dir = TempDir::new().unwrap();
        let mut disk = FileDisk::open(dir.path(), SEGMENT_BYTES, 4 * SEGMENT_BYTES).unwrap();
        for segment in 1..6 {
            disk.create(segment).unwrap();
        }
        assert_eq!((disk.room(1), disk.room(5)), (Some(SEGMENT_BYTES), Some(4 * SEGMENT_BYTES)));
    }
}
