//! `prefork compare`: measures servers side by side and prints the report.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::bench::show_progress;
use super::report_file::ReportFile;
use crate::args::parse_number;
use crate::output::print_stdout;
use prefork_bench::compare::{
    self, BaselineReport, ComparePlan, CompareProgress, ComparedServer, DEFAULT_TIME_LIMIT,
    SavedReport, Workload,
};
use prefork_bench::scenario::BuiltInScenario;
use tokio_prefork::Result;
use tokio_prefork::cli::parse_duration;
use tokio_prefork::{ConcurrencyModel, Dispatch};

const HELP: &str = "\
Each server is started on a port of its own, measured and stopped, one after the other, in random order in each round. The \
generator runs in this process; its own processor time is told and is not in the figures of the servers.

A ratio is the median of the rounds' ratios, with a confidence interval from their ranks. A difference is stated if its interval \
excludes 1, at 95 % confidence for all comparisons of the report together. Servers are compared by the metric of the workload, and with the \
reference also by p99 latency, CPU time per request and memory. The server that the others are compared with is \
measured twice: if it differs from itself, the machine is too noisy and no difference is stated.

The rounds of a workload go on until its intervals are narrow enough (--precision) or the time is up (--time-limit). The report has the \
command that repeats it in the same order (--seed).

Peers that are known by name are looked for on PATH, and configured as their documentation says, with as many workers as the other \
servers; the report shows how. Those that can take a listening socket are started by prefork run.

A peer whose command has {fd} or {port}, or begins with \"run \", is started by prefork run, with as many workers and on sockets \
like those of the prefork model. Any other is started by the shell; it must say \"listening on http://ADDRESS:PORT\" on standard \
error when it serves, and end on SIGTERM. Peers are measured under the loads whose paths they have.

A workload is a TOML file. --show-scenario prints that of a workload that comes with this program; change a copy, and measure it with \
--scenario.

With --https all servers speak TLS with a certificate made for the run; a peer gets its files in TLS_CERT and TLS_KEY, and must \
say \"listening on https://ADDRESS:PORT\". The workloads full-handshakes and resumed-handshakes then take the place of new-connections.

Ctrl-C ends the run, stops what was started and prints what was measured.

With --baseline the same servers and workloads are measured as in an earlier run, if the command line names none, and the report says \
what changed since: each round's ratio to the reference is compared with that of the earlier run, so that a machine that became slower is no \
regression; values are compared beside it. Peers of the earlier run have to be given again. --measured FILE compares two reports without \
measuring.

Exit status: 0 all was measured, 1 some was not or could not be compared with the baseline, 2 something got worse than the baseline \
beyond its interval, 64 the command line or the baseline is wrong.

Examples:
  prefork compare --quick --html report.html
  prefork compare --precision 3% --time-limit 1h --workloads keep-alive
  prefork compare --quick --json > main.json; prefork compare --baseline main.json
  prefork compare --baseline main.json --measured branch.json
  prefork compare --models prefork --dispatch all --workloads keep-alive,new-connections
  prefork compare --https --workloads keep-alive,full-handshakes,resumed-handshakes
  prefork compare --show-scenario high-load > mine.toml
  prefork compare --scenario mine.toml --workloads keep-alive
  prefork compare --models prefork --peer node --peer nginx
  prefork compare --peer mine='uvicorn app:app --fd {fd}' --peer other='run node app.js'";

/// What `compare` does.
#[derive(Debug)]
pub(crate) enum CompareCall {
    /// Prints a scenario that comes with this program.
    ShowScenario(&'static BuiltInScenario),
    /// Runs a comparison.
    Run(Box<CompareRun>),
}

/// A comparison and where its report goes.
#[derive(Debug)]
pub(crate) struct CompareRun {
    plan: ComparePlan,
    baseline: Option<BaselineFile>,
    json: bool,
    html: Option<PathBuf>,
}

/// An earlier report, and what it is compared with.
#[derive(Debug)]
struct BaselineFile {
    name: String,
    report: SavedReport,
    /// Report that is compared instead of a new measurement.
    measured: Option<SavedReport>,
}

/// Returns the definition of the verb.
pub(crate) fn compare_command() -> Command {
    let list = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("LIST").value_delimiter(',').help(help)
    };
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    Command::new("compare")
        .about("Measure models, dispatch policies and peers side by side")
        .after_help(HELP)
        .arg(
            list(
                "models",
                "Concurrency models to compare; none to compare only peers [default: all]",
            )
            .value_parser(|text: &str| match text {
                "none" => Ok(None),
                text => text.parse::<ConcurrencyModel>().map(Some),
            }),
        )
        .arg(
            list(
                "dispatch",
                "Dispatch policies of the prefork model to compare, or all [default: shared]",
            )
            .value_parser(|text: &str| match text {
                "all" => Ok(Dispatch::ALL.to_vec()),
                text => text.parse::<Dispatch>().map(|policy| vec![policy]),
            }),
        )
        .args(workload_args())
        .arg(
            Arg::new("peer")
                .long("peer")
                .value_name("NAME[=COMMAND]")
                .action(ArgAction::Append)
                .value_parser(parse_peer)
                .help("Another server to compare, by name or by command (may be repeated); all: those installed"),
        )
        .arg(switch("https", "Measure over TLS, with a certificate made for the run"))
        .arg(switch("http2", "Measure over HTTP/2; pipelined requests become streams"))
        .args(measurement_args())
        .args(baseline_args())
        .arg(switch("json", "Print a JSON object instead of the tables"))
        .arg(
            Arg::new("html")
                .long("html")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Also write the report as an HTML page"),
        )
}

/// Returns the arguments about an earlier run.
fn baseline_args() -> [Arg; 3] {
    let file = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("FILE")
            .value_parser(|path: &str| {
                SavedReport::read(path.as_ref()).map(|report| (path.to_string(), report))
            })
            .help(help)
    };
    [
        Arg::new("reference")
            .long("reference")
            .value_name("NAME")
            .help("Server that the others are compared with [default: single, or the first]"),
        file("baseline", "Say what changed since this report of an earlier run (--json)"),
        file("measured", "Compare this report with the baseline instead of measuring")
            .requires("baseline")
            .conflicts_with_all([
                "models",
                "dispatch",
                "workloads",
                "scenario",
                "peer",
                "quick",
                "rounds",
                "precision",
                "seed",
            ]),
    ]
}

/// Returns the arguments that say what to put on the servers.
fn workload_args() -> [Arg; 3] {
    [
        Arg::new("workloads")
            .long("workloads")
            .value_name("LIST")
            .value_delimiter(',')
            .value_parser(Workload::built_in)
            .help("Workloads to measure [default: eight of them, or those of --scenario]"),
        Arg::new("scenario")
            .long("scenario")
            .value_name("FILE")
            .action(ArgAction::Append)
            .value_parser(Workload::find)
            .help("Measure the workload that this TOML file describes (may be repeated)"),
        Arg::new("show-scenario")
            .long("show-scenario")
            .value_name("NAME")
            .exclusive(true)
            .value_parser(BuiltInScenario::find)
            .help("Print the TOML file of a workload that comes with this program, and exit"),
    ]
}

/// Returns the arguments that say how long and how often to measure.
fn measurement_args() -> [Arg; 7] {
    let number = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("N").value_parser(parse_number::<usize>).help(help)
    };
    let span = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("DURATION").value_parser(parse_duration).help(help)
    };
    [
        number("workers", "Workers or threads per server [default: one per core]").short('w'),
        number(
            "rounds",
            "Measurements of each server under each workload [default: see --precision]",
        )
        .conflicts_with("precision"),
        Arg::new("precision")
            .long("precision")
            .value_name("PERCENT")
            .value_parser(parse_precision)
            .help("Measure until intervals are within this part of their ratio [default: 5%]"),
        span(
            "time-limit",
            "Start no measurement after this time [default: 20m, none with --rounds]",
        ),
        span("duration", "Duration of a measurement [default: 1s]"),
        Arg::new("seed")
            .long("seed")
            .value_name("N")
            .value_parser(parse_number::<u64>)
            .help("Measure in the order of an earlier run: its seed [default: a random order]"),
        Arg::new("quick")
            .long("quick")
            .action(ArgAction::SetTrue)
            .conflicts_with_all(["rounds", "duration", "precision", "time-limit"])
            .help("Run short rounds of three workloads for two minutes"),
    ]
}

/// Parses the arguments of `compare`; what they do not say is as in the baseline, if there is one.
///
/// # Errors
/// Values that make no sense together.
pub(crate) fn parse_compare(matches: &ArgMatches) -> Result<CompareCall, String> {
    if let Some(scenario) = matches.get_one::<&'static BuiltInScenario>("show-scenario") {
        return Ok(CompareCall::ShowScenario(scenario));
    }
    let file = |name: &str| matches.get_one::<(String, SavedReport)>(name).cloned();
    let measured = file("measured").map(|(_, report)| report);
    let baseline = file("baseline").map(|(name, report)| BaselineFile { name, report, measured });
    let plan = parse_plan(matches, baseline.as_ref().map(|baseline| &baseline.report))?;
    let html = matches.get_one::<PathBuf>("html").cloned();
    let json = matches.get_flag("json");
    Ok(CompareCall::Run(Box::new(CompareRun { plan, baseline, json, html })))
}

fn parse_plan(matches: &ArgMatches, before: Option<&SavedReport>) -> Result<ComparePlan, String> {
    let number = |name: &str| matches.get_one::<usize>(name).copied();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers =
        number("workers").or(before.map(|report| report.settings.workers)).unwrap_or(cores);
    if !(1..=64).contains(&workers) {
        return Err(format!("--workers {workers}: give 1 to 64"));
    }
    let https =
        matches.get_flag("https") || before.is_some_and(|report| report.settings.scheme == "https");
    let (peers, left_out) = chosen_peers(matches, https, workers);
    let servers = chosen_servers(matches, before, workers, peers);
    if let (Some(before), true) = (before, servers.is_empty()) {
        let names = before.server_names().join(", ");
        return Err(format!(
            "the baseline has no server that is built in: give its peers again with --peer ({names})"
        ));
    }
    let http2 = matches.get_flag("http2")
        || before.is_some_and(|report| report.settings.protocol == "HTTP/2");
    let workloads = chosen_workloads(matches, before, https)?;
    let mut plan =
        ComparePlan { https, http2, left_out, ..ComparePlan::new(servers, workloads, workers) };
    if let Some(before) = before {
        before.settings.apply_lengths(&mut plan);
        let is_measured = |name: &&str| plan.servers.iter().any(|server| server.name == *name);
        plan.reference = before.reference_name().filter(is_measured).map(str::to_string);
    }
    plan.reference = matches.get_one::<String>("reference").cloned().or(plan.reference);
    plan.seed = matches.get_one("seed").copied();
    if matches.get_flag("quick") {
        plan = plan.into_quick();
    }
    if let Some(rounds) = number("rounds") {
        (plan.rounds, plan.precision, plan.time_limit) = (Some(rounds), None, None);
    }
    if let Some(precision) = matches.get_one("precision").copied() {
        (plan.rounds, plan.precision) = (None, Some(precision));
        plan.time_limit = plan.time_limit.or(Some(DEFAULT_TIME_LIMIT));
    }
    plan.time_limit = matches.get_one("time-limit").copied().or(plan.time_limit);
    if let Some(duration) = matches.get_one::<Duration>("duration") {
        // A short measurement needs only a short warm-up.
        (plan.duration, plan.warm_up) = (*duration, plan.warm_up.min(*duration / 2));
        for workload in &mut plan.workloads {
            Arc::make_mut(workload).duration = None;
        }
    }
    plan.validate()?;
    Ok(plan)
}

/// Returns the models of the command line and the peers; without models there, those of the baseline or all.
fn chosen_servers(
    matches: &ArgMatches,
    before: Option<&SavedReport>,
    workers: usize,
    peers: Vec<ComparedServer>,
) -> Vec<ComparedServer> {
    let policies = matches.get_many::<Vec<Dispatch>>("dispatch");
    let policies: Option<Vec<Dispatch>> = policies.map(|lists| lists.flatten().copied().collect());
    let models: Option<Vec<ConcurrencyModel>> = matches
        .get_many::<Option<ConcurrencyModel>>("models")
        .map(|models| models.copied().flatten().collect());
    let mut servers: Vec<ComparedServer> = match (before, &models, &policies) {
        (Some(before), None, None) => {
            let is_given = |name: &&str| peers.iter().any(|peer| peer.name == *name);
            let names = before.server_names().into_iter().filter(|name| !is_given(name));
            names.filter_map(|name| ComparedServer::built_in_named(name, workers)).collect()
        }
        _ => {
            let models = models.unwrap_or(ConcurrencyModel::ALL.to_vec());
            let of_model = |model: ConcurrencyModel| match &policies {
                Some(policies) if model == ConcurrencyModel::Prefork => policies
                    .iter()
                    .map(|policy| ComparedServer::built_in(model, Some(*policy), workers))
                    .collect(),
                _ => vec![ComparedServer::built_in(model, None, workers)],
            };
            models.into_iter().flat_map(of_model).collect()
        }
    };
    servers.extend(peers);
    servers
}

/// Returns the workloads of the command line, of the baseline, or the default ones.
fn chosen_workloads(
    matches: &ArgMatches,
    before: Option<&SavedReport>,
    https: bool,
) -> Result<Vec<Arc<Workload>>, String> {
    let named = |name: &str| matches.get_many::<Arc<Workload>>(name).into_iter().flatten().cloned();
    let workloads: Vec<Arc<Workload>> = named("workloads").chain(named("scenario")).collect();
    match (matches.get_flag("quick"), before) {
        _ if !workloads.is_empty() => Ok(workloads),
        (false, Some(before)) => before.workloads(),
        (is_quick, _) => Ok(Workload::default_set(is_quick, https)),
    }
}

/// Parses a value of `--peer`; `None` for all peers that are installed.
fn parse_peer(text: &str) -> Result<Option<ComparedServer>, String> {
    match text {
        "all" => Ok(None),
        text => ComparedServer::parse_peer(text).map(Some),
    }
}

/// Returns the peers of the command line, and why `all` has left out others.
fn chosen_peers(
    matches: &ArgMatches,
    https: bool,
    workers: usize,
) -> (Vec<ComparedServer>, Vec<String>) {
    let given: Vec<&Option<ComparedServer>> =
        matches.get_many("peer").into_iter().flatten().collect();
    let mut peers: Vec<ComparedServer> = given.iter().copied().flatten().cloned().collect();
    let mut left_out = Vec::new();
    if given.iter().any(|peer| peer.is_none()) {
        let (installed, missing) = ComparedServer::installed_peers(https);
        let is_named = |one: &ComparedServer| peers.iter().any(|peer| peer.name == one.name);
        let more: Vec<ComparedServer> =
            installed.into_iter().filter(|one| !is_named(one)).collect();
        peers.extend(more);
        left_out = missing;
    }
    (peers.into_iter().map(|peer| peer.with_workers(workers)).collect(), left_out)
}

/// Parses a part of a ratio, such as `5%`.
fn parse_precision(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').trim_end().parse::<f64>();
    let percent = number.map_err(|_| "give a percentage such as 5%".to_string())?;
    Ok(percent / 100.0)
}

/// Runs the comparison, shows progress on a terminal, and prints the report.
pub(crate) fn run_compare(call: CompareCall) -> Result<ExitCode> {
    let call = match call {
        CompareCall::ShowScenario(scenario) => {
            print_stdout(scenario.text())?;
            return Ok(ExitCode::SUCCESS);
        }
        CompareCall::Run(call) => *call,
    };
    let plan = call.plan;
    // Created before the run, so that a path that cannot be written fails early.
    let page = call.html.as_deref().map(ReportFile::create).transpose()?;
    if let Some(BaselineFile { name, report, measured: Some(now) }) = &call.baseline {
        let report = BaselineReport::compare(now, report, name);
        if let Some(page) = page {
            page.write_report(&report.to_html())?;
        }
        print_stdout(&if call.json { report.to_json() + "\n" } else { report.to_table() })?;
        return Ok(ExitCode::from(report.exit_status()));
    }
    let watched = std::io::stderr().is_terminal();
    let report = compare::run_comparison(&plan, |progress| {
        if watched {
            show_progress(&progress_line(&plan, &progress));
        }
    });
    if watched {
        show_progress("");
    }
    let mut report = report?;
    report.environment.set_build(option_env!("BUILD_COMMIT"), option_env!("BUILD_COMPILER"));
    if let Some(baseline) = &call.baseline {
        report.compare_with_baseline(&baseline.report, &baseline.name)?;
    }
    // The page first, as the reader of standard output may close it.
    if let Some(page) = page {
        page.write_report(&report.to_html())?;
    }
    print_stdout(&if call.json { report.to_json() + "\n" } else { report.to_table() })?;
    Ok(ExitCode::from(report.exit_status()))
}

/// Says what is being measured and when the run ends.
fn progress_line(plan: &ComparePlan, progress: &CompareProgress<'_>) -> String {
    let minutes = |span: Duration| span.as_secs_f64() / 60.0;
    let rounds = match plan.rounds {
        Some(rounds) => {
            let all = minutes(plan.estimated_round_duration() * rounds as u32);
            format!("round {} of {rounds} (about {all:.1} min in all)", progress.round)
        }
        None => format!("round {}", progress.round),
    };
    let limit = plan.time_limit.map_or(String::new(), |limit| {
        format!(", {:.1} of at most {:.1} min", minutes(progress.elapsed), minutes(limit))
    });
    let ended = match progress.ended_workloads {
        0 => String::new(),
        ended => format!(", {ended} of {} loads done", plan.workloads.len()),
    };
    format!("{rounds}{limit}{ended}: {}, {}", progress.workload, progress.server)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{self, Verb};

    fn plan(line: &str) -> ComparePlan {
        match args::parse_args(line.split(' ')).expect(line) {
            Verb::Compare(CompareCall::Run(call)) => call.plan,
            other => panic!("{other:?}"),
        }
    }

    fn names(plan: &ComparePlan) -> Vec<&str> {
        plan.servers.iter().map(|one| one.name.as_str()).collect()
    }

    #[test]
    fn flags_become_a_plan() {
        let all = plan("prefork compare -w 3");
        assert_eq!(names(&all), ["prefork", "single", "threads", "thread-per-core"]);
        assert_eq!((all.workloads.len(), all.workers, all.rounds), (8, 3, None));
        assert_eq!((all.precision, all.time_limit), (Some(0.05), Some(Duration::from_secs(1200))));
        let some = plan(
            "prefork compare --models prefork,single --dispatch shared,ip-hash --peer a=b --rounds 2",
        );
        assert_eq!(names(&some), ["prefork/shared", "prefork/ip-hash", "single", "a"]);
        assert_eq!((some.rounds, some.precision, some.time_limit), (Some(2), None, None));
        let precise = plan("prefork compare --precision 1.5% --time-limit 2h");
        assert_eq!(precise.precision, Some(0.015));
        assert_eq!(precise.time_limit, Some(Duration::from_secs(7200)));
        assert_eq!(names(&plan("prefork compare --models none --peer a=b --peer c=d")), ["a", "c"]);
        assert_eq!(names(&plan("prefork compare --dispatch all")).len(), 8);
        let quick = plan("prefork compare --quick --workloads bodies,mixed");
        assert_eq!((quick.time_limit.is_some(), quick.workloads.len()), (true, 2));
        assert_eq!(plan("prefork compare --quick").workloads, Workload::default_set(true, false));
        let https = plan("prefork compare --https --http2");
        assert_eq!((https.https, https.http2, https.workloads.len()), (true, true, 9));
        assert_eq!(
            plan("prefork compare --reference threads").reference.as_deref(),
            Some("threads")
        );
        let seeds = ["prefork compare", "prefork compare --seed 17"].map(|line| plan(line).seed);
        assert_eq!(seeds, [None, Some(17)]);
        let short = plan("prefork compare --duration 200ms");
        assert_eq!(
            (short.duration, short.warm_up),
            (Duration::from_millis(200), Duration::from_millis(100))
        );
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for line in [
            "prefork compare --models fork",
            "prefork compare --models none",
            "prefork compare --dispatch fair",
            "prefork compare --workloads idle",
            "prefork compare --peer nodejs",
            "prefork compare --workloads full-handshakes",
            "prefork compare --workloads keep-alive,keep-alive",
            "prefork compare --scenario /nowhere.toml",
            "prefork compare --show-scenario idle",
            "prefork compare --show-scenario mixed --quick",
            "prefork compare --workers 0",
            "prefork compare --quick --rounds 2",
            "prefork compare --rounds 0",
            "prefork compare --rounds 3 --precision 5%",
            "prefork compare --precision 0",
            "prefork compare --precision narrow",
            "prefork compare --quick --time-limit 1m",
            "prefork compare --models single,single",
            "prefork compare http://127.0.0.1/",
            "prefork compare --reference nginx",
            "prefork compare --baseline /missing",
            "prefork compare --measured /missing",
            "prefork compare --seed random",
        ] {
            assert!(args::parse_args(line.split(' ')).is_err(), "{line}");
        }
    }
}
