//! Handlers that hold a part of the request or of the connection for longer than their response takes.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use tokio_prefork::{BoxError, Cluster, ConcurrencyModel, Result, Worker};

use super::ProgramArguments;

type ResponseBody = BoxBody<Bytes, Infallible>;

/// Serves paths that name what goes on until there is a file `release`.
pub(super) fn last_responses(arguments: ProgramArguments) -> Result<()> {
    let is_threads = arguments.config.model() == ConcurrencyModel::Threads;
    let cluster = Cluster::new(arguments.config);
    let boot = |_: Worker| async {
        Ok::<_, BoxError>(service_fn(|request| async {
            Ok::<_, Infallible>(answer(request).await)
        }))
    };
    match is_threads {
        true => cluster.serve_threads(boot),
        false => cluster.serve(boot),
    }
}

async fn until_released() {
    let mut checks = tokio::time::interval(Duration::from_millis(10));
    while !Path::new("release").exists() {
        checks.tick().await;
    }
}

async fn answer(mut request: Request<Incoming>) -> Response<ResponseBody> {
    let path = request.uri().path().to_string();
    let mut status = StatusCode::OK;
    match path.as_str() {
        "/hold-body" => {
            tokio::spawn(async move {
                until_released().await;
                drop(request);
            });
        }
        // The target of a CONNECT request has no path.
        "/hold-upgrade" | "" => {
            status = StatusCode::FORBIDDEN;
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let upgraded = upgrade.await;
                until_released().await;
                drop(upgraded);
            });
        }
        "/read-half" => drop(request.body_mut().frame().await),
        "/end-late" => {
            let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"late\n")))]);
            let end = stream::once(until_released()).filter_map(|()| async { None });
            return Response::new(BodyExt::boxed(StreamBody::new(first.chain(end))));
        }
        _ => {}
    }
    let mut response = Response::new(BodyExt::boxed(Full::from(format!("{path}\n"))));
    *response.status_mut() = status;
    response
}
