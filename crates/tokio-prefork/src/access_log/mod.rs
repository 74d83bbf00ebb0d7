//! The access log: a line for each request, written off the event loops.
//!
//! An event loop formats what is known of a request when it starts, and appends the whole line to a buffer of its own when the
//! request has ended. Full buffers, and all at each heartbeat, go to the thread of the process that writes them. So what `kill -9` destroys is what has come since the last
//! heartbeat, 100 ms, and what a slow disk has not taken.
//!
//! Each finished request counts as one line that is written, dropped or skipped (sampling, `access-log-skip`). The primary
//! counts the requests of a dead worker that are none of these as dropped. So the three counts always add up to the requests.

mod basic_auth;
mod escape;
mod format;
mod line;
mod line_texts;
mod line_value;
mod output;
mod policy;
mod target;
mod time_text;
mod tls_variable;
mod variable;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Body;
use hyper::{Request, Response};

use crate::client::{ClientInfo, ConnectionInfo};
use crate::config::Config;
use crate::scoreboard::LogLineCounters;
use crate::worker::http::request_observers::EndedRequest;
use crate::worker::http::request_record::{RequestRecord, ResponseEnd};
pub use format::AccessLogFormat;
use line::LineLayout;
pub(crate) use line::LineParts;
use line_texts::LineTexts;
use line_value::{EndedResponse, LoggedHead, RequestHead, StartedRequest};
pub use policy::AccessLogSample;
#[cfg(feature = "cli")]
pub(crate) use policy::parse_paths;
pub(crate) use policy::{LogPolicy, check_paths};
use prefork_os::wall_clock::coarse_unix_time;
use prefork_supervisor::WorkerTag;
pub use target::AccessLog;
pub(crate) use writer::{AccessLogWriter, SharedLogState};

/// The status of a request whose client left before there was a response: nginx's.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// The size at which a buffer is handed over before the next heartbeat. Smaller ones wake the thread more often.
const HAND_OVER_BYTES: usize = 96 * 1024;

/// The memory that a buffer gets for its first line.
const FIRST_BUFFER_BYTES: usize = HAND_OVER_BYTES + 4096;

/// How many records an event loop keeps for its next requests.
const MAX_KEPT_RECORDS: usize = 64;

/// How long an exiting worker waits for the disk or the reader to take its last lines.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The lines of one event loop that were not handed over yet.
#[derive(Debug, Default)]
pub(crate) struct LineBuffer {
    bytes: Vec<u8>,
    lines: u64,
    texts: LineTexts,
    random: u64,
    /// Records for the next requests.
    #[expect(clippy::vec_box, reason = "records go from here to requests and back without a copy")]
    records: Vec<Box<RequestRecord>>,
}

impl LineBuffer {
    /// Returns whether all lines were handed over.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns a record to start.
    fn take_record(&mut self) -> Box<RequestRecord> {
        self.records.pop().unwrap_or_default()
    }

    /// Keeps a record for a later request.
    pub(crate) fn keep_record(&mut self, record: Box<RequestRecord>) {
        if self.records.len() < MAX_KEPT_RECORDS {
            self.records.push(record);
        }
    }

    /// Returns a random number, by xorshift: good enough to choose a sample.
    fn next_random(&mut self) -> u32 {
        if self.random == 0 {
            self.random = prefork_os::system::random_u64().unwrap_or_default() | 1;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 32) as u32
    }
}

/// The access log of one event loop, or of the threads that share a scoreboard page.
pub(crate) struct WorkerAccessLog {
    needs_durations: bool,
    layout: LineLayout,
    tag: WorkerTag,
    writer: Arc<AccessLogWriter>,
    counters: LogLineCounters,
}

impl WorkerAccessLog {
    pub(crate) fn new(
        config: &Config,
        tag: WorkerTag,
        writer: Arc<AccessLogWriter>,
        counters: LogLineCounters,
    ) -> WorkerAccessLog {
        counters.set_logging();
        let format = &config.access_log_format;
        let needs_durations = format.captures.duration || config.access_log_slower_than.is_some();
        let layout = LineLayout::new(format, tag);
        WorkerAccessLog { needs_durations, layout, tag, writer, counters }
    }

    /// Returns whether the duration of each request is needed.
    pub(crate) fn needs_durations(&self) -> bool {
        self.needs_durations
    }

    /// Starts the record and the line of a request.
    pub(crate) fn start_record<B>(
        &self,
        request: &Request<B>,
        connection: Option<&ConnectionInfo>,
        started_ns: u64,
        queue_wait: Option<Duration>,
        buffer: &mut LineBuffer,
    ) -> Box<RequestRecord> {
        let mut record = buffer.take_record();
        record.start(request, started_ns);
        let trusted = connection.filter(|connection| connection.trusted_for_headers().is_some());
        let forwarded =
            trusted.map(|_| ClientInfo::new(connection, request.uri(), request.headers()));
        let started = StartedRequest {
            head: LoggedHead::Parsed(RequestHead::of(request, &self.layout)),
            connection,
            forwarded: forwarded.as_ref(),
            queue_wait,
        };
        let max_line_bytes = self.writer.max_line_bytes();
        self.layout.start_line(&started, max_line_bytes, &mut buffer.texts, &mut record.line);
        record
    }

    /// Records the head of the response.
    pub(crate) fn response_started<B: Body>(
        &self,
        record: &mut RequestRecord,
        response: &Response<B>,
    ) {
        record.response_started(response);
        let max_line_bytes = self.writer.max_line_bytes();
        self.layout.add_response_headers(response.headers(), max_line_bytes, &mut record.line);
    }

    /// Appends the line of a request that has ended, if `policy` wants one. Returns whether it does.
    pub(crate) fn log_ended(
        &self,
        ended: &EndedRequest<'_>,
        policy: &LogPolicy,
        buffer: &mut LineBuffer,
    ) -> bool {
        let EndedRequest { record, ended_ns } = *ended;
        let (status, is_complete) = match record.response_end() {
            ResponseEnd::Complete(status) => (status.as_u16(), true),
            ResponseEnd::Partial(status) => (status.as_u16(), false),
            ResponseEnd::Missing => (CLIENT_CLOSED_REQUEST, false),
        };
        let duration = (record.started_ns != 0)
            .then(|| Duration::from_nanos(ended_ns.saturating_sub(record.started_ns)));
        if !policy.wants_line(status, duration, || buffer.next_random()) {
            return false;
        }
        let (body_bytes, now) = (record.body_bytes(), coarse_unix_time());
        let ended = EndedResponse { status, body_bytes, is_complete, duration, now };
        self.append(&record.line, &ended, buffer);
        true
    }

    /// Appends the line of a request that was refused before it reached hyper, if `policy` wants one. Returns whether it
    /// does.
    pub(crate) fn log_refused(
        &self,
        first_line: &[u8],
        status: u16,
        connection: Option<&ConnectionInfo>,
        policy: &LogPolicy,
        buffer: &mut LineBuffer,
    ) -> bool {
        if !policy.wants_line(status, None, || buffer.next_random()) {
            return false;
        }
        let head = LoggedHead::Refused(first_line);
        let started = StartedRequest { head, connection, forwarded: None, queue_wait: None };
        let max_line_bytes = self.writer.max_line_bytes();
        let mut line = LineParts::default();
        self.layout.start_line(&started, max_line_bytes, &mut buffer.texts, &mut line);
        let (now, duration) = (coarse_unix_time(), None);
        let ended = EndedResponse { status, body_bytes: 0, is_complete: true, duration, now };
        self.append(&line, &ended, buffer);
        true
    }

    fn append(&self, line: &LineParts, ended: &EndedResponse, buffer: &mut LineBuffer) {
        let LineBuffer { bytes, lines, texts, .. } = buffer;
        if bytes.capacity() == 0 {
            bytes.reserve(FIRST_BUFFER_BYTES);
        }
        self.layout.end_line(line, ended, self.writer.max_line_bytes(), texts, bytes);
        *lines += 1;
        if bytes.len() >= HAND_OVER_BYTES {
            self.hand_over(buffer);
        }
    }

    /// Hands the lines in `buffer` over to the thread that writes them.
    pub(crate) fn hand_over(&self, buffer: &mut LineBuffer) {
        let lines = std::mem::take(&mut buffer.lines);
        if lines > 0 {
            self.writer.push(&mut buffer.bytes, lines, self.counters);
        }
    }

    /// Logs how many lines were dropped, at most once a second.
    pub(crate) fn report_drops(&self, now_ms: u64) {
        self.writer.report_drops(self.tag, now_ms);
    }
}

/// Waits until the last lines of an exiting process are written, and logs if that takes too long.
pub(crate) fn flush(writer: &AccessLogWriter, tag: WorkerTag) {
    if !writer.wait_until_written(FLUSH_TIMEOUT) {
        log::warn!(
            "{tag} exits before its last lines of the access log are written; timeout={} s",
            FLUSH_TIMEOUT.as_secs()
        );
    }
    // Whoever comes next reports those of less than a second ago.
    writer.report_drops(tag, prefork_os::system::monotonic_ms());
}

#[cfg(test)]
mod tests;
