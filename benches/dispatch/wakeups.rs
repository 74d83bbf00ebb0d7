//! Measures how many processes wake up for one connection.

use std::time::{Duration, Instant};

use crate::support::probe;
use crate::support::report::{ColumnValue, column};
use crate::support::rounds;
use crate::support::target::{BenchSetup, BenchTarget};
use crate::{BenchOptions, BenchResult};

/// Pause after which all workers sleep again.
const SETTLE_TIME: Duration = Duration::from_millis(2);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long idle servers are observed.
const IDLE_TIME: Duration = Duration::from_millis(500);

pub fn measure(options: &BenchOptions) -> BenchResult {
    let connections: u32 = if options.is_smoke_test { 20 } else { 500 };
    let numbers = options.workers.map_or(vec![4, 8, 16], |workers| vec![workers]);
    let all = rounds::run(
        &options.setup,
        options.rounds_without_floor(),
        |_| true,
        |target| {
            let mut values = Vec::new();
            for workers in &numbers {
                values.extend(measure_target(&options.setup, target, *workers, connections)?);
            }
            Ok(values)
        },
    );
    let names = numbers.iter().flat_map(|workers| {
        ["per_connection", "without_idle", "idle_per_s"].map(|name| format!("{workers}_{name}"))
    });
    let columns = numbers.iter().enumerate().flat_map(|(n, workers)| {
        [
            column(format!("{workers} workers"), 1, ColumnValue::Median(3 * n)),
            column("less idle ones", 1, ColumnValue::Median(3 * n + 1)),
            column("idle, per s", 0, ColumnValue::Median(3 * n + 2)),
        ]
    });
    let title = format!(
        "Wake-ups: voluntary context switches of all processes per accepted connection, {connections} \
         connections one after the other"
    );
    BenchResult { title, names: names.collect(), columns: columns.collect(), all }
}

/// Returns context switches per connection, in all and without those of an idle server, and the latter per second.
fn measure_target(
    setup: &BenchSetup,
    target: BenchTarget,
    workers: usize,
    connections: u32,
) -> Result<[f64; 3], String> {
    let running = setup.start(target, workers)?;
    let server = &running.server;
    std::thread::sleep(IDLE_TIME);
    let (begun, before) = (Instant::now(), server.voluntary_switches());
    std::thread::sleep(IDLE_TIME);
    let idle = (server.voluntary_switches() - before) as f64 / begun.elapsed().as_secs_f64();
    let (begun, before) = (Instant::now(), server.voluntary_switches());
    for _ in 0..connections {
        probe::timed_request(server.addr, REQUEST_TIMEOUT, Instant::now())
            .map_err(|e| format!("a request: {e}"))?;
        std::thread::sleep(SETTLE_TIME);
    }
    let switches = (server.voluntary_switches() - before) as f64;
    let anyway = idle * begun.elapsed().as_secs_f64();
    let each = f64::from(connections);
    Ok([switches / each, (switches - anyway) / each, idle])
}
