//! `prefork bench`: runs a load test and prints its report.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::report_file::ReportFile;
use crate::args::parse_number;
use crate::output::print_stdout;
use prefork_bench::load::{
    self as load_generator, FaultPlan, LoadPlan, LoadProgress, TargetUrl, TlsOptions, TlsVersions,
};
use prefork_bench::scenario::{BenchReport, Workload, check_bench_scenario, run_bench_scenario};
use tokio_prefork::cli::parse_duration;
use tokio_prefork::{Error, Result};

const HELP: &str = "\
URL is http://HOST:PORT/PATH, https://HOST:PORT/PATH or unix:/run/app.sock:/PATH. Without --rate each connection sends its next request when the \
previous response is complete (closed loop). With --rate requests are scheduled by the clock, and latency is measured from \
the scheduled time, so that stalls of the server are visible; `sent late` says how far the generator was behind. The line `as wrk` is for comparison with wrk: a response slower \
than twice the mean interval of a connection is counted once more for each further interval, to correct for coordinated omission.

With --chaos the bench injects faults into the server, which must be a prefork server of this user on this machine: kill sends \
SIGKILL to a random worker, reload sends SIGHUP to the primary, freeze sends SIGSTOP to a random worker and SIGCONT after 1s or \
the time after the slash. A failed or late request is charged to the fault on the process that had its connection; what cannot be known is \
shown as \"kill or reload\". A frozen worker is resumed when the bench ends, however it ends; only if its guard process, a shell, is killed too \
does it wait for the stall check of its primary.

The certificate of an https:// URL is verified with the roots of the system, which SSL_CERT_FILE and SSL_CERT_DIR replace. With \
--close each request makes a TLS handshake: a full one, or with --resume one that resumes an earlier session. A run ends at once \
if no handshake can succeed.

With --scenario the file says what to request, and how; URL has no path. Its duration and warm-up are defaults. \
`prefork compare --show-scenario NAME` prints the scenarios that come with the program.

Ctrl-C ends the run and prints the results so far; a second Ctrl-C does not wait for outstanding requests.

Exit status: 0 all requests got a status below 400, 1 some did not, 64 invalid command line, 69 the server cannot be reached.

Examples:
  prefork bench http://127.0.0.1:3000/
  prefork bench -c 256 --duration 30s --rounds 3 --html report.html 127.0.0.1:3000
  prefork bench --rate 2000 http://127.0.0.1:3000/fib/20
  prefork bench --duration 20s --chaos kill=1s,reload=5s,freeze=10s 127.0.0.1:3000
  prefork bench --ca cert.pem https://localhost:8443/
  prefork bench --close --resume --insecure https://127.0.0.1:8443/
  prefork bench --scenario high-load http://127.0.0.1:3000
  prefork bench -d hello unix:/run/app.sock:/echo";

/// A load test and where its report goes.
#[derive(Debug)]
pub(crate) struct BenchCall {
    plan: LoadPlan,
    /// Takes the place of the request and the connections of `plan`.
    scenario: Option<Arc<Workload>>,
    json: bool,
    html: Option<PathBuf>,
    /// File with the request body.
    data_file: Option<PathBuf>,
}

/// Returns the definition of the verb.
pub(crate) fn bench_command() -> Command {
    let url = Arg::new("url").value_name("URL").required(true).value_parser(TargetUrl::parse);
    Command::new("bench")
        .about("Generate load; show throughput, latency and who responded")
        .after_help(HELP)
        .arg(url.help("URL to request"))
        .args(load())
        .arg(scenario())
        .args(request())
        .args(tls())
        .args(output())
}

fn load() -> [Arg; 15] {
    let number = |name: &'static str, short: char, help: &'static str| {
        let arg = Arg::new(name).long(name).value_name("N").value_parser(parse_number::<usize>);
        let arg = if short == ' ' { arg } else { arg.short(short) };
        arg.help(help)
    };
    let span = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("DURATION").value_parser(parse_duration).help(help)
    };
    [
        number("connections", 'c', "Total number of connections, up to 10000 [default: 64]"),
        number("threads", 't', "Threads of the load generator [default: 2]"),
        Arg::new("rate")
            .long("rate")
            .short('r')
            .value_name("N")
            .value_parser(parse_number::<u32>)
            .help("Requests per second to schedule [default: none, closed loop]"),
        switch("busy-wait", "With --rate, poll without sleeping: for idle cores only, else it is later")
            .requires("rate"),
        switch("close", "Open a new connection for each request"),
        number("pipeline", ' ', "Outstanding requests per connection [default: 1]"),
        switch("http2", "Use HTTP/2: by ALPN over TLS, else with prior knowledge"),
        number("streams", ' ', "With --http2, outstanding requests per connection [default: 1]")
            .requires("http2"),
        span("duration", "Duration of a measurement, up to 1h [default: 10s]"),
        span("warm-up", "Duration of the load before the measurement [default: 1s]"),
        number("rounds", ' ', "Number of measurements, each with new connections [default: 1]"),
        span("timeout", "Timeout for a response [default: 5s]"),
        Arg::new("pids").long("pids").value_name("HEADER").help(
            "Response header with the pid of the worker [default: the body \"Handled by PID n\"]",
        ),
        Arg::new("chaos")
            .long("chaos")
            .value_name("FAULTS")
            .value_parser(|text: &str| FaultPlan::parse(text, parse_duration))
            .help("Inject these faults at these intervals, such as kill=1s,reload=5s,freeze=10s/500ms"),
        span("late", "With --chaos, count slower responses as late [default: 100ms]"),
    ]
    .map(|arg| arg.help_heading("Load"))
}

fn scenario() -> Arg {
    Arg::new("scenario")
        .long("scenario")
        .value_name("FILE")
        .value_parser(Workload::find)
        .conflicts_with_all([
            "connections",
            "threads",
            "rate",
            "busy-wait",
            "close",
            "pipeline",
            "http2",
            "streams",
            "timeout",
            "chaos",
            "method",
            "header",
            "data",
            "data-file",
            "resume",
        ])
        .help("Loads from this TOML file, or from a built-in scenario")
        .help_heading("Load")
}

fn request() -> [Arg; 5] {
    let path = value_parser!(PathBuf);
    [
        Arg::new("method")
            .long("method")
            .short('X')
            .value_name("NAME")
            .help("Method [default: GET, or POST with a body]"),
        Arg::new("header")
            .long("header")
            .short('H')
            .value_name("NAME: VALUE")
            .action(ArgAction::Append)
            .help("Request header (may be repeated)"),
        Arg::new("data").long("data").short('d').value_name("TEXT").help("Request body"),
        Arg::new("data-file")
            .long("data-file")
            .value_name("FILE")
            .value_parser(path.clone())
            .conflicts_with("data")
            .help("File with the request body"),
        Arg::new("unix")
            .long("unix")
            .value_name("PATH")
            .value_parser(path)
            .help("Connect to this Unix socket instead of the URL's host"),
    ]
    .map(|arg| arg.help_heading("Request"))
}

fn tls() -> [Arg; 8] {
    let file = |name: &'static str, help: &'static str| {
        let arg = Arg::new(name).long(name).value_name("FILE");
        arg.value_parser(value_parser!(PathBuf)).help(help)
    };
    let list = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("LIST").value_delimiter(',').help(help)
    };
    [
        file("ca", "PEM file with the trusted certificates [default: those of the system]"),
        switch("insecure", "Accept any certificate").short('k').conflicts_with("ca"),
        file("cert", "PEM file with the client's certificate chain").requires("key"),
        file("key", "PEM file with the private key of --cert").requires("cert"),
        switch("resume", "Resume sessions in new connections, each TLS 1.3 ticket once"),
        Arg::new("tls-version")
            .long("tls-version")
            .value_name("VERSION")
            .value_parser(TlsVersions::parse)
            .help("Offer only this version, 1.2 or 1.3 [default: both]"),
        list("tls-groups", "Key exchange groups to offer, such as X25519 [default: all]"),
        list(
            "tls-ciphers",
            "Cipher suites to offer, such as TLS_AES_128_GCM_SHA256 [default: all]",
        ),
    ]
    .map(|arg| arg.help_heading("TLS"))
}

fn parse_tls(matches: &ArgMatches) -> TlsOptions {
    let path = |name: &str| matches.get_one::<PathBuf>(name).cloned();
    let list = |name: &str| -> Vec<String> {
        matches.get_many::<String>(name).map(|list| list.cloned().collect()).unwrap_or_default()
    };
    TlsOptions {
        ca_file: path("ca"),
        insecure: matches.get_flag("insecure"),
        client_certificate: path("cert").zip(path("key")),
        resume: matches.get_flag("resume"),
        versions: matches.get_one("tls-version").copied().unwrap_or_default(),
        groups: list("tls-groups"),
        cipher_suites: list("tls-ciphers"),
    }
}

fn output() -> [Arg; 2] {
    [
        switch("json", "Print a JSON object instead of the table"),
        Arg::new("html")
            .long("html")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("Also write the report as an HTML page"),
    ]
    .map(|arg| arg.help_heading("Output"))
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// Parses the arguments of `bench`.
///
/// # Errors
/// Values that make no sense together.
pub(crate) fn parse_bench(matches: &ArgMatches) -> Result<BenchCall, String> {
    let number = |name: &str| matches.get_one::<usize>(name).copied();
    let span = |name: &str| matches.get_one::<Duration>(name).copied();
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let path = |name: &str| matches.get_one::<PathBuf>(name).cloned();
    let target = matches.get_one::<TargetUrl>("url").cloned().ok_or("give a URL")?;
    let target = match path("unix") {
        Some(path) => target.with_unix_socket(path),
        None => target,
    };
    let standard = LoadPlan::new(target);
    let connections = number("connections").unwrap_or(standard.connections);
    let body = text("data").map(String::into_bytes);
    let data_file = path("data-file");
    let has_body = body.is_some() || data_file.is_some();
    let method = text("method").unwrap_or(if has_body { "POST" } else { "GET" }.to_string());
    let plan = LoadPlan {
        tls: parse_tls(matches),
        connections,
        threads: number("threads").unwrap_or(standard.threads),
        rate: matches.get_one("rate").copied(),
        busy_wait: matches.get_flag("busy-wait"),
        reconnect_each_request: matches.get_flag("close"),
        pipeline_depth: number("pipeline").unwrap_or(standard.pipeline_depth),
        http2_streams: matches.get_flag("http2").then(|| number("streams").unwrap_or(1)),
        method,
        headers: matches.get_many("header").map(|v| v.cloned().collect()).unwrap_or_default(),
        body,
        warm_up: span("warm-up").unwrap_or(standard.warm_up),
        duration: span("duration").unwrap_or(standard.duration),
        rounds: number("rounds").unwrap_or(standard.rounds),
        timeout: span("timeout").unwrap_or(standard.timeout),
        pid_header: text("pids"),
        faults: matches.get_one("chaos").copied(),
        late_threshold: span("late").unwrap_or(standard.late_threshold),
        ..standard
    };
    let scenario = matches.get_one::<Arc<Workload>>("scenario").cloned();
    let plan = match &scenario {
        Some(workload) => LoadPlan {
            warm_up: span("warm-up").or(workload.warm_up).unwrap_or(plan.warm_up),
            duration: span("duration").or(workload.duration).unwrap_or(plan.duration),
            ..plan
        },
        None => plan,
    };
    plan.validate()?;
    if let Some(workload) = &scenario {
        check_bench_scenario(workload, &plan)?;
    }
    let json = matches.get_flag("json");
    Ok(BenchCall { plan, scenario, json, html: path("html"), data_file })
}

/// Runs the load test, shows progress on a terminal, and prints the report.
pub(crate) fn run_bench(call: BenchCall) -> Result<ExitCode> {
    let mut plan = call.plan;
    if let Some(path) = &call.data_file {
        let read = std::fs::read(path);
        plan.body = Some(read.map_err(|e| Error::system(format!("read {}", path.display()), e))?);
    }
    // Created before the run, so that a path that cannot be written fails early.
    let page = call.html.as_deref().map(ReportFile::create).transpose()?;
    let watched = std::io::stderr().is_terminal();
    let rounds = plan.rounds;
    let on_progress = |progress: LoadProgress| {
        if watched {
            show_progress(&progress_line(&progress, rounds));
        }
    };
    let report = match &call.scenario {
        Some(workload) => run_bench_scenario(workload, &plan, on_progress),
        None => load_generator::run_load(&plan, on_progress)
            .map(|report| Some(BenchReport::Requests(Box::new(report)))),
    };
    if watched {
        show_progress("");
    }
    let Some(mut report) = report? else {
        return Err(Error::refused("a signal ended the run before there was anything to report"));
    };
    report.set_build(option_env!("BUILD_COMMIT"), option_env!("BUILD_COMPILER"));
    let text = if call.json { report.to_json() + "\n" } else { report.to_table() };
    // The page first: standard output may be full, or its reader gone.
    if let Some(page) = page {
        page.write_report(&report.to_html())?;
    }
    print_stdout(&text)?;
    Ok(ExitCode::from(report.exit_status()))
}

/// Shows progress in place of the previous line.
pub(super) fn show_progress(text: &str) {
    // A failed write to the terminal has no other place to be reported.
    let _ = write!(std::io::stderr(), "\r{text}\x1b[K");
}

fn progress_line(progress: &LoadProgress, rounds: usize) -> String {
    let round = match rounds {
        1 => String::new(),
        _ => format!("round {} of {rounds}, ", progress.round),
    };
    let (elapsed, whole) = (progress.elapsed.as_secs_f64(), progress.total.as_secs_f64());
    let time = match elapsed <= whole {
        true => format!("{elapsed:.1} of {whole:.1} s"),
        false => "waiting for what is on the way".to_string(),
    };
    format!(
        "{round}{time}: {:.0} requests/s, {} failed",
        progress.requests_per_second, progress.failed
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{self, Verb};

    fn call(line: &str) -> BenchCall {
        match args::parse_args(line.split(' ')).expect(line) {
            Verb::Bench(call) => *call,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_become_a_plan() {
        let call = call(
            "prefork bench -c 8 -t 1 -r 100 --duration 2s --warm-up 0 -H A:b -H C:d -d x --json h:1/a",
        );
        let plan = &call.plan;
        assert_eq!((plan.connections, plan.threads, plan.rate), (8, 1, Some(100)));
        assert_eq!((plan.duration, plan.warm_up), (Duration::from_secs(2), Duration::ZERO));
        assert_eq!((plan.method.as_str(), plan.headers.len()), ("POST", 2));
        assert_eq!(plan.body.as_deref(), Some(&b"x"[..]));
        assert!(call.json && call.html.is_none());
    }

    #[test]
    fn a_socket_takes_the_place_of_the_host() {
        let plan = call("prefork bench --unix /run/a.sock http://name/uri").plan;
        assert_eq!(plan.target.to_string(), "unix:/run/a.sock:/uri");
        assert_eq!((plan.method.as_str(), plan.body), ("GET", None));
    }

    #[test]
    fn flags_become_tls_options() {
        let line = "prefork bench --ca ca.pem --cert c.pem --key k.pem --resume --tls-version 1.3 \
                    --tls-groups X25519,secp256r1 https://h/";
        let tls = call(line).plan.tls;
        assert_eq!(tls.ca_file, Some(PathBuf::from("ca.pem")));
        assert_eq!(tls.client_certificate, Some(("c.pem".into(), "k.pem".into())));
        assert_eq!((tls.resume, tls.insecure, tls.versions), (true, false, TlsVersions::Only13));
        assert_eq!(tls.groups, ["X25519", "secp256r1"]);
        assert!(call("prefork bench -k https://h/").plan.tls.insecure);
    }

    #[test]
    fn the_times_of_a_scenario_are_defaults() {
        let of_file = call("prefork bench --scenario ramp h:1");
        assert_eq!(of_file.scenario.as_ref().map(|one| one.name()), Some("ramp"));
        assert_eq!(of_file.plan.duration, Duration::from_secs(5));
        let given = call("prefork bench --scenario ramp --duration 7s h:1");
        assert_eq!(given.plan.duration, Duration::from_secs(7));
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for line in [
            "prefork bench",
            "prefork bench ftp://h/",
            "prefork bench --busy-wait http://h/",
            "prefork bench --insecure http://h/",
            "prefork bench --cert a https://h/",
            "prefork bench --tls-version 1.1 https://h/",
            "prefork bench --insecure --ca a https://h/",
            "prefork bench -c 0 h",
            "prefork bench --scenario high-load -c 5 h",
            "prefork bench --scenario high-load h/path",
            "prefork bench --scenario full-handshakes h",
            "prefork bench --scenario idle h",
            "prefork bench --scenario nowhere.toml h",
            "prefork bench --pipeline 2 --close h",
            "prefork bench --http2 --pipeline 2 h",
            "prefork bench --streams 2 h",
            "prefork bench --http2 --streams 2 --close h",
            "prefork bench --http2 -H Upgrade:x h",
            "prefork bench --data a --data-file b h",
            "prefork bench --duration 2 x h",
        ] {
            assert!(args::parse_args(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn the_line_of_a_terminal_says_where_it_is() {
        let mut progress = LoadProgress {
            round: 2,
            elapsed: Duration::from_millis(1500),
            total: Duration::from_secs(11),
            requests_per_second: 1234.4,
            failed: 3,
        };
        assert_eq!(
            progress_line(&progress, 3),
            "round 2 of 3, 1.5 of 11.0 s: 1234 requests/s, 3 failed"
        );
        progress.elapsed = Duration::from_secs(12);
        assert!(progress_line(&progress, 1).starts_with("waiting for what is on the way: "));
    }
}
