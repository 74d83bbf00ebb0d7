//! A blocking HTTP/1 client that sends exactly the given bytes and distinguishes how requests fail.
//!
//! It never retries, follows no redirect and has no connection pool.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use rustls::ClientConfig;
use socket2::{Domain, SockAddr, Socket, Type};

use super::tls_client::{TRUNCATED, TlsSession};
use super::wait::DEADLINE;
use super::{http2, overrides};

/// How long [`Client::read_within_10_seconds`] waits: longer than a busy machine needs, and shorter than the tests
/// block a worker.
const STOPPED_WORKER_READ_TIMEOUT: Duration = Duration::from_secs(10);

/// An address on which a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// The reason why a request got no complete response.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The connection was refused.
    Refused,
    /// The connection was reset.
    Reset,
    /// The connection ended before the first byte of a response.
    Closed,
    /// The connection ended within a response.
    ClosedEarly,
    /// No byte arrived before the deadline.
    TimedOut,
    /// The received bytes are not HTTP.
    Malformed(String),
    Other(String),
}

/// A response with its complete body.
#[derive(Debug, Clone)]
pub struct Response {
    pub version: String,
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// A connection to a server.
pub struct Client {
    socket: Socket,
    /// The TLS session, if the connection has one.
    tls: RefCell<Option<TlsSession>>,
    /// Whether the server speaks TLS as all servers do, and no handshake has begun.
    awaits_handshake: bool,
    /// Whether that handshake is to agree on HTTP/2.
    is_http2: bool,
    /// Bytes that were read but not yet used.
    buffer: Vec<u8>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(addr) => addr.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Failure::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Failure::Reset,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::TimedOut,
            _ => Failure::Other(error.to_string()),
        }
    }
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    /// Whether the response has `Connection: close`.
    pub fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// Returns the pid in a response to `/`.
    pub fn pid(&self) -> u32 {
        let number = self.text().trim_end().rsplit(' ').next();
        number.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no pid in {self:?}"))
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }
}

/// Asserts that `GET /` is answered with status 200 at this address.
#[track_caller]
pub fn assert_served(address: &Address) {
    let answer = Client::connect(address).and_then(|mut client| client.get("/"));
    assert_eq!(answer.map(|answer| answer.status), Ok(200), "{address}");
}

impl Client {
    pub fn connect(to: &Address) -> Result<Client, Failure> {
        let (domain, addr) = match to {
            Address::Tcp(addr) => (Domain::for_address(*addr), SockAddr::from(*addr)),
            Address::Unix(path) => (Domain::UNIX, SockAddr::unix(path)?),
        };
        let socket = Socket::new(domain, Type::STREAM, None)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
        socket.connect(&addr)?;
        if domain != Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
        }
        let awaits_handshake = match to {
            Address::Tcp(addr) => overrides::speaks_tls(addr.port()),
            Address::Unix(_) => false,
        };
        Ok(Client {
            socket,
            tls: RefCell::default(),
            awaits_handshake,
            is_http2: false,
            buffer: Vec::new(),
        })
    }

    /// Connects, and completes a TLS handshake with the server of this name.
    pub fn connect_tls(
        to: &Address,
        config: &Arc<ClientConfig>,
        name: &str,
    ) -> Result<Client, Failure> {
        let mut client = Client::connect(to)?;
        client.awaits_handshake = false;
        client.start_tls(Arc::clone(config), name)?;
        Ok(client)
    }

    /// As [`Client::connect_tls`], with bytes that are sent before the handshake.
    pub fn connect_tls_after(
        to: &Address,
        first: &str,
        config: &Arc<ClientConfig>,
        name: &str,
    ) -> Result<Client, Failure> {
        let mut client = Client::connect(to)?;
        client.awaits_handshake = false;
        client.send_raw(first)?;
        client.start_tls(Arc::clone(config), name)?;
        Ok(client)
    }

    /// As [`Client::connect_tls`], and sends the handshake byte by byte.
    pub fn connect_tls_slowly(
        to: &Address,
        config: &Arc<ClientConfig>,
        name: &str,
    ) -> Result<Client, Failure> {
        let mut client = Client::connect(to)?;
        client.awaits_handshake = false;
        let session = TlsSession::connect_in_pieces(&client.socket, Arc::clone(config), name, 1)?;
        *client.tls.get_mut() = Some(session);
        Ok(client)
    }

    fn start_tls(&mut self, config: Arc<ClientConfig>, name: &str) -> Result<(), Failure> {
        *self.tls.get_mut() = Some(TlsSession::connect(&self.socket, config, name)?);
        Ok(())
    }

    /// Begins TLS if the server speaks it as all servers do. `first` is what is sent first, by which HTTP/2 is known.
    fn begin(&mut self, first: &[u8]) -> Result<(), Failure> {
        if std::mem::take(&mut self.awaits_handshake) {
            let is_http2 = self.is_http2 || first.starts_with(http2::PREFACE);
            let begun = self.start_tls(overrides::tls_client(is_http2), overrides::TLS_NAME);
            begun.map_err(|failure| match failure {
                Failure::Other(why) if why == TRUNCATED => Failure::Closed,
                failure => failure,
            })?;
            // As without TLS, where the end looks the same whether the server has cut the connection or not.
            self.tls().accepts_truncation = true;
        }
        Ok(())
    }

    /// Says that the connection will speak HTTP/2 although it does not begin with the whole preface.
    pub fn expect_http2(&mut self) {
        self.is_http2 = true;
    }

    /// Returns the TLS session of a client that has connected with TLS.
    pub fn tls(&mut self) -> &mut TlsSession {
        self.tls.get_mut().as_mut().expect("a TLS connection")
    }

    /// Sends `close_notify`; responses can still be read.
    pub fn send_close_notify(&mut self) {
        self.tls.get_mut().as_mut().expect("a TLS connection").send_close_notify(&self.socket);
    }

    /// Sends bytes as they are, below TLS.
    pub fn send_raw(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
        Ok(self.socket.write_all(bytes.as_ref())?)
    }

    /// Returns the client's own address of a TCP connection.
    pub fn local_addr(&self) -> SocketAddr {
        let local = self.socket.local_addr().expect("an address");
        local.as_socket().expect("a TCP connection")
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
        self.begin(bytes.as_ref())?;
        match self.tls.get_mut() {
            Some(tls) => tls.send(&self.socket, bytes.as_ref()),
            None => self.send_raw(bytes),
        }
    }

    pub fn get(&mut self, path: &str) -> Result<Response, Failure> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))?;
        self.read()
    }

    pub fn post(&mut self, path: &str, body: &[u8]) -> Result<Response, Failure> {
        let length = body.len();
        let mut request =
            format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n")
                .into_bytes();
        request.extend_from_slice(body);
        self.send(request)?;
        self.read()
    }

    /// Sends `request` and reads one response.
    pub fn send_and_read(&mut self, request: impl AsRef<[u8]>) -> Result<Response, Failure> {
        self.send(request)?;
        self.read()
    }

    /// Shuts down the sending side; responses can still be read.
    pub fn shutdown_write(&self) {
        if let Some(tls) = &mut *self.tls.borrow_mut() {
            tls.send_close_notify(&self.socket);
        }
        self.socket.shutdown(std::net::Shutdown::Write).expect("shutdown");
    }

    /// Closes the connection with a reset.
    pub fn reset(self) {
        self.socket.set_linger(Some(Duration::ZERO)).expect("set SO_LINGER");
    }

    /// Whether a response has begun to arrive.
    pub fn has_input(&self) -> bool {
        if let Some(tls) = &mut *self.tls.borrow_mut() {
            return tls.receive_queued(&self.socket);
        }
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        matches!(recv(self.socket.as_raw_fd(), &mut [0], flags), Ok(1..))
    }

    /// Whether the server is known to have closed or reset the connection.
    pub fn is_closed(&self) -> bool {
        if let Some(tls) = &mut *self.tls.borrow_mut()
            && (tls.receive_queued(&self.socket) || tls.has_peer_closed())
        {
            return tls.has_peer_closed();
        }
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.socket.as_raw_fd(), &mut [0], flags) {
            Ok(n) => n == 0,
            Err(e) => e != Errno::EAGAIN,
        }
    }

    /// Whether bytes have arrived that can be read now.
    pub fn has_received(&self) -> bool {
        if let Some(tls) = &mut *self.tls.borrow_mut() {
            return tls.receive_queued(&self.socket);
        }
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.socket.as_raw_fd(), &mut [0], flags).is_ok_and(|length| length > 0)
    }

    /// Reads until the server closes the connection, and returns the bytes.
    pub fn read_to_end(&mut self) -> Result<Vec<u8>, Failure> {
        while self.read_more()? {}
        Ok(std::mem::take(&mut self.buffer))
    }

    /// Reads until the connection ends. Returns the bytes, and how it ended.
    pub fn read_all(&mut self) -> (Vec<u8>, Result<(), Failure>) {
        let end = loop {
            match self.read_more() {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(failure) => break Err(failure),
            }
        };
        (std::mem::take(&mut self.buffer), end)
    }

    /// Reads exactly `n` bytes.
    pub fn read_exactly(&mut self, n: usize) -> Result<Vec<u8>, Failure> {
        while self.buffer.len() < n {
            if !self.read_more()? {
                return Err(Failure::ClosedEarly);
            }
        }
        Ok(self.buffer.drain(..n).collect())
    }

    /// Reads the next response. A 1xx response is returned like any other.
    pub fn read(&mut self) -> Result<Response, Failure> {
        self.read_response(false)
    }

    /// Reads the response to a HEAD request, which has no body.
    pub fn read_head(&mut self) -> Result<Response, Failure> {
        self.read_response(true)
    }

    /// Reads the next response with a timeout of 10 s, where the worker may be frozen.
    pub fn read_within_10_seconds(&mut self) -> Result<Response, Failure> {
        self.socket.set_read_timeout(Some(STOPPED_WORKER_READ_TIMEOUT))?;
        let outcome = self.read();
        self.socket.set_read_timeout(Some(DEADLINE))?;
        outcome
    }

    fn read_response(&mut self, bodiless: bool) -> Result<Response, Failure> {
        let head = self.read_through(b"\r\n\r\n")?;
        let mut response = parse_head(&head)?;
        if bodiless || response.status < 200 || matches!(response.status, 204 | 304) {
            return Ok(response);
        }
        response.body = if response.header("transfer-encoding") == Some("chunked") {
            self.read_chunks()?
        } else if let Some(length) = response.header("content-length") {
            let length = length.parse().map_err(|_| Failure::Malformed(length.to_string()))?;
            self.read_exactly(length)?
        } else {
            self.read_to_end()?
        };
        Ok(response)
    }

    fn read_chunks(&mut self) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        loop {
            let line = self.read_through(b"\r\n")?;
            let size = String::from_utf8_lossy(&line).trim_end().to_string();
            let size =
                usize::from_str_radix(&size, 16).map_err(|_| Failure::Malformed(size.clone()))?;
            let chunk = self.read_exactly(size + 2)?;
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    fn read_through(&mut self, end: &[u8]) -> Result<Vec<u8>, Failure> {
        loop {
            let found = self.buffer.windows(end.len()).position(|window| window == end);
            if let Some(at) = found {
                return Ok(self.buffer.drain(..at + end.len()).collect());
            }
            if !self.read_more()? {
                let untouched = self.buffer.is_empty();
                return Err(if untouched { Failure::Closed } else { Failure::ClosedEarly });
            }
        }
    }

    /// Reads once into the buffer; returns `false` at the end of the connection.
    fn read_more(&mut self) -> Result<bool, Failure> {
        let mut piece = [0; 64 * 1024];
        match self.begin(&[]) {
            // Closed before the handshake, as before a request without TLS.
            Err(Failure::Closed) => return Ok(false),
            begun => begun?,
        }
        let n = match self.tls.get_mut() {
            Some(tls) => tls.read(&self.socket, &mut piece)?,
            None => self.socket.read(&mut piece)?,
        };
        self.buffer.extend_from_slice(&piece[..n]);
        Ok(n > 0)
    }
}

fn parse_head(head: &[u8]) -> Result<Response, Failure> {
    let text = String::from_utf8_lossy(head);
    let malformed = || Failure::Malformed(text.to_string());
    let mut lines = text.trim_end().split("\r\n");
    let mut first = lines.next().unwrap_or_default().splitn(3, ' ');
    let version = first.next().filter(|v| v.starts_with("HTTP/1.")).ok_or_else(malformed)?;
    let status = first.next().and_then(|s| s.parse().ok()).ok_or_else(malformed)?;
    let headers = lines
        .map(|line| line.split_once(':').ok_or_else(malformed))
        .map(|pair| pair.map(|(name, value)| (name.to_lowercase(), value.trim().to_string())))
        .collect::<Result<_, _>>()?;
    Ok(Response { version: version.to_string(), status, headers, body: Vec::new() })
}
