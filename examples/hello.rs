//! The smallest server: a hyper `service_fn` with a request counter in each worker.
//!
//! The counter is an `Rc<Cell>`: a worker has one thread, so nothing in it has to be `Send`.
//!
//! ```text
//! cargo run --example hello -- 127.0.0.1:3000
//! curl http://127.0.0.1:3000/
//! ```

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{Cluster, Config, Main};

fn main() -> Main {
    run().into()
}

fn run() -> tokio_prefork::Result<()> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    Cluster::new(config).serve(|worker| async move {
        // This block runs once in each worker, and the closure below once for each request.
        let count = Rc::new(Cell::new(0u64));
        Ok(service_fn(move |_: Request<Incoming>| {
            count.set(count.get() + 1);
            let text = format!("hello {} from pid {}\n", count.get(), worker.pid());
            async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text)))) }
        }))
    })
}
