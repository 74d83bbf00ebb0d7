//! An address to listen on, with the options of its connections.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use super::listen_addr::listen_addr_error;
use super::{ListenAddr, UnixAddr};
use crate::client::ProxyProtocol;
use crate::error::{Error, Result};

/// An address to listen on, with the options of its connections. Parses from the forms of [`ListenAddr`], with `?` and options
/// behind: `127.0.0.1:3000?proxy-protocol=v2`, `unix:/run/app.sock?mode=0660&proxy-protocol=v1`.
///
/// ```
/// use tokio_prefork::{BindAddr, ProxyProtocol};
///
/// let bind: BindAddr = "[::]:443?proxy-protocol=auto".parse()?;
/// assert_eq!(bind.proxy_protocol, Some(ProxyProtocol::Auto));
/// assert_eq!(bind.addr.to_string(), "[::]:443");
/// # Ok::<(), tokio_prefork::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BindAddr {
    /// The address.
    pub addr: ListenAddr,
    /// Whether its connections begin with a header of the PROXY protocol. `None`: as
    /// [`proxy_protocol`](crate::ConfigBuilder::proxy_protocol) says.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// The option that is not one of the address itself.
const PROXY_PROTOCOL: &str = "proxy-protocol";

impl FromStr for BindAddr {
    type Err = Error;

    /// # Errors
    ///
    /// The text has none of the forms of [`ListenAddr`], or an unknown option; the error says which.
    fn from_str(text: &str) -> Result<BindAddr> {
        let (addr, options) = text.split_once('?').unwrap_or((text, ""));
        let (mut proxy_protocol, mut others) = (None, Vec::new());
        for option in options.split('&').filter(|_| text.contains('?')) {
            let value = option.strip_prefix(PROXY_PROTOCOL).and_then(|rest| rest.strip_prefix('='));
            match value {
                None => others.push(option),
                Some(_) if proxy_protocol.is_some() => {
                    return Err(listen_addr_error(text, "proxy-protocol is given twice"));
                }
                Some(value) => {
                    let parsed: std::result::Result<ProxyProtocol, _> = value.parse();
                    let parsed = parsed.map_err(|why| listen_addr_error(text, &why.to_string()))?;
                    proxy_protocol = Some(parsed);
                }
            }
        }
        if others.is_empty() {
            return Ok(BindAddr { addr: addr.parse()?, proxy_protocol });
        }
        if !addr.starts_with("unix:") {
            let why = format!(
                "unknown option {:?}: after the ? give proxy-protocol=off, v1, v2 or auto",
                others.join("&")
            );
            return Err(listen_addr_error(text, &why));
        }
        Ok(BindAddr { addr: format!("{addr}?{}", others.join("&")).parse()?, proxy_protocol })
    }
}

impl fmt::Display for BindAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addr = self.addr.to_string();
        f.write_str(&addr)?;
        let Some(proxy_protocol) = self.proxy_protocol else { return Ok(()) };
        let separator = if addr.contains('?') { '&' } else { '?' };
        write!(f, "{separator}{PROXY_PROTOCOL}={proxy_protocol}")
    }
}

impl From<ListenAddr> for BindAddr {
    /// An address without options.
    fn from(addr: ListenAddr) -> BindAddr {
        BindAddr { addr, proxy_protocol: None }
    }
}

impl From<UnixAddr> for BindAddr {
    fn from(addr: UnixAddr) -> BindAddr {
        ListenAddr::Unix(addr).into()
    }
}

impl From<SocketAddr> for BindAddr {
    fn from(addr: SocketAddr) -> BindAddr {
        ListenAddr::Tcp(addr).into()
    }
}

impl<A: Into<IpAddr>> From<(A, u16)> for BindAddr {
    /// An IP address and a port.
    fn from(addr: (A, u16)) -> BindAddr {
        ListenAddr::from(addr).into()
    }
}

impl TryFrom<&str> for BindAddr {
    type Error = Error;

    /// Parses the text.
    fn try_from(text: &str) -> Result<BindAddr> {
        text.parse()
    }
}

impl TryFrom<&String> for BindAddr {
    type Error = Error;

    /// Parses the text.
    fn try_from(text: &String) -> Result<BindAddr> {
        text.parse()
    }
}

impl TryFrom<String> for BindAddr {
    type Error = Error;

    /// Parses the text.
    fn try_from(text: String) -> Result<BindAddr> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_printed_as_they_were_read() {
        for (text, own) in [
            ("127.0.0.1:3000", None),
            ("127.0.0.1:3000?proxy-protocol=v2", Some(ProxyProtocol::V2)),
            ("[::1]:80?proxy-protocol=off", Some(ProxyProtocol::Off)),
            ("localhost:80?proxy-protocol=v1", Some(ProxyProtocol::V1)),
            ("fd://3?proxy-protocol=auto", Some(ProxyProtocol::Auto)),
            ("unix:@app?proxy-protocol=v1", Some(ProxyProtocol::V1)),
            ("unix:/run/a?mode=0660&proxy-protocol=v2", Some(ProxyProtocol::V2)),
        ] {
            let bind: BindAddr = text.parse().expect(text);
            assert_eq!((bind.to_string().as_str(), bind.proxy_protocol), (text, own));
        }
        let swapped: BindAddr = "unix:/run/a?proxy-protocol=v2&mode=660".parse().expect("address");
        assert_eq!(swapped.to_string(), "unix:/run/a?mode=0660&proxy-protocol=v2");
    }

    #[test]
    fn an_unknown_option_is_named() {
        for (text, what) in [
            ("127.0.0.1:1?proxy-protocol=v3", "give off, v1, v2 or auto"),
            ("127.0.0.1:1?proxy-protocol", "unknown option \"proxy-protocol\""),
            ("127.0.0.1:1?proxy-protocol=", "give off, v1, v2 or auto"),
            ("127.0.0.1:1?mode=0660", "unknown option \"mode=0660\""),
            ("127.0.0.1:1?", "unknown option \"\""),
            ("127.0.0.1:1?proxy-protocol=v1&proxy-protocol=v2", "given twice"),
            ("unix:/a?colour=red&proxy-protocol=v1", "unknown option \"colour\""),
        ] {
            let error = text.parse::<BindAddr>().expect_err(text).to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
