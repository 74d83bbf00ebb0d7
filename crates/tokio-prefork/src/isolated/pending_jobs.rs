//! The jobs of this process that have no outcome yet, and where their replies go.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::job_handle::JobClient;
use super::{CallerReply, JobEvent, JobOutcome, JobPayload, decode_job_message};
use crate::messages::{Envelope, Message};

/// The most progress reports of a job that wait to be read. The oldest are dropped first.
const MAX_WAITING_REPORTS: usize = 256;

/// All jobs of this process that have no outcome yet.
#[derive(Debug, Default)]
pub(crate) struct PendingIsolatedJobs(Mutex<PendingTable>);

#[derive(Debug, Default)]
struct PendingTable {
    /// Whether the channel to the primary is closed.
    is_closed: bool,
    jobs: HashMap<u64, Arc<PendingJob>>,
}

/// What has arrived for one job.
#[derive(Debug, Default)]
pub(super) struct PendingJob(Mutex<JobReplies>);

#[derive(Debug, Default)]
struct JobReplies {
    outcome: Option<(JobOutcome, JobPayload)>,
    reports: VecDeque<JobPayload>,
    has_ended: bool,
    /// The input of a job that waits for room in the queue.
    unsent_input: Option<UnsentInput>,
    waker: Option<Waker>,
}

/// An input that is sent when the primary asks for it.
#[derive(Debug)]
pub(super) struct UnsentInput {
    pub(super) client: JobClient,
    pub(super) envelope: Envelope,
    /// Whether nobody waits for the result, so that the job is forgotten once the input is sent.
    pub(super) is_detached: bool,
}

impl PendingIsolatedJobs {
    /// Adds a job before it is sent. Returns `None` if the channel to the primary is closed.
    pub(super) fn add(&self, token: u64) -> Option<Arc<PendingJob>> {
        let mut table = self.lock();
        if table.is_closed {
            return None;
        }
        let job = Arc::new(PendingJob::default());
        table.jobs.insert(token, Arc::clone(&job));
        Some(job)
    }

    /// Removes a job that nobody waits for any more.
    pub(super) fn remove(&self, token: u64) {
        self.lock().jobs.remove(&token);
    }

    /// Handles a reply of the primary. One that belongs to no job is dropped.
    pub(crate) fn handle_reply(&self, mut message: Message) {
        let Some((CallerReply { token, event }, value)) = decode_job_message(&mut message) else {
            return;
        };
        let job = match event {
            JobEvent::Progress | JobEvent::SendInput => self.lock().jobs.get(&token).cloned(),
            JobEvent::Accepted | JobEvent::Ended(_) => self.lock().jobs.remove(&token),
        };
        let Some(job) = job else { return };
        if event != JobEvent::SendInput {
            return job.handle_event(event, value);
        }
        let unsent = job.lock().unsent_input.take();
        if let Some(UnsentInput { client, envelope, is_detached }) = unsent {
            // Fails if the primary is gone.
            let _ = client.send_in_background(envelope);
            if is_detached {
                self.remove(token);
            }
        }
    }

    /// Ends all jobs, because the primary is gone.
    pub(crate) fn close(&self) {
        let mut table = self.lock();
        table.is_closed = true;
        let jobs = std::mem::take(&mut table.jobs);
        drop(table);
        for job in jobs.into_values() {
            job.handle_event(JobEvent::Ended(JobOutcome::PrimaryGone), JobPayload::default());
        }
    }

    fn lock(&self) -> MutexGuard<'_, PendingTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PendingJob {
    fn handle_event(&self, event: JobEvent, value: JobPayload) {
        let mut replies = self.lock();
        match event {
            JobEvent::Progress => {
                if replies.reports.len() == MAX_WAITING_REPORTS {
                    replies.reports.pop_front();
                }
                replies.reports.push_back(value);
            }
            JobEvent::SendInput | JobEvent::Accepted => {}
            JobEvent::Ended(outcome) => {
                replies.outcome = Some((outcome, value));
                replies.has_ended = true;
                replies.unsent_input = None;
            }
        }
        if let Some(waker) = replies.waker.take() {
            drop(replies);
            waker.wake();
        }
    }

    /// Keeps the input until the primary asks for it.
    pub(super) fn keep_input(&self, input: UnsentInput) {
        self.lock().unsent_input = Some(input);
    }

    /// Marks the job as one that nobody waits for. Returns whether its input has still to be sent.
    pub(super) fn detach(&self) -> bool {
        let mut replies = self.lock();
        let unsent = replies.unsent_input.as_mut();
        unsent.map(|unsent| unsent.is_detached = true).is_some()
    }

    /// Returns the outcome once it is there.
    pub(super) fn poll_outcome(&self, cx: &mut Context<'_>) -> Poll<(JobOutcome, JobPayload)> {
        let mut replies = self.lock();
        match replies.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                replies.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Returns the next progress report, or `None` once the job has ended.
    pub(super) fn poll_report(&self, cx: &mut Context<'_>) -> Poll<Option<JobPayload>> {
        let mut replies = self.lock();
        if let Some(report) = replies.reports.pop_front() {
            return Poll::Ready(Some(report));
        }
        if replies.has_ended {
            return Poll::Ready(None);
        }
        replies.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, JobReplies> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
