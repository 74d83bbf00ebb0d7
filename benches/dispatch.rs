//! Who gets the next connection, and what it costs: every policy of `prefork serve --dispatch` beside peers, in
//! one run, in rotated order.
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
//! scripts/floor), `floor-shared`, `floor-hasty`, `hyper-threads`, `nginx`, `nginx-reuseport`, `node-rr` and
//! `node-none`; those that are not installed are left out, and `none` leaves out all.
//!
//! Clients run in this process, on the same cores: requests per second flatter whoever is slower. CPU time is
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
use support::contest::{self, Rounds, Series};
use support::contestant::{Contestant, Ground, Running};
use support::peer::{self, PEER};
use support::report::{self, Column};
use support::{argument, cleanup, fail, given};

type Measure = fn(&Asked) -> Outcome;

/// What can be measured.
const WHATS: [(&str, Measure); 7] = [
    ("cost", cost::measure),
    ("balance", balance::measure),
    ("wakeups", wakeups::measure),
    ("frozen", frozen::measure),
    ("silent", silent::measure),
    ("kills", storm::kills),
    ("reloads", storm::reloads),
];

const SWITCHES: [&str; 4] = ["--bench", "--json", "--keep-alive", "--at-once"];
const VALUED: [&str; 10] = [
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

/// What one kind of measurement has brought.
pub struct Outcome {
    title: String,
    names: Vec<String>,
    columns: Vec<Column>,
    all: Vec<Series>,
}

/// What was asked for. `None` leaves the choice to the kind of measurement.
pub struct Asked {
    ground: Ground,
    /// Only to see that it works: as little of everything as possible.
    trial: bool,
    rounds: usize,
    length: Duration,
    workers: Option<usize>,
    clients: Option<usize>,
}

fn main() {
    cleanup::become_other();
    if given(PEER) {
        return peer::run(argument(PEER, 2), false);
    }
    if let Err(e) = cleanup::on_signals() {
        fail(format_args!("cannot listen to signals: {e}"));
    }
    raise_descriptor_limit();
    // `cargo bench` says so; `cargo test --benches` does not, and only wants to see that it works.
    let trial = !given("--bench");
    let whats = understood(trial);
    let seconds: f64 = argument("--seconds", if trial { 0.1 } else { 3.0 });
    let rounds: usize = argument("--rounds", if trial { 1 } else { 5 });
    if !(1..=1000).contains(&rounds) || !(0.05..=600.0).contains(&seconds) {
        fail("give 1 to 1000 rounds of 0.05 to 600 seconds");
    }
    let text = |name: &str| Some(argument(name, String::new())).filter(|text| !text.is_empty());
    let (mut policies, mut peers) = (text("--policies"), text("--peers"));
    if trial {
        policies.get_or_insert("shared".into());
        peers.get_or_insert("floor,hyper-threads".into());
    }
    let number = |name: &str, most: usize| {
        let number: usize = argument(name, 0);
        if number > most || (given(name) && number == 0) {
            fail(format_args!("{name}: give 1 to {most}"));
        }
        Some(number).filter(|number| *number > 0)
    };
    let asked = Asked {
        ground: Ground::new(policies.as_deref(), peers.as_deref()),
        trial,
        rounds,
        length: Duration::from_secs_f64(seconds),
        workers: number("--workers", 64),
        clients: number("--clients", 1024),
    };
    if asked.workers == Some(1) {
        fail("--workers: give 2 or more, there is nothing to dispatch to one");
    }
    for what in whats {
        let Outcome { title, names, columns, all } = what(&asked);
        if given("--json") {
            println!("{}", report::json(&title, &names, &all));
        } else {
            println!("{}", report::table(&title, &columns, &all));
        }
    }
}

/// What to measure. Anything that is not known is an error: a typing error must not be measured for minutes.
fn understood(trial: bool) -> Vec<Measure> {
    let known = || WHATS.map(|(name, _)| name).join(", ");
    let mut whats = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if VALUED.contains(&argument.as_str()) {
            if arguments.next().is_none() {
                fail(format_args!("{argument} needs a value"));
            }
        } else if let Some((_, what)) = WHATS.iter().find(|(name, _)| *name == argument) {
            whats.push(*what);
        } else if !SWITCHES.contains(&argument.as_str()) {
            let options = [&SWITCHES[1..], &VALUED[..]].concat().join(" ");
            fail(format_args!("{argument}: give some of {}, and options: {options}", known()));
        }
    }
    if whats.is_empty() && !trial {
        fail(format_args!("say what to measure: {}", known()));
    }
    if whats.is_empty() { WHATS.map(|(_, what)| what).to_vec() } else { whats }
}

/// Whether clients connect first and send when the loop comes round again, as wrk does.
fn apart() -> bool {
    !given("--at-once")
}

/// Silent connections and many clients need more than the usual 1024.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Without, only the largest loads fail, and they say so.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

impl Asked {
    /// Rounds without a floor beside each.
    fn plain(&self) -> Rounds {
        Rounds { count: self.rounds, with_floor: false }
    }

    /// Runs the rounds for those who can take part, without a floor beside each: `measure` is given one that runs.
    fn rounds(
        &self,
        workers: usize,
        can: impl Fn(Contestant) -> bool,
        measure: impl Fn(&Running) -> Result<Vec<f64>, String>,
    ) -> Vec<Series> {
        contest::run(&self.ground, self.plain(), can, |who| {
            measure(&self.ground.start(who, workers)?)
        })
    }
}
