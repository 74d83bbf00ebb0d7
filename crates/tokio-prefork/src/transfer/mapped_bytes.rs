//! Bytes in shared memory, which cross to another process without a copy.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytes::Bytes;
use prefork_os::shared_segment::{MappedSegment, ReceivedSegment};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::ser::{Error as _, SerializeTuple};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::nested_segment::{self, OutgoingSegment};
use super::segment_pool::SegmentLease;
use super::{MAX_INLINE_BYTES, ValueSource};

/// Bytes that isolated jobs read in place, in memory that the processes share. Read-only, cheap to clone and to send again.
///
/// As the input of a job it is not copied, however often it is sent: the process of the job maps it. Make one with a
/// [`MappedBuffer`], or from a slice, which is one copy. As the output of a job its bytes are copied once, when the caller
/// receives it, because a process that runs isolated jobs is not trusted to leave its memory as it is.
///
/// May be a part of an input or output, such as a field or in a tuple; the first one in a value is not copied. In any other use
/// of serde, such as in a message, it is a sequence of bytes.
///
/// ```
/// # use tokio_prefork::isolated::{MappedBuffer, MappedBytes};
/// # fn main() -> std::io::Result<()> {
/// let mut buffer = MappedBuffer::zeroed(10 << 20)?;
/// buffer[0] = 1;
/// let bytes: MappedBytes = buffer.freeze();
/// assert_eq!(bytes.len(), 10 << 20);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MappedBytes(BytesMemory);

/// Where the bytes are.
#[derive(Debug, Clone)]
enum BytesMemory {
    /// In memory of this process: bytes that are too few for a segment, or were copied from another process.
    Private(Bytes),
    /// In a segment of this process: its first bytes.
    Own(Arc<SegmentLease>, usize),
    /// In a segment of a process that this one trusts.
    Received(Arc<MappedSegment>),
}

impl MappedBytes {
    /// Copies `bytes` to shared memory.
    ///
    /// # Errors
    /// No memory or descriptor is left.
    pub fn copy_from_slice(bytes: &[u8]) -> io::Result<MappedBytes> {
        Ok(MappedBytes(match bytes.len() {
            0..=MAX_INLINE_BYTES => BytesMemory::Private(Bytes::copy_from_slice(bytes)),
            length => BytesMemory::Own(Arc::new(SegmentLease::with_content(bytes)?), length),
        }))
    }

    /// Takes the bytes that another process has sent.
    pub(super) fn receive(
        segment: ReceivedSegment,
        source: ValueSource,
    ) -> io::Result<MappedBytes> {
        Ok(MappedBytes(match source {
            ValueSource::Trusted => BytesMemory::Received(Arc::new(segment.map_trusted()?)),
            // Copied to an own segment, so that they can be sent on without another copy.
            ValueSource::Untrusted => return Ok(MappedBuffer::receive(&segment)?.freeze()),
        }))
    }

    /// Returns the bytes in memory of this process alone.
    pub(super) fn private(bytes: Bytes) -> MappedBytes {
        MappedBytes(BytesMemory::Private(bytes))
    }

    #[cfg(test)]
    pub(super) fn is_in_own_memory(&self) -> bool {
        !matches!(self.0, BytesMemory::Received(_))
    }

    /// Returns the segment to send, if the bytes are in one.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn outgoing(&self) -> io::Result<Option<OutgoingSegment>> {
        let reader = match &self.0 {
            BytesMemory::Private(_) => return Ok(None),
            BytesMemory::Own(lease, _) => lease.get().create_reader()?,
            BytesMemory::Received(mapped) => mapped.create_reader()?,
        };
        Ok(Some(OutgoingSegment { reader, length: self.len() }))
    }
}

impl Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            BytesMemory::Private(bytes) => bytes,
            BytesMemory::Own(lease, length) => first_bytes(lease, *length),
            BytesMemory::Received(mapped) => mapped,
        }
    }
}

impl AsRef<[u8]> for MappedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq for MappedBytes {
    fn eq(&self, other: &MappedBytes) -> bool {
        self[..] == other[..]
    }
}

impl Eq for MappedBytes {}

/// Shows the number of bytes.
impl fmt::Debug for MappedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedBytes").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Serialize for MappedBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_bytes(serializer, self, || self.outgoing())
    }
}

impl<'de> Deserialize<'de> for MappedBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MappedBytes, D::Error> {
        deserialize_bytes(
            deserializer,
            |bytes| MappedBytes::private(bytes.into()),
            MappedBytes::receive,
        )
    }
}

/// Bytes in shared memory that this process writes, to send them without a copy.
///
/// A job may take one as input: then it gets a copy of the bytes, which it changes in place and returns without another one.
///
/// The memory of buffers that are dropped everywhere is used again, since new memory costs more than a copy.
pub struct MappedBuffer(BufferMemory);

/// Where the bytes are.
enum BufferMemory {
    /// In memory of this process: bytes that are too few for a segment, or were written after a fork.
    Private(Vec<u8>),
    /// In a segment of this process: its first bytes.
    Own(SegmentLease, usize),
}

impl MappedBuffer {
    /// Creates a buffer of `length` zeros.
    ///
    /// # Errors
    /// No memory or descriptor is left.
    pub fn zeroed(length: usize) -> io::Result<MappedBuffer> {
        let mut buffer = MappedBuffer::with_any_content(length)?;
        buffer.fill(0);
        Ok(buffer)
    }

    /// Creates a buffer of `length` bytes to overwrite: zeros, or what an earlier buffer of this process contained.
    ///
    /// Saves the time to zero the memory.
    ///
    /// # Errors
    /// No memory or descriptor is left.
    pub fn with_any_content(length: usize) -> io::Result<MappedBuffer> {
        Ok(MappedBuffer(match length {
            0..=MAX_INLINE_BYTES => BufferMemory::Private(vec![0; length]),
            _ => BufferMemory::Own(SegmentLease::with_length(length)?, length),
        }))
    }

    /// Creates a buffer with a copy of `bytes`.
    ///
    /// # Errors
    /// No memory or descriptor is left.
    pub fn copy_from_slice(bytes: &[u8]) -> io::Result<MappedBuffer> {
        Ok(MappedBuffer(match bytes.len() {
            0..=MAX_INLINE_BYTES => BufferMemory::Private(bytes.to_vec()),
            length => BufferMemory::Own(SegmentLease::with_content(bytes)?, length),
        }))
    }

    /// Copies the bytes that another process has sent.
    pub(super) fn receive(segment: &ReceivedSegment) -> io::Result<MappedBuffer> {
        let mut buffer = MappedBuffer::with_any_content(segment.length())?;
        segment.read_into(&mut buffer)?;
        Ok(buffer)
    }

    /// Shortens the buffer to `length` bytes. Does nothing if it is shorter.
    pub fn truncate(&mut self, length: usize) {
        match &mut self.0 {
            BufferMemory::Private(bytes) => bytes.truncate(length),
            BufferMemory::Own(_, current) => *current = length.min(*current),
        }
    }

    /// Makes the bytes read-only, to send and to share them. Copies nothing.
    pub fn freeze(self) -> MappedBytes {
        MappedBytes(match self.0 {
            BufferMemory::Private(bytes) => BytesMemory::Private(bytes.into()),
            // An empty segment cannot be received.
            BufferMemory::Own(_, 0) => BytesMemory::Private(Bytes::new()),
            BufferMemory::Own(lease, length) => BytesMemory::Own(Arc::new(lease), length),
        })
    }

    /// Returns the segment to send, if the bytes are in one.
    pub(super) fn outgoing(&self) -> io::Result<Option<OutgoingSegment>> {
        match &self.0 {
            BufferMemory::Private(_) | BufferMemory::Own(_, 0) => Ok(None),
            BufferMemory::Own(lease, length) => {
                let reader = lease.get().create_reader()?;
                Ok(Some(OutgoingSegment { reader, length: *length }))
            }
        }
    }
}

impl Deref for MappedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            BufferMemory::Private(bytes) => bytes,
            BufferMemory::Own(lease, length) => first_bytes(lease, *length),
        }
    }
}

impl DerefMut for MappedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        if let BufferMemory::Own(lease, length) = &self.0
            && !lease.get().is_writable()
        {
            // The process has forked: the other one reads the same memory.
            self.0 = BufferMemory::Private(first_bytes(lease, *length).to_vec());
        }
        match &mut self.0 {
            BufferMemory::Private(bytes) => bytes,
            BufferMemory::Own(lease, length) => {
                lease.get_mut().allocated_bytes_mut(*length).unwrap_or_default()
            }
        }
    }
}

impl AsRef<[u8]> for MappedBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for MappedBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// Shows the number of bytes.
impl fmt::Debug for MappedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedBuffer").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Serialize for MappedBuffer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_bytes(serializer, self, || self.outgoing())
    }
}

impl<'de> Deserialize<'de> for MappedBuffer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MappedBuffer, D::Error> {
        deserialize_bytes(
            deserializer,
            |bytes| MappedBuffer(BufferMemory::Private(bytes)),
            |segment, _| MappedBuffer::receive(&segment),
        )
    }
}

fn first_bytes(lease: &SegmentLease, length: usize) -> &[u8] {
    let bytes = lease.get().bytes();
    &bytes[..length.min(bytes.len())]
}

/// Serializes whether the bytes are in the attached segment, and the bytes if they are not.
fn serialize_bytes<S: Serializer>(
    serializer: S,
    bytes: &[u8],
    outgoing: impl FnOnce() -> io::Result<Option<OutgoingSegment>>,
) -> Result<S::Ok, S::Error> {
    let is_attached = nested_segment::attach(outgoing)
        .map_err(|e| S::Error::custom(format!("cannot send shared memory: {e}")))?;
    let mut pair = serializer.serialize_tuple(2)?;
    pair.serialize_element(&is_attached)?;
    pair.serialize_element(&RawBytes(if is_attached { &[] } else { bytes }))?;
    pair.end()
}

/// Deserializes what `serialize_bytes` has written.
fn deserialize_bytes<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    from_bytes: impl FnOnce(Vec<u8>) -> T,
    from_segment: impl FnOnce(ReceivedSegment, ValueSource) -> io::Result<T>,
) -> Result<T, D::Error> {
    let (is_attached, bytes) = <(bool, ByteBuf)>::deserialize(deserializer)?;
    if !is_attached {
        return Ok(from_bytes(bytes.0));
    }
    let (segment, source) = nested_segment::take_attached()
        .ok_or_else(|| D::Error::custom("its shared memory did not come with the value"))?;
    from_segment(segment, source)
        .map_err(|e| D::Error::custom(format!("cannot read shared memory: {e}")))
}

/// Bytes that serde writes at once instead of one by one.
struct RawBytes<'a>(&'a [u8]);

impl Serialize for RawBytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// Bytes that serde reads at once if the format can.
struct ByteBuf(Vec<u8>);

impl<'de> Deserialize<'de> for ByteBuf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ByteBuf, D::Error> {
        deserializer.deserialize_byte_buf(ByteBufVisitor)
    }
}

struct ByteBufVisitor;

impl<'de> Visitor<'de> for ByteBufVisitor {
    type Value = ByteBuf;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<ByteBuf, E> {
        Ok(ByteBuf(bytes.to_vec()))
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<ByteBuf, E> {
        Ok(ByteBuf(bytes))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<ByteBuf, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = elements.next_element()? {
            bytes.push(byte);
        }
        Ok(ByteBuf(bytes))
    }
}
