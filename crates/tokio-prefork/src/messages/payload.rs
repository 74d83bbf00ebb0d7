//! What a message says, as bytes. The codec is postcard: one to three bytes of overhead where bincode 1 has eight,
//! a wire format with a specification that does not change within 1.x, and a maintainer, which bincode has no more.

use bytes::Bytes;
use serde::Serialize;

use super::MessageError;

mod sealed {
    pub trait Sealed {}
    impl<T: serde::Serialize + ?Sized> Sealed for &T {}
    impl Sealed for bytes::Bytes {}
    impl Sealed for Vec<u8> {}
}

/// What can be sent: a reference to any serde value, which is encoded, or owned bytes, which go as they are.
pub trait IntoPayload: sealed::Sealed {
    /// The bytes to send.
    ///
    /// # Errors
    /// [`MessageError::Codec`] if the value cannot be written down.
    fn into_payload(self) -> Result<Bytes, MessageError>;
}

impl<T: Serialize + ?Sized> IntoPayload for &T {
    fn into_payload(self) -> Result<Bytes, MessageError> {
        let failed =
            |e: postcard::Error| MessageError::Codec { kind: String::new(), why: e.to_string() };
        postcard::to_stdvec(self).map(Bytes::from).map_err(failed)
    }
}

impl IntoPayload for Bytes {
    fn into_payload(self) -> Result<Bytes, MessageError> {
        Ok(self)
    }
}

impl IntoPayload for Vec<u8> {
    fn into_payload(self) -> Result<Bytes, MessageError> {
        Ok(self.into())
    }
}
