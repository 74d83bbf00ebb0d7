//! Measures how evenly kept connections are spread.

use std::collections::HashMap;
use std::time::Duration;

use crate::support::probe;
use crate::support::report::{ColumnValue, column};
use crate::support::rounds;
use crate::support::target::{BenchSetup, BenchTarget};
use crate::{BenchOptions, BenchResult};

/// Timeout of one connection, long enough for a busy machine.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

pub fn measure(options: &BenchOptions) -> BenchResult {
    let clients = options.clients.unwrap_or(64);
    // A given number of workers replaces both defaults.
    let [few, many] = options.workers.map_or([2, 8], |workers| [workers; 2]);
    let settings = [(few, false), (few, true), (many, false), (many, true)];
    let all = rounds::run(
        &options.setup,
        options.rounds_without_floor(),
        |_| true,
        |target| {
            let mut values = Vec::new();
            for (workers, burst) in settings {
                values.extend(measure_setting(&options.setup, target, workers, clients, burst)?);
            }
            Ok(values)
        },
    );
    let names = settings.iter().flat_map(|(workers, burst)| {
        let how = if *burst { "burst" } else { "one_by_one" };
        ["most", "fewest"].map(|which| format!("{workers}_{how}_{which}"))
    });
    let title = format!(
        "Balance: {clients} kept connections, most/fewest on a worker, worst of {} rounds",
        options.rounds
    );
    BenchResult {
        title,
        names: names.collect(),
        columns: settings
            .iter()
            .enumerate()
            .map(|(n, (workers, burst))| {
                let how = if *burst { "in a burst" } else { "one by one" };
                column(format!("{workers} workers, {how}"), 0, ColumnValue::Spread(2 * n))
            })
            .collect(),
        all,
    }
}

fn measure_setting(
    setup: &BenchSetup,
    target: BenchTarget,
    workers: usize,
    clients: usize,
    burst: bool,
) -> Result<[f64; 2], String> {
    let running = setup.start(target, workers)?;
    let held =
        probe::open_kept_connections(running.server.addr, clients, burst, CONNECTION_TIMEOUT);
    let held = held.map_err(|e| format!("a kept connection: {e}"))?;
    let mut counts: HashMap<u32, usize> = HashMap::new();
    for one in &held {
        *counts.entry(one.pid).or_default() += 1;
    }
    let most = counts.values().max().copied().unwrap_or(0);
    // A worker without connections is not in the table.
    let all_have_some = counts.len() >= workers;
    let fewest = counts.values().min().copied().filter(|_| all_have_some).unwrap_or(0);
    Ok([most as f64, fewest as f64])
}
