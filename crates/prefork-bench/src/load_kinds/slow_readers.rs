//! Slow readers beside a normal load: connections that request a large body and read it at a given rate.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::beside_load::run_beside_load;
use super::blocking_client::{BlockingClient, BlockingConnection};
use super::reserve_open_files;
use crate::load::request_failure::RequestFailure;
use crate::load::{LoadPlan, LoadReport};
use crate::report_format::text_table::{format_bytes, format_count, format_micros, write_table};
use tokio_prefork::{Error, Result};

/// How often each reader reads.
const READ_INTERVAL: Duration = Duration::from_millis(50);
/// Longest wait until all readers have received the first bytes of a body.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Most readers.
const MAX_READERS: usize = 10_000;
/// Highest rate of a reader, in bytes per second.
pub const MAX_BYTES_PER_SECOND: u64 = 1 << 30;

/// A measurement of a normal load, alone and beside slow readers.
#[derive(Debug, Clone)]
pub struct SlowReadersPlan {
    /// The normal load: once for its duration alone, then once for its duration beside the readers.
    pub load: LoadPlan,
    /// What the readers do.
    pub readers: ReaderPlan,
}

/// Connections that read slowly.
#[derive(Debug, Clone)]
pub struct ReaderPlan {
    /// The target and request of the readers, whose response has a large body. Connections, rates and durations are not
    /// used.
    pub request: LoadPlan,
    /// Number of readers. Default 32.
    pub connections: usize,
    /// What each reads, in bytes per second. Default 16 KiB.
    pub bytes_per_second: u64,
    /// Size of the receive buffer of each socket (`SO_RCVBUF`), in bytes. Linux doubles it. Default 4096, so that hardly
    /// anything of a body waits at the client.
    pub receive_buffer: usize,
}

impl ReaderPlan {
    /// Creates a plan with the defaults.
    pub fn new(request: LoadPlan) -> ReaderPlan {
        ReaderPlan { request, connections: 32, bytes_per_second: 16 * 1024, receive_buffer: 4096 }
    }
}

impl SlowReadersPlan {
    /// Creates a plan with the default readers.
    pub fn new(load: LoadPlan, body: LoadPlan) -> SlowReadersPlan {
        SlowReadersPlan { load, readers: ReaderPlan::new(body) }
    }

    /// Checks the plan.
    ///
    /// # Errors
    /// Names the first invalid value and the valid ones.
    pub fn validate(&self) -> Result<(), String> {
        let readers = &self.readers;
        if !(1..=MAX_READERS).contains(&readers.connections) {
            return Err(format!("{} slow readers: give 1 to {MAX_READERS}", readers.connections));
        }
        if !(1..=MAX_BYTES_PER_SECOND).contains(&readers.bytes_per_second) {
            return Err(format!(
                "{} bytes per second for a slow reader: give 1 to {MAX_BYTES_PER_SECOND}",
                readers.bytes_per_second
            ));
        }
        if readers.request.is_http2() {
            return Err("slow readers use HTTP/1.1 only".to_string());
        }
        self.load.validate()?;
        LoadPlan { connections: 1, ..readers.request.clone() }.validate()
    }
}

/// A normal load alone and beside slow readers.
#[derive(Debug, Clone, Serialize)]
pub struct SlowReadersReport {
    /// The load alone.
    pub alone: Box<LoadReport>,
    /// The load beside the readers.
    pub beside: Box<LoadReport>,
    /// 99th percentile of the latency beside the readers, divided by that alone; `None` without responses.
    pub p99_ratio: Option<f64>,
    /// What the readers did.
    pub readers: ReadersReport,
}

/// What slow readers did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReadersReport {
    /// Number of readers.
    pub connections: usize,
    /// What each was to read, in bytes per second.
    pub bytes_per_second: u64,
    /// What each has read, in bytes per second, on average.
    pub read_per_second: f64,
    /// Number of bodies that were read to their end.
    pub bodies: u64,
    /// Number of connections that could not be opened, or that the server ended before the body.
    pub failed: u64,
    /// Why the first of them failed.
    pub failure: Option<&'static str>,
}

/// Measures a load alone, then beside slow readers. Ends early once `is_stopped` returns `true`, with a report of what was measured
/// beside the readers; before them returns `None`.
///
/// # Errors
/// The plan is invalid, the target does not answer, the readers get no body, or the system refuses threads or file
/// descriptors.
pub fn measure_slow_readers(
    plan: &SlowReadersPlan,
    is_stopped: &mut dyn FnMut() -> bool,
) -> Result<Option<SlowReadersReport>> {
    plan.validate().map_err(Error::config)?;
    reserve_open_files(plan.load.connections + plan.readers.connections)?;
    let (alone, ()) = run_beside_load(&plan.load, is_stopped, |_| Ok(()))?;
    if alone.ended_early {
        return Ok(None);
    }
    let started = run_beside_readers(&plan.readers, is_stopped, |is_stopped| {
        run_beside_load(&plan.load, is_stopped, |_| Ok(()))
    })?;
    Ok(started.map(|((beside, ()), readers)| SlowReadersReport::new(alone, beside, readers)))
}

/// Runs `work` while slow readers read. Returns `None` if `is_stopped` returned `true` before all readers have received the
/// first bytes.
///
/// # Errors
/// Those of `work`; the target does not answer, or sends no body to a reader.
pub(crate) fn run_beside_readers<T>(
    plan: &ReaderPlan,
    is_stopped: &mut dyn FnMut() -> bool,
    work: impl FnOnce(&mut dyn FnMut() -> bool) -> Result<T>,
) -> Result<Option<(T, ReadersReport)>> {
    let mut readers = SlowReaders {
        plan,
        client: BlockingClient::from_plan(&plan.request)?,
        connections: (0..plan.connections).map(|_| None).collect(),
        received: 0,
        bodies: 0,
        failed: 0,
        failure: None,
    };
    let (is_over, started) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| readers.read_until(&is_over, &started));
        let begun = Instant::now();
        let done = loop {
            if started.load(Relaxed) == plan.connections {
                break work(is_stopped).map(Some);
            }
            if is_stopped() {
                break Ok(None);
            }
            if begun.elapsed() > START_TIMEOUT || thread.is_finished() {
                break Err(Error::target(
                    &plan.request.target,
                    std::io::Error::other(format!(
                        "only {} of {} slow readers have received the first bytes of a body",
                        started.load(Relaxed),
                        plan.connections
                    )),
                ));
            }
            std::thread::park_timeout(READ_INTERVAL);
        };
        is_over.store(true, Relaxed);
        thread.thread().unpark();
        let report = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(done?.map(|done| (done, report)))
    })
}

/// All readers, in one thread.
struct SlowReaders<'a> {
    plan: &'a ReaderPlan,
    client: BlockingClient,
    connections: Vec<Option<SlowReader>>,
    received: u64,
    bodies: u64,
    failed: u64,
    failure: Option<RequestFailure>,
}

/// One reader.
struct SlowReader {
    connection: BlockingConnection,
    /// When the allowance was last increased.
    refilled: Instant,
    /// Bytes that it may read now.
    allowance: f64,
    has_received: bool,
}

impl SlowReaders<'_> {
    /// Reads until `is_over`; counts in `started` the readers that have received something.
    fn read_until(&mut self, is_over: &AtomicBool, started: &AtomicUsize) -> ReadersReport {
        let begun = Instant::now();
        while !is_over.load(Relaxed) {
            let round = Instant::now();
            for at in 0..self.connections.len() {
                if is_over.load(Relaxed) {
                    break;
                }
                self.read_some(at, started);
            }
            std::thread::park_timeout(READ_INTERVAL.saturating_sub(round.elapsed()));
        }
        let read = self.received as f64 / self.plan.connections as f64;
        ReadersReport {
            connections: self.plan.connections,
            bytes_per_second: self.plan.bytes_per_second,
            read_per_second: read / begun.elapsed().as_secs_f64(),
            bodies: self.bodies,
            failed: self.failed,
            failure: self.failure.map(|why| why.phrase()),
        }
    }

    /// Reads what reader `at` may read now; connects first if it has no connection.
    fn read_some(&mut self, at: usize, started: &AtomicUsize) {
        let had_received = self.connections[at].as_ref().is_some_and(|reader| reader.has_received);
        let outcome = match self.connections[at].take() {
            None => self.open(),
            Some(reader) => self.advance(reader),
        };
        match outcome {
            Ok(reader) => {
                let is_first = reader.has_received && !had_received;
                if is_first && started.load(Relaxed) < self.plan.connections {
                    started.fetch_add(1, Relaxed);
                }
                self.connections[at] = Some(reader);
            }
            Err(why) => {
                self.failed += 1;
                self.failure.get_or_insert(why);
            }
        }
    }

    fn open(&mut self) -> std::result::Result<SlowReader, RequestFailure> {
        let size = self.plan.receive_buffer;
        let mut connection =
            self.client.connect_with(|socket| socket.set_recv_buffer_size(size))?;
        self.client.send(&mut connection)?;
        connection.set_nonblocking()?;
        Ok(SlowReader { connection, refilled: Instant::now(), allowance: 0.0, has_received: false })
    }

    fn advance(
        &mut self,
        mut reader: SlowReader,
    ) -> std::result::Result<SlowReader, RequestFailure> {
        let rate = self.plan.bytes_per_second as f64;
        let now = Instant::now();
        // A reader that was late does not catch up for more than a second.
        reader.allowance =
            (reader.allowance + (now - reader.refilled).as_secs_f64() * rate).min(rate);
        reader.refilled = now;
        let (received, response) =
            self.client.receive_some(&mut reader.connection, reader.allowance as usize)?;
        reader.allowance -= received as f64;
        reader.has_received |= received > 0;
        self.received += received as u64;
        if let Some(response) = response {
            self.bodies += 1;
            match response.can_reuse_connection {
                true => self.client.send(&mut reader.connection)?,
                false => {
                    let has_received = reader.has_received;
                    return self.open().map(|reader| SlowReader { has_received, ..reader });
                }
            }
        }
        Ok(reader)
    }
}

impl SlowReadersReport {
    pub(crate) fn new(
        alone: LoadReport,
        beside: LoadReport,
        readers: ReadersReport,
    ) -> SlowReadersReport {
        let [alone_p99, beside_p99] = [&alone, &beside].map(|report| report.latency.p99);
        let has_responses = alone.responses > 0 && beside.responses > 0 && alone_p99 > 0.0;
        SlowReadersReport {
            p99_ratio: has_responses.then(|| beside_p99 / alone_p99),
            alone: Box::new(alone),
            beside: Box::new(beside),
            readers,
        }
    }

    /// Returns what limits the value of the report, as sentences.
    pub fn warnings(&self) -> Vec<String> {
        match self.readers.failed {
            0 => Vec::new(),
            n => vec![format!(
                "{n} connections of slow readers failed, the first: {}",
                self.readers.failure.unwrap_or("unknown")
            )],
        }
    }

    /// Formats the report as JSON.
    pub fn to_json(&self) -> String {
        // Strings, numbers and lists of them always have a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Formats the report as text for a terminal.
    pub fn to_table(&self) -> String {
        let row = |name: &str, load: &LoadReport| {
            let latency = &load.latency;
            [
                format!("{name:19}"),
                format_count(load.per_second.median),
                format_micros(latency.p50),
                format_micros(latency.p99),
                format_micros(latency.max),
                load.error_count().to_string(),
            ]
        };
        let titles = ["                   ", "REQ/S", "P50", "P99", "MAX", "FAILED"];
        let mut text = String::new();
        let rows = [
            titles.map(str::to_string),
            row("alone", &self.alone),
            row("beside slow readers", &self.beside),
        ];
        write_table(&mut text, &rows);
        let readers = &self.readers;
        let [asked, read] =
            [readers.bytes_per_second as f64, readers.read_per_second].map(format_bytes);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{} slow readers, {asked}/s each asked for, {read}/s read",
            readers.connections
        );
        for warning in self.warnings() {
            let _ = writeln!(text, "{warning}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::TargetUrl;
    use crate::load_kinds::test_server::TestServer;

    fn request(server: &TestServer, path: &str) -> LoadPlan {
        let target = TargetUrl::parse(&format!("{}{path}", server.url())).expect("url");
        LoadPlan {
            connections: 2,
            threads: 1,
            warm_up: Duration::ZERO,
            duration: Duration::from_millis(200),
            ..LoadPlan::new(target)
        }
    }

    #[test]
    fn readers_take_no_more_than_their_rate_while_the_load_runs() {
        let server = TestServer::start();
        let mut plan =
            SlowReadersPlan::new(request(&server, "/"), request(&server, "/bytes/4000000"));
        plan.readers.connections = 3;
        let report = measure_slow_readers(&plan, &mut || false).expect("measured").expect("all");
        assert!(report.alone.responses > 0 && report.beside.responses > 0, "{report:?}");
        assert!(report.p99_ratio.is_some_and(|ratio| ratio > 0.0), "{report:?}");
        let readers = &report.readers;
        assert_eq!((readers.connections, readers.failed, readers.bodies), (3, 0, 0));
        assert!(readers.read_per_second > 0.0, "{readers:?}");
        assert!(readers.read_per_second <= 16.0 * 1024.0, "{readers:?}");
    }

    #[test]
    fn a_body_that_was_read_is_requested_again() {
        let server = TestServer::start();
        let mut plan = ReaderPlan::new(request(&server, "/bytes/100"));
        (plan.connections, plan.bytes_per_second) = (2, 10_000_000);
        let read = run_beside_readers(&plan, &mut || false, |_| {
            std::thread::park_timeout(Duration::from_millis(400));
            Ok(())
        });
        let ((), report) = read.expect("read").expect("complete");
        assert!(report.bodies > 2, "{report:?}");
        assert_eq!((report.failed, report.failure), (0, None));
    }

    #[test]
    fn a_stop_before_the_first_bytes_ends_the_readers() {
        let server = TestServer::start();
        let plan = ReaderPlan::new(request(&server, "/never"));
        let stopped = run_beside_readers(&plan, &mut || true, |_| Ok(()));
        assert!(stopped.expect("stopped").is_none());
    }

    #[test]
    fn invalid_plans_name_the_wrong_value() {
        let server = TestServer::start();
        let plan = SlowReadersPlan::new(request(&server, "/"), request(&server, "/bytes/9"));
        assert_eq!(plan.validate(), Ok(()));
        let mut none = plan.clone();
        none.readers.connections = 0;
        assert!(none.validate().is_err_and(|why| why.contains("0 slow readers")));
        let mut stopped = plan;
        stopped.readers.bytes_per_second = 0;
        assert!(stopped.validate().is_err_and(|why| why.contains("0 bytes per second")));
    }
}
