//! Compares `GET /` of `prefork serve -w 2` with a plain hyper server with one thread per core.
//!
//! ```text
//! cargo bench --bench throughput                      64 kept connections, one request at a time on each
//! cargo bench --bench throughput -- --close           a new connection for each request
//! cargo bench --bench throughput -- --pipeline        16 requests at a time, without and with pipeline-flush
//! ```
//!
//! `--rounds N` and `--seconds S` say how often and how long (8 and 1.5). The two servers take turns, in the
//! order a b, b a, a b and so on, as a machine's speed drifts; the ratio is the median over these pairs. The
//! client runs on the same cores, so requests per second flatter the slower server: CPU time per
//! request of the server's processes is the meaningful figure.

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use support::load::{Load, Plan};
use support::peer::{self, PEER_FLAG};
use support::process::Server;
use support::{argument, fail, has_argument, median};

/// Number of workers, and of threads of the other server.
const WORKERS: usize = 2;
const CONNECTIONS: usize = 64;
const PIPELINE_DEPTH: usize = 16;
/// How long a load runs before it is measured.
const WARM_UP: Duration = Duration::from_millis(250);

fn main() {
    if has_argument(PEER_FLAG) {
        return peer::run(WORKERS, has_argument("--pipeline-flush"));
    }
    // `cargo bench` passes this flag, and `cargo test --benches` does not.
    let is_smoke_test = !has_argument("--bench");
    let rounds: usize = argument("--rounds", if is_smoke_test { 1 } else { 8 });
    let seconds: f64 = argument("--seconds", if is_smoke_test { 0.1 } else { 1.5 });
    if !(1..=1000).contains(&rounds) || !(0.05..=600.0).contains(&seconds) {
        fail("give 1 to 1000 rounds of 0.05 to 600 seconds");
    }
    let depth = if has_argument("--pipeline") { PIPELINE_DEPTH } else { 1 };
    let close = has_argument("--close");
    if close && depth > 1 {
        fail("a connection that closes after one request cannot pipeline: give one of the two");
    }
    let plan = Plan { connections: CONNECTIONS, threads: 2, depth, close, delays_request: false };
    let length = Duration::from_secs_f64(seconds);
    let how = if close { "a new one for each request" } else { "kept alive" };
    println!(
        "{CONNECTIONS} connections ({how}), depth {depth}, {rounds} rounds of {seconds} s each"
    );
    for flush in [false, true].into_iter().take(if depth > 1 { 2 } else { 1 }) {
        compare(plan, flush, rounds, length);
    }
}

/// Figures of one server in one round.
#[derive(Clone, Copy)]
struct RoundResult {
    rps: f64,
    /// CPU time of the server per request, in microseconds.
    cpu: f64,
}

/// Measures both servers in turns, and prints the table.
fn compare(plan: Plan, flush: bool, rounds: usize, length: Duration) {
    let mut prefork = Command::new(env!("CARGO_BIN_EXE_prefork"));
    prefork.args(["serve", "-b", "127.0.0.1:0", "-w", &WORKERS.to_string()]);
    let this = std::env::current_exe()
        .unwrap_or_else(|e| fail(format_args!("cannot find this program: {e}")));
    let mut threads = Command::new(this);
    threads.arg(PEER_FLAG);
    if flush {
        prefork.arg("--pipeline-flush");
        threads.arg("--pipeline-flush");
    }
    let servers = [Server::start(&mut prefork, |_| {}), Server::start(&mut threads, |_| {})];
    if let Err(why) = servers[0].wait_for_workers(WORKERS) {
        fail(why);
    }
    let names = ["prefork", "threads"].map(|name| match flush {
        true => format!("{name} --pipeline-flush"),
        false => name.to_string(),
    });
    println!("\nround  server                    requests/s  CPU us/request");
    let mut all: [Vec<RoundResult>; 2] = Default::default();
    for round in 0..rounds {
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for which in order {
            let result = measure(&servers[which], plan, length);
            println!(
                "{:>5}  {:24}  {:>10.0}  {:>14.2}",
                round + 1,
                names[which],
                result.rps,
                result.cpu
            );
            all[which].push(result);
        }
    }
    for (name, rounds) in names.iter().zip(&all) {
        summary(name, "requests/s", 0, rounds.iter().map(|round| round.rps));
        summary(name, "CPU us/request", 2, rounds.iter().map(|round| round.cpu));
    }
    let pairs = || all[0].iter().zip(&all[1]);
    summary("prefork / threads", "requests/s", 2, pairs().map(|(a, b)| a.rps / b.rps));
    summary("prefork / threads", "CPU us/request", 2, pairs().map(|(a, b)| a.cpu / b.cpu));
}

fn summary(name: &str, unit: &str, digits: usize, values: impl Iterator<Item = f64>) {
    let values: Vec<f64> = values.collect();
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let median = median(&values);
    println!(
        "{name:24}  {unit:14}  median {median:.digits$}  ({least:.digits$} to {most:.digits$})"
    );
}

fn measure(server: &Server, plan: Plan, length: Duration) -> RoundResult {
    let load = Load::start(server.addr, plan);
    std::thread::sleep(WARM_UP);
    let (begun, cpu, answered) = (Instant::now(), server.cpu_us(), load.answered());
    std::thread::sleep(length);
    let answered = load.answered() - answered;
    let (cpu, took) = (server.cpu_us() - cpu, begun.elapsed());
    let (_, failed, refused) = load.stop();
    if answered == 0 || failed + refused > 0 {
        fail(format_args!("{answered} answers, {failed} failures and {refused} refusals"));
    }
    RoundResult { rps: answered as f64 / took.as_secs_f64(), cpu: cpu / answered as f64 }
}
