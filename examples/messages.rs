//! Messages between workers and primary: the primary counts the requests of all workers and broadcasts the total.
//!
//! Each worker sends a message for every request, and answers with the last total that it has received.
//!
//! ```text
//! cargo run --example messages -- 127.0.0.1:3000
//! curl http://127.0.0.1:3000/            # the last total that this worker has received
//! curl http://127.0.0.1:3000/exactly     # requests the total from the primary
//! ```

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{Cluster, Config, Main, MessageError, Worker};

fn main() -> Main {
    run().into()
}

fn run() -> tokio_prefork::Result<()> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    // Both closures run in the primary, one at a time, so an `Rc<Cell>` is enough.
    let total = Rc::new(Cell::new(0u64));
    let requested = Rc::clone(&total);
    Cluster::new(config)
        .on_message("served", move |primary, _from, _message| {
            total.set(total.get() + 1);
            if let Err(e) = primary.broadcast("total", &total.get()) {
                log::warn!("cannot broadcast the total: {e}");
            }
        })
        .on_message("get-total", move |primary, _from, message| {
            let Some(to) = message.reply_to() else { return };
            if let Err(e) = primary.reply(&to, &requested.get()) {
                log::warn!("cannot reply: {e}");
            }
        })
        .serve(|worker: Worker| async move {
            let last_total = Rc::new(Cell::new(0u64));
            // Opened before the worker is ready, so that it misses no message.
            let mut inbox = worker.open_inbox("total");
            let received = Rc::clone(&last_total);
            tokio::task::spawn_local(async move {
                while let Some(message) = inbox.recv().await {
                    received.set(message.decode().unwrap_or_else(|_| received.get()));
                }
            });
            Ok(service_fn(move |request: Request<Incoming>| {
                let (worker, last_total) = (worker.clone(), last_total.get());
                async move {
                    let text = match total_for(&worker, request.uri().path(), last_total).await {
                        Ok(total) => format!("{total} requests, by pid {}\n", worker.pid()),
                        Err(e) => format!("{e}\n"),
                    };
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                }
            }))
        })
}

/// Returns the total to answer with: the exact one of the primary for `/exactly`, else the last one received.
async fn total_for(worker: &Worker, path: &str, last_total: u64) -> Result<u64, MessageError> {
    if path == "/exactly" {
        return worker.request("get-total", &(), Duration::from_secs(5)).await?.decode();
    }
    worker.send("served", &()).await?;
    Ok(last_total)
}
