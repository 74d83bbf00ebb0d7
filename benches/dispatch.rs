//! Compares the dispatch policies of `prefork serve` with each other and with other servers: cost, balance, faults.
//!
//! ```text
//! cargo bench --bench dispatch -- WHAT [--policies a,b] [--peers a,b] [--rounds N] [--seconds S] [--json]
//!
//! cost      requests per second and CPU time per request, 64 clients, 2 workers, a new connection for each
//!           request (or --keep-alive), with the ratio to the floor
//! balance   64 kept connections, opened one by one and in a burst: most/fewest on a worker, 2 and 8 workers
//! wakeups   voluntary context switches for each of 500 connections, one after the other, 4, 8 and 16 workers
//! frozen    one of four workers is stopped for S seconds under 16 clients with a new connection per request
//! silent    500 silent connections a second beside 16 clients (or --pace N requests a second)
//! kills     kill -9 of a random worker each --interval ms, --count times, under 64 clients
//! reloads   --count reloads, one after the other, under 64 clients
//! ```
//!
//! `--workers N` and `--clients N` change the numbers above. In `cost`, `kills` and `reloads` a client sends a
//! moment after it has connected, as over a network; `--at-once` sends at once, which is kind to servers that
//! accept early. Peers are `floor` (raw epoll in C, see
//! scripts/floor), `floor-shared`, `floor-no-shutdown`, `hyper-threads`, `nginx`, `nginx-reuseport`, `node-rr` and
//! `node-none`; those that are not installed are left out, and `none` leaves out all.
//!
//! Clients run in this process, on the same cores: requests per second flatter the slower server. CPU time is
//! that of the server's processes alone. The table shows medians, with least and most in parentheses.

#[path = "dispatch/balance.rs"]
mod balance;
#[path = "dispatch/cost.rs"]
mod cost;
#[path = "dispatch/frozen.rs"]
mod frozen;
#[path = "dispatch/silent.rs"]
mod silent;
#[path = "dispatch/storm.rs"]
mod storm;
mod support;
#[path = "dispatch/wakeups.rs"]
mod wakeups;

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::peer::{self, PEER_FLAG};
use support::report::{self, Column};
use support::rounds::{self, Rounds, Series};
use support::target::{BenchSetup, BenchTarget, RunningTarget};
use support::{argument, cleanup, fail, has_argument};

type Measure = fn(&BenchOptions) -> BenchResult;

/// All measurements by name.
const MEASUREMENTS: [(&str, Measure); 7] = [
    ("cost", cost::measure),
    ("balance", balance::measure),
    ("wakeups", wakeups::measure),
    ("frozen", frozen::measure),
    ("silent", silent::measure),
    ("kills", storm::measure_kills),
    ("reloads", storm::measure_reloads),
];

const FLAGS: [&str; 4] = ["--bench", "--json", "--keep-alive", "--at-once"];
const OPTIONS_WITH_VALUE: [&str; 10] = [
    "--policies",
    "--peers",
    "--rounds",
    "--seconds",
    "--workers",
    "--clients",
    "--pace",
    "--count",
    "--interval",
    "--rate",
];

/// The table of one measurement.
pub struct BenchResult {
    title: String,
    names: Vec<String>,
    columns: Vec<Column>,
    all: Vec<Series>,
}

/// Options of a run. `None` leaves the default to the measurement.
pub struct BenchOptions {
    setup: BenchSetup,
    /// Whether this is a smoke test by `cargo test`, which runs as briefly as possible.
    is_smoke_test: bool,
    rounds: usize,
    length: Duration,
    workers: Option<usize>,
    clients: Option<usize>,
}

fn main() {
    cleanup::exec_program_ended_with_bench();
    if has_argument(PEER_FLAG) {
        return peer::run(argument(PEER_FLAG, 2), false);
    }
    if let Err(e) = cleanup::clean_up_on_signals() {
        fail(format_args!("cannot handle signals: {e}"));
    }
    raise_descriptor_limit();
    // `cargo bench` passes this flag, and `cargo test --benches` does not.
    let is_smoke_test = !has_argument("--bench");
    let measurements = parse_measurements(is_smoke_test);
    let seconds: f64 = argument("--seconds", if is_smoke_test { 0.1 } else { 3.0 });
    let rounds: usize = argument("--rounds", if is_smoke_test { 1 } else { 5 });
    if !(1..=1000).contains(&rounds) || !(0.05..=600.0).contains(&seconds) {
        fail("give 1 to 1000 rounds of 0.05 to 600 seconds");
    }
    let text = |name: &str| Some(argument(name, String::new())).filter(|text| !text.is_empty());
    let (mut policies, mut peers) = (text("--policies"), text("--peers"));
    if is_smoke_test {
        policies.get_or_insert("shared".into());
        peers.get_or_insert("floor,hyper-threads".into());
    }
    let number = |name: &str, most: usize| {
        let number: usize = argument(name, 0);
        if number > most || (has_argument(name) && number == 0) {
            fail(format_args!("{name}: give 1 to {most}"));
        }
        Some(number).filter(|number| *number > 0)
    };
    let options = BenchOptions {
        setup: BenchSetup::new(policies.as_deref(), peers.as_deref()),
        is_smoke_test,
        rounds,
        length: Duration::from_secs_f64(seconds),
        workers: number("--workers", 64),
        clients: number("--clients", 1024),
    };
    if options.workers == Some(1) {
        fail("--workers: give 2 or more, there is nothing to dispatch to one");
    }
    for what in measurements {
        let BenchResult { title, names, columns, all } = what(&options);
        if has_argument("--json") {
            println!("{}", report::json(&title, &names, &all));
        } else {
            println!("{}", report::table(&title, &columns, &all));
        }
    }
}

/// Parses the names of the measurements. Unknown arguments are errors.
fn parse_measurements(is_smoke_test: bool) -> Vec<Measure> {
    let known = || MEASUREMENTS.map(|(name, _)| name).join(", ");
    let mut measurements = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if OPTIONS_WITH_VALUE.contains(&argument.as_str()) {
            if arguments.next().is_none() {
                fail(format_args!("{argument} needs a value"));
            }
        } else if let Some((_, what)) = MEASUREMENTS.iter().find(|(name, _)| *name == argument) {
            measurements.push(*what);
        } else if !FLAGS.contains(&argument.as_str()) {
            let options = [&FLAGS[1..], &OPTIONS_WITH_VALUE[..]].concat().join(" ");
            fail(format_args!("{argument}: give some of {}, and options: {options}", known()));
        }
    }
    if measurements.is_empty() && !is_smoke_test {
        fail(format_args!("say what to measure: {}", known()));
    }
    if measurements.is_empty() { MEASUREMENTS.map(|(_, what)| what).to_vec() } else { measurements }
}

/// Whether clients send their request a moment after connecting, as over a network.
fn delays_request() -> bool {
    !has_argument("--at-once")
}

/// Raises the limit of descriptors, for many clients and silent connections.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // A failure here affects only the largest loads.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

impl BenchOptions {
    /// Returns rounds without measurements of the floor in between.
    fn rounds_without_floor(&self) -> Rounds {
        Rounds { count: self.rounds, with_floor: false }
    }

    /// Runs `measure` in rounds for all targets that can take part.
    fn run_rounds(
        &self,
        workers: usize,
        can: impl Fn(BenchTarget) -> bool,
        measure: impl Fn(&RunningTarget) -> Result<Vec<f64>, String>,
    ) -> Vec<Series> {
        rounds::run(&self.setup, self.rounds_without_floor(), can, |target| {
            measure(&self.setup.start(target, workers)?)
        })
    }
}
