//! How evenly long-lived connections are spread.

use std::collections::HashMap;
use std::time::Duration;

use crate::support::contest;
use crate::support::contestant::{Contestant, Ground};
use crate::support::probe;
use crate::support::report::{Show, column};
use crate::{Asked, Outcome};

/// Long enough for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn measure(asked: &Asked) -> Outcome {
    let clients = asked.clients.unwrap_or(64);
    // The second number is for those who asked for one only: the same again.
    let [few, many] = asked.workers.map_or([2, 8], |workers| [workers; 2]);
    let settings = [(few, false), (few, true), (many, false), (many, true)];
    let all = contest::run(
        &asked.ground,
        asked.plain(),
        |_| true,
        |who| {
            let mut values = Vec::new();
            for (workers, burst) in settings {
                values.extend(one(&asked.ground, who, workers, clients, burst)?);
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
        asked.rounds
    );
    Outcome {
        title,
        names: names.collect(),
        columns: settings
            .iter()
            .enumerate()
            .map(|(n, (workers, burst))| {
                let how = if *burst { "in a burst" } else { "one by one" };
                column(format!("{workers} workers, {how}"), 0, Show::Spread(2 * n))
            })
            .collect(),
        all,
    }
}

fn one(
    ground: &Ground,
    who: Contestant,
    workers: usize,
    clients: usize,
    burst: bool,
) -> Result<[f64; 2], String> {
    let running = ground.start(who, workers)?;
    let held = probe::hold(running.server.addr, clients, burst, PATIENCE);
    let held = held.map_err(|e| format!("a kept connection: {e}"))?;
    let mut counts: HashMap<u32, usize> = HashMap::new();
    for one in &held {
        *counts.entry(one.pid).or_default() += 1;
    }
    let most = counts.values().max().copied().unwrap_or(0);
    // Who has none does not stand in the table.
    let all_have_some = counts.len() >= workers;
    let fewest = counts.values().min().copied().filter(|_| all_have_some).unwrap_or(0);
    Ok([most as f64, fewest as f64])
}
