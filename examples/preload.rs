//! Copy-on-write memory: the primary loads a table of 64 MiB before it forks, and all workers read the same pages.
//!
//! `/` shows how much memory a worker has for itself and how much it shares; `/N` looks up an entry.
//!
//! ```text
//! cargo run --example preload -- 127.0.0.1:3000
//! curl http://127.0.0.1:3000/ http://127.0.0.1:3000/123
//! ```

use std::convert::Infallible;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{Cluster, Config, Main};

/// Number of table entries, of 8 bytes each.
const TABLE_ENTRIES: u64 = 8 << 20;

fn main() -> Main {
    run().into()
}

fn run() -> tokio_prefork::Result<()> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    let mut cluster = Cluster::new(config);
    let load = || Ok((0..TABLE_ENTRIES).map(|n| n.wrapping_mul(n)).collect::<Vec<u64>>());
    let table = cluster.preload(load);
    cluster.serve(move |worker| async move {
        Ok(service_fn(move |request: Request<Incoming>| {
            let text = match request.uri().path()[1..].parse::<usize>() {
                Ok(n) => table.get(n).map_or("not in the table\n".into(), |v| format!("{v}\n")),
                Err(_) => format!("pid {}: {}\n", worker.pid(), memory_usage()),
            };
            async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text)))) }
        }))
    })
}

/// Returns the private and shared memory of this process, by `/proc/self/smaps_rollup`.
fn memory_usage() -> String {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let sum = |names: [&str; 2]| -> u64 {
        let lines = rollup.lines().filter_map(|line| line.split_once(':'));
        let wanted = lines.filter(|(name, _)| names.contains(name));
        wanted.filter_map(|(_, size)| size.trim().strip_suffix(" kB")?.parse::<u64>().ok()).sum()
    };
    let private = sum(["Private_Clean", "Private_Dirty"]);
    let shared = sum(["Shared_Clean", "Shared_Dirty"]);
    format!("private {private} KiB, shared {shared} KiB")
}
