//! A client that requests on one new connection after another: what somebody sees who comes just now.

use std::time::{Duration, Instant};

use super::blocking_client::BlockingClient;
use crate::load::LoadPlan;
use crate::report_format::statistics::median_min_max;
use tokio_prefork::Result;

/// Pause between two probes, so that they are hardly a load.
const PROBE_INTERVAL: Duration = Duration::from_millis(1);

/// Requests on one new connection after another.
pub(crate) struct Prober {
    client: BlockingClient,
    log: ProbeLog,
}

/// The probes since the last [`Prober::take_log`].
#[derive(Debug, Clone, Default)]
pub(crate) struct ProbeLog {
    /// When the first one began.
    begun: Option<Instant>,
    last_response: Option<Instant>,
    longest_gap: Duration,
    /// How long each answered probe took, in microseconds.
    took_us: Vec<f64>,
    pub(crate) failed: u64,
}

/// A response to a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProbeResponse {
    pub(crate) at: Instant,
    /// The process that answered, if it says so.
    pub(crate) pid: Option<u32>,
}

impl Prober {
    /// Creates a prober that sends the request of the plan.
    ///
    /// # Errors
    /// The target does not accept connections, or the options of TLS are wrong.
    pub(crate) fn from_plan(plan: &LoadPlan) -> Result<Prober> {
        let plan = LoadPlan { reconnect_each_request: true, ..plan.clone() };
        Ok(Prober { client: BlockingClient::from_plan(&plan)?, log: ProbeLog::default() })
    }

    pub(crate) fn client(&self) -> &BlockingClient {
        &self.client
    }

    /// Sends a probe and waits for its response. Returns `None` if there is none, or its status is 400 or more.
    pub(crate) fn probe(&mut self) -> Option<ProbeResponse> {
        let sent_at = Instant::now();
        self.log.begun.get_or_insert(sent_at);
        let response = self
            .client
            .connect(None)
            .and_then(|mut connection| self.client.exchange(&mut connection));
        let at = Instant::now();
        match response {
            Ok(response) if response.status < 400 => {
                self.log.record_response(sent_at, at);
                Some(ProbeResponse { at, pid: response.pid })
            }
            _ => {
                self.log.failed += 1;
                None
            }
        }
    }

    /// Waits for the pause between two probes.
    pub(crate) fn pause(&self) {
        std::thread::park_timeout(PROBE_INTERVAL);
    }

    /// Ends the log of the probes and begins the next one.
    pub(crate) fn take_log(&mut self) -> ProbeLog {
        self.log.end_at(Instant::now());
        std::mem::take(&mut self.log)
    }
}

impl ProbeLog {
    fn record_response(&mut self, sent_at: Instant, at: Instant) {
        self.end_at(at);
        self.last_response = Some(at);
        self.took_us.push((at - sent_at).as_secs_f64() * 1e6);
    }

    /// Extends the gap since the last response, or since the first probe, up to `at`.
    fn end_at(&mut self, at: Instant) {
        if let Some(from) = self.last_response.or(self.begun) {
            self.longest_gap = self.longest_gap.max(at.saturating_duration_since(from));
        }
    }

    /// Returns the longest time without a response, in milliseconds.
    pub(crate) fn longest_gap_ms(&self) -> f64 {
        self.longest_gap.as_secs_f64() * 1e3
    }

    /// Returns the median time that an answered probe took, in microseconds; 0 without one.
    pub(crate) fn median_us(&self) -> f64 {
        median_min_max(&self.took_us)[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::TargetUrl;
    use crate::load_kinds::test_server::TestServer;

    #[test]
    fn gaps_count_from_the_first_probe_to_the_end() {
        let mut log = ProbeLog::default();
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        log.begun = Some(begun);
        log.record_response(at(0), at(30));
        log.record_response(at(31), at(32));
        assert_eq!((log.longest_gap_ms(), log.median_us()), (30.0, 15_500.0));
        log.end_at(at(100));
        assert_eq!(log.longest_gap_ms(), 68.0);
    }

    #[test]
    fn probes_name_the_process_and_count_failures() {
        let server = TestServer::start();
        let prober = |path: &str| {
            let target = TargetUrl::parse(&format!("{}{path}", server.url())).expect("url");
            let timeout = Duration::from_millis(200);
            Prober::from_plan(&LoadPlan { timeout, ..LoadPlan::new(target) }).expect("a prober")
        };
        let mut answered = prober("/");
        assert_eq!(answered.probe().and_then(|one| one.pid), Some(std::process::id()));
        let mut failing = prober("/never");
        assert_eq!(failing.probe(), None);
        let log = failing.take_log();
        assert_eq!((log.failed, log.took_us.len()), (1, 0));
        assert!(log.longest_gap_ms() >= 200.0, "{log:?}");
        assert_eq!(failing.take_log().failed, 0);
    }
}
