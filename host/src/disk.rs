//! The interface of the disk under a durable log.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

/// A folder of segments.
///
/// The interface is narrow so that a simulator can implement a disk that loses unsynced writes and
/// tears the last write. Segments are numbered files that are written from front to back. Segments
/// are recycled: the part not written yet may be zeros, the remains of a removed segment, or
/// missing.
pub trait Disk {
    /// The existing segments in ascending order, possibly with one that was prepared and not begun.
    fn segments(&self) -> io::Result<Vec<u64>>;
    /// Creates a segment durably, or takes the one prepared under this number. Its contents are
    /// undefined.
    fn create(&mut self, segment: u64) -> io::Result<()>;
    /// Announces that `segment` will be created next: the disk may prepare it in the background.
    fn expect(&mut self, _segment: u64) {}
    /// The bytes that a segment takes without growing; `None` if that makes no difference.
    fn room(&self, _segment: u64) -> Option<u64> {
        None
    }
    /// Writes `data` at `offset`; durable only after [`Disk::sync`].
    fn write(&mut self, segment: u64, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes everything written to the segment durable.
    fn sync(&mut self, segment: u64) -> io::Result<()>;
    /// Announces that no more is written to the segment: the disk may make it durable in the
    /// background.
    fn seal(&mut self, _segment: u64) {}
    /// The bytes `offset..offset + len` of a segment; an error if it is shorter.
    fn read(&self, segment: u64, offset: u64, len: usize) -> io::Result<Bytes>;
    /// A reader of the segment for another thread; `None` if the disk has none.
    fn reader(&self, _segment: u64) -> Option<Arc<dyn SegmentReader>> {
        None
    }
    /// The length of a segment in bytes, undefined contents included.
    fn len(&self, segment: u64) -> io::Result<u64>;
    /// Deletes a segment, or keeps it for recycling.
    fn remove(&mut self, segment: u64) -> io::Result<()>;
}

/// Reads one segment. The bytes written before the reader was made do not change while it lives.
pub trait SegmentReader: Send + Sync + Debug {
    /// The bytes `offset..offset + len`; an error if the segment is shorter.
    fn read(&self, offset: u64, len: usize) -> io::Result<Bytes>;
}

impl<D: Disk + ?Sized> Disk for Box<D> {
    fn segments(&self) -> io::Result<Vec<u64>> {
        (**self).segments()
    }
    fn create(&mut self, segment: u64) -> io::Result<()> {
        (**self).create(segment)
    }
    fn expect(&mut self, segment: u64) {
        (**self).expect(segment)
    }
    fn room(&self, segment: u64) -> Option<u64> {
        (**self).room(segment)
    }
    fn write(&mut self, segment: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        (**self).write(segment, offset, data)
    }
    fn sync(&mut self, segment: u64) -> io::Result<()> {
        (**self).sync(segment)
    }
    fn seal(&mut self, segment: u64) {
        (**self).seal(segment)
    }
    fn read(&self, segment: u64, offset: u64, len: usize) -> io::Result<Bytes> {
        (**self).read(segment, offset, len)
    }
    fn reader(&self, segment: u64) -> Option<Arc<dyn SegmentReader>> {
        (**self).reader(segment)
    }
    fn len(&self, segment: u64) -> io::Result<u64> {
        (**self).len(segment)
    }
    fn remove(&mut self, segment: u64) -> io::Result<()> {
        (**self).remove(segment)
    }
}
