//! An application that logs from its handler, from threads and from pools, in the format of the library.

use std::convert::Infallible;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::log_output::{self, LogFormat, LogOutput};
use tokio_prefork::{Cluster, ConcurrencyModel, Result, Worker};

use super::ProgramArguments;

/// What hostile text may contain: line breaks, quotes, escape sequences, and characters outside of the BMP.
const HOSTILE: &str = "a\r\nb \"c\" \\d \u{1b}[31m \u{e0041}\u{202e} 🦀";

/// Installs a logger with the line format of the library.
pub(super) fn init_logger(format: LogFormat) {
    log_output::init_log_output(format);
    log_output::install_panic_hook();
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Info)
        .format(log_output::write_record)
        .target(env_logger::Target::Pipe(Box::new(LogOutput)))
        .init();
}

/// Logs according to the path of each request.
pub(super) fn logging(arguments: ProgramArguments) -> Result<()> {
    let is_threads = arguments.config.model() == ConcurrencyModel::Threads;
    let cluster = Cluster::new(arguments.config);
    if is_threads {
        return cluster.serve_threads(|worker: Worker| async move {
            Ok(service_fn(move |request| respond(worker.clone(), request)))
        });
    }
    cluster.serve(|worker: Worker| async move {
        Ok(service_fn(move |request| respond(worker.clone(), request)))
    })
}

async fn respond(
    worker: Worker,
    request: Request<Incoming>,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    match request.uri().path() {
        "/handler" => log::info!(user = HOSTILE, count = 7; "said-handler"),
        "/library" => log::warn!(target: "some_library", "said-library"),
        "/hostile" => log::info!("said-hostile {HOSTILE}"),
        "/long" => log::info!("said-long {}", HOSTILE.repeat(1000)),
        "/pool" => {
            let done = worker.pool().run(|| log::info!("said-pool"));
            let _ = done.await;
        }
        "/thread" => {
            let _ = std::thread::spawn(|| log::info!("said-thread")).join();
        }
        "/panic-thread" => {
            let _ = std::thread::spawn(|| panic!("said-panic {HOSTILE}")).join();
        }
        _ => {}
    }
    Ok(Response::new(Full::new(Bytes::from_static(b"done\n"))))
}
