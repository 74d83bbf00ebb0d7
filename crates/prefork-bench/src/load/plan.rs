//! What load to put on a server: [`LoadPlan`], its limits, and the bytes of its request.

use std::time::Duration;

use super::http2::{Http2Request, validate_http2_header};
use super::request_mix::WeightedRequest;
use super::target_url::TargetUrl;
use super::tls::TlsOptions;
use crate::chaos::FaultPlan;
use tokio_prefork::text::HumanDuration;

/// Most connections of one run.
pub(crate) const MAX_CONNECTIONS: usize = 10_000;
/// Longest duration, warm-up and timeout: one hour.
const MAX_DURATION: Duration = Duration::from_secs(3600);
/// Highest rate, in requests per second.
pub(crate) const MAX_REQUESTS_PER_SECOND: u32 = 10_000_000;

/// A load: connections, durations, and the request to send.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    /// The URL to request.
    pub target: TargetUrl,
    /// TLS of an `https://` target. Default: the system's roots, full handshakes.
    pub tls: TlsOptions,
    /// Connections of all threads. Default 64.
    pub connections: usize,
    /// Threads of the load generator. Default 2.
    pub threads: usize,
    /// Requests due per second (open loop). `None`, the default: each connection sends its next request when
    /// it has the response (closed loop).
    pub rate: Option<u32>,
    /// Requests due per second at the end of the measurement, up or down to which the rate goes evenly from `rate` at its
    /// begin. `None`, the default, does not change it.
    pub rate_at_end: Option<u32>,
    /// Time from the begin of the measurement over which the connections are opened, the first one before. Default zero:
    /// all at once. Only in a closed loop.
    pub connection_ramp: Duration,
    /// Whether threads poll without sleeping, so that requests of an open loop are sent closer to their due times.
    /// Uses all CPU time of a core for each thread. Default `false`.
    pub busy_wait: bool,
    /// Whether each request opens a new connection. Default `false`.
    pub reconnect_each_request: bool,
    /// Requests in flight on each connection of HTTP/1.1. Default 1.
    pub pipeline_depth: usize,
    /// Streams in flight on each connection of HTTP/2. `None`, the default, uses HTTP/1.1.
    pub http2_streams: Option<usize>,
    /// Method of the request. Default `GET`.
    pub method: String,
    /// Header fields of the request, as `Name: value`.
    pub headers: Vec<String>,
    /// Body of the request; `None` sends none.
    pub body: Option<Vec<u8>>,
    /// Requests of several kinds, in place of `method`, `headers`, `body` and the path of `target`. Empty, the default,
    /// sends one kind.
    pub mix: Vec<WeightedRequest>,
    /// Length of the load before the measurement. Default 1 s.
    pub warm_up: Duration,
    /// Length of the measurement in each round. Default 10 s.
    pub duration: Duration,
    /// Number of rounds, each with new connections. Default 1.
    pub rounds: usize,
    /// Longest wait for a response. Default 5 s.
    pub timeout: Duration,
    /// Response header field with the pid that answered; `None` reads the body `Handled by PID n`.
    pub pid_header: Option<String>,
    /// Faults to inject into the server during the measurement.
    pub faults: Option<FaultPlan>,
    /// Responses slower than this count as late; used only with `faults`. Default 100 ms.
    pub late_threshold: Duration,
}

impl LoadPlan {
    /// Returns whether each connection waits for a response before it sends the next request.
    pub(crate) fn is_closed_loop(&self) -> bool {
        self.rate.is_none() && self.requests_per_connection() == 1
    }

    /// Returns whether the load changes during the measurement.
    pub(crate) fn has_ramp(&self) -> bool {
        self.rate_at_end.is_some() || !self.connection_ramp.is_zero()
    }

    /// Returns whether requests are sent over HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        self.http2_streams.is_some()
    }

    /// Returns the number of requests in flight on each connection.
    pub(crate) fn requests_per_connection(&self) -> usize {
        self.http2_streams.unwrap_or(self.pipeline_depth)
    }

    /// Creates a plan with the defaults of `prefork bench URL`.
    pub fn new(target: TargetUrl) -> LoadPlan {
        LoadPlan {
            target,
            tls: TlsOptions::default(),
            connections: 64,
            threads: 2,
            rate: None,
            rate_at_end: None,
            connection_ramp: Duration::ZERO,
            busy_wait: false,
            reconnect_each_request: false,
            pipeline_depth: 1,
            http2_streams: None,
            method: "GET".to_string(),
            headers: Vec::new(),
            body: None,
            mix: Vec::new(),
            warm_up: Duration::from_secs(1),
            duration: Duration::from_secs(10),
            rounds: 1,
            timeout: Duration::from_secs(5),
            pid_header: None,
            faults: None,
            late_threshold: Duration::from_millis(100),
        }
    }

    /// Returns the same load over HTTP/2: pipelined requests become streams.
    pub(crate) fn with_http2(self) -> LoadPlan {
        LoadPlan { http2_streams: Some(self.pipeline_depth), pipeline_depth: 1, ..self }
    }

    /// Checks the plan.
    ///
    /// # Errors
    /// Names the first invalid value and the valid ones.
    pub fn validate(&self) -> Result<(), String> {
        let within = |what: &str, value: usize, most: usize| match value {
            value if (1..=most).contains(&value) => Ok(()),
            _ => Err(format!("{what} {value}: give 1 to {most}")),
        };
        within("--connections", self.connections, MAX_CONNECTIONS)?;
        within("--threads", self.threads, 64)?;
        within("--pipeline", self.pipeline_depth, 1024)?;
        within("--rounds", self.rounds, 100)?;
        for rate in [self.rate, self.rate_at_end] {
            within("--rate", rate.unwrap_or(1) as usize, MAX_REQUESTS_PER_SECOND as usize)?;
        }
        if self.rate_at_end.is_some() && self.rate.is_none() {
            return Err("a rate at the end needs one at the begin".to_string());
        }
        if !self.connection_ramp.is_zero() && self.rate.is_some() {
            return Err("connections are opened over time only in a closed loop, without a rate"
                .to_string());
        }
        if self.connection_ramp > self.duration {
            return Err(format!(
                "connections are opened over {:?}: give at most the duration, {:?}",
                self.connection_ramp, self.duration
            ));
        }
        let least = Duration::from_millis(100);
        for (what, value, least) in [
            ("--duration", self.duration, least),
            ("--timeout", self.timeout, least),
            ("--warm-up", self.warm_up, Duration::ZERO),
        ] {
            if !(least..=MAX_DURATION).contains(&value) {
                return Err(format!("{what} {value:?}: give {least:?} to {MAX_DURATION:?}"));
            }
        }
        if let Some(faults) = &self.faults {
            faults.validate(self.duration)?;
        }
        if let Some(streams) = self.http2_streams {
            self.validate_http2(streams)?;
        }
        if self.pipeline_depth > 1 && (self.reconnect_each_request || self.rate.is_some()) {
            return Err("--pipeline cannot be combined with --close or --rate".to_string());
        }
        if !self.target.is_https() && self.tls != TlsOptions::default() {
            return Err(format!("options of TLS need an https:// URL: {} has none", self.target));
        }
        if let Some(name) = self.pid_header.as_ref().filter(|name| !is_http_token(name)) {
            return Err(format!("--pids {name:?} is not a header name: give one like X-Pid"));
        }
        if self.mix.is_empty() { self.validate_request() } else { self.validate_mix() }
    }

    /// Checks the request.
    pub(crate) fn validate_request(&self) -> Result<(), String> {
        if !is_http_token(&self.method) {
            return Err(format!("{:?} is not a method: give one like GET or POST", self.method));
        }
        if self.method == "CONNECT" {
            return Err("the method CONNECT opens a tunnel and cannot be measured".to_string());
        }
        self.headers.iter().try_for_each(|line| split_header(line).map(|_| ()))?;
        match self.is_http2() {
            true => self.validate_http2_request(),
            false => Ok(()),
        }
    }

    fn validate_http2(&self, streams: usize) -> Result<(), String> {
        if !(1..=1024).contains(&streams) {
            return Err(format!("--streams {streams}: give 1 to 1024"));
        }
        if self.pipeline_depth > 1 {
            return Err("--pipeline is for HTTP/1.1: use --streams with --http2".to_string());
        }
        if streams > 1 && self.reconnect_each_request {
            return Err("--streams cannot be combined with --close".to_string());
        }
        Ok(())
    }

    /// Checks that HTTP/2 can express the request.
    fn validate_http2_request(&self) -> Result<(), String> {
        for line in &self.headers {
            validate_http2_header(split_header(line)?.0)?;
        }
        Http2Request::from_plan(self).map(drop)
    }

    /// Returns the bytes of one request.
    pub(crate) fn encode_request(&self) -> Vec<u8> {
        let has_header = |name: &str| {
            self.headers.iter().any(|line| {
                split_header(line).is_ok_and(|(given, _)| given.eq_ignore_ascii_case(name))
            })
        };
        let is_chunked = self.headers.iter().any(|line| {
            split_header(line).is_ok_and(|(name, codings)| {
                let last = codings.rsplit(',').next().unwrap_or_default().trim();
                name.eq_ignore_ascii_case("transfer-encoding")
                    && last.eq_ignore_ascii_case("chunked")
            })
        });
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target.request_target);
        if !has_header("host") {
            head.push_str(&format!("Host: {}\r\n", self.target.host_header));
        }
        if self.reconnect_each_request && !has_header("connection") {
            head.push_str("Connection: close\r\n");
        }
        let body = self.body.as_deref().unwrap_or_default();
        let has_length = has_header("content-length") || has_header("transfer-encoding");
        if !has_length && (self.body.is_some() || self.method_defines_content()) {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        for (name, value) in self.headers.iter().filter_map(|line| split_header(line).ok()) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        match is_chunked {
            false => [head.as_bytes(), body].concat(),
            true if body.is_empty() => [head.as_bytes(), b"0\r\n\r\n"].concat(),
            true => {
                let size = format!("{:x}\r\n", body.len());
                [head.as_bytes(), size.as_bytes(), body, b"\r\n0\r\n\r\n"].concat()
            }
        }
    }

    /// Returns whether the method expects content, so that a missing body needs `Content-Length: 0` (RFC
    /// 9110, 8.6).
    pub(crate) fn method_defines_content(&self) -> bool {
        ["POST", "PUT", "PATCH"].contains(&self.method.as_str())
    }

    /// Returns the number of connections of thread `thread`; they differ by at most one.
    pub(crate) fn thread_connections(&self, thread: usize) -> usize {
        (self.connections + self.thread_count() - 1 - thread) / self.thread_count()
    }

    /// Threads that have a connection.
    pub(crate) fn thread_count(&self) -> usize {
        self.threads.min(self.connections)
    }

    /// Describes the use of connections, for reports.
    pub(crate) fn describe_connections(&self) -> String {
        let depth = self.requests_per_connection();
        let kept = match (self.reconnect_each_request, depth) {
            (true, _) => "a new connection for each request".to_string(),
            (false, 1) => "kept connections".to_string(),
            (false, depth) => format!("kept connections with {depth} requests in flight on each"),
        };
        let kept = if self.is_http2() { format!("HTTP/2, {kept}") } else { kept };
        let kept = match self.connection_ramp {
            Duration::ZERO => kept,
            ramp => format!("{kept}, opened over {}", HumanDuration(ramp)),
        };
        let kept = match self.mix.len() {
            0 => kept,
            kinds => format!("{kept}, {kinds} kinds of requests"),
        };
        match (self.rate, self.rate_at_end) {
            (Some(rate), Some(end)) => format!("{rate} to {end} requests/s are due, {kept}"),
            (Some(rate), None) => format!("{rate} requests/s are due, {kept}"),
            (None, _) => kept,
        }
    }
}

/// Splits `Name: value`.
pub(crate) fn split_header(line: &str) -> Result<(&str, &str), String> {
    let bad = || format!("{line:?} is not a header: give one like \"Name: value\"");
    let (name, value) = line.split_once(':').ok_or_else(bad)?;
    let value = value.trim();
    let visible = value.chars().all(|c| c == '\t' || !c.is_control());
    if is_http_token(name) && visible { Ok((name, value)) } else { Err(bad()) }
}

/// Returns whether a text is a token, as methods and names of header fields are (RFC 9110, 5.6.2).
pub(crate) fn is_http_token(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_plan() -> LoadPlan {
        LoadPlan::new(TargetUrl::parse("http://h:1/a").expect("url"))
    }

    fn request_text(plan: &LoadPlan) -> String {
        String::from_utf8(plan.encode_request()).expect("text")
    }

    #[test]
    fn a_request_has_the_required_headers_and_the_given_ones() {
        assert_eq!(request_text(&sample_plan()), "GET /a HTTP/1.1\r\nHost: h:1\r\n\r\n");
        let mut full = sample_plan();
        full.reconnect_each_request = true;
        full.method = "POST".to_string();
        full.headers = vec!["HOST: other".to_string(), "X-A:b".to_string()];
        full.body = Some(b"four".to_vec());
        assert_eq!(
            request_text(&full),
            "POST /a HTTP/1.1\r\nConnection: close\r\nContent-Length: 4\r\nHOST: other\r\n\
             X-A: b\r\n\r\nfour"
        );
    }

    #[test]
    fn methods_with_content_send_content_length_zero_without_a_body() {
        for (method, says) in
            [("POST", true), ("PUT", true), ("PATCH", true), ("GET", false), ("DELETE", false)]
        {
            let request = request_text(&LoadPlan { method: method.to_string(), ..sample_plan() });
            assert_eq!(request.contains("\r\nContent-Length: 0\r\n"), says, "{request}");
        }
    }

    #[test]
    fn given_headers_replace_the_default_ones() {
        for header in [
            "host: other",
            "CONNECTION: keep-alive",
            "content-LENGTH: 4",
            "User-Agent: mine",
            "accept: */*",
            "Transfer-encoding: chunked",
        ] {
            let headers = vec![header.to_string()];
            let body = Some(b"four".to_vec());
            let method = "POST".to_string();
            let request = request_text(&LoadPlan {
                headers,
                body,
                method,
                reconnect_each_request: true,
                ..sample_plan()
            });
            let name = header.split(':').next().expect("a name").to_lowercase() + ":";
            let heads = request.to_lowercase();
            let lines = heads.lines().filter(|line| line.starts_with(&name));
            assert_eq!(lines.collect::<Vec<_>>(), [header.to_lowercase()], "{request}");
            // Two lengths would allow two readings of the message.
            let lengths = ["content-length:", "transfer-encoding:"];
            let lengths = heads.lines().filter(|line| lengths.iter().any(|l| line.starts_with(l)));
            assert_eq!(lengths.count(), 1, "{request}");
        }
        let headers = vec!["A: 1".to_string(), "A: 2".to_string()];
        assert!(
            request_text(&LoadPlan { headers, ..sample_plan() }).contains("\r\nA: 1\r\nA: 2\r\n")
        );
    }

    #[test]
    fn a_chunked_body_is_sent_in_chunks() {
        let headers = vec!["Transfer-Encoding: gzip, Chunked".to_string()];
        let with = |body: Option<Vec<u8>>| {
            request_text(&LoadPlan { headers: headers.clone(), body, ..sample_plan() })
        };
        assert!(
            with(Some(b"0123456789".to_vec())).ends_with("\r\n\r\na\r\n0123456789\r\n0\r\n\r\n")
        );
        assert!(with(None).ends_with("\r\n\r\n0\r\n\r\n"));
    }

    #[test]
    fn connections_are_divided_evenly_among_threads() {
        let mut plan = sample_plan();
        for (connections, threads) in [(1, 2), (2, 2), (7, 3), (64, 2), (10_000, 64)] {
            (plan.connections, plan.threads) = (connections, threads);
            let shares: Vec<usize> =
                (0..plan.thread_count()).map(|thread| plan.thread_connections(thread)).collect();
            assert_eq!(shares.iter().sum::<usize>(), connections);
            assert!(shares.iter().max() <= shares.iter().min().map(|m| m + 1).as_ref());
        }
    }

    #[test]
    fn invalid_plans_name_the_wrong_value() {
        assert_eq!(sample_plan().validate(), Ok(()));
        type LoadPlanChange = fn(&mut LoadPlan);
        let wrong: [(LoadPlanChange, &str); 14] = [
            (|p| p.connections = 0, "--connections 0: give 1 to 10000"),
            (|p| p.connections = 10_001, "--connections 10001"),
            (|p| p.threads = 0, "--threads 0"),
            (|p| p.rate = Some(0), "--rate 0"),
            (|p| p.rate_at_end = Some(5), "needs one at the begin"),
            (
                |p| (p.rate, p.connection_ramp) = (Some(5), Duration::from_secs(1)),
                "only in a closed loop",
            ),
            (|p| p.connection_ramp = Duration::from_secs(11), "at most the duration"),
            (|p| p.duration = Duration::from_secs(3601), "--duration 3601s"),
            (|p| p.timeout = Duration::ZERO, "--timeout 0ns: give 100ms"),
            (
                |p| (p.pipeline_depth, p.reconnect_each_request) = (2, true),
                "--pipeline cannot be combined",
            ),
            (|p| p.method = "G T".to_string(), "not a method"),
            (|p| p.headers = vec!["X".to_string()], "not a header"),
            (|p| p.headers = vec!["X: a\r\nB: c".to_string()], "not a header"),
            (|p| p.pid_header = Some("a b".to_string()), "not a header name"),
        ];
        for (change, piece) in wrong {
            let mut plan = sample_plan();
            change(&mut plan);
            let why = plan.validate().expect_err(piece);
            assert!(why.contains(piece), "{why}");
        }
    }
}
