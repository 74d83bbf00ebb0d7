//! Memory per idle connection: many connections that have had a response each, and then nothing more.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::blocking_client::{BlockingClient, BlockingConnection};
use super::quiet_server::{QuietMemory, wait_until_quiet};
use super::{find_server_tree, reserve_open_files};
use crate::load::LoadPlan;
use crate::load::process_tree::{ProcessTree, TreeMemory};
use crate::load::request_failure::RequestFailure;
use crate::report_format::text_table::{format_count, write_table};
use tokio_prefork::{Error, Result};

/// Most connections of a measurement.
pub const MAX_IDLE_CONNECTIONS: usize = 100_000;
/// Connections from one address of this machine. Linux has 28 232 ports for them by default.
const CONNECTIONS_PER_SOURCE: usize = 20_000;
/// Connections before the measurement, so that what a server allocates once is not counted.
const WARM_UP_CONNECTIONS: usize = 64;
/// Failed connections in a row after which no more are tried.
const MAX_FAILURES_IN_A_ROW: usize = 3;

/// A measurement of the memory of idle connections.
#[derive(Debug, Clone)]
pub struct IdleMemoryPlan {
    /// The target, its TLS, and the request that each connection sends. Connections, rates and durations are not used.
    pub request: LoadPlan,
    /// Number of connections. Default 10 000.
    pub connections: usize,
    /// How long the memory of the server must stay the same before it is read. Default 2 s. A server that frees the state
    /// of a connection only after some time of idleness needs more than that time.
    pub quiet: Duration,
    /// Longest wait for that; the report then says that the server was not quiet. Default 20 s.
    pub quiet_limit: Duration,
}

impl IdleMemoryPlan {
    /// Creates a plan with the defaults.
    pub fn new(request: LoadPlan) -> IdleMemoryPlan {
        let (quiet, quiet_limit) = (Duration::from_secs(2), Duration::from_secs(20));
        IdleMemoryPlan { request, connections: 10_000, quiet, quiet_limit }
    }

    /// Checks the plan.
    ///
    /// # Errors
    /// Names the first invalid value and the valid ones.
    pub fn validate(&self) -> Result<(), String> {
        if !(1..=MAX_IDLE_CONNECTIONS).contains(&self.connections) {
            return Err(format!(
                "connections {}: give 1 to {MAX_IDLE_CONNECTIONS}",
                self.connections
            ));
        }
        if self.quiet > self.quiet_limit {
            let (quiet, limit) = (self.quiet, self.quiet_limit);
            return Err(format!("quiet {quiet:?}: must not exceed its limit of {limit:?}"));
        }
        if self.request.is_http2() {
            return Err("idle connections are measured over HTTP/1.1 only".to_string());
        }
        LoadPlan { connections: 1, ..self.request.clone() }.validate()
    }
}

/// Memory of a server before and after it had idle connections.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IdleMemoryReport {
    /// Number of connections that were opened and had a response.
    pub connections: usize,
    /// Number of connections that could not be opened, or had no response.
    pub failed: usize,
    /// Why the first of them failed.
    pub failure: Option<&'static str>,
    /// Number of addresses of this machine that the connections came from.
    pub source_addresses: usize,
    /// How long it took to open them, in seconds.
    pub opening_s: f64,
    /// Memory before.
    pub before: TreeMemory,
    /// Memory with all connections open, each after one response.
    pub after_opening: IdlePhase,
    /// Memory after a burst: a request on all connections at once. What the server had allocated for it and its allocator
    /// keeps is counted. `None` if it was stopped before.
    pub after_burst: Option<IdlePhase>,
    /// Requests of the burst without a response.
    pub burst_failed: usize,
    /// Whether it was stopped before its end.
    pub ended_early: bool,
}

/// The memory of a server with idle connections, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct IdlePhase {
    /// Number of connections that were open.
    pub open: usize,
    /// Memory of all processes of the server.
    pub memory: TreeMemory,
    /// Whether the server was quiet.
    pub is_quiet: bool,
    /// Growth of the PSS for each open connection, in bytes; `None` without open connections.
    pub bytes_per_connection: Option<f64>,
    /// Growth of the private dirty memory for each open connection, in bytes.
    pub private_bytes_per_connection: Option<f64>,
}

impl IdlePhase {
    fn new(before: TreeMemory, now: QuietMemory, open: usize) -> IdlePhase {
        let each = |then: u64, now: u64| {
            let grown = (now as f64 - then as f64) * 1024.0;
            (open > 0).then(|| grown / open as f64)
        };
        let memory = now.memory;
        IdlePhase {
            open,
            memory,
            is_quiet: now.is_quiet,
            bytes_per_connection: each(before.pss_kib, memory.pss_kib),
            private_bytes_per_connection: each(before.private_dirty_kib, memory.private_dirty_kib),
        }
    }
}

/// Measures the memory of idle connections. Ends early once `is_stopped` returns `true`, with a report of the connections that were
/// opened until then; before the first one returns `None`.
///
/// # Errors
/// The plan is invalid, the target does not answer, its processes cannot be read, or the system refuses file descriptors.
pub fn measure_idle_memory(
    plan: &IdleMemoryPlan,
    is_stopped: &mut dyn FnMut() -> bool,
) -> Result<Option<IdleMemoryReport>> {
    plan.validate().map_err(Error::config)?;
    reserve_open_files(plan.connections)?;
    let mut client = BlockingClient::from_plan(&plan.request)?;
    let tree = find_server_tree(&plan.request, &client.address)?;
    if tree.read_memory().is_none() {
        return Err(Error::refused(format!(
            "cannot read the memory of pid {} ({}) in /proc/PID/smaps_rollup; run this program as the server's user",
            tree.root_pid(),
            tree.name()
        )));
    }
    let mut was_stopped = false;
    let mut is_stopped = || {
        was_stopped = was_stopped || is_stopped();
        was_stopped
    };
    IdleMemoryRun { plan, tree: &tree }.measure(&mut client, &mut is_stopped)
}

struct IdleMemoryRun<'a> {
    plan: &'a IdleMemoryPlan,
    tree: &'a ProcessTree,
}

impl IdleMemoryRun<'_> {
    fn measure(
        &self,
        client: &mut BlockingClient,
        is_stopped: &mut dyn FnMut() -> bool,
    ) -> Result<Option<IdleMemoryReport>> {
        // Closed before the measurement.
        drop(OpenedConnections::open(client, WARM_UP_CONNECTIONS, is_stopped));
        let Some(before) = self.wait_until_quiet(is_stopped) else { return Ok(None) };
        let before = before.memory;
        let begun = Instant::now();
        let mut opened = OpenedConnections::open(client, self.plan.connections, is_stopped);
        let opening_s = begun.elapsed().as_secs_f64();
        if opened.connections.is_empty() && is_stopped() {
            return Ok(None);
        }
        let read_as_it_is =
            || self.tree.read_memory().map(|memory| QuietMemory { memory, is_quiet: false });
        let after_opening = self.wait_until_quiet(is_stopped).or_else(read_as_it_is);
        let Some(after_opening) = after_opening else { return Ok(None) };
        let after_opening = IdlePhase::new(before, after_opening, opened.count_idle());
        let (mut burst_failed, mut after_burst) = (0, None);
        if !is_stopped() {
            burst_failed = opened.request_on_all(client);
            after_burst = self
                .wait_until_quiet(is_stopped)
                .map(|memory| IdlePhase::new(before, memory, opened.count_idle()));
        }
        Ok(Some(IdleMemoryReport {
            connections: opened.connections.len(),
            failed: opened.failed,
            failure: opened.failure.map(RequestFailure::phrase),
            source_addresses: opened.source_addresses,
            opening_s,
            before,
            after_opening,
            after_burst,
            burst_failed,
            ended_early: after_burst.is_none(),
        }))
    }

    fn wait_until_quiet(&self, is_stopped: &mut dyn FnMut() -> bool) -> Option<QuietMemory> {
        wait_until_quiet(self.tree, self.plan.quiet, self.plan.quiet_limit, is_stopped)
    }
}

/// Connections that have had a response each.
struct OpenedConnections {
    connections: Vec<BlockingConnection>,
    failed: usize,
    failure: Option<RequestFailure>,
    source_addresses: usize,
}

impl OpenedConnections {
    /// Opens connections one after the other, so that the server never has work for more than one of them.
    fn open(
        client: &mut BlockingClient,
        count: usize,
        is_stopped: &mut dyn FnMut() -> bool,
    ) -> OpenedConnections {
        let mut opened = OpenedConnections {
            connections: Vec::with_capacity(count),
            failed: 0,
            failure: None,
            source_addresses: 1,
        };
        let mut failed_in_a_row = 0;
        for number in 0..count {
            if is_stopped() {
                break;
            }
            // A server that refuses one more refuses the rest, and each attempt may take as long as the timeout.
            if failed_in_a_row == MAX_FAILURES_IN_A_ROW {
                opened.failed += count - number;
                break;
            }
            let source = source_address(number).filter(|_| client.address.is_ipv4_loopback());
            opened.source_addresses = 1 + source.map_or(0, |_| number / CONNECTIONS_PER_SOURCE);
            let connection = client
                .connect(source)
                .and_then(|mut connection| client.exchange(&mut connection).map(|_| connection));
            match connection {
                Ok(connection) => {
                    failed_in_a_row = 0;
                    opened.connections.push(connection);
                }
                Err(why) => {
                    failed_in_a_row += 1;
                    opened.failed += 1;
                    opened.failure.get_or_insert(why);
                }
            }
        }
        opened
    }

    /// Sends a request on all connections, then receives the responses. Returns how many did not come.
    fn request_on_all(&mut self, client: &mut BlockingClient) -> usize {
        let sent: Vec<bool> = self
            .connections
            .iter_mut()
            .map(|connection| connection.is_idle() && client.send(connection).is_ok())
            .collect();
        let mut failed = 0;
        for (connection, is_sent) in self.connections.iter_mut().zip(sent) {
            failed += usize::from(!is_sent || client.receive(connection).is_err());
        }
        failed
    }

    fn count_idle(&self) -> usize {
        self.connections.iter().filter(|connection| connection.is_idle()).count()
    }
}

/// Returns the loopback address from which connection `number` comes; `None` for the one that the kernel chooses.
fn source_address(number: usize) -> Option<IpAddr> {
    let further = u8::try_from(number / CONNECTIONS_PER_SOURCE).ok().filter(|n| *n > 0)?;
    Some(Ipv4Addr::new(127, 0, 0, 1 + further).into())
}

impl IdleMemoryReport {
    /// Returns what limits the value of the report, as sentences.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.failed > 0 {
            warnings.push(format!(
                "{} connections were not opened, the first: {}",
                self.failed,
                self.failure.unwrap_or("stopped")
            ));
        }
        let phases =
            [(Some(&self.after_opening), "opening"), (self.after_burst.as_ref(), "the burst")];
        for (phase, when) in phases.into_iter().filter_map(|(phase, when)| Some((phase?, when))) {
            if phase.open < self.connections {
                warnings.push(format!(
                    "{} of {} connections were no longer open after {when}: raise the keep-alive timeout of the server",
                    self.connections - phase.open,
                    self.connections
                ));
            }
            if !phase.is_quiet {
                warnings.push(format!("the server was not quiet after {when}"));
            }
        }
        if self.burst_failed > 0 {
            warnings.push(format!("{} requests of the burst had no response", self.burst_failed));
        }
        warnings
    }

    /// Formats the report as JSON.
    pub fn to_json(&self) -> String {
        // Strings, numbers and lists of them always have a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Formats the report as text for a terminal.
    pub fn to_table(&self) -> String {
        let row = |name: &str, memory: &TreeMemory, phase: Option<&IdlePhase>| {
            let bytes = |value: Option<f64>| {
                value.map_or("-".to_string(), |value| format!("{} B", format_count(value)))
            };
            let kib = |kib: u64| format!("{} KiB", format_count(kib as f64));
            [
                format!("{name:14}"),
                phase.map_or("0".to_string(), |phase| format_count(phase.open as f64)),
                kib(memory.pss_kib),
                kib(memory.private_dirty_kib),
                bytes(phase.and_then(|phase| phase.bytes_per_connection)),
                bytes(phase.and_then(|phase| phase.private_bytes_per_connection)),
            ]
        };
        let titles = ["", "OPEN", "PSS", "PRIVATE DIRTY", "PSS/CONN", "PRIVATE/CONN"];
        let mut titles = titles.map(str::to_string);
        titles[0] = format!("{:14}", "");
        let mut text = String::new();
        let mut rows = vec![
            titles,
            row("before", &self.before, None),
            row("after opening", &self.after_opening.memory, Some(&self.after_opening)),
        ];
        rows.extend(
            self.after_burst.as_ref().map(|phase| row("after a burst", &phase.memory, Some(phase))),
        );
        write_table(&mut text, &rows);
        for warning in self.warnings() {
            // Writing to a string cannot fail.
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

    fn plan(server: &TestServer, path: &str, connections: usize) -> IdleMemoryPlan {
        let target = TargetUrl::parse(&format!("{}{path}", server.url())).expect("url");
        let request = LoadPlan { timeout: Duration::from_secs(5), ..LoadPlan::new(target) };
        // The server is this process, which is busy with other tests.
        let (quiet, quiet_limit) = (Duration::from_millis(100), Duration::from_millis(300));
        IdleMemoryPlan { connections, quiet, quiet_limit, ..IdleMemoryPlan::new(request) }
    }

    #[test]
    fn all_connections_are_open_at_the_end_and_answer_the_burst() {
        let server = TestServer::start();
        let report = measure_idle_memory(&plan(&server, "/", 40), &mut || false);
        let report = report.expect("measured").expect("complete");
        assert_eq!((report.connections, report.failed, report.failure), (40, 0, None));
        assert_eq!((report.after_opening.open, report.ended_early), (40, false));
        assert_eq!(report.after_burst.map(|phase| phase.open), Some(40));
        assert_eq!((report.burst_failed, report.source_addresses), (0, 1));
        assert!(report.before.pss_kib > 0 && report.before.private_dirty_kib > 0, "{report:?}");
    }

    #[test]
    fn connections_that_the_server_closes_are_told() {
        let server = TestServer::start();
        let report = measure_idle_memory(&plan(&server, "/close", 5), &mut || false);
        let report = report.expect("measured").expect("complete");
        assert_eq!((report.after_opening.open, report.burst_failed), (0, 5));
        assert_eq!(report.after_opening.bytes_per_connection, None);
        let table = report.to_table();
        assert!(table.contains("5 of 5 connections were no longer open"), "{table}");
    }

    #[test]
    fn a_stopped_measurement_reports_the_connections_opened_before() {
        let server = TestServer::start();
        assert_eq!(measure_idle_memory(&plan(&server, "/", 5), &mut || true).ok(), Some(None));
        // Asked before each of the connections of the warm-up, at least twice before the first wait for quiet ends, and
        // before each further connection.
        let mut asked = 0;
        let mut is_stopped = || {
            asked += 1;
            asked > 300
        };
        let report = measure_idle_memory(&plan(&server, "/", 2000), &mut is_stopped);
        let report = report.expect("measured").expect("a partial report");
        assert!(report.ended_early && (1..2000).contains(&report.connections), "{report:?}");
        assert_eq!((report.after_opening.open, report.after_burst), (report.connections, None));
    }

    #[test]
    fn growth_is_divided_by_the_open_connections() {
        let memory = |pss_kib, private_dirty_kib| TreeMemory { pss_kib, private_dirty_kib };
        let now = QuietMemory { memory: memory(3000, 2500), is_quiet: true };
        let phase = IdlePhase::new(memory(1000, 500), now, 1000);
        assert_eq!(phase.bytes_per_connection, Some(2048.0));
        assert_eq!(phase.private_bytes_per_connection, Some(2048.0));
        assert_eq!(IdlePhase::new(memory(4000, 0), now, 1000).bytes_per_connection, Some(-1024.0));
    }

    #[test]
    fn many_connections_come_from_several_addresses() {
        assert_eq!(source_address(CONNECTIONS_PER_SOURCE - 1), None);
        assert_eq!(source_address(CONNECTIONS_PER_SOURCE), "127.0.0.2".parse().ok());
        assert_eq!(source_address(MAX_IDLE_CONNECTIONS - 1), "127.0.0.5".parse().ok());
    }

    #[test]
    fn invalid_plans_name_the_wrong_value() {
        let server = TestServer::start();
        let none = plan(&server, "/", 0);
        assert!(none.validate().is_err_and(|why| why.contains("connections 0")));
        let quiet_limit = Duration::from_millis(1);
        let short = IdleMemoryPlan { quiet_limit, ..plan(&server, "/", 1) };
        assert!(short.validate().is_err_and(|why| why.contains("quiet 100ms")));
    }
}
