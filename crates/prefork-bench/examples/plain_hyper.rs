//! A plain hyper server without `tokio-prefork`: `scripts/perf-gate` compares the cost of a request with it.
//!
//! One process with one event loop and hyper's defaults. Its responses have the bodies and fields of `prefork serve`.
//!
//! ```text
//! cargo run --release -p prefork-bench --example plain_hyper -- 127.0.0.1:3000
//! ```

use std::convert::Infallible;
use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

static LARGE_BODY: [u8; 65536] = [b'0'; 65536];

async fn respond(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = match request.uri().path() {
        "/echo" => request.into_body().collect().await?.to_bytes(),
        "/bytes/65536" => Bytes::from_static(&LARGE_BODY),
        _ => {
            let text = format!("Handled by PID {}\n", std::process::id());
            let mut response = Response::new(Full::new(text.into()));
            let plain_text = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, plain_text);
            return Ok(response);
        }
    };
    Ok(Response::new(Full::new(body)))
}

async fn serve(addr: SocketAddr) -> std::io::Result<Infallible> {
    let listener = TcpListener::bind(addr).await?;
    println!("listening on http://{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::task::spawn_local(async move {
            let io = TokioIo::new(stream);
            // A client that closes its connection early is no error of the server.
            let _ = http1::Builder::new().serve_connection(io, service_fn(respond)).await;
        });
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addr = std::env::args().nth(1).unwrap_or("127.0.0.1:3000".to_string()).parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = tokio::task::LocalSet::new().block_on(&runtime, serve(addr));
    match served? {}
}
