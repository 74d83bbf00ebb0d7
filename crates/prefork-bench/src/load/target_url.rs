//! The URL under load, and the address behind it.

use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use prefork_os::unix_path::UnixPathAddr;
use tokio_prefork::ListenAddr;
use tokio_prefork::{Error, Result};

/// How long the first connection may take: 5 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A URL under load: where to connect, and what to request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetUrl {
    endpoint: TargetEndpoint,
    is_https: bool,
    /// Host of the URL, as a certificate names it.
    server_name: String,
    /// Value of the `Host` header field.
    pub(crate) host_header: String,
    /// Path and query for the request line.
    pub(crate) request_target: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum TargetEndpoint {
    /// Host name or address, and port.
    Tcp(String, u16),
    Unix(PathBuf),
}

impl TargetUrl {
    /// Parses `http://HOST[:PORT][/URI]`, the same with `https://` or no scheme, or `unix:/PATH[:/URI]`.
    ///
    /// # Errors
    /// Says what is wrong with the text and what to write instead.
    pub fn parse(text: &str) -> Result<TargetUrl, String> {
        if let Some(rest) = text.strip_prefix("unix:") {
            let (path, request_target) = match rest.find(":/") {
                Some(at) => (&rest[..at], &rest[at + 1..]),
                None => (rest, "/"),
            };
            if path.is_empty() || path.contains('\0') {
                return Err("give a path: unix:/run/app.sock, or unix:/run/app.sock:/uri".into());
            }
            let endpoint = TargetEndpoint::Unix(PathBuf::from(path));
            return Ok(TargetUrl {
                endpoint,
                is_https: false,
                server_name: "localhost".to_string(),
                host_header: "localhost".to_string(),
                request_target: validate_request_target(request_target)?,
            });
        }
        let (is_https, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, _)) => {
                return Err(format!(
                    "{scheme}:// is not supported: use http://, https:// or unix:PATH"
                ));
            }
            None => (false, text),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, request_target) = rest.split_at(end);
        let request_target = if request_target.starts_with('/') {
            request_target.to_string()
        } else {
            format!("/{request_target}")
        };
        let (name, port) = split_host_port(authority, if is_https { "443" } else { "80" })?;
        let server_name = name.split('%').next().unwrap_or_default().to_string();
        let endpoint = TargetEndpoint::Tcp(name, port);
        Ok(TargetUrl {
            endpoint,
            is_https,
            server_name,
            host_header: strip_ipv6_zone(authority),
            request_target: validate_request_target(&request_target)?,
        })
    }

    /// Returns the same request, but to the Unix socket at `path`.
    pub fn with_unix_socket(mut self, path: PathBuf) -> TargetUrl {
        self.endpoint = TargetEndpoint::Unix(path);
        self
    }

    /// Returns the URL with another path and query.
    ///
    /// # Errors
    /// The path has characters that must be percent-encoded.
    pub(crate) fn with_request_target(&self, request_target: &str) -> Result<TargetUrl, String> {
        let request_target = validate_request_target(request_target)?;
        Ok(TargetUrl { request_target, ..self.clone() })
    }

    /// Returns whether the URL begins with `https://`.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// Returns the host that the certificate must name.
    pub(crate) fn server_name(&self) -> &str {
        &self.server_name
    }

    /// Connects once and returns the address that accepted.
    ///
    /// # Errors
    /// The name is unknown or no address accepts ([`exit::UNAVAILABLE`](tokio_prefork::exit::UNAVAILABLE)).
    pub(crate) fn find_reachable_address(&self) -> Result<ServerAddress> {
        let unreachable = |cause: io::Error| Error::target(self, cause);
        match &self.endpoint {
            TargetEndpoint::Unix(path) => {
                let addr = UnixPathAddr::new(path).map_err(&unreachable)?;
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None);
                let socket = socket.map_err(|e| Error::system("create a Unix socket", e))?;
                // The write timeout also bounds connect, which waits while the accept queue is full.
                let set = socket.set_write_timeout(Some(CONNECT_TIMEOUT));
                set.and_then(|()| socket.connect(addr.addr())).map_err(&unreachable)?;
                Ok(ServerAddress {
                    addr: addr.addr().clone(),
                    _unix: Some(addr),
                    domain: Domain::UNIX,
                    listen_addr: ListenAddr::Unix(path.as_path().into()),
                })
            }
            TargetEndpoint::Tcp(name, port) => {
                let found = (name.as_str(), *port).to_socket_addrs().map_err(&unreachable)?;
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for addr in found {
                    match std::net::TcpStream::connect_timeout(&addr, CONNECT_TIMEOUT) {
                        Ok(_) => return Ok(ServerAddress::from_tcp_addr(addr)),
                        Err(e) => last = e,
                    }
                }
                Err(unreachable(last))
            }
        }
    }
}

impl fmt::Display for TargetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        match &self.endpoint {
            TargetEndpoint::Tcp(name, port) if name.contains('%') => {
                write!(f, "{scheme}://[{name}]:{port}{}", self.request_target)
            }
            TargetEndpoint::Tcp(..) => {
                write!(f, "{scheme}://{}{}", self.host_header, self.request_target)
            }
            TargetEndpoint::Unix(path) if self.is_https => {
                let path = path.display();
                write!(f, "https://{}{} on unix:{path}", self.host_header, self.request_target)
            }
            TargetEndpoint::Unix(path) => {
                write!(f, "unix:{}:{}", path.display(), self.request_target)
            }
        }
    }
}

/// An address that has accepted a connection.
#[derive(Debug, Clone)]
pub(crate) struct ServerAddress {
    addr: SockAddr,
    /// Keeps `addr` valid, if that is a Unix socket at a long path.
    _unix: Option<UnixPathAddr>,
    domain: Domain,
    /// The address as the server names it.
    pub(crate) listen_addr: ListenAddr,
}

impl ServerAddress {
    fn from_tcp_addr(addr: SocketAddr) -> ServerAddress {
        ServerAddress {
            addr: addr.into(),
            _unix: None,
            domain: Domain::for_address(addr),
            listen_addr: ListenAddr::Tcp(addr),
        }
    }

    /// Starts a nonblocking connect; writes return `WouldBlock` until it is established.
    pub(crate) fn start_connect(&self) -> io::Result<Socket> {
        let socket = Socket::new(self.domain, Type::STREAM.nonblocking(), None)?;
        if self.domain != Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
        }
        match socket.connect(&self.addr) {
            Err(e) if e.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) => Err(e),
            _ => Ok(socket),
        }
    }

    /// Connects and waits until the connection is established, for at most `timeout`.
    ///
    /// `prepare` sets options that must be set before, such as the size of the receive buffer. Reads and writes of the
    /// socket block, for at most `timeout`.
    pub(crate) fn connect_blocking(
        &self,
        timeout: Duration,
        prepare: impl FnOnce(&Socket) -> io::Result<()>,
    ) -> io::Result<Socket> {
        let socket = Socket::new(self.domain, Type::STREAM, None)?;
        if self.domain != Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
        }
        prepare(&socket)?;
        socket.set_read_timeout(Some(timeout))?;
        // The write timeout also bounds connect.
        socket.set_write_timeout(Some(timeout))?;
        socket.connect(&self.addr)?;
        Ok(socket)
    }

    /// Returns whether it is an IPv4 address of the loopback network, which has 16 million addresses to connect from.
    pub(crate) fn is_ipv4_loopback(&self) -> bool {
        self.addr.as_socket_ipv4().is_some_and(|addr| addr.ip().is_loopback())
    }

    /// Returns whether it is an address of this machine.
    pub(crate) fn is_local(&self) -> bool {
        match &self.listen_addr {
            ListenAddr::Tcp(addr) => {
                addr.ip().is_unspecified() || UdpSocket::bind((addr.ip(), 0)).is_ok()
            }
            _ => true,
        }
    }
}

/// Splits `name`, `name:port` or `[v6]:port`.
fn split_host_port(authority: &str, default_port: &str) -> Result<(String, u16), String> {
    const EXPECTED_FORMAT: &str = "give http://HOST:PORT/PATH, for example http://127.0.0.1:3000/";
    let bracket = authority.rfind(']').unwrap_or(0);
    let (name, port) = match authority[bracket..].rfind(':') {
        Some(at) => (&authority[..bracket + at], &authority[bracket + at + 1..]),
        None => (authority, default_port),
    };
    let name = match name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        Some(address) => parse_ipv6_host(address),
        None => Some(name.to_string())
            .filter(|name| !name.is_empty() && !name.contains(is_invalid_host_char)),
    };
    let name = name.ok_or_else(|| format!("{authority:?} is not a host: {EXPECTED_FORMAT}"))?;
    match port.parse::<u16>() {
        Ok(port @ 1..) => Ok((name, port)),
        _ => Err(format!("{port:?} is not a port from 1 to 65535: {EXPECTED_FORMAT}")),
    }
}

fn is_invalid_host_char(c: char) -> bool {
    !(c.is_ascii_alphanumeric() || "-._~".contains(c))
}

/// Parses an IPv6 address for the resolver; accepts a zone behind `%` or `%25` (RFC 6874).
fn parse_ipv6_host(text: &str) -> Option<String> {
    let Some((address, zone)) = text.split_once('%') else {
        return text.parse::<Ipv6Addr>().ok().map(|_| text.to_string());
    };
    let zone = zone.strip_prefix("25").filter(|zone| !zone.is_empty()).unwrap_or(zone);
    let is_zone = !zone.is_empty() && !zone.contains(is_invalid_host_char);
    address.parse::<Ipv6Addr>().ok().filter(|_| is_zone)?;
    Some(format!("{address}%{zone}"))
}

/// Removes the zone of an IPv6 address, which has a meaning on this machine only (RFC 6874, 4).
fn strip_ipv6_zone(authority: &str) -> String {
    match (authority.find('%'), authority.find(']')) {
        (Some(zone), Some(end)) if zone < end => {
            format!("{}{}", &authority[..zone], &authority[end..])
        }
        _ => authority.to_string(),
    }
}

/// Checks that the target fits into a request line, and removes a fragment.
pub(crate) fn validate_request_target(request_target: &str) -> Result<String, String> {
    let request_target = request_target.split('#').next().unwrap_or_default();
    match request_target.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(request_target.to_string()),
        false => Err(format!("{request_target:?}: percent-encode all but visible ASCII, as %XX")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed() {
        for (text, endpoint, host_header, request_target) in [
            ("http://127.0.0.1:3000/a?b", ("127.0.0.1", 3000), "127.0.0.1:3000", "/a?b"),
            ("127.0.0.1:3000", ("127.0.0.1", 3000), "127.0.0.1:3000", "/"),
            ("HTTP://example.org", ("example.org", 80), "example.org", "/"),
            ("http://[::1]:81?q#frag", ("::1", 81), "[::1]:81", "/?q"),
            ("http://[::1]/x", ("::1", 80), "[::1]", "/x"),
            ("http://[fe80::1%lo]:81/x", ("fe80::1%lo", 81), "[fe80::1]:81", "/x"),
            ("http://[fe80::1%25eth0]/", ("fe80::1%eth0", 80), "[fe80::1]", "/"),
        ] {
            let target = TargetUrl::parse(text).expect(text);
            let endpoint = TargetEndpoint::Tcp(endpoint.0.to_string(), endpoint.1);
            assert_eq!(
                (target.endpoint, target.host_header.as_str(), target.request_target.as_str()),
                (endpoint, host_header, request_target),
                "{text}"
            );
        }
        for (text, path, request_target) in [
            ("unix:/run/a.sock", "/run/a.sock", "/"),
            ("unix:/run/a:b:/c:/d", "/run/a:b", "/c:/d"),
            ("unix:a.sock:/x?y", "a.sock", "/x?y"),
        ] {
            let target = TargetUrl::parse(text).expect(text);
            assert_eq!(
                (target.endpoint, target.request_target.as_str()),
                (TargetEndpoint::Unix(path.into()), request_target)
            );
        }
        let shown = TargetUrl::parse("unix:/a:/b").expect("url").to_string();
        assert_eq!(shown, "unix:/a:/b");
    }

    #[test]
    fn https_urls_name_the_host_of_the_certificate() {
        for (text, name, shown) in [
            ("https://example.org/a", "example.org", "https://example.org/a"),
            ("HTTPS://127.0.0.1:8443", "127.0.0.1", "https://127.0.0.1:8443/"),
            ("https://[fe80::1%lo]:81/x", "fe80::1", "https://[fe80::1%lo]:81/x"),
        ] {
            let target = TargetUrl::parse(text).expect(text);
            assert!(target.is_https(), "{text}");
            assert_eq!((target.server_name(), target.to_string().as_str()), (name, shown));
        }
        let target = TargetUrl::parse("https://example.org").expect("url");
        assert_eq!(target.endpoint, TargetEndpoint::Tcp("example.org".to_string(), 443));
        let target = target.with_unix_socket("/run/a".into());
        assert_eq!((target.server_name(), target.is_https()), ("example.org", true));
        assert_eq!(target.to_string(), "https://example.org/ on unix:/run/a");
    }

    #[test]
    fn invalid_urls_say_what_to_write() {
        for (text, piece) in [
            ("", "not a host"),
            ("http://", "not a host"),
            ("ftp://a/", "ftp:// is not supported"),
            ("http://a:0/", "not a port"),
            ("http://a:99999/", "not a port"),
            ("http://a:b/", "not a port"),
            ("http://u@a/", "not a host"),
            ("http://::1/", "not a host"),
            ("http://[::1/", "not a host"),
            ("http://[::1%]/", "not a host"),
            ("http://[a]/", "not a host"),
            ("http://a%lo/", "not a host"),
            ("http://a/b c", "%XX"),
            ("http://a/\r\nX: y", "%XX"),
            ("unix:", "give a path"),
        ] {
            let why = TargetUrl::parse(text).expect_err(text);
            assert!(why.contains(piece), "{text:?}: {why}");
        }
    }

    #[test]
    fn only_addresses_of_this_machine_are_local() {
        let here = |addr: &str| ServerAddress::from_tcp_addr(addr.parse().expect(addr)).is_local();
        assert!(here("127.0.0.1:80") && here("0.0.0.0:80"));
        assert!(!here("192.0.2.1:80"));
    }
}
