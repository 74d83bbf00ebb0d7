//! The segments of this process that nobody writes or sends at the moment, kept so that their pages are used again.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::cluster::program_caller;
use prefork_os::shared_segment::OwnedSegment;

/// The smallest segment.
const MIN_SEGMENT_BYTES: usize = 64 * 1024;

/// The most bytes of several kept segments. The longest unused ones are dropped first. They count as memory of the process, which
/// may be limited.
const MAX_KEPT_BYTES: usize = 64 << 20;

/// The largest segment that is kept.
const MAX_KEPT_SEGMENT_BYTES: usize = 256 << 20;

/// The most kept segments. Each uses a descriptor.
const MAX_KEPT_SEGMENTS: usize = 64;

/// How long a segment is kept without use.
const KEEP_TIMEOUT: Duration = Duration::from_secs(10);

static KEPT_SEGMENTS: Mutex<KeptSegments> =
    Mutex::new(KeptSegments { segments: Vec::new(), bytes: 0, has_cleaner: false });

/// A segment that is kept for the next value.
#[derive(Debug)]
struct KeptSegment {
    segment: OwnedSegment,
    since: Instant,
}

#[derive(Debug)]
struct KeptSegments {
    /// The longest unused one is the first. Some may still be read by others.
    segments: Vec<KeptSegment>,
    bytes: usize,
    /// Whether a thread drops what is kept too long.
    has_cleaner: bool,
}

impl KeptSegments {
    /// Takes a segment of this capacity that nobody reads.
    fn take(&mut self, capacity: usize) -> Option<OwnedSegment> {
        let fits = |segment: &OwnedSegment| {
            segment.capacity() == capacity && segment.is_writable() && !segment.has_readers()
        };
        // The last one used has the most of its pages in the processor's cache.
        let position = self.segments.iter().rposition(|kept| fits(&kept.segment))?;
        self.bytes -= capacity;
        Some(self.segments.remove(position).segment)
    }

    /// Keeps a segment. Returns those that have to be dropped, to do so without the lock.
    fn keep(&mut self, segment: OwnedSegment, now: Instant) -> Vec<KeptSegment> {
        self.bytes += segment.capacity();
        self.segments.push(KeptSegment { segment, since: now });
        let (mut count, mut bytes) = (0, self.bytes);
        for kept in &self.segments {
            let left = self.segments.len() - count;
            let most = if left > 1 { MAX_KEPT_BYTES } else { MAX_KEPT_SEGMENT_BYTES };
            if bytes <= most && left <= MAX_KEPT_SEGMENTS {
                break;
            }
            count += 1;
            bytes -= kept.segment.capacity();
        }
        self.bytes = bytes;
        self.segments.drain(..count).collect()
    }

    /// Takes what is kept too long.
    fn take_expired(&mut self, now: Instant) -> Vec<KeptSegment> {
        let is_expired = |kept: &&KeptSegment| now.duration_since(kept.since) >= KEEP_TIMEOUT;
        let count = self.segments.iter().take_while(is_expired).count();
        let expired: Vec<KeptSegment> = self.segments.drain(..count).collect();
        self.bytes -= expired.iter().map(|kept| kept.segment.capacity()).sum::<usize>();
        expired
    }
}

/// A segment in use. Kept for the next value when dropped.
#[derive(Debug)]
pub(super) struct SegmentLease(
    /// `None` only while being dropped.
    Option<OwnedSegment>,
);

impl SegmentLease {
    /// Returns a segment that begins with `content`.
    ///
    /// # Errors
    /// No memory or descriptor is left.
    pub(super) fn with_content(content: &[u8]) -> io::Result<SegmentLease> {
        let capacity = size_class(content.len())?;
        let segment = match lock_kept_segments().take(capacity) {
            Some(mut segment) => {
                segment.bytes_mut(content.len())?.copy_from_slice(content);
                segment
            }
            None => OwnedSegment::with_content(capacity, content)?,
        };
        Ok(SegmentLease(Some(segment)))
    }

    /// Returns a segment of at least `length` bytes of memory, with any content.
    ///
    /// # Errors
    /// No memory or descriptor is left.
    pub(super) fn with_length(length: usize) -> io::Result<SegmentLease> {
        let capacity = size_class(length)?;
        let segment = match lock_kept_segments().take(capacity) {
            Some(mut segment) => {
                segment.bytes_mut(length)?;
                segment
            }
            None => OwnedSegment::zeroed(capacity, length)?,
        };
        Ok(SegmentLease(Some(segment)))
    }

    /// Returns the segment.
    pub(super) fn get(&self) -> &OwnedSegment {
        self.0.as_ref().expect("the lease has its segment until it is dropped")
    }

    /// Returns the segment, to write it.
    pub(super) fn get_mut(&mut self) -> &mut OwnedSegment {
        self.0.as_mut().expect("the lease has its segment until it is dropped")
    }
}

impl Drop for SegmentLease {
    fn drop(&mut self) {
        let Some(segment) = self.0.take() else { return };
        // The primary must stay without threads, and what it made is read-only after its next fork.
        let may_keep = crate::is_worker() || program_caller().is_some();
        if !may_keep || !segment.is_writable() {
            return;
        }
        let mut kept = lock_kept_segments();
        let dropped = kept.keep(segment, Instant::now());
        if !kept.has_cleaner {
            let cleaner = std::thread::Builder::new().name("segment cleaner".to_string());
            // Without a thread, the segments stay until others take their place.
            kept.has_cleaner = cleaner.spawn(drop_expired_segments).is_ok();
        }
        drop(kept);
        drop(dropped);
    }
}

/// Drops segments that are kept too long, until none is left.
fn drop_expired_segments() {
    loop {
        let mut kept = lock_kept_segments();
        let now = Instant::now();
        let expired = kept.take_expired(now);
        let Some(next) = kept.segments.first().map(|next| next.since + KEEP_TIMEOUT) else {
            kept.has_cleaner = false;
            return;
        };
        drop(kept);
        drop(expired);
        std::thread::sleep(next.saturating_duration_since(now));
    }
}

fn lock_kept_segments() -> MutexGuard<'static, KeptSegments> {
    KEPT_SEGMENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the capacity of segments for `length` bytes: at most a quarter more, so that similar values share segments.
///
/// # Errors
/// `OutOfMemory` if no memory could be so large.
fn size_class(length: usize) -> io::Result<usize> {
    let power = length.max(MIN_SEGMENT_BYTES).checked_next_power_of_two();
    let capacity =
        power.and_then(|power| length.max(MIN_SEGMENT_BYTES).checked_next_multiple_of(power / 8));
    capacity.filter(|bytes| *bytes <= isize::MAX as usize).ok_or(io::ErrorKind::OutOfMemory.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_kept_segments() -> KeptSegments {
        KeptSegments { segments: Vec::new(), bytes: 0, has_cleaner: false }
    }

    fn segment(capacity: usize) -> OwnedSegment {
        OwnedSegment::zeroed(capacity, 0).expect("a segment")
    }

    #[test]
    fn a_size_class_is_at_most_a_quarter_larger_than_the_value() {
        let lengths = (0..40).flat_map(|bit| [-1i64, 0, 1].map(|more| (1i64 << bit) + more));
        for length in lengths.chain([10 << 20, 15_000_000]) {
            let length = usize::try_from(length).expect("positive");
            let class = size_class(length).expect("small");
            assert!(class >= length && class.is_multiple_of(4096), "{length} {class}");
            assert!(
                class <= MIN_SEGMENT_BYTES || class <= length + length / 4 + 1,
                "{length} {class}"
            );
            assert_eq!(size_class(class).expect("small"), class);
        }
        assert_eq!(size_class(10 << 20).expect("small"), 10 << 20);
        assert!(size_class(usize::MAX).is_err() && size_class(isize::MAX as usize).is_err());
    }

    #[test]
    fn a_segment_that_is_still_read_is_not_taken() {
        let (mut kept, capacity) = (new_kept_segments(), MIN_SEGMENT_BYTES);
        let one = segment(capacity);
        let reader = one.create_reader().expect("a reader");
        assert!(kept.keep(one, Instant::now()).is_empty());
        assert!(kept.take(capacity).is_none());
        assert!(kept.keep(segment(capacity), Instant::now()).is_empty());
        assert!(kept.take(2 * capacity).is_none(), "another size");
        assert!(kept.take(capacity).is_some() && kept.take(capacity).is_none());
        drop(reader);
        // A program that another test starts briefly has copies of all descriptors.
        let deadline = Instant::now() + Duration::from_secs(10);
        while kept.take(capacity).is_none() {
            assert!(Instant::now() < deadline, "no reader is left");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(kept.bytes, 0);
    }

    #[test]
    fn the_longest_unused_segments_are_dropped_above_the_limits() {
        let (mut kept, now) = (new_kept_segments(), Instant::now());
        for count in 1..=MAX_KEPT_SEGMENTS + 3 {
            let dropped = kept.keep(segment(MIN_SEGMENT_BYTES), now);
            assert_eq!(dropped.len(), usize::from(count > MAX_KEPT_SEGMENTS));
        }
        let dropped = kept.keep(segment(MAX_KEPT_SEGMENT_BYTES), now);
        assert_eq!(dropped.len(), MAX_KEPT_SEGMENTS, "one segment may be larger");
        assert_eq!((kept.segments.len(), kept.bytes), (1, MAX_KEPT_SEGMENT_BYTES));
        let dropped = kept.keep(segment(MAX_KEPT_SEGMENT_BYTES + 4096), now);
        assert_eq!((dropped.len(), kept.bytes), (2, 0), "even the new one is too large");
    }

    #[test]
    fn segments_without_use_expire() {
        let (mut kept, start) = (new_kept_segments(), Instant::now());
        kept.keep(segment(MIN_SEGMENT_BYTES), start);
        kept.keep(segment(MIN_SEGMENT_BYTES), start + Duration::from_secs(1));
        assert!(kept.take_expired(start + KEEP_TIMEOUT - Duration::from_millis(1)).is_empty());
        assert_eq!(kept.take_expired(start + KEEP_TIMEOUT).len(), 1);
        assert_eq!(kept.take_expired(start + 2 * KEEP_TIMEOUT).len(), 1);
        assert_eq!(kept.bytes, 0);
    }
}
