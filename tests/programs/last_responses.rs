//! Handlers that hold a part of the request or of the connection for longer than their response takes.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use tokio_prefork::{Cluster, Result, Worker};

use super::ProgramArguments;

/// Serves paths that name what goes on until there is a file `release`.
pub(super) fn last_responses(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve(|_: Worker| async {
        Ok(service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) }))
    })
}

async fn until_released() {
    let mut checks = tokio::time::interval(Duration::from_millis(10));
    while !Path::new("release").exists() {
        checks.tick().await;
    }
}

async fn answer(mut request: Request<Incoming>) -> Response<Full<Bytes>> {
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
        _ => {}
    }
    let mut response = Response::new(Full::from(format!("{path}\n")));
    *response.status_mut() = status;
    response
}
