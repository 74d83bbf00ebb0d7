//! The encoding of isolated jobs: a small header, followed by the input or output as a payload of messages.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::messages::Payload;

/// The message kind that brings a job to an isolated worker.
pub(crate) const RUN_JOB_KIND: &str = "isolated-job";

/// Identifies a job in its scheduler.
pub(crate) type IsolatedJobId = u64;

/// The header of a job, as its caller sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IsolatedJobRequest {
    /// Identifies the job in a cancellation by its caller.
    pub(crate) token: u64,
    /// How long the caller waits, in milliseconds.
    pub(crate) limit_ms: u64,
}

/// The result of a job. The output follows `Done`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum IsolatedJobOutcome {
    Done,
    Failed(String),
    Full,
    TimedOut,
    Died { signal: Option<i32> },
    Closed,
}

/// Returns the message kind of requests for jobs.
pub(crate) fn job_request_kind(pool: &str) -> String {
    format!("isolated/{pool}")
}

/// Returns the message kind of cancellations.
pub(crate) fn job_cancel_kind(pool: &str) -> String {
    format!("isolated-gone/{pool}")
}

/// Returns the message kind of results from isolated workers.
pub(crate) fn job_result_kind(pool: &str) -> String {
    format!("isolated-done/{pool}")
}

/// Encodes a header, followed by other bytes.
pub(crate) fn encode_with_rest(head: &impl Serialize, rest: &[u8]) -> Bytes {
    let mut bytes = encode_header(head);
    bytes.extend_from_slice(rest);
    bytes.into()
}

/// Encodes a header, followed by a payload with its encoding.
pub(crate) fn encode_with_payload(head: &impl Serialize, payload: &Payload) -> Bytes {
    let mut bytes = encode_header(head);
    payload.append_to(&mut bytes);
    bytes.into()
}

fn encode_header(head: &impl Serialize) -> Vec<u8> {
    // Encoding numbers and texts cannot fail.
    postcard::to_stdvec(head).unwrap_or_default()
}

/// Decodes a header and returns it with the rest. Returns `None` for invalid bytes.
pub(crate) fn decode_with_rest<T: DeserializeOwned>(bytes: &Bytes) -> Option<(T, Bytes)> {
    let (head, rest) = postcard::take_from_bytes::<T>(bytes).ok()?;
    Some((head, bytes.slice_ref(rest)))
}

/// Decodes the job id, and returns it with the encoded outcome and output.
pub(crate) fn decode_job_result(bytes: &Bytes) -> Option<(IsolatedJobId, Bytes)> {
    decode_with_rest(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn encoded_headers_are_decoded() {
        let job = IsolatedJobRequest { token: 7, limit_ms: 300 };
        let bytes = encode_with_rest(&job, b"input");
        assert_eq!(
            decode_with_rest::<IsolatedJobRequest>(&bytes),
            Some((job, Bytes::from_static(b"input")))
        );
        let verdict = encode_with_rest(&IsolatedJobOutcome::Died { signal: Some(11) }, b"");
        let done = encode_with_rest(&9u64, &verdict);
        assert_eq!(decode_job_result(&done), Some((9, verdict)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            let _ = (decode_with_rest::<IsolatedJobRequest>(&bytes), decode_with_rest::<IsolatedJobOutcome>(&bytes), decode_job_result(&bytes));
        }
    }
}
