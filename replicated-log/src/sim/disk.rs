//! A disk that forgets what was not synced.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;

use crate::wal::Disk;

#[derive(Debug, Default)]
struct SimFile {
    data: Vec<u8>,
    durable: Vec<u8>,
    /// Where `data` may differ from `durable`.
    dirty: Option<(usize, usize)>,
}

#[derive(Debug, Default)]
struct Platter {
    files: BTreeMap<u64, SimFile>,
    syncs: u64,
    /// Every so-many-th sync does nothing, if not 0.
    skip_every: u64,
    /// Zeros that a new segment comes with.
    prepared_bytes: usize,
}

/// Survives the process that uses it: clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct SimDisk(Rc<RefCell<Platter>>);

/// What is written or lost together.
const SECTOR_BYTES: usize = 64;

impl SimDisk {
    pub(super) fn new(skip_every: u64, prepared_bytes: usize) -> SimDisk {
        let disk = SimDisk::default();
        disk.0.borrow_mut().skip_every = skip_every;
        disk.0.borrow_mut().prepared_bytes = prepared_bytes;
        disk
    }

    /// Power is lost: of what was not synced nothing stays, or a beginning, or any sectors of it.
    pub(super) fn crash(&self, rng: &mut StdRng) {
        for file in self.0.borrow_mut().files.values_mut() {
            let Some((from, to)) = file.dirty.take() else {
                continue;
            };
            let how = rng.random_range(0..4);
            let until = rng.random_range(from..=to);
            let mut sector = from;
            while sector < to {
                let end = (sector + SECTOR_BYTES).min(to);
                let kept = match how {
                    0 => false,
                    1 => true,
                    2 => end <= until,
                    _ => rng.random_bool(0.5),
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

impl Disk for SimDisk {
    fn segments(&self) -> io::Result<Vec<u64>> {
        Ok(self.0.borrow().files.keys().copied().collect())
    }

    fn create(&mut self, segment: u64) -> io::Result<()> {
        let mut platter = self.0.borrow_mut();
        let zeros = vec![0; platter.prepared_bytes];
        platter.files.insert(segment, SimFile { data: zeros.clone(), durable: zeros, dirty: None });
        Ok(())
    }

    fn write(&mut self, segment: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.0.borrow_mut();
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
        let mut platter = self.0.borrow_mut();
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
        let mut platter = self.0.borrow_mut();
        let from = offset as usize;
        let range = platter.file(segment)?.data.get(from..from + len);
        range.map(Bytes::copy_from_slice).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn len(&self, segment: u64) -> io::Result<u64> {
        Ok(self.0.borrow_mut().file(segment)?.data.len() as u64)
    }

    fn clear_from(&mut self, segment: u64, offset: u64) -> io::Result<()> {
        let mut platter = self.0.borrow_mut();
        let prepared = platter.prepared_bytes;
        let file = platter.file(segment)?;
        file.data.truncate(offset as usize);
        let whole = prepared.max(file.data.len());
        file.data.resize(whole, 0);
        file.durable.clone_from(&file.data);
        file.dirty = None;
        Ok(())
    }

    fn remove(&mut self, segment: u64) -> io::Result<()> {
        self.0.borrow_mut().files.remove(&segment);
        Ok(())
    }
}
