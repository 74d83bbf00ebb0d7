//! A server for tests that counts the requests it has read, and answers some of them wrongly on purpose.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::{Domain, SockAddr, Socket, Type};

use super::target_url::TargetUrl;

/// How the server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// Heads that differ from time to time, bodies of several lengths, and one response of 97 with status 503.
    Lengths,
    /// The same in chunks.
    Chunks,
    /// `Connection: close` in one response of five.
    SometimesClose,
    /// One request of 97 is not answered: the connection ends.
    SometimesNone,
    /// Over HTTP/2 with prior knowledge; one response of 97 with status 503.
    Http2,
}

/// What the server has done.
#[derive(Debug, Default)]
pub(crate) struct ServerCounts {
    pub(crate) connections: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) unavailable: AtomicU64,
    pub(crate) unanswered: AtomicU64,
    /// Bytes of the responses, without TLS.
    pub(crate) bytes: AtomicU64,
}

/// The server, which ends when this is dropped.
pub(crate) struct CountingServer {
    pub(crate) counts: Arc<ServerCounts>,
    pub(crate) target: TargetUrl,
    listener: Arc<Socket>,
}

impl Drop for CountingServer {
    fn drop(&mut self) {
        // Ends the wait for connections.
        let _ = self.listener.shutdown(std::net::Shutdown::Both);
    }
}

impl CountingServer {
    /// Starts the server on an address such as `127.0.0.1:0`.
    pub(crate) fn on_tcp(address: &str, answers: Answers, over_tls: bool) -> CountingServer {
        let address: SocketAddr = address.parse().expect("an address");
        let listener =
            Socket::new(Domain::for_address(address), Type::STREAM, None).expect("socket");
        listener.bind(&address.into()).expect("bind");
        let bound = listener.local_addr().ok().and_then(|addr| addr.as_socket()).expect("address");
        let scheme = if over_tls { "https" } else { "http" };
        let url = format!("{scheme}://{bound}/");
        CountingServer::start(listener, &url, answers, over_tls.then(tls_config))
    }

    /// Starts the server on a Unix socket.
    pub(crate) fn on_unix(path: &Path, answers: Answers) -> CountingServer {
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).expect("socket");
        listener.bind(&SockAddr::unix(path).expect("path")).expect("bind");
        CountingServer::start(listener, &format!("unix:{}", path.display()), answers, None)
    }

    fn start(
        listener: Socket,
        url: &str,
        answers: Answers,
        tls: Option<Arc<ServerConfig>>,
    ) -> CountingServer {
        listener.listen(1024).expect("listen");
        let counts = Arc::new(ServerCounts::default());
        let server = CountingServer {
            counts: counts.clone(),
            target: TargetUrl::parse(url).expect("url"),
            listener: Arc::new(listener),
        };
        let listener = server.listener.clone();
        std::thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                let (counts, tls) = (counts.clone(), tls.clone());
                std::thread::spawn(move || {
                    let served = serve_connection(socket, answers, tls, &counts);
                    // The client may close at any time.
                    drop(served);
                });
            }
        });
        server
    }
}

fn tls_config() -> Arc<ServerConfig> {
    let key = KeyPair::generate().expect("key");
    let params = CertificateParams::new(vec!["localhost".to_string()]).expect("name");
    let certificate = params.self_signed(&key).expect("certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().expect("versions");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("key");
    let chain = vec![certificate.der().clone()];
    Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).expect("certificate"))
}

fn serve_connection(
    socket: Socket,
    answers: Answers,
    tls: Option<Arc<ServerConfig>>,
    counts: &ServerCounts,
) -> io::Result<()> {
    counts.connections.fetch_add(1, Relaxed);
    if answers == Answers::Http2 {
        return serve_http2(socket, counts);
    }
    match tls {
        None => serve_requests(socket, answers, counts),
        Some(config) => {
            let session = ServerConnection::new(config).map_err(io::Error::other)?;
            serve_requests(StreamOwned::new(session, socket), answers, counts)
        }
    }
}

/// Reads requests without a body, and answers each.
fn serve_requests(
    mut stream: impl Read + Write,
    answers: Answers,
    counts: &ServerCounts,
) -> io::Result<()> {
    let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        received.extend_from_slice(&buffer[..n]);
        let mut used = 0;
        while let Some(end) = memchr::memmem::find(&received[used..], b"\r\n\r\n") {
            used += end + 4;
            let number = counts.requests.fetch_add(1, Relaxed);
            if answers == Answers::SometimesNone && number % 97 == 1 {
                counts.unanswered.fetch_add(1, Relaxed);
                return Ok(());
            }
            let closes = answers == Answers::SometimesClose && number % 5 == 4;
            let response = response(answers, number, closes, counts);
            // One part after the other.
            let middle = if number.is_multiple_of(7) { response.len() / 2 } else { response.len() };
            for part in [&response[..middle], &response[middle..]] {
                stream.write_all(part)?;
                stream.flush()?;
            }
            if closes {
                return Ok(());
            }
        }
        received.drain(..used);
    }
}

fn response(answers: Answers, number: u64, closes: bool, counts: &ServerCounts) -> Vec<u8> {
    let is_unavailable = number % 97 == 2;
    counts.unavailable.fetch_add(u64::from(is_unavailable), Relaxed);
    let status = if is_unavailable { "503 Service Unavailable" } else { "200 OK" };
    let mut text = format!("HTTP/1.1 {status}\r\nX-Head: {}\r\n", number / 50);
    if closes {
        text.push_str("Connection: close\r\n");
    }
    let body = format!("Handled by PID {}\n{}", 1 + number % 3, "x".repeat((number % 11) as usize));
    if answers == Answers::Chunks {
        let (first, second) = body.split_at(body.len() / 2);
        text.push_str("Transfer-Encoding: chunked\r\n\r\n");
        for chunk in [first, second] {
            text.push_str(&format!("{:x}\r\n{chunk}\r\n", chunk.len()));
        }
        text.push_str("0\r\n\r\n");
    } else {
        text.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    }
    counts.bytes.fetch_add(text.len() as u64, Relaxed);
    text.into_bytes()
}

fn serve_http2(socket: Socket, counts: &ServerCounts) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let stream = std::net::TcpStream::from(socket);
        stream.set_nonblocking(true)?;
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let mut connection = h2::server::handshake(stream).await.map_err(io::Error::other)?;
        while let Some(accepted) = connection.accept().await {
            let (_, mut respond) = accepted.map_err(io::Error::other)?;
            let number = counts.requests.fetch_add(1, Relaxed);
            let is_unavailable = number % 97 == 2;
            counts.unavailable.fetch_add(u64::from(is_unavailable), Relaxed);
            let status = if is_unavailable { 503 } else { 200 };
            let head = http::Response::builder().status(status).body(()).expect("a response");
            let mut body = respond.send_response(head, false).map_err(io::Error::other)?;
            let text = bytes::Bytes::from(format!("Handled by PID {}\n", 1 + number % 3));
            body.send_data(text, true).map_err(io::Error::other)?;
        }
        Ok(())
    })
}
