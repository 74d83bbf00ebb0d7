//! Applications for tests of serving: handlers, connections, environment and deadlines.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::ext::Protocol;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio_prefork::{AcceptedStream, Cluster, RequestDeadline, Result, Worker};

use super::ProgramArguments;
use super::boot::text_service;

fn response(text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::new(Full::new(text.into()))
}

/// Counts requests in state that is neither `Send` nor `Sync`.
pub(super) fn handler_not_send(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve(|worker: Worker| async move {
        let seen = Rc::new(Cell::new(0));
        Ok(service_fn(move |_: Request<Incoming>| {
            let seen = Rc::clone(&seen);
            let pid = worker.pid();
            async move {
                // The future stays on this thread across a suspension.
                tokio::task::yield_now().await;
                seen.set(seen.get() + 1);
                Ok::<_, Infallible>(response(format!("{} by PID {pid}", seen.get())))
            }
        }))
    })
}

/// Has a name and a version; answers with the status of the cluster.
pub(super) fn named_application(arguments: ProgramArguments) -> Result<()> {
    let config = arguments.config.into_builder().name("greeter").version("1.2.3").titles(true);
    Cluster::new(config.build()?).serve(|worker: Worker| async move {
        Ok(text_service(move || {
            serde_json::to_string(&worker.cluster_status()).unwrap_or_default()
        }))
    })
}

/// Serves an axum router.
pub(super) fn axum_router(arguments: ProgramArguments) -> Result<()> {
    use axum::routing::get;
    Cluster::new(arguments.config).serve(|worker: Worker| async move {
        let pid = worker.pid();
        let hello = move |axum::extract::Path(name): axum::extract::Path<String>| async move {
            format!("hello {name}, from PID {pid}")
        };
        let router = axum::Router::new().route("/hello/{name}", get(hello));
        Ok(router)
    })
}

/// Opens a tunnel for each extended CONNECT, which answers each piece with its protocol before it.
pub(super) fn extended_connect(arguments: ProgramArguments) -> Result<()> {
    let config = arguments.config.into_builder();
    let config = config.http2_extended_connect(true).keep_alive_timeout(Duration::from_millis(500));
    Cluster::new(config.build()?).serve(|_: Worker| async {
        Ok(service_fn(|mut request: Request<Incoming>| async move {
            if let Some(protocol) = request.extensions().get::<Protocol>().cloned() {
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::task::spawn_local(async move {
                    let Ok(tunnel) = upgrade.await else { return };
                    let mut tunnel = TokioIo::new(tunnel);
                    let mut piece = [0; 64];
                    while let Ok(length @ 1..) = tunnel.read(&mut piece).await {
                        let text = String::from_utf8_lossy(&piece[..length]);
                        let answer = format!("{}: {text}", protocol.as_str());
                        if tunnel.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
            Ok::<_, Infallible>(response(""))
        }))
    })
}

/// Serves a line protocol: a greeting, then an echo of each line until `bye`.
pub(super) fn line_protocol(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve_connections(|worker: Worker| async move {
        let pid = worker.pid();
        Ok(move |stream: AcceptedStream| serve_lines(pid, stream))
    })
}

async fn serve_lines(pid: u32, stream: AcceptedStream) {
    let mut stream = BufReader::new(stream);
    let greeting = format!("hello from {pid}\n");
    let mut line = String::new();
    // A disconnected client only ends its connection.
    if stream.get_mut().write_all(greeting.as_bytes()).await.is_err() {
        return;
    }
    while let Ok(1..) = stream.read_line(&mut line).await {
        assert!(line != "panic\n", "a line asked for it");
        if line == "bye\n" || stream.get_mut().write_all(line.as_bytes()).await.is_err() {
            return;
        }
        line.clear();
    }
}

/// Answers with the environment of the worker.
pub(super) fn worker_environment(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve(|_: Worker| async {
        Ok(text_service(|| {
            let all = std::env::vars().map(|(name, value)| format!("{name}={value}\n"));
            all.collect()
        }))
    })
}

/// Retires each worker at its third request.
pub(super) fn retiring_workers(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve(|worker: Worker| async move {
        let seen = Cell::new(0);
        Ok(text_service(move || {
            seen.set(seen.get() + 1);
            if seen.get() == 3 {
                worker.retire();
            }
            format!("Handled by PID {}\n", worker.pid())
        }))
    })
}

async fn exceed_request_timeout(worker: &Worker, request: &Request<Incoming>) {
    let limit = worker.config().request_timeout().unwrap_or_default();
    if let Some(deadline) = request.extensions().get::<RequestDeadline>() {
        match request.uri().path() {
            "/unlimited" => deadline.disable(),
            _ => deadline.extend(100 * limit),
        }
    }
    let never = std::future::pending::<()>();
    let _ = tokio::time::timeout(3 * limit, never).await;
}

/// Answers `/cluster` at once, `/poll` when the worker drains, and `/extended` and `/unlimited` after three times
/// `request-timeout`, with their deadlines changed; other paths never.
pub(super) fn waiting_requests(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve(|worker: Worker| async move {
        Ok(service_fn(move |request: Request<Incoming>| {
            let worker = worker.clone();
            async move {
                match request.uri().path() {
                    "/cluster" => {
                        let json = serde_json::to_vec(&worker.cluster_status()).unwrap_or_default();
                        return Ok::<_, Infallible>(response(json));
                    }
                    "/poll" => worker.draining().await,
                    "/extended" | "/unlimited" => {
                        exceed_request_timeout(&worker, &request).await;
                        return Ok(response("done"));
                    }
                    _ => std::future::pending().await,
                }
                Ok(response("goodbye"))
            }
        }))
    })
}

/// Has no worker of its own accord: forks one for each role at the start, which answers with its role.
pub(super) fn roles_forked_at_start(arguments: ProgramArguments) -> Result<()> {
    let config = arguments.config.into_builder().workers(0).build()?;
    let cluster = Cluster::new(config).on_start(|primary| {
        for role in ["mail", "cron"] {
            primary.fork_with([("ROLE", role)])?;
        }
        Ok(())
    });
    cluster.serve(|_: Worker| async {
        let role = std::env::var("ROLE").unwrap_or_else(|_| "none".to_string());
        Ok(text_service(move || role.clone()))
    })
}
