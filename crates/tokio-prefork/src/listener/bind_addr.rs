//! An address to listen on, with the options of its connections.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use super::listen_addr::listen_addr_error;
use super::{ListenAddr, UnixAddr};
use crate::client::ProxyProtocol;
use crate::error::{Error, Result};
use crate::https_redirect::RedirectOptions;

/// An address to listen on, with the options of its connections. Parses from the forms of [`ListenAddr`], with a scheme before them
/// or options behind.
///
/// - `https://HOST:PORT` speaks TLS and `http://HOST:PORT` does not; without a port, it is that of the scheme, 443 or 80.
/// - `?tls=on` and `?tls=off` say the same of any address: `fd://3?tls=off`, `unix:/run/app.sock?tls=on`.
/// - `?proxy-protocol=v2` sets the version of the PROXY protocol: `unix:/run/app.sock?mode=0660&proxy-protocol=v1`.
///
/// ```
/// use tokio_prefork::{BindAddr, ProxyProtocol};
///
/// let bind: BindAddr = "https://[::]:443?proxy-protocol=auto".parse()?;
/// assert_eq!(bind.proxy_protocol, Some(ProxyProtocol::Auto));
/// assert_eq!(bind.tls, Some(true));
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
    /// Whether its connections speak TLS. `None`: if [`tls_cert`](crate::ConfigBuilder::tls_cert) names a certificate, TCP does,
    /// and Unix sockets do not.
    pub tls: Option<bool>,
}

/// The options of a [`BindAddr`] beside its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BindOptions {
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
    pub(crate) tls: Option<bool>,
    /// Set if its requests are only redirected to https.
    pub(crate) https_redirect: Option<RedirectOptions>,
}

/// The names of the options that are not those of the address itself.
const PROXY_PROTOCOL: &str = "proxy-protocol";
const TLS: &str = "tls";

/// The schemes of URLs, each with its port and whether it is TLS.
const SCHEMES: [(&str, u16, bool); 2] = [("http://", 80, false), ("https://", 443, true)];

impl FromStr for BindAddr {
    type Err = Error;

    /// # Errors
    ///
    /// The text has none of the forms, or an unknown option; the error says which.
    fn from_str(text: &str) -> Result<BindAddr> {
        let (addr, options) = text.split_once('?').unwrap_or((text, ""));
        let (mut own, mut others) = (BindOptions::default(), Vec::new());
        let failed = |why: &str| listen_addr_error(text, why);
        for option in options.split('&').filter(|_| text.contains('?')) {
            match option.split_once('=') {
                Some((PROXY_PROTOCOL, _)) if own.proxy_protocol.is_some() => {
                    return Err(failed("proxy-protocol is given twice"));
                }
                Some((PROXY_PROTOCOL, value)) => {
                    let parsed: std::result::Result<ProxyProtocol, _> = value.parse();
                    own.proxy_protocol = Some(parsed.map_err(|why| failed(&why.to_string()))?);
                }
                Some((TLS, _)) if own.tls.is_some() => return Err(failed("tls is given twice")),
                Some((TLS, "on")) => own.tls = Some(true),
                Some((TLS, "off")) => own.tls = Some(false),
                Some((TLS, _)) => return Err(failed("tls is neither on nor off")),
                _ => others.push(option),
            }
        }
        let addr = match parse_scheme(addr).map_err(|why| failed(&why))? {
            None => addr.into(),
            Some(_) if own.tls.is_some() => {
                return Err(failed("the scheme says whether it is TLS: leave tls out"));
            }
            Some((host_and_port, is_tls)) => {
                own.tls = Some(is_tls);
                host_and_port
            }
        };
        let BindOptions { proxy_protocol, tls, .. } = own;
        if others.is_empty() {
            let parsed = addr.parse().map_err(|e: Error| match own.tls {
                Some(_) if text.contains("://") => {
                    failed("after the scheme give HOST:PORT or :PORT")
                }
                _ => e,
            });
            return Ok(BindAddr { addr: parsed?, proxy_protocol, tls });
        }
        if !addr.starts_with("unix:") {
            let why = format!(
                "unknown option {:?}: after the ? give proxy-protocol=off, v1, v2 or auto, or tls=on or off",
                others.join("&")
            );
            return Err(failed(&why));
        }
        Ok(BindAddr { addr: format!("{addr}?{}", others.join("&")).parse()?, proxy_protocol, tls })
    }
}

/// Splits `https://HOST:PORT` into address and whether it is TLS; `None` without a scheme of URLs.
fn parse_scheme(addr: &str) -> std::result::Result<Option<(Cow<'_, str>, bool)>, String> {
    let is_prefix = |(scheme, ..): &&(&str, u16, bool)| {
        addr.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    let Some((scheme, port, is_tls)) = SCHEMES.iter().find(is_prefix) else { return Ok(None) };
    let rest = &addr[scheme.len()..];
    let host = rest.strip_suffix('/').unwrap_or(rest);
    if host.starts_with("unix:") || host.starts_with("fd:") {
        let value = if *is_tls { "on" } else { "off" };
        return Err(format!("{scheme} is for HOST:PORT: give {host}?tls={value}"));
    }
    if host.is_empty() || host.contains(['/', '@', '#']) {
        return Err(format!("after {scheme} give HOST, HOST:PORT or :PORT"));
    }
    let after_ipv6 = host.rfind(']').map_or(host, |end| &host[end..]);
    let has_port = after_ipv6.contains(':');
    let host = if has_port { host.into() } else { format!("{host}:{port}").into() };
    Ok(Some((host, *is_tls)))
}

impl fmt::Display for BindAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addr = self.addr.to_string();
        let scheme = SCHEMES.iter().find(|(.., is_tls)| self.tls == Some(*is_tls));
        let mut separator = if addr.contains('?') { '&' } else { '?' };
        let mut option = |f: &mut fmt::Formatter<'_>, name, value: &dyn fmt::Display| {
            write!(f, "{}{name}={value}", std::mem::replace(&mut separator, '&'))
        };
        match (scheme, &self.addr) {
            (None, _) => f.write_str(&addr)?,
            (Some((scheme, ..)), ListenAddr::Tcp(_) | ListenAddr::Host(_)) => {
                write!(f, "{scheme}{addr}")?;
            }
            (Some((.., is_tls)), _) => {
                f.write_str(&addr)?;
                option(f, TLS, &if *is_tls { "on" } else { "off" })?;
            }
        }
        match &self.proxy_protocol {
            Some(proxy_protocol) => option(f, PROXY_PROTOCOL, proxy_protocol),
            None => Ok(()),
        }
    }
}

impl BindAddr {
    pub(crate) fn new(addr: ListenAddr, options: BindOptions) -> BindAddr {
        let BindOptions { proxy_protocol, tls, https_redirect: _ } = options;
        BindAddr { addr, proxy_protocol, tls }
    }

    pub(crate) fn options(&self) -> BindOptions {
        let BindAddr { proxy_protocol, tls, .. } = *self;
        BindOptions { proxy_protocol, tls, https_redirect: None }
    }
}

impl From<ListenAddr> for BindAddr {
    /// An address without options.
    fn from(addr: ListenAddr) -> BindAddr {
        BindAddr::new(addr, BindOptions::default())
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
            ("https://127.0.0.1:3000?proxy-protocol=v2", Some(ProxyProtocol::V2)),
            ("http://[::1]:80", None),
            ("https://example.org:8443", None),
            ("fd://3?tls=off&proxy-protocol=v1", Some(ProxyProtocol::V1)),
            ("unix:/run/a?mode=0660&tls=on", None),
        ] {
            let bind: BindAddr = text.parse().expect(text);
            assert_eq!((bind.to_string().as_str(), bind.proxy_protocol), (text, own));
        }
        let swapped: BindAddr = "unix:/run/a?proxy-protocol=v2&mode=660".parse().expect("address");
        assert_eq!(swapped.to_string(), "unix:/run/a?mode=0660&proxy-protocol=v2");
    }

    #[test]
    fn a_scheme_says_whether_connections_speak_tls_and_what_the_port_is() {
        for (text, printed, tls) in [
            ("127.0.0.1:443", "127.0.0.1:443", None),
            ("https://127.0.0.1", "https://127.0.0.1:443", Some(true)),
            ("HTTPS://[::1]/", "https://[::1]:443", Some(true)),
            ("https://:8443", "https://[::]:8443", Some(true)),
            ("http://0.0.0.0", "http://0.0.0.0:80", Some(false)),
            ("https://example.org", "https://example.org:443", Some(true)),
            ("127.0.0.1:1?tls=on", "https://127.0.0.1:1", Some(true)),
            ("127.0.0.1:1?tls=off", "http://127.0.0.1:1", Some(false)),
        ] {
            let bind: BindAddr = text.parse().expect(text);
            assert_eq!((bind.to_string().as_str(), bind.tls), (printed, tls), "{text}");
        }
        for (text, what) in [
            ("https://unix:/run/a", "give unix:/run/a?tls=on"),
            ("http://fd://3", "give fd://3?tls=off"),
            ("https://", "HOST, HOST:PORT or :PORT"),
            ("https://a/b", "HOST, HOST:PORT or :PORT"),
            ("https://127.0.0.1:x", "after the scheme give HOST:PORT"),
            ("https://127.0.0.1:1?tls=on", "leave tls out"),
            ("127.0.0.1:1?tls=yes", "neither on nor off"),
            ("127.0.0.1:1?tls=on&tls=on", "given twice"),
        ] {
            let error = text.parse::<BindAddr>().expect_err(text).to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
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
