//! Where requests go: a URL taken apart, and the first proof that somebody is there.

use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use tokio_prefork::ListenAddr;
use tokio_prefork::{Error, Result};

/// How long the first connection may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A URL: who is asked, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    place: Place,
    /// For the `Host` field.
    pub(crate) host: String,
    /// Path and query, as they go into the request line.
    pub(crate) uri: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Name or address, and port.
    Tcp(String, u16),
    Unix(PathBuf),
}

impl Target {
    /// Reads `http://HOST[:PORT][/URI]`, the same without `http://`, or `unix:/PATH[:/URI]`.
    ///
    /// # Errors
    /// What is wrong with the text, and what to write instead.
    pub fn parse(text: &str) -> Result<Target, String> {
        if let Some(rest) = text.strip_prefix("unix:") {
            let (path, uri) = match rest.find(":/") {
                Some(at) => (&rest[..at], &rest[at + 1..]),
                None => (rest, "/"),
            };
            if path.is_empty() || path.contains('\0') {
                return Err("give a path: unix:/run/app.sock, or unix:/run/app.sock:/uri".into());
            }
            let place = Place::Unix(PathBuf::from(path));
            return Ok(Target { place, host: "localhost".to_string(), uri: checked(uri)? });
        }
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) => {
                return Err(format!("{scheme}:// is not spoken: only http:// and unix:PATH are"));
            }
            None => text,
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, uri) = rest.split_at(end);
        let uri = if uri.starts_with('/') { uri.to_string() } else { format!("/{uri}") };
        let (name, port) = split_port(authority)?;
        let place = Place::Tcp(name, port);
        Ok(Target { place, host: without_zone(authority), uri: checked(&uri)? })
    }

    /// The same request, but to the Unix socket at `path`.
    pub fn through(mut self, path: PathBuf) -> Target {
        self.place = Place::Unix(path);
        self
    }

    /// Connects once, and so learns the address that answers.
    ///
    /// # Errors
    /// The name is unknown or nobody answers ([`exit::UNAVAILABLE`](tokio_prefork::exit::UNAVAILABLE)).
    pub(crate) fn reach(&self) -> Result<Address> {
        let unreachable = |why: &io::Error| Error::target(self, why);
        match &self.place {
            Place::Unix(path) => {
                let addr = SockAddr::unix(path).map_err(|e| unreachable(&e))?;
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None);
                let socket = socket.map_err(|e| Error::system("make a socket", e))?;
                // The kernel heeds it for connect, too, which waits while the queue of the server is full.
                let set = socket.set_write_timeout(Some(PATIENCE));
                set.and_then(|()| socket.connect(&addr)).map_err(|e| unreachable(&e))?;
                Ok(Address {
                    addr,
                    domain: Domain::UNIX,
                    listener: ListenAddr::Unix(path.as_path().into()),
                })
            }
            Place::Tcp(name, port) => {
                let found =
                    (name.as_str(), *port).to_socket_addrs().map_err(|e| unreachable(&e))?;
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for addr in found {
                    match std::net::TcpStream::connect_timeout(&addr, PATIENCE) {
                        Ok(_) => return Ok(Address::tcp(addr)),
                        Err(e) => last = e,
                    }
                }
                Err(unreachable(&last))
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp(name, port) if name.contains('%') => {
                write!(f, "http://[{name}]:{port}{}", self.uri)
            }
            Place::Tcp(..) => write!(f, "http://{}{}", self.host, self.uri),
            Place::Unix(path) => write!(f, "unix:{}:{}", path.display(), self.uri),
        }
    }
}

/// An address that has answered.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    addr: SockAddr,
    domain: Domain,
    /// As its owner would name it.
    pub(crate) listener: ListenAddr,
}

impl Address {
    fn tcp(addr: SocketAddr) -> Address {
        Address {
            addr: addr.into(),
            domain: Domain::for_address(addr),
            listener: ListenAddr::Tcp(addr),
        }
    }

    /// Begins a connection and does not wait for it: what is written meanwhile says `WouldBlock`.
    pub(crate) fn begin(&self) -> io::Result<Socket> {
        let socket = Socket::new(self.domain, Type::STREAM.nonblocking(), None)?;
        if self.domain != Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
        }
        match socket.connect(&self.addr) {
            Err(e) if e.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) => Err(e),
            _ => Ok(socket),
        }
    }

    /// Whether it is an address of this machine.
    pub(crate) fn is_here(&self) -> bool {
        match &self.listener {
            ListenAddr::Tcp(addr) => {
                addr.ip().is_unspecified() || UdpSocket::bind((addr.ip(), 0)).is_ok()
            }
            _ => true,
        }
    }
}

/// `name`, `name:port`, `[v6]:port`; the port is 80 unless said.
fn split_port(authority: &str) -> Result<(String, u16), String> {
    const FORM: &str = "give http://HOST:PORT/PATH, as http://127.0.0.1:3000/";
    let bracket = authority.rfind(']').unwrap_or(0);
    let (name, port) = match authority[bracket..].rfind(':') {
        Some(at) => (&authority[..bracket + at], &authority[bracket + at + 1..]),
        None => (authority, "80"),
    };
    let name = match name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        Some(address) => ipv6(address),
        None => Some(name.to_string()).filter(|name| !name.is_empty() && !name.contains(is_odd)),
    };
    let name = name.ok_or_else(|| format!("{authority:?} is no host: {FORM}"))?;
    match port.parse::<u16>() {
        Ok(port @ 1..) => Ok((name, port)),
        _ => Err(format!("{port:?} is no port from 1 to 65535: {FORM}")),
    }
}

fn is_odd(c: char) -> bool {
    !(c.is_ascii_alphanumeric() || "-._~".contains(c))
}

/// An IPv6 address as the resolver takes it. Its zone may stand behind `%25`, as RFC 6874 has it.
fn ipv6(text: &str) -> Option<String> {
    let Some((address, zone)) = text.split_once('%') else {
        return text.parse::<Ipv6Addr>().ok().map(|_| text.to_string());
    };
    let zone = zone.strip_prefix("25").filter(|zone| !zone.is_empty()).unwrap_or(zone);
    let is_zone = !zone.is_empty() && !zone.contains(is_odd);
    address.parse::<Ipv6Addr>().ok().filter(|_| is_zone)?;
    Some(format!("{address}%{zone}"))
}

/// The authority as others may see it: the zone of an address means something on this machine only (RFC 6874, 4).
fn without_zone(authority: &str) -> String {
    match (authority.find('%'), authority.find(']')) {
        (Some(zone), Some(end)) if zone < end => {
            format!("{}{}", &authority[..zone], &authority[end..])
        }
        _ => authority.to_string(),
    }
}

/// What may stand in a request line; a fragment is nobody's but the browser's.
fn checked(uri: &str) -> Result<String, String> {
    let uri = uri.split('#').next().unwrap_or_default();
    match uri.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(uri.to_string()),
        false => Err(format!("{uri:?}: write other than visible ASCII as %XX")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (text, place, host, uri) in [
            ("http://127.0.0.1:3000/a?b", ("127.0.0.1", 3000), "127.0.0.1:3000", "/a?b"),
            ("127.0.0.1:3000", ("127.0.0.1", 3000), "127.0.0.1:3000", "/"),
            ("HTTP://example.org", ("example.org", 80), "example.org", "/"),
            ("http://[::1]:81?q#frag", ("::1", 81), "[::1]:81", "/?q"),
            ("http://[::1]/x", ("::1", 80), "[::1]", "/x"),
            ("http://[fe80::1%lo]:81/x", ("fe80::1%lo", 81), "[fe80::1]:81", "/x"),
            ("http://[fe80::1%25eth0]/", ("fe80::1%eth0", 80), "[fe80::1]", "/"),
        ] {
            let target = Target::parse(text).expect(text);
            let place = Place::Tcp(place.0.to_string(), place.1);
            assert_eq!(target, Target { place, host: host.into(), uri: uri.into() }, "{text}");
        }
        for (text, path, uri) in [
            ("unix:/run/a.sock", "/run/a.sock", "/"),
            ("unix:/run/a:b:/c:/d", "/run/a:b", "/c:/d"),
            ("unix:a.sock:/x?y", "a.sock", "/x?y"),
        ] {
            let target = Target::parse(text).expect(text);
            assert_eq!((target.place, target.uri.as_str()), (Place::Unix(path.into()), uri));
        }
        let shown = Target::parse("unix:/a:/b").expect("url").to_string();
        assert_eq!(shown, "unix:/a:/b");
    }

    #[test]
    fn wrong_urls_say_what_to_write() {
        for (text, piece) in [
            ("", "no host"),
            ("http://", "no host"),
            ("https://a/", "https:// is not spoken"),
            ("http://a:0/", "no port"),
            ("http://a:99999/", "no port"),
            ("http://a:b/", "no port"),
            ("http://u@a/", "no host"),
            ("http://::1/", "no host"),
            ("http://[::1/", "no host"),
            ("http://[::1%]/", "no host"),
            ("http://[a]/", "no host"),
            ("http://a%lo/", "no host"),
            ("http://a/b c", "%XX"),
            ("http://a/\r\nX: y", "%XX"),
            ("unix:", "give a path"),
        ] {
            let why = Target::parse(text).expect_err(text);
            assert!(why.contains(piece), "{text:?}: {why}");
        }
    }

    #[test]
    fn addresses_of_others_are_not_here() {
        let here = |addr: &str| Address::tcp(addr.parse().expect(addr)).is_here();
        assert!(here("127.0.0.1:80") && here("0.0.0.0:80"));
        assert!(!here("192.0.2.1:80"));
    }
}
