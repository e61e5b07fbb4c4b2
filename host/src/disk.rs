//! The few things a durable log asks of a disk.

use bytes::Bytes;
use std::io;

/// A folder of segments.
///
/// It is as narrow as it is so that a simulator can put a disk behind it that forgets what was not synced and tears the last write.
/// Segments are numbered files that are written from front to back; what has not been written yet may be there as zeros, or not at all.
pub trait Disk {
    /// The segments that exist, in ascending order.
    fn segments(&self) -> io::Result<Vec<u64>>;
    /// Makes a segment that holds nothing but zeros, durably.
    fn create(&mut self, segment: u64) -> io::Result<()>;
    /// Writes `data` at `offset`; durable only after [`Disk::sync`].
    fn write(&mut self, segment: u64, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes everything written to the segment durable.
    fn sync(&mut self, segment: u64) -> io::Result<()>;
    /// The bytes `offset..offset + len` of a segment; an error if it is shorter.
    fn read(&self, segment: u64, offset: u64, len: usize) -> io::Result<Bytes>;
    /// The length of a segment in bytes, zeros included.
    fn len(&self, segment: u64) -> io::Result<u64>;
    /// Makes everything from `offset` on zeros, durably.
    fn clear_from(&mut self, segment: u64, offset: u64) -> io::Result<()>;
    /// Deletes a segment.
    fn remove(&mut self, segment: u64) -> io::Result<()>;
}

impl<D: Disk + ?Sized> Disk for Box<D> {
    fn segments(&self) -> io::Result<Vec<u64>> {
        (**self).segments()
    }
    fn create(&mut self, segment: u64) -> io::Result<()> {
        (**self).create(segment)
    }
    fn write(&mut self, segment: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        (**self).write(segment, offset, data)
    }
    fn sync(&mut self, segment: u64) -> io::Result<()> {
        (**self).sync(segment)
    }
    fn read(&self, segment: u64, offset: u64, len: usize) -> io::Result<Bytes> {
        (**self).read(segment, offset, len)
    }
    fn len(&self, segment: u64) -> io::Result<u64> {
        (**self).len(segment)
    }
    fn clear_from(&mut self, segment: u64, offset: u64) -> io::Result<()> {
        (**self).clear_from(segment, offset)
    }
    fn remove(&mut self, segment: u64) -> io::Result<()> {
        (**self).remove(segment)
    }
}
