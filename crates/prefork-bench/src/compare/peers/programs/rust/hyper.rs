//! hyper on a current-thread runtime per thread, each with its own SO_REUSEPORT socket.

use std::convert::Infallible;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

fn main() -> std::io::Result<()> {
    let mut addr = peers::address();
    let mut threads = Vec::new();
    for _ in 0..peers::thread_count() {
        let socket = peers::listen(addr, true)?;
        addr = socket.local_addr()?;
        threads.push(std::thread::spawn(move || serve(socket)));
    }
    peers::report_ready(addr);
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn serve(socket: std::net::TcpListener) -> std::io::Result<()> {
    let pid_answer = Bytes::from(peers::pid_answer());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let listener = tokio::net::TcpListener::from_std(socket)?;
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            let pid_answer = pid_answer.clone();
            let service = service_fn(move |request| answer(request, pid_answer.clone()));
            tokio::task::spawn_local(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    })
}

async fn answer(request: Request<Incoming>, pid_answer: Bytes) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path();
    let number = |prefix: &str| path.strip_prefix(prefix).and_then(|n| n.parse::<u64>().ok());
    let body = if path == "/" {
        pid_answer
    } else if let Some(n) = number("/bytes/").filter(|n| *n <= 1 << 24) {
        vec![0u8; n as usize].into()
    } else if let Some(n) = number("/fib/").filter(|n| *n <= 50) {
        let value = match request.uri().query() {
            Some("on=loop") => peers::fib(n),
            _ => tokio::task::spawn_blocking(move || peers::fib(n)).await.unwrap_or_default(),
        };
        format!("fib({n}) = {value}\n").into()
    } else {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NOT_FOUND;
        return Ok(response);
    };
    let mut response = Response::new(Full::new(body));
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    Ok(response)
}
