//! Addresses of listeners: as the operator writes them, and as the kernel has bound them.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;

use super::UnixAddr;
use crate::error::{Error, Result};

/// An address to listen on, as the operator writes it. Parses from `HOST:PORT`, `[V6]:PORT`, `:PORT` (all addresses,
/// dual stack), `unix:PATH[?mode=0660&owner=NAME&group=NAME]`, `unix:@NAME` and `fd://N`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ListenAddr {
    /// An IPv4 or IPv6 address and a port; 0 is a free one. `[::]` accepts IPv4 as well (dual stack).
    Tcp(SocketAddr),
    /// A host name: all its addresses, with the same port. Looked up at the start and at each reload.
    Host(HostAddr),
    /// A Unix stream socket.
    Unix(UnixAddr),
    /// A listening stream socket that the parent process passed as this descriptor.
    Fd(i32),
}

/// A host name and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostAddr {
    /// The host name in lower case.
    pub name: String,
    /// The port, the same for all addresses of the name; 0 is a free one.
    pub port: u16,
}

impl ListenAddr {
    /// Whether it is an IP address with port 0: each time it is named, another free port.
    pub(crate) fn is_free_port(&self) -> bool {
        matches!(self, ListenAddr::Tcp(addr) if addr.port() == 0)
    }

    /// Returns the pids of all processes that hold the socket that listens on this address, as far as `/proc` shows
    /// them.
    pub fn holders(&self) -> Vec<u32> {
        super::socket_holders::listener_pids(self)
    }

    /// Returns the address of a Unix socket with this name in the kernel: a path, or a NUL byte and an abstract name.
    pub(crate) fn from_unix_name(name: Option<&[u8]>) -> ListenAddr {
        let path = match name.unwrap_or(b"\0") {
            [0, rest @ ..] => [b"@", rest].concat(),
            path => path.to_vec(),
        };
        let path: OsString = OsStringExt::from_vec(path);
        ListenAddr::Unix(UnixAddr::new(path))
    }
}

/// The address of a listening socket as the kernel has it, with the real port. Displays with its scheme:
/// `http://127.0.0.1:3000`, `unix:/run/app.sock`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BoundAddr {
    /// HTTP over TCP.
    Http(SocketAddr),
    /// A Unix socket with a file.
    Unix(PathBuf),
    /// A socket without port or file, such as an abstract Unix socket: the address that was asked for.
    Unnamed(ListenAddr),
}

impl BoundAddr {
    /// Returns the address in the form in which it could be listened on.
    pub(crate) fn to_listen_addr(&self) -> ListenAddr {
        match self {
            BoundAddr::Http(addr) => ListenAddr::Tcp(*addr),
            BoundAddr::Unix(path) => ListenAddr::Unix(path.as_path().into()),
            BoundAddr::Unnamed(addr) => addr.clone(),
        }
    }
}

impl fmt::Display for BoundAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BoundAddr::Http(addr) => write!(f, "http://{addr}"),
            BoundAddr::Unix(path) => write!(f, "unix:{}", path.display()),
            BoundAddr::Unnamed(addr) => addr.fmt(f),
        }
    }
}

impl Default for ListenAddr {
    /// `127.0.0.1:3000`.
    fn default() -> ListenAddr {
        ListenAddr::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3000))
    }
}

impl TryFrom<&str> for ListenAddr {
    type Error = Error;

    /// Parses the text.
    fn try_from(text: &str) -> Result<ListenAddr> {
        text.parse()
    }
}

impl TryFrom<&String> for ListenAddr {
    type Error = Error;

    /// Parses the text.
    fn try_from(text: &String) -> Result<ListenAddr> {
        text.parse()
    }
}

impl TryFrom<String> for ListenAddr {
    type Error = Error;

    /// Parses the text.
    fn try_from(text: String) -> Result<ListenAddr> {
        text.parse()
    }
}

impl<A: Into<IpAddr>> From<(A, u16)> for ListenAddr {
    /// An IP address and a port.
    fn from(addr: (A, u16)) -> ListenAddr {
        ListenAddr::Tcp(addr.into())
    }
}

impl From<SocketAddr> for ListenAddr {
    fn from(addr: SocketAddr) -> ListenAddr {
        ListenAddr::Tcp(addr)
    }
}

impl FromStr for ListenAddr {
    type Err = Error;

    /// # Errors
    ///
    /// The text has none of the forms of [`ListenAddr`]; the error says which.
    fn from_str(text: &str) -> Result<ListenAddr> {
        if let Some(rest) = text.strip_prefix("unix:") {
            return UnixAddr::parse(rest)
                .map(ListenAddr::Unix)
                .map_err(|why| listen_addr_error(text, &why));
        }
        if let Some(number) = text.strip_prefix("fd://") {
            return match number.parse::<i32>() {
                Ok(fd) if fd >= 3 => Ok(ListenAddr::Fd(fd)),
                Ok(_) => Err(listen_addr_error(
                    text,
                    "0, 1 and 2 are the standard streams: give 3 or more",
                )),
                Err(_) => Err(listen_addr_error(text, "fd:// needs a number")),
            };
        }
        if let Ok(addr) = text.parse() {
            return Ok(ListenAddr::Tcp(addr));
        }
        let forms = "give HOST:PORT (as 127.0.0.1:3000, [::1]:3000, localhost:3000 or :3000), unix:PATH or fd://N";
        if text.parse::<u16>().is_ok() {
            let why = format!("write :{text} for this port of all addresses, or 127.0.0.1:{text}");
            return Err(listen_addr_error(text, &why));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| listen_addr_error(text, forms))?;
        if !host.is_empty() && !is_host_name(host) {
            let is_ip = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
            let why = if is_ip { "the port must be 0 to 65535" } else { forms };
            return Err(listen_addr_error(text, why));
        }
        let port =
            port.parse().map_err(|_| listen_addr_error(text, "the port must be 0 to 65535"))?;
        Ok(match host {
            "" => ListenAddr::Tcp(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)),
            name => ListenAddr::Host(HostAddr { name: name.to_ascii_lowercase(), port }),
        })
    }
}

/// Returns whether `text` is a host name (RFC 1123, and the underscore that resolvers accept). A name whose last label
/// is a number is refused: it is a mistyped IPv4 address.
pub(crate) fn is_host_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253 && name.split('.').all(label) && !last.bytes().all(|b| b.is_ascii_digit())
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddr::Tcp(addr) => addr.fmt(f),
            ListenAddr::Host(HostAddr { name, port }) => write!(f, "{name}:{port}"),
            ListenAddr::Unix(unix) => unix.fmt(f),
            ListenAddr::Fd(fd) => write!(f, "fd://{fd}"),
        }
    }
}

pub(super) fn listen_addr_error(text: &str, why: &str) -> Error {
    Error::config(format!("bind = {text:?} is not an address: {why}"))
}

/// Returns whether `wide` is the wildcard address of the port of `narrow`, so that connections to `narrow` reach it as
/// well (`[::]` is dual stack).
pub(super) fn wildcard_covers(wide: SocketAddr, narrow: SocketAddr) -> bool {
    let all = match wide.ip() {
        IpAddr::V4(ip) => ip.is_unspecified() && narrow.is_ipv4(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    all && wide.port() == narrow.port() && wide != narrow
}

/// Returns whether two addresses collide in bind(2): the same port, and an address in common.
pub(super) fn bind_addrs_overlap(one: SocketAddr, other: SocketAddr) -> bool {
    wildcard_covers(one, other) || wildcard_covers(other, one) || one == other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_printed_as_it_was_read() {
        for text in [
            "127.0.0.1:3000",
            "[::1]:80",
            "unix:/run/app.sock",
            "unix:/run/app.sock?mode=0660&owner=root&group=33",
            "unix:@app",
            "fd://3",
            "0.0.0.0:0",
            "localhost:1",
            "web-1.example_net.org:80",
        ] {
            let addr: ListenAddr = text.parse().expect(text);
            assert_eq!(addr.to_string(), text);
            assert_eq!(addr.to_string().parse::<ListenAddr>().expect(text), addr);
        }
        assert_eq!(":80".parse::<ListenAddr>().expect("all").to_string(), "[::]:80");
    }

    #[test]
    fn an_invalid_address_is_named_in_the_error() {
        for text in [
            "",
            "3000",
            "unix:",
            "unix:@",
            "fd://",
            "fd://2",
            "fd://0",
            "fd://-1",
            "host:99999",
            "host:",
            "a:b:c",
            ":x",
            "1.2.3:80",
            "1.2.3.999:80",
            "http://host:80",
            "-a:80",
            "a b:80",
            "::1:80",
            "[::1]",
            "a..b:1",
            "unix:/a?mode=999",
            "unix:/a?mode=",
            "unix:/a?colour=red",
            "unix:/a?mode",
            "unix:@a?mode=0600",
            "unix:/a?owner=",
            "unix:/a?mode=0600&mode=0600",
        ] {
            let error = text.parse::<ListenAddr>().expect_err(text);
            assert!(error.to_string().starts_with(&format!("bind = {text:?} is not")), "{error}");
        }
    }

    #[test]
    fn wildcards_cover_the_addresses_of_their_families() {
        let addr = |text: &str| text.parse::<SocketAddr>().expect(text);
        for (wide, narrow, yes) in [
            ("[::]:1", "127.0.0.1:1", true),
            ("[::]:1", "0.0.0.0:1", true),
            ("[::]:1", "[::1]:1", true),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
            ("0.0.0.0:1", "[::]:1", false),
            ("[::]:1", "[::]:1", false),
            ("[::]:1", "127.0.0.1:2", false),
            ("127.0.0.1:1", "[::]:1", false),
        ] {
            assert_eq!(wildcard_covers(addr(wide), addr(narrow)), yes, "{wide} {narrow}");
        }
        assert!(bind_addrs_overlap(addr("127.0.0.1:1"), addr("[::]:1")));
        assert!(bind_addrs_overlap(addr("127.0.0.1:1"), addr("127.0.0.1:1")));
        assert!(!bind_addrs_overlap(addr("127.0.0.1:1"), addr("127.0.0.2:1")));
    }
}
