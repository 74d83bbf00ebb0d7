//! What a worker does with its requests beside serving them; decided once, from its configuration.

use std::time::Duration;

use hyper::body::Body;
use hyper::{Request, Response};

use super::request_record::RequestRecord;
use crate::access_log::{LineBuffer, LogPolicy, WorkerAccessLog};
use crate::client::ConnectionInfo;
use crate::config::Config;
use crate::scoreboard::LogLineCounters;

/// What a worker does with its requests beside serving them.
pub(crate) struct RequestObservers {
    policy: LogPolicy,
    access_log: Option<WorkerAccessLog>,
    counters: LogLineCounters,
}

/// A request that has ended.
pub(crate) struct EndedRequest<'a> {
    pub(crate) record: &'a RequestRecord,
    /// When it ended, in nanoseconds on the monotonic clock; 0 if its record has no start.
    pub(crate) ended_ns: u64,
}

impl RequestObservers {
    /// Returns the observers that `config` asks for; `None` if there are none.
    pub(crate) fn new(
        config: &Config,
        access_log: Option<WorkerAccessLog>,
        counters: LogLineCounters,
    ) -> Option<Box<RequestObservers>> {
        if access_log.is_none() && config.access_log_skip.is_empty() {
            return None;
        }
        let policy = LogPolicy::new(
            config.access_log_sample,
            config.access_log_slower_than,
            &config.access_log_skip,
        );
        Some(Box::new(RequestObservers { policy, access_log, counters }))
    }

    /// Returns whether the duration of each request is needed.
    pub(crate) fn needs_durations(&self) -> bool {
        self.access_log.as_ref().is_some_and(WorkerAccessLog::needs_durations)
    }

    /// Starts to observe `request`. Returns its record, unless nothing needs one.
    pub(crate) fn request_started<B>(
        &self,
        request: &Request<B>,
        connection: Option<&ConnectionInfo>,
        started_ns: u64,
        queue_wait: Option<Duration>,
        buffer: &mut LineBuffer,
    ) -> Option<Box<RequestRecord>> {
        if self.policy.skips_path(request.uri().path()) {
            self.counters.add_uncounted();
            if self.access_log.is_some() {
                self.counters.add_skipped(1);
            }
            return None;
        }
        let log = self.access_log.as_ref()?;
        Some(log.start_record(request, connection, started_ns, queue_wait, buffer))
    }

    /// Takes the head of a response.
    pub(crate) fn response_started<B: Body>(
        &self,
        record: &mut RequestRecord,
        response: &Response<B>,
    ) {
        if let Some(log) = &self.access_log {
            log.response_started(record, response);
        }
    }

    /// Takes a request that has ended.
    pub(crate) fn request_ended(&self, ended: &EndedRequest<'_>, buffer: &mut LineBuffer) {
        let Some(log) = &self.access_log else { return };
        if !log.log_ended(ended, &self.policy, buffer) {
            self.counters.add_skipped(1);
        }
    }

    /// Takes a request that was refused with `status` before it reached hyper.
    pub(crate) fn request_refused(
        &self,
        first_line: &[u8],
        status: u16,
        connection: Option<&ConnectionInfo>,
        buffer: &mut LineBuffer,
    ) {
        let Some(log) = &self.access_log else { return };
        if !log.log_refused(first_line, status, connection, &self.policy, buffer) {
            self.counters.add_skipped(1);
        }
    }

    /// Hands the lines in `buffer` over to the thread that writes them, and reports dropped ones. Called at each heartbeat.
    pub(crate) fn hand_over_lines(&self, buffer: &mut LineBuffer, now_ms: u64) {
        if let Some(log) = &self.access_log {
            log.hand_over(buffer);
            log.report_drops(now_ms);
        }
    }
}
