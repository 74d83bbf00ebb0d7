//! `prefork demo cpu`: demonstrates the effect of CPU-bound work on a server.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::app::fib;
use crate::output::{print_error, print_stdout};
use prefork_bench::cpu_demo::{self, CpuDemoPlan, DemoPart};
use prefork_bench::job_costs::{self, JobWay};
use tokio_prefork::cli::parse_duration;
use tokio_prefork::{Error, Result, exit};

const HELP: &str = "\
It computes a Fibonacci number five times: in sequence, on five threads, in a pool of as many threads as cores, and in five \
processes; measures what a new thread and a new process cost; then what a job costs on the event loop, in the pool, with \
spawn_blocking and in an isolated process, beside Node's Piscina and Python's ProcessPoolExecutor where they are installed: an \
empty one, 10 MiB there and back, and one that aborts its process; and at last serves while it computes. Run it on a machine \
that has nothing else to do. Each step is told on standard error. Ctrl-C ends it and leaves nothing behind.

Exit status: 0 all was measured, 1 a signal ended it early, 64 the command line is wrong. A peer that is not installed is named \
in the report.

Examples:
  prefork demo cpu
  prefork demo cpu --only jobs --piscina ./node_modules
  prefork demo cpu --full --json > cpu.json";

/// A demonstration to run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DemoCall {
    /// The CPU demonstration.
    Cpu { plan: CpuDemoPlan, json: bool },
    /// A child process of the CPU demonstration that computes.
    Spare,
    /// A child process of the CPU demonstration that measures jobs.
    JobWay { name: String, plan: String },
}

/// Returns the definition of the verb.
pub(crate) fn demo_command() -> Command {
    let number = |name: &'static str, help: &'static str| {
        let range = value_parser!(u64).range(1..=50);
        Arg::new(name).long(name).value_name("N").value_parser(range).help(help)
    };
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    let cpu = Command::new("cpu")
        .about("The loop, the pool, threads and processes with work that computes")
        .after_help(HELP)
        .arg(switch(
            "quick",
            "Use smaller numbers and shorter measurements: about 15 seconds instead of 30",
        ))
        .arg(
            switch("full", "Use larger numbers and longer measurements: about 3 minutes")
                .conflicts_with("quick"),
        )
        .arg(
            Arg::new("only")
                .long("only")
                .value_name("PARTS")
                .value_delimiter(',')
                .value_parser(DemoPart::ALL.map(DemoPart::name))
                .help("Run these parts only"),
        )
        .arg(
            Arg::new("ways")
                .long("ways")
                .value_name("WAYS")
                .value_delimiter(',')
                .value_parser(JobWay::ALL.map(JobWay::flag_value))
                .help("Measure jobs in these ways only"),
        )
        .arg(number("fib", "The number that is computed five times [default: 38]"))
        .arg(number("asked", "The number that clients ask for [default: 36]"))
        .arg(
            Arg::new("duration")
                .long("duration")
                .value_name("DURATION")
                .value_parser(parse_duration)
                .help("Duration of the measurement of each server [default: 1s]"),
        )
        .arg(
            Arg::new("piscina")
                .long("piscina")
                .value_name("DIRECTORY")
                .env("PREFORK_PISCINA")
                .value_parser(value_parser!(PathBuf))
                .help(
                    "Where npm installed Piscina [default: where node searches, then npm root -g]",
                ),
        )
        .arg(switch("json", "Print a JSON object instead of the tables"));
    let job_way = Command::new("job-way")
        .hide(true)
        .about("Measure jobs")
        .args([Arg::new("name").required(true), Arg::new("plan").required(true)]);
    Command::new("demo")
        .about("See for yourself what blocks an event loop")
        .after_help("Examples:\n  prefork demo cpu --quick")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(cpu)
        .subcommand(Command::new("spare").hide(true).about("Compute numbers, one a line"))
        .subcommand(job_way)
}

/// Parses the arguments of `demo`.
///
/// # Errors
/// Values that make no sense.
pub(crate) fn parse_demo(matches: &ArgMatches) -> Result<DemoCall, String> {
    let matches = match matches.subcommand() {
        Some(("cpu", matches)) => matches,
        Some(("job-way", matches)) => {
            let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
            return Ok(DemoCall::JobWay { name: text("name"), plan: text("plan") });
        }
        _ => return Ok(DemoCall::Spare),
    };
    let mut plan = match (matches.get_flag("quick"), matches.get_flag("full")) {
        (true, _) => CpuDemoPlan::quick(),
        (_, true) => CpuDemoPlan::full(),
        _ => CpuDemoPlan::usual(),
    };
    if let Some(names) = matches.get_many::<String>("only") {
        let names: Vec<&String> = names.collect();
        plan.parts.retain(|part| names.iter().any(|name| *name == part.name()));
    }
    if let Some(names) = matches.get_many::<String>("ways") {
        let names: Vec<&String> = names.collect();
        plan.jobs.ways.retain(|way| names.iter().any(|name| *name == way.flag_value()));
    }
    plan.jobs.piscina = matches.get_one::<PathBuf>("piscina").cloned();
    let number = |name: &str, usual| matches.get_one::<u64>(name).copied().unwrap_or(usual);
    let duration = matches.get_one::<Duration>("duration").copied().unwrap_or(plan.duration);
    let range = Duration::from_millis(100)..=Duration::from_secs(600);
    if !range.contains(&duration) {
        return Err(format!("--duration {duration:?}: give 100ms to 10m"));
    }
    let (computed_fib, requested_fib) =
        (number("fib", plan.computed_fib), number("asked", plan.requested_fib));
    let plan = CpuDemoPlan { computed_fib, requested_fib, duration, ..plan };
    Ok(DemoCall::Cpu { plan, json: matches.get_flag("json") })
}

pub(crate) fn run_demo(call: DemoCall) -> Result<ExitCode> {
    let (plan, json) = match call {
        DemoCall::Cpu { plan, json } => (plan, json),
        DemoCall::Spare => {
            cpu_demo::run_compute_process(fib).map_err(|e| Error::system("compute numbers", e))?;
            return Ok(ExitCode::from(exit::OK));
        }
        DemoCall::JobWay { name, plan } => {
            job_costs::run_measured_way(&name, &plan)?;
            return Ok(ExitCode::from(exit::OK));
        }
    };
    let report = cpu_demo::run_cpu_demo(&plan, fib, |step| print_error(&step))?;
    print_stdout(&if json { report.to_json() + "\n" } else { report.to_table() })?;
    Ok(ExitCode::from(report.exit_status()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{self, Verb};

    #[test]
    fn flags_become_a_plan() {
        let call = |line: &str| match args::parse_args(line.split(' ')) {
            Ok(Verb::Demo(call)) => Ok(call),
            other => Err(format!("{other:?}")),
        };
        let usual = DemoCall::Cpu { plan: CpuDemoPlan::usual(), json: false };
        assert_eq!(call("prefork demo cpu"), Ok(usual));
        let small = CpuDemoPlan {
            parts: vec![DemoPart::Compute, DemoPart::Latency],
            computed_fib: 20,
            duration: Duration::from_millis(200),
            ..CpuDemoPlan::full()
        };
        let said =
            "prefork demo cpu --full --fib 20 --duration 200ms --json --only latency,compute";
        assert_eq!(call(said), Ok(DemoCall::Cpu { plan: small, json: true }));
        let mut plan = CpuDemoPlan::quick();
        plan.jobs.piscina = Some(PathBuf::from("/opt/node"));
        plan.jobs.ways = vec![JobWay::Pool, JobWay::Piscina];
        let said = "prefork demo cpu --quick --piscina /opt/node --ways piscina,pool";
        assert_eq!(call(said), Ok(DemoCall::Cpu { plan, json: false }));
        assert_eq!(call("prefork demo spare"), Ok(DemoCall::Spare));
        for line in [
            "prefork demo",
            "prefork demo gpu",
            "prefork demo cpu --fib 90",
            "prefork demo cpu --duration 1ms",
            "prefork demo cpu --only lunch",
            "prefork demo cpu --quick --full",
        ] {
            assert!(call(line).is_err(), "{line}");
        }
    }
}
