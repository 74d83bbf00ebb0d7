//! The payload of a message: how values are encoded, and how a receiver decodes them without knowing how.

use std::{fmt, io};

use bytes::Bytes;
use serde::de::value::SeqDeserializer;
use serde::de::{Error as _, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::MessageError;
use crate::client::ProxiedClient;

/// The longest reason in an error, in characters. Errors of serde may quote a whole value.
const MAX_REASON_CHARS: usize = 300;

/// The deepest nesting of a decoded value. Deeper values would overflow the stack of a thread.
const MAX_DEPTH: usize = 128;

/// How a payload is encoded. Each message says it in one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PayloadEncoding {
    /// Bytes or text of the application, as they are.
    Raw = 0,
    /// MessagePack with the names of fields and variants, in the human-readable form of types that have two forms.
    ///
    /// It describes itself, so every serde type works.
    MessagePack = 1,
    /// postcard: without names, so it is smaller, but types that look at the data before they decide do not work.
    Postcard = 2,
}

impl PayloadEncoding {
    pub(super) fn from_byte(byte: u8) -> Option<PayloadEncoding> {
        match byte {
            0 => Some(PayloadEncoding::Raw),
            1 => Some(PayloadEncoding::MessagePack),
            2 => Some(PayloadEncoding::Postcard),
            _ => None,
        }
    }
}

impl fmt::Display for PayloadEncoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PayloadEncoding::Raw => "raw bytes",
            PayloadEncoding::MessagePack => "MessagePack",
            PayloadEncoding::Postcard => "postcard",
        })
    }
}

/// The encoded content of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    encoding: PayloadEncoding,
    bytes: Bytes,
    /// What was read from the connection that is sent along. Not part of the content.
    /// Boxed, as few messages have any.
    history: Option<Box<PassedHistory>>,
}

/// What was read from a connection that is sent along with a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PassedHistory {
    /// What comes before the bytes that the descriptor has.
    pub(crate) unread: Bytes,
    /// What its PROXY header says, if it had one. Boxed, as few connections have one.
    pub(crate) proxied: Option<Box<ProxiedClient>>,
}

impl Payload {
    pub(crate) fn new(encoding: PayloadEncoding, bytes: Bytes) -> Payload {
        Payload { encoding, bytes, history: None }
    }

    /// Adds what was read from the connection that is sent along.
    pub(crate) fn with_history(self, history: PassedHistory) -> Payload {
        let history = (history != PassedHistory::default()).then(|| Box::new(history));
        Payload { history, ..self }
    }

    /// Returns the bytes that were read from the connection that is sent along.
    pub(super) fn unread_bytes(&self) -> &[u8] {
        self.history.as_ref().map_or(&[], |history| &history.unread)
    }

    /// Returns what the PROXY header of the connection says that is sent along, encoded. Empty without one.
    pub(super) fn encoded_proxied_client(&self) -> Vec<u8> {
        let proxied = self.history.as_ref().and_then(|history| history.proxied.as_deref());
        proxied.map(|client| client.to_bytes()).unwrap_or_default()
    }

    /// Takes what was read from the connection that was sent along.
    pub(super) fn take_history(&mut self) -> PassedHistory {
        self.history.take().map_or_else(PassedHistory::default, |history| *history)
    }

    /// Returns how the bytes are encoded.
    pub fn encoding(&self) -> PayloadEncoding {
        self.encoding
    }

    /// Returns the encoded bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Encodes a value as MessagePack. Returns `None`, as early as possible, if that takes more than `most` bytes.
    ///
    /// # Errors
    /// [`MessageError::Encode`] if serde cannot encode the value.
    pub(crate) fn encode_up_to<T: Serialize + ?Sized>(
        value: &T,
        most: usize,
    ) -> Result<Option<Payload>, MessageError> {
        let mut writer = BoundedWriter { bytes: Vec::new(), most, is_exceeded: false };
        // Types with two forms use the readable one: serde's buffer for untagged and tagged enums knows no other.
        let mut encoder =
            rmp_serde::Serializer::new(&mut writer).with_struct_map().with_human_readable();
        match value.serialize(&mut encoder) {
            Ok(()) => Ok(Some(Payload::new(PayloadEncoding::MessagePack, writer.bytes.into()))),
            Err(_) if writer.is_exceeded => Ok(None),
            Err(e) => Err(encode_error::<T>(&e)),
        }
    }

    /// Encodes a payload within other bytes: its encoding, then its content.
    pub(crate) fn append_to(&self, bytes: &mut Vec<u8>) {
        bytes.push(self.encoding as u8);
        bytes.extend_from_slice(&self.bytes);
    }

    /// Decodes what `append_to` has encoded. Returns `None` for invalid bytes.
    pub(crate) fn from_appended(bytes: &Bytes) -> Option<Payload> {
        let encoding = PayloadEncoding::from_byte(*bytes.first()?)?;
        Some(Payload::new(encoding, bytes.slice(1..)))
    }

    /// Decodes the payload as a value, whatever its encoding. Returns the reason on an error.
    pub(crate) fn decode<'a, T: Deserialize<'a>>(&'a self) -> Result<T, String> {
        match self.encoding {
            PayloadEncoding::Raw => T::deserialize(RawDeserializer(&self.bytes)).map_err(reason),
            PayloadEncoding::MessagePack => {
                let mut decoder = rmp_serde::Deserializer::from_read_ref(&self.bytes[..]);
                decoder.set_max_depth(MAX_DEPTH);
                T::deserialize(&mut decoder.with_human_readable()).map_err(|e| match e {
                    rmp_serde::decode::Error::TypeMismatch(found) => format!("found {found:?}"),
                    error => reason(error),
                })
            }
            PayloadEncoding::Postcard => postcard::from_bytes(&self.bytes).map_err(reason),
        }
    }
}

/// Writes to memory, up to a number of bytes.
struct BoundedWriter {
    bytes: Vec<u8>,
    most: usize,
    /// Whether there were more bytes.
    is_exceeded: bool,
}

impl io::Write for BoundedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > self.most - self.bytes.len() {
            self.is_exceeded = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes of the application, as they are.
impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Payload {
        Payload::new(PayloadEncoding::Raw, bytes)
    }
}

/// Returns the text of an error, shortened.
fn reason(error: impl fmt::Display) -> String {
    let text = error.to_string();
    match text.char_indices().nth(MAX_REASON_CHARS) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

/// Encodes a value with postcard instead of MessagePack: `worker.send("job", Compact(&job))`.
///
/// A message is smaller without the names of fields, and faster to encode. Types that look at the data before they decide fail to
/// decode: `serde_json::Value`, enums with `#[serde(untagged)]` or `#[serde(tag = "..")]`, `#[serde(flatten)]`, and structs with
/// `skip_serializing_if`. Sender and receiver need the same version of the type.
///
/// The receiver needs no such wrapper: [`Message::decode`](crate::Message::decode) reads the encoding from the message.
#[derive(Debug)]
pub struct Compact<'a, T: ?Sized>(pub &'a T);

mod sealed {
    pub trait Sealed {}
    impl<T: serde::Serialize + ?Sized> Sealed for &T {}
    impl<T: serde::Serialize + ?Sized> Sealed for super::Compact<'_, T> {}
    impl Sealed for super::Payload {}
    impl Sealed for bytes::Bytes {}
    impl Sealed for Vec<u8> {}
    impl Sealed for String {}
}

/// What can be sent as a message.
///
/// | payload | encoding |
/// |---|---|
/// | `&value`, any serde type | MessagePack with the names of fields |
/// | [`Compact(&value)`](Compact) | postcard, which is smaller but does not fit every type |
/// | `Bytes`, `Vec<u8>`, `String` by value | the bytes as they are |
/// | a [`Payload`] of a received message | unchanged |
///
/// [`Message::decode`](crate::Message::decode) reads the encoding from the message. It decodes bytes that were sent as they are as
/// text or bytes: `String`, `&str`, `Vec<u8>`.
pub trait IntoPayload: sealed::Sealed {
    /// Encodes the value.
    ///
    /// # Errors
    /// [`MessageError::Encode`] if serde cannot encode the value.
    fn into_payload(self) -> Result<Payload, MessageError>;
}

impl<T: Serialize + ?Sized> IntoPayload for &T {
    fn into_payload(self) -> Result<Payload, MessageError> {
        // A `Vec` has no more bytes.
        Ok(Payload::encode_up_to(self, usize::MAX)?.unwrap_or_else(|| Bytes::new().into()))
    }
}

impl<T: Serialize + ?Sized> IntoPayload for Compact<'_, T> {
    fn into_payload(self) -> Result<Payload, MessageError> {
        let bytes = postcard::to_stdvec(self.0).map_err(|e| encode_error::<T>(&e))?;
        Ok(Payload::new(PayloadEncoding::Postcard, bytes.into()))
    }
}

impl IntoPayload for Payload {
    fn into_payload(self) -> Result<Payload, MessageError> {
        Ok(self)
    }
}

impl IntoPayload for Bytes {
    fn into_payload(self) -> Result<Payload, MessageError> {
        Ok(self.into())
    }
}

impl IntoPayload for Vec<u8> {
    fn into_payload(self) -> Result<Payload, MessageError> {
        Ok(Bytes::from(self).into())
    }
}

impl IntoPayload for String {
    fn into_payload(self) -> Result<Payload, MessageError> {
        Ok(Bytes::from(self).into())
    }
}

fn encode_error<T: ?Sized>(error: &dyn fmt::Display) -> MessageError {
    MessageError::Encode { type_name: std::any::type_name::<T>(), reason: reason(error) }
}

/// Decodes raw bytes as text or bytes.
struct RawDeserializer<'de>(&'de [u8]);

impl<'de> RawDeserializer<'de> {
    fn visit_text<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, RawError> {
        match std::str::from_utf8(self.0) {
            Ok(text) => visitor.visit_borrowed_str(text),
            Err(_) => Err(RawError::invalid_value(Unexpected::Bytes(&[]), &"valid UTF-8")),
        }
    }
}

type RawError = serde::de::value::Error;

impl<'de> Deserializer<'de> for RawDeserializer<'de> {
    type Error = RawError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, RawError> {
        match std::str::from_utf8(self.0) {
            Ok(text) => visitor.visit_borrowed_str(text),
            Err(_) => visitor.visit_borrowed_bytes(self.0),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, RawError> {
        self.visit_text(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, RawError> {
        self.visit_text(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, RawError> {
        visitor.visit_borrowed_bytes(self.0)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, RawError> {
        visitor.visit_borrowed_bytes(self.0)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, RawError> {
        visitor.visit_seq(SeqDeserializer::new(self.0.iter().copied()))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, RawError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, RawError> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char unit unit_struct tuple tuple_struct map struct enum identifier
        ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Debug;
    use std::net::IpAddr;

    use proptest::prelude::*;
    use serde::de::DeserializeOwned;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "type")]
    enum Tagged {
        Unit,
        Fields { addr: IpAddr, bytes: Vec<u8>, ids: BTreeMap<u32, Option<bool>> },
        Newtype(Inner),
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(i64),
        List(Vec<Untagged>),
        Fields { x: f32, y: (u8, char) },
    }

    #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
    struct Inner {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        first: Option<u16>,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        second: String,
        third: Option<Vec<Option<i8>>>,
        #[serde(flatten)]
        others: BTreeMap<String, u64>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Borrowed<'a> {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        skipped: Option<u8>,
        text: &'a str,
    }

    fn encode(value: impl IntoPayload) -> Payload {
        value.into_payload().expect("encoded")
    }

    fn assert_round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
        assert_eq!(encode(value).decode::<T>().as_ref(), Ok(value));
    }

    fn json(depth: u32) -> impl Strategy<Value = serde_json::Value> {
        use serde_json::Value;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(depth, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".{0,4}", inner, 0..4)
                    .prop_map(|map| map.into_iter().collect::<Value>()),
            ]
        })
    }

    fn inner() -> impl Strategy<Value = Inner> {
        let others = prop::collection::btree_map("other.{0,3}", any::<u64>(), 0..3);
        let parts = (any::<Option<u16>>(), ".{0,5}", any::<Option<Vec<Option<i8>>>>(), others);
        parts.prop_map(|(first, second, third, others)| Inner { first, second, third, others })
    }

    fn tagged() -> impl Strategy<Value = Tagged> {
        let ids = prop::collection::btree_map(any::<u32>(), any::<Option<bool>>(), 0..3);
        prop_oneof![
            Just(Tagged::Unit),
            (any::<IpAddr>(), any::<Vec<u8>>(), ids)
                .prop_map(|(addr, bytes, ids)| { Tagged::Fields { addr, bytes, ids } }),
            inner().prop_map(Tagged::Newtype),
        ]
    }

    fn untagged() -> impl Strategy<Value = Untagged> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Untagged::Number),
            (any::<f32>(), any::<u8>(), any::<char>())
                .prop_map(|(x, a, b)| Untagged::Fields { x, y: (a, b) }),
        ];
        leaf.prop_recursive(3, 16, 3, |inner| {
            prop::collection::vec(inner, 0..3).prop_map(Untagged::List)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn json_values_are_decoded(value in json(4)) {
            assert_round_trip(&value);
        }

        #[test]
        fn tagged_and_untagged_enums_and_skipped_fields_are_decoded(
            tagged in tagged(), untagged in untagged(), inner in inner(),
        ) {
            assert_round_trip(&tagged);
            assert_round_trip(&untagged);
            assert_round_trip(&inner);
        }

        #[test]
        fn numbers_tuples_and_maps_with_any_keys_are_decoded(
            value: (i128, u64, f32, char, Option<String>, Vec<(u8, ())>),
            map: BTreeMap<(u8, bool), String>,
            result: Result<u8, String>,
        ) {
            assert_round_trip(&value);
            assert_round_trip(&map);
            assert_round_trip(&result);
        }

        #[test]
        fn borrowed_text_is_decoded_in_place(text in ".*") {
            let payload = encode(&Borrowed { skipped: None, text: &text });
            let read: Borrowed<'_> = payload.decode().expect("decoded");
            prop_assert_eq!(read.text, &text);
            prop_assert!(payload.bytes().as_ptr_range().contains(&read.text.as_ptr()) || text.is_empty());
        }

        #[test]
        fn compact_values_and_raw_ones_are_decoded_by_the_same_function(value: (u64, String, Vec<i32>)) {
            prop_assert_eq!(encode(Compact(&value)).decode(), Ok(value.clone()));
            let (text, bytes) = (value.1.clone(), value.1.into_bytes());
            prop_assert_eq!(encode(text.clone()).decode(), Ok(text.clone()));
            prop_assert_eq!(encode(bytes.clone()).decode(), Ok(Some(text)));
            prop_assert_eq!(encode(bytes.clone()).decode(), Ok(bytes));
        }

        #[test]
        fn a_payload_within_other_bytes_is_found_again(value: String, byte: u8, rest: Vec<u8>) {
            let payload = encode(&value);
            let mut bytes = Vec::new();
            payload.append_to(&mut bytes);
            prop_assert_eq!(Payload::from_appended(&bytes.into()), Some(payload));
            let _ = Payload::from_appended(&[&[byte][..], &rest].concat().into());
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(encoding in 0u8..=2, bytes: Vec<u8>) {
            let encoding = PayloadEncoding::from_byte(encoding).expect("an encoding");
            let payload = Payload::new(encoding, bytes.into());
            let _ = (payload.decode::<serde_json::Value>(), payload.decode::<Tagged>());
            let _ = (payload.decode::<Untagged>(), payload.decode::<(u8, String, Option<Inner>)>());
        }
    }

    #[test]
    fn the_default_encoding_keeps_what_json_would_lose() {
        let nan = encode(&f64::NAN).decode::<f64>().expect("decoded");
        assert!(nan.is_nan());
        assert_round_trip(&BTreeMap::from([((1u8, 2u8), "a pair as key".to_string())]));
    }

    #[test]
    fn compact_is_smaller_and_does_not_fit_every_type() {
        let inner = Inner { second: "text".to_string(), ..Inner::default() };
        let point = ("name", 7u32, [1u8; 8]);
        assert!(encode(Compact(&point)).bytes().len() < encode(&point).bytes().len());
        let read = Compact(&inner).into_payload().map(|payload| payload.decode::<Inner>());
        assert!(!matches!(read, Ok(Ok(same)) if same == inner));
        let value = serde_json::json!({"a": 1});
        assert!(encode(Compact(&value)).decode::<serde_json::Value>().is_err());
    }

    #[test]
    fn a_value_of_too_many_bytes_is_not_encoded() {
        let value = ("text", 7u32);
        let size = encode(&value).bytes().len();
        let encoded = |most| Payload::encode_up_to(&value, most).expect("encodes");
        assert_eq!(encoded(size), Some(encode(&value)));
        assert!(encoded(size - 1).is_none() && encoded(0).is_none());
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow() {
        let deep =
            |byte: u8| Payload::new(PayloadEncoding::MessagePack, vec![byte; 1 << 20].into());
        // An array of one element, and a map of one pair.
        for byte in [0x91, 0x81] {
            assert!(deep(byte).decode::<serde_json::Value>().is_err());
            assert!(deep(byte).decode::<Untagged>().is_err());
        }
    }

    #[test]
    fn the_reason_of_an_error_is_short_and_says_what_was_found() {
        let text = "x".repeat(1 << 20);
        let long = encode(&text);
        let reason = long.decode::<Inner>().expect_err("no struct");
        assert!(reason.len() < 1000 && reason.contains("string"), "{reason}");
        let reason = long.decode::<u8>().expect_err("no number");
        assert!(reason.contains("Str32"), "{reason}");
        let reason = encode("text".to_string()).decode::<u8>().expect_err("no number");
        assert!(reason.contains("text") && reason.contains("expected u8"), "{reason}");
    }
}
