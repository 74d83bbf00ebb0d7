//! An application with work that a leaving worker has to finish. It records what happens in the file `events`.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::Write;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use tokio_prefork::{Cluster, ConcurrencyModel, Result, Worker, WorkerKind};

use super::ProgramArguments;

/// Serves through the door that `door=` names: `serve`, `serve_threads`, `connections` or `kind`.
pub(super) fn leaving(arguments: ProgramArguments) -> Result<()> {
    let is_threads = arguments.config.model() == ConcurrencyModel::Threads;
    let door = arguments.value("door").unwrap_or_else(|_| "serve".to_string());
    let cluster = Cluster::new(arguments.config);
    match door.as_str() {
        "connections" => cluster.serve_connections(|worker: Worker| async move {
            register_stop(&worker);
            let dropped = Arc::new(RecordDrop);
            Ok(move |stream| {
                let _ = &dropped;
                let worker = worker.clone();
                // The connection ends at once; its work goes on.
                async move {
                    drop(stream);
                    worker.spawn("mail", wait_until_released());
                }
            })
        }),
        "kind" => cluster
            .kind(WorkerKind::new("consumer", 1), |worker: Worker| async move {
                register_stop(&worker);
                worker.draining().await;
                worker.spawn("mail", wait_until_released());
                Ok(())
            })
            .serve(|_: Worker| async { Ok(service_fn(|_| answer("web"))) }),
        _ if is_threads => cluster.serve_threads(|worker| async move { Ok(service(worker)) }),
        _ => cluster.serve(|worker| async move { Ok(service(worker)) }),
    }
}

/// Appends a line to the file `events`.
fn record(event: &str) {
    let file = std::fs::OpenOptions::new().create(true).append(true).open("events");
    // One write, so that the lines of several workers do not mix.
    let _ = file.and_then(|mut file| file.write_all(format!("{event}\n").as_bytes()));
}

/// Records its drop.
struct RecordDrop;

impl Drop for RecordDrop {
    fn drop(&mut self) {
        record("dropped");
    }
}

async fn wait_until_released() {
    let mut checks = tokio::time::interval(Duration::from_millis(10));
    while !Path::new("release").exists() {
        checks.tick().await;
    }
    record("mail");
}

/// Takes time that nothing but a timer ends.
async fn work_for(span: Duration) {
    let _ = tokio::time::timeout(span, std::future::pending::<()>()).await;
}

fn register_stop(worker: &Worker) {
    worker.on_stop(async { record("first registered") });
    worker.on_stop(async {
        work_for(Duration::from_millis(100)).await;
        record("last registered");
    });
    let draining = worker.clone();
    worker.spawn("cleanup", async move {
        draining.draining().await;
        work_for(Duration::from_millis(100)).await;
        record("cleanup");
    });
}

type BoxBody = UnsyncBoxBody<Bytes, Infallible>;
type Answer = std::result::Result<Response<BoxBody>, Infallible>;

async fn answer(text: &'static str) -> Answer {
    Ok(Response::new(Full::new(Bytes::from_static(text.as_bytes())).boxed_unsync()))
}

fn service(
    worker: Worker,
) -> impl Service<
    Request<Incoming>,
    Response = Response<BoxBody>,
    Error = Infallible,
    Future = impl Future<Output = Answer> + Send,
> + Send
+ Sync {
    register_stop(&worker);
    let dropped = Arc::new(RecordDrop);
    service_fn(move |request: Request<Incoming>| {
        let worker = worker.clone();
        let _ = &dropped;
        async move {
            match request.uri().path() {
                "/work" => drop(worker.spawn("mail", wait_until_released())),
                "/stuck-work" => drop(worker.spawn("stuck", std::future::pending::<()>())),
                "/stuck-stop" => worker.on_stop(std::future::pending()),
                "/hold-on-thread" => {
                    let hold = worker.hold("thread");
                    std::thread::spawn(move || {
                        while !Path::new("release").exists() {
                            std::thread::yield_now();
                        }
                        record("thread");
                        drop(hold);
                    });
                }
                "/panics" => drop(worker.spawn("fragile", poll_fn(|_| panic_now()))),
                "/disconnect" => worker.disconnect(),
                "/events" => {
                    return Ok(Response::new(
                        worker.end_on_drain(Endless::default()).boxed_unsync(),
                    ));
                }
                "/endless" => return Ok(Response::new(Endless::default().boxed_unsync())),
                _ => {}
            }
            answer("done").await
        }
    })
}

#[expect(clippy::panic, reason = "a panic is what this is about")]
fn panic_now() -> Poll<()> {
    panic!("the task fails")
}

/// A body that has one part and never ends.
#[derive(Default)]
struct Endless {
    has_begun: bool,
}

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        match std::mem::replace(&mut self.has_begun, true) {
            false => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"event\n"))))),
            true => Poll::Pending,
        }
    }
}
