//! What a job can ask and tell while it runs.

use std::marker::PhantomData;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{
    EncodeError, IsolatedJobId, JobPayload, ProcessReport, job_envelope, process_report_kind,
};
use crate::messages::{Envelope, MessageError};
use crate::worker::Worker;

/// The context of a running job, in its process: how long it may still run, and how to report its progress.
#[derive(Debug)]
pub struct JobContext<'a, P = ()> {
    host: &'a JobHost,
    max_payload_bytes: usize,
    _report: PhantomData<fn(P)>,
}

impl<'a, P> JobContext<'a, P> {
    pub(super) fn new(host: &'a JobHost, max_payload_bytes: usize) -> JobContext<'a, P> {
        JobContext { host, max_payload_bytes, _report: PhantomData }
    }

    /// Returns how long the job may still run before its process is killed; zero if that is due.
    pub fn time_left(&self) -> Duration {
        self.host.deadline.saturating_duration_since(Instant::now())
    }

    /// Returns when the process of the job is killed.
    pub fn deadline(&self) -> Instant {
        self.host.deadline
    }
}

impl<P: Serialize + 'static> JobContext<'_, P> {
    /// Sends a progress report to the caller, which receives it with [`JobHandle::next_progress`](super::JobHandle::next_progress).
    ///
    /// Reports arrive in order, and before the result. A caller that does not read them loses the oldest. Waits while the queue of
    /// messages to the primary is full.
    ///
    /// # Errors
    /// The value cannot be encoded, is too large, or the primary is gone.
    pub fn report(&self, progress: &P) -> Result<(), MessageError> {
        let value = JobPayload::encode(progress, self.max_payload_bytes).map_err(|e| match e {
            EncodeError::TooLarge { size, most } => MessageError::TooLarge { size, most },
            EncodeError::Failed(reason) => {
                MessageError::Encode { type_name: std::any::type_name::<P>(), reason }
            }
        })?;
        self.host.send(&ProcessReport::Progress { job: self.host.job }, &value)
    }
}

/// The process of a job and what it needs of its worker.
#[derive(Debug)]
pub(crate) struct JobHost {
    pub(crate) worker: Worker,
    pub(crate) job: IsolatedJobId,
    pub(crate) deadline: Instant,
}

impl JobHost {
    /// Records that the job begins. From now on it is not given to another process.
    pub(super) fn record_begin(&self) {
        self.worker.0.own_page.record_begun_job(self.job);
    }

    /// Records that the job has left its thread, for the status.
    pub(crate) fn record_end(&self) {
        self.worker.0.own_page.record_job_ended();
    }

    /// Sends a report to the primary. Waits while the queue is full.
    pub(crate) fn send(
        &self,
        report: &ProcessReport,
        value: &JobPayload,
    ) -> Result<(), MessageError> {
        let kind = process_report_kind(self.worker.kind());
        let send = |envelope: Envelope| match self.worker.0.messages.try_send(envelope) {
            Err(rejected) if rejected.0 == MessageError::Full => {
                super::job_handle::block_on(self.worker.0.messages.send(rejected.1))
            }
            sent => sent,
        };
        send(job_envelope(&kind, report, value)?).map_err(|rejected| rejected.0)
    }
}
