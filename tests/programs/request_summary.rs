//! An application that returns how it understood each request, for the differential fuzzer.

use std::convert::Infallible;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use tokio_prefork::{Cluster, Result, Worker};

use super::ProgramArguments;

/// Answers each request with `X-Seen: METHOD TARGET BODY-LENGTH BODY-CHECKSUM`. A request to `/early` is answered
/// before its body is read.
pub(super) fn request_summary(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve(|_: Worker| async {
        Ok(service_fn(|r| async { Ok::<_, Infallible>(summarize(r).await) }))
    })
}

async fn summarize(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let target =
        head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string);
    let mut response = Response::new(Full::default());
    let body = if head.uri.path().starts_with("/early") {
        Bytes::new()
    } else {
        match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => {
                *response.status_mut() = StatusCode::BAD_REQUEST;
                return response;
            }
        }
    };
    // FNV-1a.
    let sum = body
        .iter()
        .fold(0x811c_9dc5, |sum: u32, b| (sum ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    let seen = format!("{} {target} {} {sum:08x}", head.method, body.len());
    // With a body, as hyper closes the connection after a HEAD request whose response has none.
    *response.body_mut() = Full::from(seen.clone());
    if let Ok(seen) = HeaderValue::from_bytes(seen.as_bytes()) {
        response.headers_mut().insert("x-seen", seen);
    }
    if head.method == "CONNECT" {
        // A success would turn the connection into a tunnel.
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    }
    response
}
