//! WebSocket echo: round trips per second of messages that the server sends back, and how long each takes.
//!
//! Each connection sends a binary message, waits until it comes back, and sends the next one. The bytes must be the same.

mod echo_connection;
mod echo_thread;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::reserve_open_files;
use crate::load::counters::{add_histogram, new_histogram};
use crate::load::process_tree::ProcessTree;
use crate::load::{CpuTime, LatencySummary, LoadPlan};
use crate::report_format::text_table::{format_count, format_micros};
use echo_connection::EchoClient;
use echo_thread::{EchoThread, EchoWindow};
use tokio_prefork::{Error, Result};

/// Largest message: 16 MiB.
pub const MAX_MESSAGE_SIZE: usize = 16 << 20;
/// How often a stop is looked for.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// A measurement of WebSocket messages.
#[derive(Debug, Clone)]
pub struct WebSocketEchoPlan {
    /// Target, TLS, header fields, connections, threads, warm-up, duration and timeout. The target answers a WebSocket
    /// handshake and sends each message back.
    pub load: LoadPlan,
    /// Size of each message in bytes. Default 128.
    pub message_size: usize,
}

impl WebSocketEchoPlan {
    /// Creates a plan with the defaults.
    pub fn new(load: LoadPlan) -> WebSocketEchoPlan {
        WebSocketEchoPlan { load, message_size: 128 }
    }

    /// Checks the plan.
    ///
    /// # Errors
    /// Names the first invalid value and the valid ones.
    pub fn validate(&self) -> Result<(), String> {
        if !(1..=MAX_MESSAGE_SIZE).contains(&self.message_size) {
            return Err(format!(
                "messages of {} bytes: give 1 to {MAX_MESSAGE_SIZE}",
                self.message_size
            ));
        }
        let load = &self.load;
        if load.is_http2()
            || load.rate.is_some()
            || load.pipeline_depth > 1
            || load.reconnect_each_request
        {
            return Err("WebSocket messages are sent over kept connections of HTTP/1.1, one in flight on each, \
                        without a rate"
                .to_string());
        }
        load.validate()
    }
}

/// How fast messages came back; times are microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct WebSocketEchoReport {
    /// Number of connections.
    pub connections: usize,
    /// Size of each message in bytes.
    pub message_size: usize,
    /// Length of the measurement in seconds.
    pub measured_s: f64,
    /// Whether it was stopped before its end.
    pub ended_early: bool,
    /// Messages that came back in the measurement.
    pub round_trips: u64,
    /// Messages that came back per second.
    pub round_trips_per_s: f64,
    /// Time from sending a message until it has come back.
    pub latency: LatencySummary,
    /// Time of each message, in nanoseconds.
    #[serde(skip)]
    pub(crate) histogram: Histogram<u64>,
    /// Connections that could not be opened, that the server ended, or that got no message in time.
    pub failed: u64,
    /// Why the first of them failed.
    pub failure: Option<String>,
    /// CPU time of the server per round trip; `None` for a server that cannot be observed.
    pub server_cpu_us: Option<f64>,
    /// CPU time of this program per round trip.
    pub generator_cpu_us: f64,
}

/// Messages of some connections.
#[derive(Debug)]
struct EchoCounters {
    latency: Histogram<u64>,
    failed: u64,
    failure: Option<String>,
}

impl EchoCounters {
    fn new() -> EchoCounters {
        EchoCounters { latency: new_histogram(3), failed: 0, failure: None }
    }

    fn record_failure(&mut self, why: String) {
        self.failed += 1;
        self.failure.get_or_insert(why);
    }

    fn merge(&mut self, other: EchoCounters) {
        add_histogram(&mut self.latency, &other.latency);
        self.failed += other.failed;
        self.failure = self.failure.take().or(other.failure);
    }
}

/// Measures how fast WebSocket messages come back. Ends early once `is_stopped` returns `true`, with a report of what was measured
/// so far; before the end of the warm-up returns `None`.
///
/// # Errors
/// The plan is invalid, the target does not accept connections, it refuses the WebSocket
/// handshake ([`ErrorKind::Refused`](tokio_prefork::ErrorKind::Refused)), or the system refuses threads or file descriptors.
pub fn measure_websocket_echo(
    plan: &WebSocketEchoPlan,
    is_stopped: &mut dyn FnMut() -> bool,
) -> Result<Option<WebSocketEchoReport>> {
    plan.validate().map_err(Error::config)?;
    reserve_open_files(plan.load.connections)?;
    let client = EchoClient::from_plan(&plan.load)?;
    // Fails at once if the target has no WebSocket.
    let first = client.connect();
    drop(first.map_err(|why| Error::refused(format!("{}: {why}", plan.load.target)))?);
    let tree = match client.address().is_local() {
        true => ProcessTree::find_by_listener(&client.address().listen_addr),
        false => None,
    };
    let threads = plan.load.thread_count();
    let mut connections: Vec<Vec<_>> = (0..threads).map(|_| Vec::new()).collect();
    let mut counters = EchoCounters::new();
    for at in 0..plan.load.connections {
        if is_stopped() {
            return Ok(None);
        }
        match client.connect() {
            Ok(connection) => connections[at % threads].push(connection),
            Err(why) => counters.record_failure(why),
        }
    }
    let window = EchoWindow::begin_now(&plan.load);
    let is_over = AtomicBool::new(false);
    let mut usage = UsageOfMeasurement::default();
    let measured = std::thread::scope(|scope| {
        let threads: Vec<_> = connections
            .into_iter()
            .map(|own| {
                let thread = EchoThread::new(own, plan.message_size, &window, &is_over);
                scope.spawn(move || thread.run())
            })
            .collect();
        let is_finished = || threads.iter().all(|thread| thread.is_finished());
        let measured = usage.observe(tree.as_ref(), &window, is_finished, is_stopped);
        is_over.store(measured != Some(plan.load.duration), Relaxed);
        for thread in threads {
            let counted = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            counters
                .merge(counted.map_err(|e| Error::system("run a thread of WebSocket clients", e))?);
        }
        Ok::<Option<Duration>, Error>(measured)
    })?;
    Ok(measured.map(|measured| WebSocketEchoReport::new(plan, measured, counters, &usage)))
}

/// CPU time at the beginning and end of the measurement, in seconds.
#[derive(Debug, Default)]
struct UsageOfMeasurement {
    server: [Option<f64>; 2],
    own: [f64; 2],
}

impl UsageOfMeasurement {
    /// Reads CPU times when the measurement begins and ends. Returns how long it was: less than planned if `is_stopped` returned `true`
    /// before all threads had finished, and `None` if that was before its begin.
    fn observe(
        &mut self,
        tree: Option<&ProcessTree>,
        window: &EchoWindow,
        is_finished: impl Fn() -> bool,
        is_stopped: &mut dyn FnMut() -> bool,
    ) -> Option<Duration> {
        let mut moments =
            [window.measure_from, window.measure_until].into_iter().enumerate().peekable();
        loop {
            let now = Instant::now();
            if let Some((at, _)) = moments.next_if(|(_, due)| *due <= now) {
                self.read(at, tree);
                continue;
            }
            let is_over = moments.peek().is_none();
            if is_over && is_finished() {
                return Some(window.duration());
            }
            if is_stopped() {
                let measured = now.checked_duration_since(window.measure_from);
                if !is_over {
                    self.read(1, tree);
                }
                return measured.map(|measured| measured.min(window.duration()));
            }
            let wait = moments.peek().map_or(STOP_CHECK_INTERVAL, |(_, due)| *due - now);
            std::thread::park_timeout(wait.min(STOP_CHECK_INTERVAL));
        }
    }
}

impl UsageOfMeasurement {
    fn read(&mut self, at: usize, tree: Option<&ProcessTree>) {
        self.server[at] = tree.map(|tree| tree.cpu_time().as_secs_f64());
        self.own[at] = CpuTime::of_this_process().total();
    }
}

impl WebSocketEchoReport {
    fn new(
        plan: &WebSocketEchoPlan,
        measured: Duration,
        counters: EchoCounters,
        usage: &UsageOfMeasurement,
    ) -> WebSocketEchoReport {
        let round_trips = counters.latency.len();
        let each_us = |seconds: f64| seconds * 1e6 / round_trips.max(1) as f64;
        let [server_before, server_after] = usage.server;
        let measured_s = measured.as_secs_f64();
        WebSocketEchoReport {
            connections: plan.load.connections,
            message_size: plan.message_size,
            measured_s,
            ended_early: measured < plan.load.duration,
            round_trips,
            round_trips_per_s: round_trips as f64 / measured_s.max(1e-9),
            latency: LatencySummary::from_histogram(&counters.latency),
            histogram: counters.latency,
            failed: counters.failed,
            failure: counters.failure,
            server_cpu_us: server_after
                .zip(server_before)
                .map(|(after, before)| each_us(after - before)),
            generator_cpu_us: each_us(usage.own[1] - usage.own[0]),
        }
    }

    /// Returns what limits the value of the report, as sentences.
    pub fn warnings(&self) -> Vec<String> {
        match self.failed {
            0 => Vec::new(),
            n => vec![format!(
                "{n} connections failed and were not opened again, the first: {}",
                self.failure.as_deref().unwrap_or("unknown")
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
        let latency = &self.latency;
        let mut text = String::new();
        let rows = [
            ("connections", self.connections.to_string()),
            ("message", format!("{} bytes", self.message_size)),
            ("round trips/s", format_count(self.round_trips_per_s)),
            ("p50", format_micros(latency.p50)),
            ("p99", format_micros(latency.p99)),
            ("longest", format_micros(latency.max)),
            (
                "server CPU",
                self.server_cpu_us.map_or("-".to_string(), |us| format!("{us:.1} us/round trip")),
            ),
            ("own CPU", format!("{:.1} us/round trip", self.generator_cpu_us)),
        ];
        for (name, value) in rows {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:14} {value}");
        }
        for warning in self.warnings() {
            let _ = writeln!(text, "{warning}");
        }
        text
    }
}
