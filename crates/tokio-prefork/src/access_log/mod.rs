//! The access log: a line for each request, written off the event loops.
//!
//! An event loop formats a line when a request has ended and appends it to a buffer of its own. Full buffers, and all at each
//! heartbeat, go to the thread of the process that writes them. So what `kill -9` destroys is what has come since the last
//! heartbeat, 100 ms, and what a slow disk has not taken.
//!
//! Each finished request counts as one line that is written, dropped or skipped (sampling, `access-log-skip`). The primary
//! counts the requests of a dead worker that are none of these as dropped. So the three counts always add up to the requests.

mod escape;
mod format;
mod line;
mod output;
mod policy;
mod target;
mod time_text;
mod tls_variable;
mod variable;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use crate::client::ConnectionInfo;
use crate::config::Config;
use crate::scoreboard::LogLineCounters;
use crate::worker::http::request_observers::EndedRequest;
use crate::worker::http::request_record::{RequestRecord, ResponseEnd};
pub use format::AccessLogFormat;
pub(crate) use format::Captures;
use line::{LineLayout, LineTexts, LoggedHead, LoggedRequest, write_line};
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

/// The size at which a buffer is handed over before the next heartbeat.
const HAND_OVER_BYTES: usize = 32 * 1024;

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
    /// Returns a record to start.
    pub(crate) fn take_record(&mut self) -> Box<RequestRecord> {
        self.records.pop().unwrap_or_default()
    }

    /// Keeps a record for a later request.
    pub(crate) fn keep_record(&mut self, mut record: Box<RequestRecord>) {
        if self.records.len() < MAX_KEPT_RECORDS {
            record.clear();
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
    captures: Arc<Captures>,
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
        let format = config.access_log_format.clone();
        let format =
            if config.access_log_slower_than.is_some() { format.with_duration() } else { format };
        let layout = LineLayout::new(&format, tag);
        WorkerAccessLog { captures: format.captures, layout, tag, writer, counters }
    }

    /// Returns what the format needs of requests and responses.
    pub(crate) fn captures(&self) -> &Captures {
        &self.captures
    }

    /// Appends the line of a request that has ended, if `policy` wants one. Returns whether it does.
    pub(crate) fn log_ended(
        &self,
        ended: &EndedRequest<'_>,
        policy: &LogPolicy,
        buffer: &mut LineBuffer,
    ) -> bool {
        let EndedRequest { record, ended_ns, connection } = *ended;
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
        let body_bytes = record.body_bytes();
        let head = LoggedHead::Parsed(record);
        let now = coarse_unix_time();
        self.append(
            &LoggedRequest { head, connection, status, body_bytes, is_complete, duration, now },
            buffer,
        );
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
        let (now, duration) = (coarse_unix_time(), None);
        self.append(
            &LoggedRequest {
                head,
                connection,
                status,
                body_bytes: 0,
                is_complete: true,
                duration,
                now,
            },
            buffer,
        );
        true
    }

    fn append(&self, request: &LoggedRequest<'_>, buffer: &mut LineBuffer) {
        let LineBuffer { bytes, lines, texts, .. } = buffer;
        if bytes.capacity() == 0 {
            bytes.reserve(FIRST_BUFFER_BYTES);
        }
        let max_line_bytes = self.writer.max_line_bytes();
        write_line(&self.layout, request, max_line_bytes, texts, bytes);
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
