//! The primary collects and broadcasts back: each worker tells it of every request, and the primary tells all workers
//! how many there were in all. Each answer names the total that its worker has heard of.
//!
//! ```text
//! cargo run --example messages -- 127.0.0.1:3000
//! curl http://127.0.0.1:3000/            # what this worker has heard of
//! curl http://127.0.0.1:3000/exactly     # asks the primary
//! ```

use std::cell::Cell;
use std::convert::Infallible;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{Cluster, Config, MailError, Worker};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| error.report())
}

fn run() -> tokio_prefork::Result<ExitCode> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_string());
    let config = Config::builder().listen(&address)?.build()?;
    // Both functions run in the primary, one at a time: plain shared state will do.
    let total = Rc::new(Cell::new(0u64));
    let asked = Rc::clone(&total);
    Cluster::new(config)
        .on_message("served", move |primary, _from, _message| {
            total.set(total.get() + 1);
            if let Err(e) = primary.broadcast("total", &total.get()) {
                log::warn!("cannot tell the workers: {e}");
            }
        })
        .on_message("how many", move |primary, _from, message| {
            let Some(to) = message.reply_to() else { return };
            if let Err(e) = primary.reply(&to, &asked.get()) {
                log::warn!("cannot answer: {e}");
            }
        })
        .serve(|worker: Worker| async move {
            let heard = Rc::new(Cell::new(0u64));
            // Opened before the worker is ready, so that nothing is missed.
            let mut inbox = worker.recv("total");
            let hears = Rc::clone(&heard);
            tokio::task::spawn_local(async move {
                while let Some(message) = inbox.recv().await {
                    hears.set(message.decode().unwrap_or_else(|_| hears.get()));
                }
            });
            Ok(service_fn(move |request: Request<Incoming>| {
                let (worker, heard) = (worker.clone(), heard.get());
                async move {
                    let text = match answer(&worker, request.uri().path(), heard).await {
                        Ok(total) => format!("{total} requests, says pid {}\n", worker.pid()),
                        Err(e) => format!("{e}\n"),
                    };
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                }
            }))
        })
}

async fn answer(worker: &Worker, path: &str, heard: u64) -> Result<u64, MailError> {
    if path == "/exactly" {
        return worker.request("how many", &(), Duration::from_secs(5)).await?.decode();
    }
    worker.send("served", &()).await?;
    Ok(heard)
}
