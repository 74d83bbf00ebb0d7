//! A plain hyper server in this program, to compare with.

use std::convert::Infallible;
use std::net::SocketAddr;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Socket, Type};
use tokio::runtime::{Builder, LocalOptions};

use super::fail;

/// The argument that runs this server instead of the bench.
pub const PEER_FLAG: &str = "--peer";

/// Runs hyper on one current-thread runtime per core, each with its own SO_REUSEPORT socket, without timeouts and counters.
pub fn run(threads: usize, flush: bool) {
    let mut addr = SocketAddr::from(([127, 0, 0, 1], 0));
    for _ in 0..threads {
        let socket = bind(addr).unwrap_or_else(|e| fail(format_args!("cannot bind {addr}: {e}")));
        addr = socket.local_addr().unwrap_or(addr);
        std::thread::spawn(move || serve(socket, flush));
    }
    eprintln!("listening on http://{addr}");
    // Ends when the bench closes standard input.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

fn bind(addr: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&addr.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn serve(socket: std::net::TcpListener, flush: bool) {
    // The number of the thread, which identifies it in responses.
    let text = Bytes::from(format!("Handled by PID {}\n", nix::unistd::gettid()));
    let answer = move |_: Request<Incoming>| {
        let mut response = Response::new(Full::new(text.clone()));
        let plain = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, plain);
        async move { Ok::<_, Infallible>(response) }
    };
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let runtime = runtime.unwrap_or_else(|e| fail(format_args!("no runtime: {e}")));
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(socket);
        let listener = listener.unwrap_or_else(|e| fail(format_args!("no listener: {e}")));
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let mut http = http1::Builder::new();
            http.header_read_timeout(None).pipeline_flush(flush);
            let connection =
                http.serve_connection(TokioIo::new(stream), service_fn(answer.clone()));
            tokio::task::spawn_local(connection);
        }
    });
}
