//! A blocking HTTP/1.1 client for tests, on hyper's.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::error::BoxError;
use crate::listener::{ListenAddr, UnixAddr};
use prefork_os::unix_path::with_unix_addr;

/// Sends `request` on a new connection to `addr`, and returns the response with its body.
///
/// Runs on a thread of its own, because the caller may be in a runtime, which must not be blocked on.
pub(super) fn send_request(
    addr: &ListenAddr,
    request: Request<Full<Bytes>>,
    timeout: Duration,
) -> Result<Response<Bytes>, BoxError> {
    let run = || -> Result<Response<Bytes>, BoxError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let exchange = tokio::time::timeout(timeout, connect_and_send(addr, request));
            exchange.await.map_err(|_| format!("none within {timeout:?}"))?
        })
    };
    std::thread::scope(|scope| {
        let outcome = scope.spawn(run).join();
        outcome.unwrap_or_else(|_| Err("the client panicked".into()))
    })
}

async fn connect_and_send(
    addr: &ListenAddr,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, BoxError> {
    match addr {
        ListenAddr::Tcp(addr) => {
            exchange(TcpStream::connect(addr).await?, request, &addr.to_string()).await
        }
        ListenAddr::Unix(unix) => exchange(connect_unix(unix)?, request, "localhost").await,
        ListenAddr::Host(_) | ListenAddr::Fd(_) => {
            Err(format!("{addr} cannot be connected to").into())
        }
    }
}

/// Connects at once, or fails if the accept queue of the cluster is full.
fn connect_unix(unix: &UnixAddr) -> std::io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match unix.abstract_name() {
        Some(name) => {
            let path = [b"\0", name].concat();
            socket.connect(&SockAddr::unix(OsStr::from_bytes(&path))?)?;
        }
        None => with_unix_addr(&unix.path, |addr| socket.connect(addr))?,
    }
    UnixStream::from_std(OwnedFd::from(socket).into())
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    mut request: Request<Full<Bytes>>,
    host: &str,
) -> Result<Response<Bytes>, BoxError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its errors also end the exchange below.
    let driver = tokio::spawn(connection);
    request.headers_mut().entry(HOST).or_insert(HeaderValue::from_str(host)?);
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    driver.abort();
    Ok(Response::from_parts(head, body))
}
