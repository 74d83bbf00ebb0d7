//! The example of the documentation of Node's `cluster` module, line by line: events of the workers in the primary.
//!
//! The comments have the lines of the original.
//!
//! ```text
//! cargo run --example custom_primary -- 127.0.0.1:8000
//! curl http://127.0.0.1:8000/
//! kill -9 WORKER                 # a pid from the output: it is replaced
//! ```

use std::convert::Infallible;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
// import cluster from 'node:cluster';
use tokio_prefork::{Cluster, ClusterEvent, Config, Main};

fn main() -> Main {
    run().into()
}

fn run() -> tokio_prefork::Result<()> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8000".to_string());

    // const numCPUs = availableParallelism();
    // for (let i = 0; i < numCPUs; i++) { cluster.fork(); }
    //   By default, the primary forks one worker per core.
    let config = Config::builder().listen(&address)?.build()?;

    // if (cluster.isPrimary) { console.log(`Primary ${process.pid} is running`);
    //   The code before `serve`, and the closure for `on_event`, run in the primary.
    eprintln!("Primary {} is running", std::process::id());

    Cluster::new(config)
        .on_event(|_primary, event| match event {
            // cluster.on('listening', (worker, address) => {
            //   console.log(`A worker is now connected to ${address.address}:${address.port}`);
            // });
            ClusterEvent::Listening { addresses, .. } => {
                let address = addresses.first().map(ToString::to_string).unwrap_or_default();
                eprintln!("A worker is now connected to {address}");
            }
            // cluster.on('exit', (worker, code, signal) => {
            //   console.log(`worker ${worker.process.pid} died`);
            // });
            //   The exit has a reason. In Node, the application forks a replacement here; this primary does so by
            //   itself, unless `on_restart` prevents it.
            ClusterEvent::Exit(exit) => {
                let pid = exit.worker.pid.unwrap_or_default();
                eprintln!("worker {pid} died: {:?}", exit.reason);
            }
            ClusterEvent::Replaced { worker, by, .. } => {
                eprintln!("worker {worker} is replaced by worker {}", by.id);
            }
            _ => {}
        })
        // } else {
        //   The closure for `serve` runs in each worker.
        .serve(|worker| async move {
            // console.log(`Worker ${process.pid} started`);
            eprintln!("Worker {} started", worker.pid());

            // http.createServer((req, res) => {
            //   res.writeHead(200);
            //   res.end('hello world\n');
            // }).listen(8000);
            Ok(service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("hello world\n"))))
            }))
            // }
        })
}
