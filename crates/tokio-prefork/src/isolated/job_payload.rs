//! The values of jobs on their way between processes: inputs, outputs, errors and progress.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::messages::{AttachedConnection, IntoPayload, Message, Payload};

/// An encoded value. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct JobPayload {
    /// The encoding, as one byte, and the content; see `Payload::append_to`. Empty if there is no value.
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

impl JobPayload {
    /// Encodes a value. Returns the reason on an error.
    pub(crate) fn encode<T: Serialize>(value: &T) -> Result<JobPayload, String> {
        let payload = value.into_payload().map_err(|e| e.to_string())?;
        let mut bytes = Vec::with_capacity(1 + payload.bytes().len());
        payload.append_to(&mut bytes);
        Ok(JobPayload { bytes: bytes.into(), attached: None })
    }

    /// Decodes a value. Returns the reason on an error.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T, String> {
        let payload = Payload::from_appended(&self.bytes).ok_or("it is malformed")?;
        payload.decode().map_err(|reason| {
            let (encoding, type_name) = (payload.encoding(), std::any::type_name::<T>());
            format!("cannot decode {encoding} as {type_name}: {reason}")
        })
    }

    /// Returns how many bytes the value occupies while it waits.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
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
    pub(crate) fn attachment(&self) -> std::io::Result<AttachedConnection> {
        let fd = self.attached.as_ref().map(|fd| fd.try_clone()).transpose()?;
        Ok(fd.map_or(AttachedConnection::Absent, AttachedConnection::Present))
    }
}
