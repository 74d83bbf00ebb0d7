//! `prefork bench URL`: flags to a plan, and the report to whoever wants it.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::report_file::ReportFile;
use crate::output::print_stdout;
use crate::settings::value_syntax::parse_duration;
use prefork_bench::load::{self as load_generator, FaultPlan, LoadPlan, LoadProgress, TargetUrl};
use tokio_prefork::{Error, Result};

const HELP: &str = "\
URL is http://HOST:PORT/PATH or unix:/run/app.sock:/PATH. Without --rate each connection sends its next request when \
it has the answer to the last one. With --rate requests are due by the clock, and latency counts from then, so that a \
server that stands still is seen to. The line `as wrk` is for comparing with wrk: an answer slower than twice the mean \
interval of a connection is counted once more for each interval in it, for requests that nobody sent meanwhile.

With --chaos faults are done to the server, which must be a prefork server of this user on this machine: kill is SIGKILL to a \
worker drawn by lot, reload is SIGHUP to the primary, freeze is SIGSTOP to a worker drawn by lot and SIGCONT after 1s or the \
time behind the slash. A request that suffered counts for the fault done last to its process, or else for the last one \
before it. A frozen worker goes on when the bench ends, however it ends; only if its guard, a shell, is killed as well does \
it wait for the watchdog of its primary.

Ctrl-C ends the run and prints what was measured; a second one does not wait for what is on the way.

Exit status: 0 all requests were answered with a status below 400, 1 some were not, 64 the command line is wrong, 69 nobody \
answers.

Examples:
  prefork bench http://127.0.0.1:3000/
  prefork bench -c 256 --duration 30s --rounds 3 --html report.html 127.0.0.1:3000
  prefork bench --rate 2000 http://127.0.0.1:3000/fib/20
  prefork bench --duration 20s --chaos kill=1s,reload=5s,freeze=10s 127.0.0.1:3000
  prefork bench -d hello unix:/run/app.sock:/echo";

/// A run, and where its report goes.
#[derive(Debug)]
pub(crate) struct BenchCall {
    plan: LoadPlan,
    json: bool,
    html: Option<PathBuf>,
    /// Becomes the body of the plan.
    data_file: Option<PathBuf>,
}

/// The words after `prefork bench`.
pub(crate) fn bench_command() -> Command {
    let url = Arg::new("url").value_name("URL").required(true).value_parser(TargetUrl::parse);
    Command::new("bench")
        .about("Put load on a server, and see which process answered how fast")
        .after_help(HELP)
        .arg(url.help("What is asked for, and of whom"))
        .args(load())
        .args(request())
        .args(output())
}

fn load() -> [Arg; 12] {
    let number = |name: &'static str, short: char, help: &'static str| {
        let arg = Arg::new(name).long(name).value_name("N").value_parser(value_parser!(usize));
        let arg = if short == ' ' { arg } else { arg.short(short) };
        arg.help(help)
    };
    let span = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("DURATION").value_parser(parse_duration).help(help)
    };
    [
        number("connections", 'c', "Connections in all, up to 10000 [default: 64]"),
        number("threads", 't', "Threads they are shared among [default: 2]"),
        Arg::new("rate")
            .long("rate")
            .short('r')
            .value_name("N")
            .value_parser(value_parser!(u32))
            .help("Requests per second that are due [default: none, a closed loop]"),
        switch("close", "Make a new connection for each request"),
        number("pipeline", ' ', "Requests on the way on each connection [default: 1]"),
        span("duration", "How long to measure, up to 1h [default: 10s]"),
        span("warm-up", "How long the load runs before anything counts [default: 1s]"),
        number("rounds", ' ', "How often to measure, with new connections each time [default: 1]"),
        span("timeout", "How long an answer may take [default: 5s]"),
        Arg::new("pids").long("pids").value_name("HEADER").help(
            "SettingField of the response with the pid that answered [default: the body \"Handled by PID n\"]",
        ),
        Arg::new("chaos")
            .long("chaos")
            .value_name("FAULTS")
            .value_parser(|text: &str| FaultPlan::parse(text, parse_duration))
            .help("Do this to the server meanwhile, as kill=1s,reload=5s,freeze=10s/500ms"),
        span("late", "With --chaos, count answers that take longer as late [default: 100ms]"),
    ]
    .map(|arg| arg.help_heading("Load"))
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
            .help("A header; repeat it for several"),
        Arg::new("data").long("data").short('d').value_name("TEXT").help("The body"),
        Arg::new("data-file")
            .long("data-file")
            .value_name("FILE")
            .value_parser(path.clone())
            .conflicts_with("data")
            .help("The body, from a file"),
        Arg::new("unix")
            .long("unix")
            .value_name("PATH")
            .value_parser(path)
            .help("Connect to this Unix socket instead of the host of the URL"),
    ]
    .map(|arg| arg.help_heading("Request"))
}

fn output() -> [Arg; 2] {
    [
        switch("json", "Print a JSON object instead of the table"),
        Arg::new("html")
            .long("html")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("Write the report as a page, too"),
    ]
    .map(|arg| arg.help_heading("Output"))
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// Reads the words after `bench`.
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
        connections,
        threads: number("threads").unwrap_or(standard.threads),
        rate: matches.get_one("rate").copied(),
        reconnect_each_request: matches.get_flag("close"),
        pipeline_depth: number("pipeline").unwrap_or(standard.pipeline_depth),
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
    plan.validate()?;
    Ok(BenchCall { plan, json: matches.get_flag("json"), html: path("html"), data_file })
}

/// Runs it, shows how far it is where somebody looks on, and prints the report.
pub(crate) fn run_bench(call: BenchCall) -> Result<ExitCode> {
    let mut plan = call.plan;
    if let Some(path) = &call.data_file {
        let read = std::fs::read(path);
        plan.body = Some(read.map_err(|e| Error::system(format!("read {}", path.display()), e))?);
    }
    // A place that cannot be written to is known before the run, not after it.
    let page = call.html.as_deref().map(ReportFile::create).transpose()?;
    let watched = std::io::stderr().is_terminal();
    let rounds = plan.rounds;
    let report = load_generator::run_load(&plan, |progress| {
        if watched {
            show_progress(&progress_line(&progress, rounds));
        }
    });
    if watched {
        show_progress("");
    }
    let report = report?;
    let text = if call.json { report.to_json() + "\n" } else { report.to_table() };
    // The page first: standard output may be full, or its reader gone.
    if let Some(page) = page {
        page.write_report(&report.to_html())?;
    }
    print_stdout(&text)?;
    Ok(ExitCode::from(report.exit_status()))
}

/// In place of the line before.
pub(super) fn show_progress(text: &str) {
    // Nobody is left to be told if this fails.
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
    fn mistakes_are_usage_errors() {
        for line in [
            "prefork bench",
            "prefork bench https://h/",
            "prefork bench -c 0 h",
            "prefork bench --pipeline 2 --close h",
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
