//! How many processes wake up for one connection.

use std::time::{Duration, Instant};

use crate::support::contest;
use crate::support::contestant::{Contestant, Ground};
use crate::support::probe;
use crate::support::report::{Show, column};
use crate::{Asked, Outcome};

/// A pause in which all workers fall asleep again.
const PAUSE: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(10);
/// How long idle servers are watched, and how long they may settle before.
const IDLE: Duration = Duration::from_millis(500);

pub fn measure(asked: &Asked) -> Outcome {
    let connections: u32 = if asked.trial { 20 } else { 500 };
    let numbers = asked.workers.map_or(vec![4, 8, 16], |workers| vec![workers]);
    let all = contest::run(
        &asked.ground,
        asked.plain(),
        |_| true,
        |who| {
            let mut values = Vec::new();
            for workers in &numbers {
                values.extend(one(&asked.ground, who, *workers, connections)?);
            }
            Ok(values)
        },
    );
    let names = numbers.iter().flat_map(|workers| {
        ["per_connection", "without_idle", "idle_per_s"].map(|name| format!("{workers}_{name}"))
    });
    let columns = numbers.iter().enumerate().flat_map(|(n, workers)| {
        [
            column(format!("{workers} workers"), 1, Show::Median(3 * n)),
            column("less idle ones", 1, Show::Median(3 * n + 1)),
            column("idle, per s", 0, Show::Median(3 * n + 2)),
        ]
    });
    let title = format!(
        "Wake-ups: voluntary context switches of all processes per accepted connection, {connections} \
         connections one after the other"
    );
    Outcome { title, names: names.collect(), columns: columns.collect(), all }
}

/// Switches per connection, the same without those that would have happened anyway, and these per second.
fn one(
    ground: &Ground,
    who: Contestant,
    workers: usize,
    connections: u32,
) -> Result<[f64; 3], String> {
    let running = ground.start(who, workers)?;
    let server = &running.server;
    std::thread::sleep(IDLE);
    let (begun, before) = (Instant::now(), server.voluntary_switches());
    std::thread::sleep(IDLE);
    let idle = (server.voluntary_switches() - before) as f64 / begun.elapsed().as_secs_f64();
    let (begun, before) = (Instant::now(), server.voluntary_switches());
    for _ in 0..connections {
        probe::ask(server.addr, PATIENCE, Instant::now()).map_err(|e| format!("a request: {e}"))?;
        std::thread::sleep(PAUSE);
    }
    let switches = (server.voluntary_switches() - before) as f64;
    let anyway = idle * begun.elapsed().as_secs_f64();
    let each = f64::from(connections);
    Ok([switches / each, (switches - anyway) / each, idle])
}
