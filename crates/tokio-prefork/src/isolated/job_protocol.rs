//! What is said about isolated jobs: a small head, and behind it the input or output as it is.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The kind of messages that bring a job to an isolated worker.
pub(crate) const RUN_JOB_KIND: &str = "isolated-job";

/// The number of a job at its desk.
pub(crate) type IsolatedJobId = u64;

/// The head of a job as its caller sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IsolatedJobRequest {
    /// By which the caller names it later.
    pub(crate) token: u64,
    /// How long the caller waits.
    pub(crate) limit_ms: u64,
}

/// What came of a job; `Done` has the output behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum IsolatedJobOutcome {
    Done,
    Failed(String),
    Full,
    TimedOut,
    Died { signal: Option<i32> },
    Closed,
}

/// How callers ask.
pub(crate) fn job_request_kind(pool: &str) -> String {
    format!("isolated/{pool}")
}

/// How they say that they wait no more.
pub(crate) fn job_cancel_kind(pool: &str) -> String {
    format!("isolated-gone/{pool}")
}

/// How isolated workers answer.
pub(crate) fn job_result_kind(pool: &str) -> String {
    format!("isolated-done/{pool}")
}

/// A head, and what stands behind it.
pub(crate) fn encode_with_payload(head: &impl Serialize, rest: &[u8]) -> Bytes {
    // Numbers and texts: this cannot fail.
    let mut bytes = postcard::to_stdvec(head).unwrap_or_default();
    bytes.extend_from_slice(rest);
    bytes.into()
}

/// The head, and what stands behind it; `None` for garbage.
pub(crate) fn decode_with_payload<T: DeserializeOwned>(bytes: &Bytes) -> Option<(T, Bytes)> {
    let (head, rest) = postcard::take_from_bytes::<T>(bytes).ok()?;
    Some((head, bytes.slice_ref(rest)))
}

/// The number of a job, and the verdict with the output, which is passed on unread.
pub(crate) fn decode_job_result(bytes: &Bytes) -> Option<(IsolatedJobId, Bytes)> {
    decode_with_payload(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_joined_is_split() {
        let job = IsolatedJobRequest { token: 7, limit_ms: 300 };
        let bytes = encode_with_payload(&job, b"input");
        assert_eq!(
            decode_with_payload::<IsolatedJobRequest>(&bytes),
            Some((job, Bytes::from_static(b"input")))
        );
        let verdict = encode_with_payload(&IsolatedJobOutcome::Died { signal: Some(11) }, b"");
        let done = encode_with_payload(&9u64, &verdict);
        assert_eq!(decode_job_result(&done), Some((9, verdict)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            let _ = (decode_with_payload::<IsolatedJobRequest>(&bytes), decode_with_payload::<IsolatedJobOutcome>(&bytes), decode_job_result(&bytes));
        }
    }
}
