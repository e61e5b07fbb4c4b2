//! The few things a durable log asks of a disk.

use bytes::Bytes;
use std::fmt::Debug;
use std::io;
use std::sync::Arc;

/// A folder of segments.
///
/// It is as narrow as it is so that a simulator can put a disk behind it that forgets what was not synced and tears the last write.
/// Segments are numbered files that are written from front to back. What has not been written yet may be zeros, the remains of a
/// segment that was removed, or not there at all: segments are recycled.
pub trait Disk {
    /// The segments that exist, in ascending order. One that was prepared and not begun may be among them.
    fn segments(&self) -> io::Result<Vec<u64>>;
    /// Makes a segment, durably, or takes the one that was prepared under this number. Its contents mean nothing.
    fn create(&mut self, segment: u64) -> io::Result<()>;
    /// `segment` will be created next: it may be prepared ahead of need, without being waited for.
    fn expect(&mut self, _segment: u64) {}
    /// How many bytes a segment takes without growing; `None` if that makes no difference.
    fn room(&self, _segment: u64) -> Option<u64> {
        None
    }
    /// Writes `data` at `offset`; durable only after [`Disk::sync`].
    fn write(&mut self, segment: u64, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes everything written to the segment durable.
    fn sync(&mut self, segment: u64) -> io::Result<()>;
    /// No more will be written to the segment; what it holds may be made durable, in its own time.
    fn seal(&mut self, _segment: u64) {}
    /// The bytes `offset..offset + len` of a segment; an error if it is shorter.
    fn read(&self, segment: u64, offset: u64, len: usize) -> io::Result<Bytes>;
    /// A way to read the segment from another thread, for as long as it is held; `None` if there is none.
    fn reader(&self, _segment: u64) -> Option<Arc<dyn SegmentReader>> {
        None
    }
    /// The length of a segment in bytes, with what means nothing.
    fn len(&self, segment: u64) -> io::Result<u64>;
    /// Deletes a segment, or keeps it to be used again.
    fn remove(&mut self, segment: u64) -> io::Result<()>;
}

/// Reads one segment. What was written when the reader was made does not change while it lives.
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
