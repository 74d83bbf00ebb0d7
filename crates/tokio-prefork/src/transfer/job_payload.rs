//! The values of isolated jobs on their way between processes: inputs, outputs, errors and progress.
//!
//! A payload is a few bytes in a message, with or without the descriptor of a segment:
//!
//! | first byte | then |
//! |---|---|
//! | 0 | the encoding (one byte) and the content |
//! | 1 | the length of the content in the segment (`u64`, little endian) and its encoding |
//! | 2 | the length of the segment of a `MappedBytes` within the value, then encoding and content |

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use prefork_os::shared_segment::{ReceivedSegment, check_segment};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;

use super::mapped_bytes::{MappedBuffer, MappedBytes};
use super::nested_segment::{OutgoingSegment, collect_segment, provide_segment};
use super::segment_pool::SegmentLease;
use super::{MAX_INLINE_BYTES, copy_off_loop};
use crate::messages::{AttachedConnection, Message, Payload, PayloadEncoding};

/// Whether a process trusts the sender of a value to leave the segment as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueSource {
    /// The input, in the process of the job: it comes from the process that asked for the job, whose library does not write a
    /// segment that others read.
    Trusted,
    /// Anything from a process of a job, which may have lost control of its memory.
    Untrusted,
}

/// Why a value cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EncodeError {
    /// Its encoding has `size` bytes, more than `most`.
    TooLarge { size: usize, most: usize },
    /// It cannot be encoded, or no memory or descriptor is left.
    Failed(String),
}

/// The forms of a payload; see the module documentation.
mod form {
    pub(super) const INLINE: u8 = 0;
    pub(super) const CONTENT_IN_SEGMENT: u8 = 1;
    pub(super) const WITH_NESTED_SEGMENT: u8 = 2;
}

/// An encoded value. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct JobPayload {
    /// As in the module documentation. Empty if there is no value.
    pub(crate) bytes: Bytes,
    /// The descriptor that travels with it.
    pub(crate) attached: Option<Arc<OwnedFd>>,
}

/// Compares the bytes only: a descriptor cannot be compared.
impl PartialEq for JobPayload {
    fn eq(&self, other: &JobPayload) -> bool {
        self.bytes == other.bytes && self.attached.is_some() == other.attached.is_some()
    }
}

impl Eq for JobPayload {}

/// A payload whose parts are known.
struct ParsedPayload {
    form: u8,
    segment_length: usize,
    content: Payload,
}

impl JobPayload {
    /// Encodes a value of at most `most` bytes. Copies a large one, so do not call it on an event loop.
    pub(crate) fn encode<T: Serialize + 'static>(
        value: &T,
        most: usize,
    ) -> Result<JobPayload, EncodeError> {
        let payload = JobPayload::encode_up_to(value, most, usize::MAX)?;
        payload.ok_or(EncodeError::TooLarge { size: usize::MAX, most })
    }

    /// Encodes a value, on a thread of `runtime` for blocking calls if it is large. Returns the value too.
    pub(crate) async fn encode_off_loop<T: Serialize + Send + 'static>(
        runtime: &Handle,
        value: T,
        most: usize,
    ) -> (T, Result<JobPayload, EncodeError>) {
        match JobPayload::encode_up_to(&value, most, MAX_INLINE_BYTES).transpose() {
            Some(result) => (value, result),
            // More than an event loop should copy.
            None => {
                copy_off_loop(runtime, move || {
                    let payload = JobPayload::encode(&value, most);
                    (value, payload)
                })
                .await
            }
        }
    }

    /// Encodes a value of at most `most` bytes. Returns `None` if more than `most_copied` bytes had to be copied for it.
    fn encode_up_to<T: Serialize + 'static>(
        value: &T,
        most: usize,
        most_copied: usize,
    ) -> Result<Option<JobPayload>, EncodeError> {
        if let Some(segment) = outgoing_segment(value).map_err(|e| segment_error(&e))? {
            check_size(segment.length, most)?;
            return Ok(Some(JobPayload::in_segment(PayloadEncoding::Raw, segment)));
        }
        if let Some(bytes) = raw_bytes(value) {
            check_size(bytes.len(), most)?;
            let is_allowed = bytes.len() <= most_copied;
            return is_allowed
                .then(|| JobPayload::from_content(PayloadEncoding::Raw, bytes))
                .transpose();
        }
        let (encoded, segment) = collect_segment(|| encode_content(value, most_copied));
        let Some(content) = encoded? else { return Ok(None) };
        let Some(OutgoingSegment { reader, length }) = segment else {
            check_size(content.bytes().len(), most)?;
            return JobPayload::from_content(content.encoding(), content.bytes()).map(Some);
        };
        check_size(content.bytes().len().saturating_add(length), most)?;
        if content.bytes().len() > MAX_INLINE_BYTES {
            // There is one descriptor, and the rest needs it: the bytes in shared memory are copied with the rest.
            let Some(content) = encode_content(value, most_copied)? else { return Ok(None) };
            check_size(content.bytes().len(), most)?;
            return JobPayload::from_content(content.encoding(), content.bytes()).map(Some);
        }
        let mut bytes = head(form::WITH_NESTED_SEGMENT, length);
        content.append_to(&mut bytes);
        Ok(Some(JobPayload { bytes: bytes.into(), attached: Some(Arc::new(reader)) }))
    }

    /// Sends encoded content within the message, or in a segment if it is large.
    fn from_content(encoding: PayloadEncoding, content: &[u8]) -> Result<JobPayload, EncodeError> {
        if content.len() <= MAX_INLINE_BYTES {
            let mut bytes = Vec::with_capacity(2 + content.len());
            bytes.put_slice(&[form::INLINE, encoding as u8]);
            bytes.put_slice(content);
            return Ok(JobPayload { bytes: bytes.into(), attached: None });
        }
        let lease = SegmentLease::with_content(content).map_err(|e| segment_error(&e))?;
        let reader = lease.get().create_reader().map_err(|e| segment_error(&e))?;
        Ok(JobPayload::in_segment(encoding, OutgoingSegment { reader, length: content.len() }))
    }

    fn in_segment(encoding: PayloadEncoding, segment: OutgoingSegment) -> JobPayload {
        let mut bytes = head(form::CONTENT_IN_SEGMENT, segment.length);
        bytes.put_u8(encoding as u8);
        JobPayload { bytes: bytes.into(), attached: Some(Arc::new(segment.reader)) }
    }

    /// Decodes a value. Copies a large one, so do not call it on an event loop. Returns the reason on an error.
    pub(crate) fn decode<T: DeserializeOwned + 'static>(
        self,
        source: ValueSource,
    ) -> Result<T, String> {
        let parsed = self.parse().ok_or("it is malformed")?;
        let segment = match parsed.form {
            form::INLINE => None,
            _ => Some(self.take_segment(parsed.segment_length)?),
        };
        if parsed.form == form::WITH_NESTED_SEGMENT {
            return provide_segment(segment, source, || decode_content(&parsed.content));
        }
        let Some(segment) = segment else {
            return match parsed.content.encoding() {
                PayloadEncoding::Raw => value_from_raw(parsed.content.bytes().clone()),
                _ => decode_content(&parsed.content),
            };
        };
        let unreadable = |e: io::Error| format!("cannot read shared memory: {e}");
        let encoding = parsed.content.encoding();
        if encoding == PayloadEncoding::Raw {
            if is_type::<T, MappedBytes>() {
                let bytes = MappedBytes::receive(segment, source).map_err(unreadable)?;
                return convert(bytes).ok_or_else(|| "its type is another one".to_string());
            }
            if is_type::<T, MappedBuffer>() {
                let buffer = MappedBuffer::receive(&segment).map_err(unreadable)?;
                return convert(buffer).ok_or_else(|| "its type is another one".to_string());
            }
        }
        let bytes = segment.read_to_vec().map_err(unreadable)?;
        drop(segment);
        match encoding {
            PayloadEncoding::Raw => value_from_raw(bytes.into()),
            _ => decode_content(&Payload::new(encoding, bytes.into())),
        }
    }

    /// Decodes a value. With a runtime, a large one is decoded on its threads for blocking calls. Returns the reason on an error.
    pub(crate) async fn decode_off_loop<T: DeserializeOwned + Send + 'static>(
        self,
        runtime: Option<&Handle>,
        source: ValueSource,
    ) -> Result<T, String> {
        match runtime.filter(|_| self.attached.is_some()) {
            None => self.decode(source),
            Some(runtime) => copy_off_loop(runtime, move || self.decode(source)).await,
        }
    }

    /// Returns how many bytes the value occupies while it waits.
    pub(crate) fn size(&self) -> usize {
        let segment = self.parse().map_or(0, |parsed| parsed.segment_length);
        self.bytes.len().saturating_add(segment)
    }

    /// Checks that the payload has the segment that it needs, and that this is as long as the payload says. Never blocks.
    ///
    /// # Errors
    /// The reason.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let parsed = self.parse().ok_or("it is malformed")?;
        match (parsed.form, &self.attached) {
            (form::INLINE, _) => Ok(()),
            (_, None) => Err(lost_segment()),
            (_, Some(fd)) => {
                check_segment(fd.as_fd(), parsed.segment_length).map_err(|e| e.to_string())
            }
        }
    }

    /// Takes a value out of a message; `bytes` is the part of its payload that belongs to the value.
    pub(crate) fn from_message(message: &mut Message, bytes: Bytes) -> JobPayload {
        let attached = message.take_connection().map(|one| Arc::new(one.fd));
        JobPayload { bytes, attached }
    }

    /// Returns the descriptor to send along.
    ///
    /// # Errors
    /// No descriptor is left to duplicate it.
    pub(crate) fn attachment(&self) -> io::Result<AttachedConnection> {
        let fd = self.attached.as_ref().map(|fd| fd.try_clone()).transpose()?;
        Ok(fd.map_or(AttachedConnection::Absent, AttachedConnection::Present))
    }

    fn parse(&self) -> Option<ParsedPayload> {
        let mut rest = self.bytes.clone();
        let form = rest.try_get_u8().ok()?;
        let segment_length = match form {
            form::INLINE => 0,
            form::CONTENT_IN_SEGMENT | form::WITH_NESTED_SEGMENT => {
                usize::try_from(rest.try_get_u64_le().ok()?).ok()?
            }
            _ => return None,
        };
        let content = Payload::from_appended(&rest)?;
        Some(ParsedPayload { form, segment_length, content })
    }

    /// Takes the segment, checked.
    fn take_segment(self, length: usize) -> Result<ReceivedSegment, String> {
        let fd = self.attached.ok_or_else(lost_segment)?;
        let fd = match Arc::try_unwrap(fd) {
            Ok(fd) => fd,
            Err(shared) => shared
                .try_clone()
                .map_err(|e| format!("cannot duplicate the descriptor of shared memory: {e}"))?,
        };
        ReceivedSegment::check(fd, length).map_err(|e| format!("invalid shared memory: {e}"))
    }
}

fn encode_content<T: Serialize>(value: &T, most: usize) -> Result<Option<Payload>, EncodeError> {
    Payload::encode_up_to(value, most).map_err(|e| EncodeError::Failed(e.to_string()))
}

fn head(form: u8, segment_length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    bytes.put_u8(form);
    bytes.put_u64_le(segment_length as u64);
    bytes
}

fn check_size(size: usize, most: usize) -> Result<(), EncodeError> {
    if size <= most { Ok(()) } else { Err(EncodeError::TooLarge { size, most }) }
}

fn segment_error(error: &io::Error) -> EncodeError {
    EncodeError::Failed(format!("cannot create shared memory for it: {error}"))
}

fn lost_segment() -> String {
    "its shared memory did not arrive: the process had no free descriptor (raise ulimit -n)"
        .to_string()
}

fn decode_content<T: DeserializeOwned>(content: &Payload) -> Result<T, String> {
    content.decode().map_err(|reason| {
        let (encoding, type_name) = (content.encoding(), std::any::type_name::<T>());
        format!("cannot decode {encoding} as {type_name}: {reason}")
    })
}

/// Returns the segment of a value that is one.
fn outgoing_segment(value: &dyn Any) -> io::Result<Option<OutgoingSegment>> {
    if let Some(bytes) = value.downcast_ref::<MappedBytes>() {
        return bytes.outgoing();
    }
    value.downcast_ref::<MappedBuffer>().map_or(Ok(None), MappedBuffer::outgoing)
}

/// Returns the bytes of a value that consists of bytes. serde would take them one by one.
fn raw_bytes(value: &dyn Any) -> Option<&[u8]> {
    if let Some(bytes) = value.downcast_ref::<Vec<u8>>() {
        return Some(bytes);
    }
    if let Some(bytes) = value.downcast_ref::<Bytes>() {
        return Some(bytes);
    }
    if let Some(text) = value.downcast_ref::<String>() {
        return Some(text.as_bytes());
    }
    if let Some(bytes) = value.downcast_ref::<MappedBytes>() {
        return Some(bytes);
    }
    value.downcast_ref::<MappedBuffer>().map(|buffer| &buffer[..])
}

/// Makes a value of bytes that `raw_bytes` has returned.
fn value_from_raw<T: DeserializeOwned + 'static>(bytes: Bytes) -> Result<T, String> {
    let is_raw = is_type::<T, Vec<u8>>()
        || is_type::<T, Bytes>()
        || is_type::<T, String>()
        || is_type::<T, MappedBytes>()
        || is_type::<T, MappedBuffer>();
    if !is_raw {
        return decode_content(&Payload::new(PayloadEncoding::Raw, bytes));
    }
    let value = if is_type::<T, Bytes>() {
        convert(bytes)
    } else if is_type::<T, MappedBytes>() {
        convert(MappedBytes::private(bytes))
    } else if is_type::<T, MappedBuffer>() {
        let buffer = MappedBuffer::copy_from_slice(&bytes);
        convert(buffer.map_err(|e| format!("cannot create shared memory: {e}"))?)
    } else if is_type::<T, String>() {
        convert(String::from_utf8(bytes.into()).map_err(|e| format!("invalid text: {e}"))?)
    } else {
        // Copies nothing if the bytes were read for this value.
        convert(Vec::<u8>::from(bytes))
    };
    value.ok_or_else(|| "its type is another one".to_string())
}

fn is_type<T: 'static, U: 'static>() -> bool {
    std::any::TypeId::of::<T>() == std::any::TypeId::of::<U>()
}

/// Returns `value` if `T` is its type.
fn convert<T: 'static, U: 'static>(value: U) -> Option<T> {
    let mut value = Some(value);
    (&mut value as &mut dyn Any).downcast_mut::<Option<T>>().and_then(Option::take)
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    const LARGE: usize = 3 * MAX_INLINE_BYTES;
    const BOTH_SOURCES: [ValueSource; 2] = [ValueSource::Trusted, ValueSource::Untrusted];

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i % 251) as u8).collect()
    }

    fn encode<T: Serialize + 'static>(value: &T) -> JobPayload {
        JobPayload::encode(value, 1 << 30).expect("encodes")
    }

    /// Encodes and decodes a value. Returns whether it needs a descriptor.
    fn round_trip<T>(value: &T) -> bool
    where
        T: Serialize + DeserializeOwned + PartialEq + Debug + 'static,
    {
        let payload = encode(value);
        assert_eq!(payload.check(), Ok(()));
        for source in BOTH_SOURCES {
            let decoded = payload.clone().decode::<T>(source);
            assert!(decoded.as_ref() == Ok(value), "{source:?} {:?}", decoded.err());
        }
        assert!(payload.bytes.len() <= MAX_INLINE_BYTES + 100, "a small message");
        payload.attached.is_some()
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Image {
        name: String,
        pixels: MappedBytes,
        mask: Option<MappedBytes>,
        numbers: Vec<u32>,
    }

    #[test]
    fn large_values_of_each_type_travel_in_a_segment_and_small_ones_in_the_message() {
        for (length, is_large) in [(0, false), (MAX_INLINE_BYTES, false), (LARGE, true)] {
            let raw = bytes(length);
            assert_eq!(round_trip(&raw), is_large);
            assert_eq!(round_trip(&"x".repeat(length)), is_large);
            assert_eq!(round_trip(&MappedBytes::copy_from_slice(&raw).expect("memory")), is_large);
            let numbers: Vec<u16> =
                raw.iter().skip(100).map(|byte| u16::from(byte % 100)).collect();
            assert_eq!(round_trip(&(7u8, numbers, "text".to_string())), is_large);
            let payload = encode(&Bytes::from(raw.clone()));
            assert_eq!(payload.attached.is_some(), is_large);
            assert!(payload.size() >= length && payload.size() < length + 100);
            assert!(payload.clone().decode::<Vec<u8>>(ValueSource::Untrusted) == Ok(raw.clone()));
            assert!(payload.decode::<Bytes>(ValueSource::Untrusted) == Ok(raw.into()));
        }
        assert!(!round_trip(&()) && !round_trip(&Some("text".to_string())));
    }

    #[test]
    fn a_buffer_is_received_as_a_copy_that_can_be_changed() {
        for length in [10, LARGE] {
            let mut sent = MappedBuffer::copy_from_slice(&bytes(length)).expect("memory");
            let payload = encode(&sent);
            sent.truncate(5);
            let mut received = payload.decode::<MappedBuffer>(ValueSource::Trusted).expect("valid");
            assert!(received[..] == bytes(length));
            received[0] = 99;
            assert_eq!((received[0], sent[0], sent.len()), (99, 0, 5));
            assert_eq!(encode(&sent).decode::<Vec<u8>>(ValueSource::Untrusted), Ok(bytes(5)));
            sent.truncate(0);
            assert_eq!(encode(&sent.freeze()).decode(ValueSource::Trusted), Ok(Vec::<u8>::new()));
        }
    }

    #[test]
    fn the_first_mapped_bytes_within_a_value_are_not_copied_into_the_message() {
        let mapped = |length| MappedBytes::copy_from_slice(&bytes(length)).expect("memory");
        let mut image =
            Image { name: "a".to_string(), pixels: mapped(LARGE), mask: None, numbers: vec![1, 2] };
        assert!(round_trip(&image));
        assert!(encode(&image).bytes.len() < 200);
        assert!(encode(&image).size() > LARGE);
        image.mask = Some(mapped(10));
        assert!(round_trip(&image));
        // What else is large needs the descriptor.
        image.mask = Some(mapped(LARGE));
        assert!(round_trip(&image) && encode(&image).bytes.len() < 200);
        image.pixels = mapped(10);
        assert!(round_trip(&image));
        image.mask = None;
        assert!(!round_trip(&image));
    }

    #[test]
    fn mapped_bytes_in_a_message_are_bytes() {
        let mapped = MappedBytes::copy_from_slice(&bytes(LARGE)).expect("memory");
        let payload = Payload::encode_up_to(&mapped, usize::MAX).expect("encodes").expect("fits");
        assert!(payload.decode::<MappedBytes>() == Ok(mapped.clone()));
        let json = serde_json::to_string(&mapped).expect("encodes");
        assert!(serde_json::from_str::<MappedBytes>(&json).is_ok_and(|read| read == mapped));
        let attached = encode(&(mapped, 1u8));
        let content = attached.parse().expect("valid").content;
        assert!(content.decode::<(MappedBytes, u8)>().is_err_and(|e| e.contains("did not come")));
    }

    #[test]
    fn input_that_is_mapped_is_not_copied_and_output_is() {
        let payload = encode(&MappedBytes::copy_from_slice(&bytes(LARGE)).expect("memory"));
        let is_copied = |source| {
            let bytes: MappedBytes = payload.clone().decode(source).expect("valid");
            assert!(
                bytes.outgoing().expect("a descriptor").is_some(),
                "it is sent on without a copy"
            );
            bytes.is_in_own_memory()
        };
        assert!(!is_copied(ValueSource::Trusted) && is_copied(ValueSource::Untrusted));
    }

    #[test]
    fn a_value_above_the_limit_is_refused() {
        let too_large = |size, most| Err(EncodeError::TooLarge { size, most });
        assert_eq!(JobPayload::encode(&bytes(LARGE), LARGE - 1), too_large(LARGE, LARGE - 1));
        assert_eq!(JobPayload::encode(&bytes(11), 10), too_large(11, 10));
        let mapped = MappedBytes::copy_from_slice(&bytes(LARGE)).expect("memory");
        assert_eq!(JobPayload::encode(&mapped, 10), too_large(LARGE, 10));
        let nested = JobPayload::encode(&(mapped, 1u8), LARGE);
        assert!(matches!(nested, Err(EncodeError::TooLarge { size, most: LARGE }) if size > LARGE));
        let text = vec!["x".to_string(); LARGE];
        assert!(matches!(JobPayload::encode(&text, 10), Err(EncodeError::TooLarge { .. })));
    }

    #[test]
    fn a_payload_whose_segment_is_lost_too_short_or_another_file_is_refused() {
        let valid = encode(&bytes(LARGE));
        let lost = JobPayload { attached: None, ..valid.clone() };
        let with_length = |form: u8, length: u64| {
            let mut bytes = vec![form];
            bytes.put_u64_le(length);
            bytes.put_u8(PayloadEncoding::Raw as u8);
            JobPayload { bytes: bytes.into(), ..valid.clone() }
        };
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let socket = JobPayload { attached: Some(Arc::new(socket.into())), ..valid.clone() };
        let mut invalid = vec![lost, socket];
        for form in [form::CONTENT_IN_SEGMENT, form::WITH_NESTED_SEGMENT] {
            let lengths = [0, LARGE as u64 * 2, 1 << 40, u64::MAX / 2, u64::MAX];
            invalid.extend(lengths.map(|length| with_length(form, length)));
        }
        for payload in invalid {
            let shown = format!("{payload:?}");
            assert!(payload.check().is_err(), "{shown}");
            for source in BOTH_SOURCES {
                assert!(payload.clone().decode::<Vec<u8>>(source).is_err(), "{shown}");
                assert!(payload.clone().decode::<MappedBytes>(source).is_err(), "{shown}");
            }
        }
        let valid_but_shorter = with_length(form::CONTENT_IN_SEGMENT, 10);
        assert_eq!(valid_but_shorter.decode::<Vec<u8>>(ValueSource::Untrusted), Ok(bytes(10)));
    }

    #[test]
    fn a_value_of_another_type_is_an_error() {
        for value in [vec![255; 10], bytes(LARGE)] {
            assert!(encode(&value).decode::<u64>(ValueSource::Trusted).is_err());
            assert!(encode(&value).decode::<String>(ValueSource::Trusted).is_err());
        }
        let numbers = encode(&vec![1u64; LARGE]);
        assert!(numbers.clone().decode::<MappedBytes>(ValueSource::Trusted).is_err());
        assert!(numbers.decode::<String>(ValueSource::Trusted).is_err());
    }

    #[tokio::test]
    async fn values_of_any_size_are_encoded_and_decoded_off_the_loop() {
        let runtime = Handle::current();
        for value in [bytes(10), bytes(LARGE)] {
            let list: Vec<u32> = value.iter().map(|byte| u32::from(*byte)).collect();
            let (value, payload) = JobPayload::encode_off_loop(&runtime, value, 1 << 30).await;
            let payload = payload.expect("encodes");
            assert!(
                payload.decode_off_loop(Some(&runtime), ValueSource::Untrusted).await == Ok(value)
            );
            let (list, payload) = JobPayload::encode_off_loop(&runtime, list, 1 << 30).await;
            let payload = payload.expect("encodes");
            assert!(payload.decode_off_loop(None, ValueSource::Untrusted).await == Ok(list));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>, has_segment: bool, form in 0u8..4) {
            let attached = encode(&vec![7u8; LARGE]).attached.filter(|_| has_segment);
            for bytes in [bytes.clone(), [&[form][..], &bytes].concat()] {
                let payload = JobPayload { bytes: bytes.into(), attached: attached.clone() };
                let _ = (payload.check(), payload.size());
                let _ = payload.clone().decode::<Vec<u8>>(ValueSource::Trusted);
                let _ = payload.clone().decode::<MappedBytes>(ValueSource::Untrusted);
                let _ = payload.decode::<Image>(ValueSource::Trusted);
            }
        }
    }
}
