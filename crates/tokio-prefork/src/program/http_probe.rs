//! Asks a program over HTTP whether it is ready.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// The beginning of a response: `HTTP/1.1 200`.
const STATUS_BYTES: usize = 12;
/// How long the rest of a response is read: a connection that is closed with unread bytes is reset, which programs log as an error.
const MAX_REST_TIME: Duration = Duration::from_millis(200);

/// What a probe has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeResult {
    /// It was answered with this status.
    Status(u16),
    /// There was no answer, or something else than HTTP.
    NoAnswer,
}

impl ProbeResult {
    pub(super) fn is_ready(self) -> bool {
        matches!(self, ProbeResult::Status(200..=399))
    }

    /// Whether the program has answered at all, with whatever status.
    pub(super) fn is_answered(self) -> bool {
        matches!(self, ProbeResult::Status(_))
    }
}

/// A probe of the worker whose socket has this index in the group of its address.
pub(super) struct HttpProbe {
    target: SocketAddr,
    /// The source address that the primary's dispatch program sends to this worker.
    source: SocketAddr,
    request: Vec<u8>,
}

/// Returns the source address whose connections go to the socket `index` of a group. `None` if the index is too large.
pub(crate) fn probe_source(index: u32) -> Option<Ipv4Addr> {
    let [high, low] = u16::try_from(index).ok()?.to_be_bytes();
    Some(Ipv4Addr::new(127, 80, high, low))
}

impl HttpProbe {
    /// Creates the probe of a listening address. `None` for one that probes cannot reach: IPv6 without IPv4.
    pub(super) fn new(local: SocketAddr, index: u32, path: &str) -> Option<HttpProbe> {
        let ip = match local.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST,
            IpAddr::V4(ip) => ip,
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST,
            IpAddr::V6(ip) => ip.to_ipv4_mapped()?,
        };
        let target = SocketAddr::from((ip, local.port()));
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: prefork-probe\r\nConnection: close\r\n\r\n"
        );
        let source = SocketAddr::from((probe_source(index)?, 0));
        Some(HttpProbe { target, source, request: request.into_bytes() })
    }

    /// Asks once, and waits for the answer up to `answer_timeout`.
    pub(super) async fn ask(&self, answer_timeout: Duration) -> ProbeResult {
        let Ok(Ok((head, mut stream))) = timeout(answer_timeout, self.exchange()).await else {
            return ProbeResult::NoAnswer;
        };
        // Whatever comes of it, the status is known.
        let _ = timeout(MAX_REST_TIME, tokio::io::copy(&mut stream, &mut tokio::io::sink())).await;
        parse_status(&head).map_or(ProbeResult::NoAnswer, ProbeResult::Status)
    }

    async fn exchange(&self) -> io::Result<([u8; STATUS_BYTES], TcpStream)> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(self.source)?;
        let mut stream = socket.connect(self.target).await?;
        stream.write_all(&self.request).await?;
        let mut head = [0; STATUS_BYTES];
        stream.read_exact(&mut head).await?;
        Ok((head, stream))
    }
}

fn parse_status(head: &[u8; STATUS_BYTES]) -> Option<u16> {
    let text = std::str::from_utf8(head).ok()?;
    let status = text.strip_prefix("HTTP/1.")?.get(2..5)?;
    status.parse().ok().filter(|status| *status >= 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_the_first_bytes() {
        assert_eq!(parse_status(b"HTTP/1.1 204"), Some(204));
        assert_eq!(parse_status(b"HTTP/1.0 503"), Some(503));
        for other in [
            b"HTTP/2.0 200",
            b"HTTP/1.1 abc",
            b"220 smtp.exa",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(parse_status(other), None);
        }
        assert!(ProbeResult::Status(302).is_ready() && !ProbeResult::Status(404).is_ready());
        assert!(ProbeResult::Status(503).is_answered() && !ProbeResult::NoAnswer.is_answered());
    }

    #[test]
    fn a_program_can_send_a_long_response_to_a_probe_to_its_end() {
        use std::io::{Read, Write};
        let program = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = program.local_addr().expect("address");
        let sent = std::thread::spawn(move || {
            let (mut connection, _) = program.accept()?;
            let length = connection.read(&mut [0; 1024])?;
            connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            connection.write_all(&vec![b'x'; 4 << 20])?;
            Ok::<usize, io::Error>(length)
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let found = runtime.expect("runtime").block_on(async {
            let probe = HttpProbe::new(address, 0, "/").expect("a probe");
            probe.ask(Duration::from_secs(20)).await
        });
        assert_eq!(found, ProbeResult::Status(200));
        assert!(sent.join().expect("a thread").expect("all was sent") > 0);
    }

    #[test]
    fn probes_go_to_an_address_that_accepts_ipv4() {
        let target = |local: &str| {
            let probe = HttpProbe::new(local.parse().expect("address"), 258, "/ready");
            probe.map(|probe| (probe.target.to_string(), probe.source.ip().to_string()))
        };
        let source = "127.80.1.2".to_string();
        assert_eq!(target("0.0.0.0:80"), Some(("127.0.0.1:80".into(), source.clone())));
        assert_eq!(target("[::]:80"), Some(("127.0.0.1:80".into(), source.clone())));
        assert_eq!(target("10.0.0.1:80"), Some(("10.0.0.1:80".into(), source)));
        assert_eq!(target("[::1]:80"), None);
        assert_eq!(probe_source(65_536), None);
    }
}
