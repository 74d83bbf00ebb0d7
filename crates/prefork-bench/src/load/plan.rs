//! What is to be done to the target, checked before anything is: counts, times, and the bytes of a request.

use std::time::Duration;

use super::target_url::TargetUrl;
use crate::chaos::FaultPlan;

/// Connections that one run may keep open.
pub const MAX_CONNECTIONS: usize = 10_000;
/// The longest round, warm-up or timeout.
const MAX_DURATION: Duration = Duration::from_secs(3600);
/// The largest rate, in requests per second.
const MAX_REQUESTS_PER_SECOND: u32 = 10_000_000;

/// A load: so many connections, for so long, with this request.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    /// Who is asked.
    pub target: TargetUrl,
    /// Connections in all.
    pub connections: usize,
    /// Threads they are shared among.
    pub threads: usize,
    /// Requests per second that are due whatever becomes of earlier ones; `None`: each connection sends its
    /// next request when it has the answer.
    pub rate: Option<u32>,
    /// A new connection for each request.
    pub reconnect_each_request: bool,
    /// Requests on the way on each connection.
    pub pipeline_depth: usize,
    /// The method of the request.
    pub method: String,
    /// Fields of the request, as `Name: value`.
    pub headers: Vec<String>,
    /// The body of the request; `None`: it has none.
    pub body: Option<Vec<u8>>,
    /// How long the load runs before anything counts.
    pub warm_up: Duration,
    /// How long a round is measured.
    pub duration: Duration,
    /// How often it is measured, with new connections each time.
    pub rounds: usize,
    /// How long an answer may take.
    pub timeout: Duration,
    /// The field of the response that tells the process; `None`: the body `Handled by PID n` does.
    pub pid_header: Option<String>,
    /// What is done to the target while it is measured.
    pub faults: Option<FaultPlan>,
    /// An answer that takes longer is late; counted only if something is done to the target.
    pub late_threshold: Duration,
}

impl LoadPlan {
    /// Whether each connection waits for an answer before it asks again.
    pub(crate) fn is_closed_loop(&self) -> bool {
        self.rate.is_none() && self.pipeline_depth == 1
    }

    /// The plan of `prefork bench URL`: 10 s, 64 connections, two threads.
    pub fn new(target: TargetUrl) -> LoadPlan {
        LoadPlan {
            target,
            connections: 64,
            threads: 2,
            rate: None,
            reconnect_each_request: false,
            pipeline_depth: 1,
            method: "GET".to_string(),
            headers: Vec::new(),
            body: None,
            warm_up: Duration::from_secs(1),
            duration: Duration::from_secs(10),
            rounds: 1,
            timeout: Duration::from_secs(5),
            pid_header: None,
            faults: None,
            late_threshold: Duration::from_millis(100),
        }
    }

    /// Whether all of it makes sense together.
    ///
    /// # Errors
    /// The value that does not, and what it may be.
    pub fn validate(&self) -> Result<(), String> {
        let within = |what: &str, value: usize, most: usize| match value {
            value if (1..=most).contains(&value) => Ok(()),
            _ => Err(format!("{what} {value}: give 1 to {most}")),
        };
        within("--connections", self.connections, MAX_CONNECTIONS)?;
        within("--threads", self.threads, 64)?;
        within("--pipeline", self.pipeline_depth, 1024)?;
        within("--rounds", self.rounds, 100)?;
        within("--rate", self.rate.unwrap_or(1) as usize, MAX_REQUESTS_PER_SECOND as usize)?;
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
        if self.pipeline_depth > 1 && (self.reconnect_each_request || self.rate.is_some()) {
            return Err("--pipeline is for kept connections without --rate".to_string());
        }
        if !is_http_token(&self.method) {
            return Err(format!("{:?} is no method: give one as GET or POST", self.method));
        }
        if self.method == "CONNECT" {
            return Err("CONNECT makes a tunnel, which is no request to measure".to_string());
        }
        if let Some(name) = self.pid_header.as_ref().filter(|name| !is_http_token(name)) {
            return Err(format!("--pids {name:?} is no name of a header: give one as X-Pid"));
        }
        self.headers.iter().try_for_each(|line| split_header(line).map(|_| ()))
    }

    /// The bytes of one request.
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

    /// Whether the method gives content a meaning, so that its absence is to be said (RFC 9110, 8.6).
    fn method_defines_content(&self) -> bool {
        ["POST", "PUT", "PATCH"].contains(&self.method.as_str())
    }

    /// Connections of thread `thread`: as even as it goes.
    pub(crate) fn thread_connections(&self, thread: usize) -> usize {
        (self.connections + self.thread_count() - 1 - thread) / self.thread_count()
    }

    /// Threads that have a connection.
    pub(crate) fn thread_count(&self) -> usize {
        self.threads.min(self.connections)
    }

    /// How the connections are used, in a few words.
    pub(crate) fn describe_connections(&self) -> String {
        let kept = match (self.reconnect_each_request, self.pipeline_depth) {
            (true, _) => "a new connection for each request".to_string(),
            (false, 1) => "kept connections".to_string(),
            (false, depth) => format!("kept connections with {depth} requests on the way"),
        };
        match self.rate {
            Some(rate) => format!("{rate} requests/s are due, {kept}"),
            None => kept,
        }
    }
}

/// Name and value of `Name: value`.
fn split_header(line: &str) -> Result<(&str, &str), String> {
    let bad = || format!("{line:?} is no header: give one as \"Name: value\"");
    let (name, value) = line.split_once(':').ok_or_else(bad)?;
    let value = value.trim();
    let visible = value.chars().all(|c| c == '\t' || !c.is_control());
    if is_http_token(name) && visible { Ok((name, value)) } else { Err(bad()) }
}

fn is_http_token(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> LoadPlan {
        LoadPlan::new(TargetUrl::parse("http://h:1/a").expect("url"))
    }

    fn text(plan: &LoadPlan) -> String {
        String::from_utf8(plan.encode_request()).expect("text")
    }

    #[test]
    fn a_request_has_what_it_needs_and_what_was_said() {
        assert_eq!(text(&plan()), "GET /a HTTP/1.1\r\nHost: h:1\r\n\r\n");
        let mut full = plan();
        full.reconnect_each_request = true;
        full.method = "POST".to_string();
        full.headers = vec!["HOST: other".to_string(), "X-A:b".to_string()];
        full.body = Some(b"four".to_vec());
        assert_eq!(
            text(&full),
            "POST /a HTTP/1.1\r\nConnection: close\r\nContent-Length: 4\r\nHOST: other\r\n\
             X-A: b\r\n\r\nfour"
        );
    }

    #[test]
    fn a_method_that_takes_content_says_that_there_is_none() {
        for (method, says) in
            [("POST", true), ("PUT", true), ("PATCH", true), ("GET", false), ("DELETE", false)]
        {
            let request = text(&LoadPlan { method: method.to_string(), ..plan() });
            assert_eq!(request.contains("\r\nContent-Length: 0\r\n"), says, "{request}");
        }
    }

    #[test]
    fn what_the_user_says_wins_and_never_stands_beside_ours() {
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
            let request =
                text(&LoadPlan { headers, body, method, reconnect_each_request: true, ..plan() });
            let name = header.split(':').next().expect("a name").to_lowercase() + ":";
            let heads = request.to_lowercase();
            let lines = heads.lines().filter(|line| line.starts_with(&name));
            assert_eq!(lines.collect::<Vec<_>>(), [header.to_lowercase()], "{request}");
            // Both lengths would be two messages.
            let lengths = ["content-length:", "transfer-encoding:"];
            let lengths = heads.lines().filter(|line| lengths.iter().any(|l| line.starts_with(l)));
            assert_eq!(lengths.count(), 1, "{request}");
        }
        let headers = vec!["A: 1".to_string(), "A: 2".to_string()];
        assert!(text(&LoadPlan { headers, ..plan() }).contains("\r\nA: 1\r\nA: 2\r\n"));
    }

    #[test]
    fn a_chunked_body_is_sent_in_chunks() {
        let headers = vec!["Transfer-Encoding: gzip, Chunked".to_string()];
        let with =
            |body: Option<Vec<u8>>| text(&LoadPlan { headers: headers.clone(), body, ..plan() });
        assert!(
            with(Some(b"0123456789".to_vec())).ends_with("\r\n\r\na\r\n0123456789\r\n0\r\n\r\n")
        );
        assert!(with(None).ends_with("\r\n\r\n0\r\n\r\n"));
    }

    #[test]
    fn connections_are_shared_evenly_and_none_is_lost() {
        let mut plan = plan();
        for (connections, threads) in [(1, 2), (2, 2), (7, 3), (64, 2), (10_000, 64)] {
            (plan.connections, plan.threads) = (connections, threads);
            let shares: Vec<usize> =
                (0..plan.thread_count()).map(|thread| plan.thread_connections(thread)).collect();
            assert_eq!(shares.iter().sum::<usize>(), connections);
            assert!(shares.iter().max() <= shares.iter().min().map(|m| m + 1).as_ref());
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert_eq!(plan().validate(), Ok(()));
        type LoadPlanChange = fn(&mut LoadPlan);
        let wrong: [(LoadPlanChange, &str); 11] = [
            (|p| p.connections = 0, "--connections 0: give 1 to 10000"),
            (|p| p.connections = 10_001, "--connections 10001"),
            (|p| p.threads = 0, "--threads 0"),
            (|p| p.rate = Some(0), "--rate 0"),
            (|p| p.duration = Duration::from_secs(3601), "--duration 3601s"),
            (|p| p.timeout = Duration::ZERO, "--timeout 0ns: give 100ms"),
            (
                |p| (p.pipeline_depth, p.reconnect_each_request) = (2, true),
                "--pipeline is for kept",
            ),
            (|p| p.method = "G T".to_string(), "no method"),
            (|p| p.headers = vec!["X".to_string()], "no header"),
            (|p| p.headers = vec!["X: a\r\nB: c".to_string()], "no header"),
            (|p| p.pid_header = Some("a b".to_string()), "no name of a header"),
        ];
        for (change, piece) in wrong {
            let mut plan = plan();
            change(&mut plan);
            let why = plan.validate().expect_err(piece);
            assert!(why.contains(piece), "{why}");
        }
    }
}
