//! Programs about serving.

use std::cell::Cell;
use std::convert::Infallible;
use std::process::ExitCode;
use std::rc::Rc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio_prefork::{Cluster, RequestDeadline, Result, Stream, Worker};

use super::Told;
use super::boot::text;

fn say(text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::new(Full::new(text.into()))
}

/// A handler with state that is neither `Send` nor `Sync`: how many requests this worker has seen.
pub(super) fn not_send(told: Told) -> Result<ExitCode> {
    Cluster::new(told.config).serve(|worker: Worker| async move {
        let seen = Rc::new(Cell::new(0));
        Ok(service_fn(move |_: Request<Incoming>| {
            let seen = Rc::clone(&seen);
            let pid = worker.pid();
            async move {
                // Over a suspension too, it stays on this thread.
                tokio::task::yield_now().await;
                seen.set(seen.get() + 1);
                Ok::<_, Infallible>(say(format!("{} by PID {pid}", seen.get())))
            }
        }))
    })
}

/// An axum application behind tower's door.
pub(super) fn axum(told: Told) -> Result<ExitCode> {
    use axum::routing::get;
    Cluster::new(told.config).serve(|worker: Worker| async move {
        let pid = worker.pid();
        let hello = move |axum::extract::Path(name): axum::extract::Path<String>| async move {
            format!("hello {name}, from PID {pid}")
        };
        let router = axum::Router::new().route("/hello/{name}", get(hello));
        Ok(hyper_util::service::TowerToHyperService::new(router))
    })
}

/// No HTTP: the server speaks first, then repeats lines until it is told `bye`.
pub(super) fn connections(told: Told) -> Result<ExitCode> {
    Cluster::new(told.config).serve_connections(|worker: Worker, stream: Stream| async move {
        let mut stream = BufReader::new(stream);
        let greeting = format!("hello from {}\n", worker.pid());
        let mut line = String::new();
        // A client that is gone ends its connection, and that is all.
        if stream.get_mut().write_all(greeting.as_bytes()).await.is_err() {
            return;
        }
        while let Ok(1..) = stream.read_line(&mut line).await {
            if line == "bye\n" || stream.get_mut().write_all(line.as_bytes()).await.is_err() {
                return;
            }
            line.clear();
        }
    })
}

/// The environment of a worker.
pub(super) fn environment(told: Told) -> Result<ExitCode> {
    Cluster::new(told.config).serve(|_: Worker| async {
        Ok(text(|| {
            let all = std::env::vars().map(|(name, value)| format!("{name}={value}\n"));
            all.collect()
        }))
    })
}

/// A worker that wants to be replaced after its third request.
pub(super) fn retiring(told: Told) -> Result<ExitCode> {
    Cluster::new(told.config).serve(|worker: Worker| async move {
        let seen = Cell::new(0);
        Ok(text(move || {
            seen.set(seen.get() + 1);
            if seen.get() == 3 {
                worker.retire();
            }
            format!("Handled by PID {}\n", worker.pid())
        }))
    })
}

async fn take_longer(worker: &Worker, request: &Request<Incoming>) {
    let limit = worker.config().request_timeout.unwrap_or_default();
    if let Some(deadline) = request.extensions().get::<RequestDeadline>() {
        match request.uri().path() {
            "/unlimited" => deadline.disable(),
            _ => deadline.extend(100 * limit),
        }
    }
    let never = std::future::pending::<()>();
    let _ = tokio::time::timeout(3 * limit, never).await;
}

/// `/cluster` is answered at once, `/poll` when the worker drains, `/extended` and `/unlimited` after three times
/// `request-timeout`, which they are not held to, and everything else never.
pub(super) fn waiting(told: Told) -> Result<ExitCode> {
    Cluster::new(told.config).serve(|worker: Worker| async move {
        Ok(service_fn(move |request: Request<Incoming>| {
            let worker = worker.clone();
            async move {
                match request.uri().path() {
                    "/cluster" => {
                        let json = serde_json::to_vec(&worker.cluster()).unwrap_or_default();
                        return Ok::<_, Infallible>(say(json));
                    }
                    "/poll" => worker.draining().await,
                    "/extended" | "/unlimited" => {
                        take_longer(&worker, &request).await;
                        return Ok(say("done"));
                    }
                    _ => std::future::pending().await,
                }
                Ok(say("goodbye"))
            }
        }))
    })
}
