//! A simulated disk that loses unsynced writes.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::disk::Disk;

#[derive(Debug, Default)]
struct SimFile {
    data: Vec<u8>,
    durable: Vec<u8>,
    /// The part in which `data` may differ from `durable`.
    dirty: Option<(usize, usize)>,
}

#[derive(Debug, Default)]
struct Platter {
    files: BTreeMap<u64, SimFile>,
    syncs: u64,
    /// Each sync whose number is a multiple of this does nothing; 0 turns this off.
    skip_every: u64,
    /// The zeros of a new segment, if there is none to recycle.
    prepared_bytes: usize,
    /// The contents of removed segments, which the next new segments begin with.
    recycled: Vec<Vec<u8>>,
}

/// Removed segments that are kept for recycling.
const MAX_RECYCLED: usize = 2;

/// A disk that survives the process that uses it. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct ForgetfulDisk(Arc<Mutex<Platter>>);

/// The unit that is written or lost as a whole, in bytes.
const SECTOR_BYTES: usize = 64;

impl ForgetfulDisk {
    /// An empty disk. Every `skip_every`-th sync does nothing (0: every sync works), and new
    /// segments begin with `prepared_bytes` zeros.
    pub fn new(skip_every: u64, prepared_bytes: usize) -> ForgetfulDisk {
        let disk = ForgetfulDisk::default();
        disk.platter().skip_every = skip_every;
        disk.platter().prepared_bytes = prepared_bytes;
        disk
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another disk with a copy of the durable contents.
    pub fn copy(&self) -> ForgetfulDisk {
        let platter = self.platter();
        let file = |file: &SimFile| SimFile { data: file.durable.clone(), durable: file.durable.clone(), dirty: None };
        let files = platter.files.iter().map(|(segment, of)| (*segment, file(of))).collect();
        let (skip_every, prepared_bytes) = (platter.skip_every, platter.prepared_bytes);
        let copy =
            Platter { files, syncs: platter.syncs, skip_every, prepared_bytes, recycled: platter.recycled.clone() };
        ForgetfulDisk(Arc::new(Mutex::new(copy)))
    }

    /// Loses power. Of the unsynced writes nothing stays, or all, or a beginning, or any sectors.
    /// `draw` returns a number below its argument.
    pub fn crash(&self, draw: &mut dyn FnMut(usize) -> usize) {
        for file in self.platter().files.values_mut() {
            let Some((from, to)) = file.dirty.take() else {
                continue;
            };
            let how = draw(4);
            let until = from + draw(to - from + 1);
            let mut sector = from;
            while sector < to {
                let end = (sector + SECTOR_BYTES).min(to);
                let kept = match how {
                    0 => false,
                    1 => true,
                    2 => end <= until,
                    _ => draw(2) == 0,
                };
                if kept {
                    if file.durable.len() < end {
                        file.durable.resize(end, 0);
                    }
                    file.durable[sector..end].copy_from_slice(&file.data[sector..end]);
                }
                sector = end;
            }
            file.data.clone_from(&file.durable);
        }
        // The next segment may have been prepared and not begun.
        let mut platter = self.platter();
        if let Some(last) = platter.files.keys().next_back().copied()
            && draw(2) == 0
            && let Some(remains) = platter.recycled.pop()
        {
            platter.files.insert(last + 1, SimFile { data: remains.clone(), durable: remains, dirty: None });
        }
    }
}

fn missing(segment: u64) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("segment {segment}"))
}

impl Platter {
    fn file(&mut self, segment: u64) -> io::Result<&mut SimFile> {
        self.files.get_mut(&segment).ok_or_else(|| missing(segment))
    }
}

impl Disk for ForgetfulDisk {
    fn segments(&self) -> io::Result<Vec<u64>> {
        Ok(self.platter().files.keys().copied().collect())
    }

    fn create(&mut self, segment: u64) -> io::Result<()> {
        let mut platter = self.platter();
        if !platter.files.contains_key(&segment) {
            let zeros = vec![0; platter.prepared_bytes];
            let data = platter.recycled.pop().unwrap_or(zeros);
            platter.files.insert(segment, SimFile { data: data.clone(), durable: data, dirty: None });
        }
        Ok(())
    }

    fn write(&mut self, segment: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.platter();
        let file = platter.file(segment)?;
        let (from, to) = (offset as usize, offset as usize + data.len());
        if file.data.len() < to {
            file.data.resize(to, 0);
        }
        file.data[from..to].copy_from_slice(data);
        let (first, last) = file.dirty.unwrap_or((from, to));
        file.dirty = Some((first.min(from), last.max(to)));
        Ok(())
    }

    fn sync(&mut self, segment: u64) -> io::Result<()> {
        let mut platter = self.platter();
        platter.syncs += 1;
        if platter.skip_every > 0 && platter.syncs.is_multiple_of(platter.skip_every) {
            return Ok(());
        }
        let file = platter.file(segment)?;
        if let Some((from, to)) = file.dirty.take() {
            file.durable.resize(file.data.len(), 0);
            file.durable[from..to].copy_from_slice(&file.data[from..to]);
        }
        Ok(())
    }

    fn read(&self, segment: u64, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut platter = self.platter();
        let from = offset as usize;
        let range = platter.file(segment)?.data.get(from..from + len);
        range.map(Bytes::copy_from_slice).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn len(&self, segment: u64) -> io::Result<u64> {
        Ok(self.platter().file(segment)?.data.len() as u64)
    }

    fn remove(&mut self, segment: u64) -> io::Result<()> {
        let mut platter = self.platter();
        if let Some(removed) = platter.files.remove(&segment)
            && platter.recycled.len() < MAX_RECYCLED
        {
            platter.recycled.push(removed.durable);
        }
        Ok(())
    }
}
