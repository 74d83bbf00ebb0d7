//! The segment of a [`MappedBytes`](super::MappedBytes) within a value, while serde encodes or decodes the value on this thread.
//!
//! A message carries one descriptor. The first one within a value gets it; the bytes of others are copied.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;

use prefork_os::shared_segment::ReceivedSegment;

use super::ValueSource;

/// A segment on its way to another process.
#[derive(Debug)]
pub(super) struct OutgoingSegment {
    pub(super) reader: OwnedFd,
    pub(super) length: usize,
}

/// The value that this thread encodes or decodes.
#[derive(Debug, Default)]
enum CurrentValue {
    /// None, or one that travels without descriptors.
    #[default]
    Other,
    Encoded(Option<OutgoingSegment>),
    Decoded(Option<ReceivedSegment>, ValueSource),
}

thread_local! {
    static CURRENT_VALUE: RefCell<CurrentValue> = const { RefCell::new(CurrentValue::Other) };
}

/// Restores the outer value when dropped, also by a panic of the application's serde code.
struct OuterValue(CurrentValue);

impl OuterValue {
    fn replace(value: CurrentValue) -> OuterValue {
        OuterValue(CURRENT_VALUE.with_borrow_mut(|current| std::mem::replace(current, value)))
    }
}

impl Drop for OuterValue {
    fn drop(&mut self) {
        let outer = std::mem::take(&mut self.0);
        drop(CURRENT_VALUE.with_borrow_mut(|current| std::mem::replace(current, outer)));
    }
}

/// Calls `encode`, within which `attach` takes one segment. Returns it.
pub(super) fn collect_segment<R>(encode: impl FnOnce() -> R) -> (R, Option<OutgoingSegment>) {
    let _outer = OuterValue::replace(CurrentValue::Encoded(None));
    let result = encode();
    let segment = CURRENT_VALUE.with_borrow_mut(|current| match current {
        CurrentValue::Encoded(segment) => segment.take(),
        CurrentValue::Other | CurrentValue::Decoded(..) => None,
    });
    (result, segment)
}

/// Attaches the segment that `create` returns, if any, to the value that is being encoded. Returns whether it did: the value can
/// travel with a descriptor and has no other one.
///
/// # Errors
/// `create` fails.
pub(super) fn attach(
    create: impl FnOnce() -> io::Result<Option<OutgoingSegment>>,
) -> io::Result<bool> {
    CURRENT_VALUE.with_borrow_mut(|current| match current {
        CurrentValue::Encoded(segment @ None) => {
            *segment = create()?;
            Ok(segment.is_some())
        }
        _ => Ok(false),
    })
}

/// Calls `decode`, within which `take_attached` returns `segment`.
pub(super) fn provide_segment<R>(
    segment: Option<ReceivedSegment>,
    source: ValueSource,
    decode: impl FnOnce() -> R,
) -> R {
    let _outer = OuterValue::replace(CurrentValue::Decoded(segment, source));
    decode()
}

/// Takes the segment of the value that is being decoded.
pub(super) fn take_attached() -> Option<(ReceivedSegment, ValueSource)> {
    CURRENT_VALUE.with_borrow_mut(|current| match current {
        CurrentValue::Decoded(segment, source) => segment.take().map(|one| (one, *source)),
        CurrentValue::Other | CurrentValue::Encoded(_) => None,
    })
}
