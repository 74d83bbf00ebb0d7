//! The identity of a listener: what the operator wrote, parsed, and printed the same way again.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Where to listen. Parses from `HOST:PORT`, `[V6]:PORT`, `:PORT` (all addresses, dual stack),
/// `unix:PATH` and `fd://N`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddr {
    /// An IPv4 or IPv6 address; `[::]` takes IPv4 as well (dual stack).
    Tcp(SocketAddr),
    /// A Unix stream socket at this path.
    Unix(PathBuf),
    /// A listening stream socket that the parent process left open at this number.
    Fd(i32),
}

impl Default for ListenAddr {
    /// `127.0.0.1:3000`.
    fn default() -> ListenAddr {
        ListenAddr::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3000))
    }
}

impl FromStr for ListenAddr {
    type Err = Error;

    fn from_str(text: &str) -> Result<ListenAddr> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || path.contains('\0') {
                return Err(bad(text, "unix: needs a path"));
            }
            return Ok(ListenAddr::Unix(PathBuf::from(path)));
        }
        if let Some(number) = text.strip_prefix("fd://") {
            return match number.parse::<i32>() {
                Ok(fd) if fd >= 3 => Ok(ListenAddr::Fd(fd)),
                Ok(_) => Err(bad(text, "0, 1 and 2 are the standard streams: give 3 or more")),
                Err(_) => Err(bad(text, "fd:// needs a number")),
            };
        }
        if let Some(port) = text.strip_prefix(':') {
            let port = port.parse().map_err(|_| bad(text, "the port must be 0 to 65535"))?;
            return Ok(ListenAddr::Tcp(SocketAddr::new(
                "::".parse().map_err(|_| bad(text, ""))?,
                port,
            )));
        }
        let text_or_local = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.to_string(),
        };
        text_or_local.parse().map(ListenAddr::Tcp).map_err(|_| {
            bad(
                text,
                "give ADDRESS:PORT (as 127.0.0.1:3000, [::1]:3000 or :3000), unix:PATH or fd://N",
            )
        })
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddr::Tcp(addr) => addr.fmt(f),
            ListenAddr::Unix(path) => write!(f, "unix:{}", path.display()),
            ListenAddr::Fd(fd) => write!(f, "fd://{fd}"),
        }
    }
}

fn bad(text: &str, why: &str) -> Error {
    Error::config(format!("bind = {text:?} is not an address: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_printed_as_it_was_read() {
        for text in ["127.0.0.1:3000", "[::1]:80", "unix:/run/app.sock", "fd://3", "0.0.0.0:0"] {
            let addr: ListenAddr = text.parse().expect(text);
            assert_eq!(addr.to_string(), text);
        }
        assert_eq!(":80".parse::<ListenAddr>().expect("all").to_string(), "[::]:80");
        assert_eq!("localhost:1".parse::<ListenAddr>().expect("name").to_string(), "127.0.0.1:1");
    }

    #[test]
    fn what_is_no_address_is_named() {
        for text in ["", "3000", "unix:", "fd://", "fd://2", "fd://-1", "host:99999", "a:b:c", ":x"]
        {
            let error = text.parse::<ListenAddr>().expect_err(text);
            assert!(error.to_string().starts_with(&format!("bind = {text:?} is not")), "{error}");
        }
    }
}
