//! The messages of isolated jobs: a small header, followed by the encoded value, if any.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{JobPayload, JobValue, Priority, ResourceLimit};
use crate::messages::{Envelope, Message, MessageAddress, MessageError};

/// The message kind that brings a job to an isolated process.
pub(crate) const START_JOB_KIND: &str = "isolated-job";

/// The message kind of replies to callers.
pub(crate) const JOB_REPLY_KIND: &str = "isolated-reply";

/// Identifies a job in its scheduler. Never 0.
pub(crate) type IsolatedJobId = u64;

/// What a caller sends to the primary. The input follows `Submit` and `ProvideInput`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CallerMessage {
    Submit(JobSubmission),
    /// Answers `JobEvent::SendInput`: the input of a job that waited for room.
    ProvideInput {
        token: u64,
    },
    /// Nobody waits for the job any more.
    Abandon {
        token: u64,
    },
    /// Nobody waits for the job, and it runs all the same.
    Detach {
        token: u64,
    },
}

/// The header of a new job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobSubmission {
    /// Identifies the job among those of its caller.
    pub(crate) token: u64,
    /// How long the caller waits, in milliseconds. `None`: as long as the pool's deadline.
    pub(crate) limit_ms: Option<u64>,
    pub(crate) priority: Priority,
    /// Whether nobody waits for the result.
    pub(crate) is_detached: bool,
    /// Whether the job waits until the queue has room for it. Its input stays with the caller meanwhile.
    pub(crate) waits_for_room: bool,
}

/// The header of a job that a process has to run. The input follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobStart {
    pub(crate) job: IsolatedJobId,
    /// When the job is killed, in milliseconds from now.
    pub(crate) limit_ms: u64,
}

/// What an isolated process reports about its job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ProcessReport {
    /// The value follows.
    Progress { job: IsolatedJobId },
    /// The output or the error follows, if there is one.
    Ended { job: IsolatedJobId, outcome: JobOutcome },
}

/// What the primary sends to a caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CallerReply {
    pub(crate) token: u64,
    pub(crate) event: JobEvent,
}

/// What happens to a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum JobEvent {
    /// The value follows.
    Progress,
    /// A detached job that waits for room has it: its caller may forget it.
    Accepted,
    /// There is room for the job now, and its caller has to send the input.
    SendInput,
    /// The output or the error follows, if there is one.
    Ended(JobOutcome),
}

/// How a job has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum JobOutcome {
    /// With an output, which follows.
    Done,
    /// With an error of the application, which follows.
    Failed,
    Panicked {
        message: String,
        location: Option<String>,
    },
    Full,
    Closed,
    TimedOut {
        has_begun: bool,
    },
    Cut,
    LimitExceeded {
        limit: ResourceLimit,
    },
    Died {
        code: Option<i32>,
        signal: Option<i32>,
    },
    PrimaryGone,
    TooLarge {
        value: JobValue,
        size: usize,
        most: usize,
    },
    Transfer {
        value: JobValue,
        reason: String,
    },
}

impl JobOutcome {
    /// Returns the outcome of a job one of whose values could not be sent.
    pub(crate) fn of_send_error(error: &MessageError, value: JobValue) -> JobOutcome {
        match error {
            MessageError::TooLarge { size, most } => {
                JobOutcome::TooLarge { value, size: *size, most: *most }
            }
            MessageError::Closed if value == JobValue::Input => JobOutcome::Closed,
            other => JobOutcome::Transfer { value, reason: other.to_string() },
        }
    }
}

/// Returns the message kind of what callers send about a pool.
pub(crate) fn caller_message_kind(pool: &str) -> String {
    format!("isolated/{pool}")
}

/// Returns the message kind of reports from isolated processes.
pub(crate) fn process_report_kind(pool: &str) -> String {
    format!("isolated-done/{pool}")
}

/// Creates a message from a header and a value.
///
/// # Errors
/// The kind is too long, or no descriptor is left to send the value's own.
pub(crate) fn job_envelope(
    kind: &str,
    head: &impl Serialize,
    value: &JobPayload,
) -> Result<Envelope, MessageError> {
    // Encoding numbers and texts cannot fail.
    let mut bytes = postcard::to_stdvec(head).unwrap_or_default();
    bytes.extend_from_slice(&value.bytes);
    let attached = value.attachment().map_err(|e| MessageError::Encode {
        type_name: "descriptor of shared memory",
        reason: format!("{e} (raise ulimit -n)"),
    })?;
    Envelope::new(MessageAddress::Primary, kind, Bytes::from(bytes).into(), attached)
}

/// Decodes the header of a message, and returns it with the value behind it. Returns `None` for invalid bytes.
pub(crate) fn decode_job_message<T: DeserializeOwned>(
    message: &mut Message,
) -> Option<(T, JobPayload)> {
    let bytes = message.bytes().clone();
    let (head, rest) = decode_head(&bytes)?;
    Some((head, JobPayload::from_message(message, rest)))
}

fn decode_head<T: DeserializeOwned>(bytes: &Bytes) -> Option<(T, Bytes)> {
    let (head, rest) = postcard::take_from_bytes::<T>(bytes).ok()?;
    Some((head, bytes.slice_ref(rest)))
}

#[cfg(test)]
mod tests {
    use super::super::ValueSource;
    use super::*;
    use crate::messages::MessageSender;
    use proptest::prelude::*;

    fn receive(envelope: Envelope) -> Message {
        Message::new(MessageSender::Primary, envelope)
    }

    #[test]
    fn encoded_messages_are_decoded() {
        let submission = JobSubmission {
            token: 7,
            limit_ms: Some(300),
            priority: Priority::Low,
            is_detached: false,
            waits_for_room: true,
        };
        let input = JobPayload::encode(&"input", 100).expect("encodes");
        let head = CallerMessage::Submit(submission);
        let envelope = job_envelope("a", &head, &input).expect("an envelope");
        let (read, value) =
            decode_job_message::<CallerMessage>(&mut receive(envelope)).expect("valid");
        assert_eq!(
            (read, value.decode::<String>(ValueSource::Trusted)),
            (head, Ok("input".to_string()))
        );
        let outcome = JobOutcome::Died { code: None, signal: Some(11) };
        let head = ProcessReport::Ended { job: 9, outcome };
        let envelope = job_envelope("a", &head, &JobPayload::default()).expect("an envelope");
        let read = decode_job_message::<ProcessReport>(&mut receive(envelope));
        assert_eq!(read, Some((head, JobPayload::default())));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            let _ = (decode_head::<CallerMessage>(&bytes), decode_head::<ProcessReport>(&bytes), decode_head::<CallerReply>(&bytes));
            let _ = JobPayload { bytes, attached: None }.decode::<String>(ValueSource::Untrusted);
        }
    }
}
