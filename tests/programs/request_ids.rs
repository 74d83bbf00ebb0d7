//! An application that says what it knows about the id, the trace and the client of a request.

use std::convert::Infallible;
use std::result::Result as StdResult;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio_prefork::{
    AcceptedStream, ClientInfo, Cluster, ConcurrencyModel, RequestId, Result, TraceContext, Worker,
};

use super::ProgramArguments;

/// Serves HTTP under the model of the configuration; with `raw=1` on raw connections.
pub(super) fn request_ids(arguments: ProgramArguments) -> Result<()> {
    let is_threads = arguments.config.model() == ConcurrencyModel::Threads;
    let is_raw = arguments.value("raw").is_ok();
    let cluster = Cluster::new(arguments.config);
    if is_raw {
        return cluster.serve_connections(|worker: Worker| async move {
            Ok(move |stream: AcceptedStream| {
                let worker = worker.clone();
                async move { worker.serve_http(stream, service_fn(respond)).await }
            })
        });
    }
    if is_threads {
        return cluster.serve_threads(|_: Worker| async move { Ok(service_fn(respond)) });
    }
    cluster.serve(|_: Worker| async move { Ok(service_fn(respond)) })
}

async fn respond(request: Request<Incoming>) -> StdResult<Response<Full<Bytes>>, Infallible> {
    let before = RequestId::current();
    tokio::task::yield_now().await;
    let after = RequestId::current();
    let path = request.uri().path();
    if path == "/log" {
        log::info!("said-in-handler");
        let task = tokio::spawn(async { log::info!("said-in-task") });
        let _ = task.await;
    }
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let trace = TraceContext::of(&request);
    let facts = serde_json::json!({
        "pid": std::process::id(),
        "extension": request.extensions().get::<RequestId>().map(RequestId::as_str),
        "client_info": ClientInfo::of(&request).request_id().map(RequestId::as_str),
        "current": (before == after).then(|| after.as_ref().map(RequestId::as_str)).flatten(),
        "header": header("x-request-id"),
        "traceparent": header("traceparent"),
        "tracestate": header("tracestate"),
        "trace_id": trace.as_ref().map(|trace| trace.trace_id().to_string()),
        "is_trusted": trace.as_ref().map(TraceContext::is_from_trusted_proxy),
        "state": trace.as_ref().and_then(TraceContext::state),
    });
    let mut response = Response::new(Full::new(Bytes::from(facts.to_string())));
    if path == "/own" {
        response.headers_mut().insert("x-request-id", "of-the-application".parse().expect("ASCII"));
    }
    Ok(response)
}
