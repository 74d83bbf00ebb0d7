//! An address that redirects to https.

use std::fmt;
use std::str::FromStr;

use crate::client::ProxyProtocol;
use crate::error::{Error, Result};
use crate::listener::{BindAddr, ListenAddr};

/// An address whose every request is redirected to https. Parses from the forms of [`BindAddr`](crate::BindAddr), and the option
/// `https-port`: `:80`, `0.0.0.0:8080?https-port=443`.
///
/// ```
/// use tokio_prefork::RedirectAddr;
///
/// let redirect: RedirectAddr = "[::]:8080?https-port=443".parse()?;
/// assert_eq!(redirect.https_port, Some(443));
/// assert_eq!(redirect.addr.to_string(), "[::]:8080");
/// # Ok::<(), tokio_prefork::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedirectAddr {
    /// The address.
    pub addr: ListenAddr,
    /// The port of the https URLs: the one that clients see, if a container or a firewall maps ports. `None`: that of the first https
    /// address of this cluster, or 443.
    pub https_port: Option<u16>,
    /// Whether its connections begin with a header of the PROXY protocol. `None`: as
    /// [`proxy_protocol`](crate::ConfigBuilder::proxy_protocol) says.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// Where the requests of an address are redirected to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RedirectOptions {
    /// The port of the https URLs. `None`: that of the first https address of this cluster, or 443.
    pub(crate) https_port: Option<u16>,
}

/// The option that a [`BindAddr`] does not have.
const HTTPS_PORT: &str = "https-port";

impl FromStr for RedirectAddr {
    type Err = Error;

    /// # Errors
    ///
    /// The text has none of the forms of [`BindAddr`](crate::BindAddr), or an unknown option; the error says which.
    fn from_str(text: &str) -> Result<RedirectAddr> {
        let error = |why: &str| {
            Error::config(format!("https-redirect = {text:?} is not an address: {why}"))
        };
        let (addr, options) = text.split_once('?').unwrap_or((text, ""));
        let (mut https_port, mut others) = (None, Vec::new());
        for option in options.split('&').filter(|_| text.contains('?')) {
            let value = option.strip_prefix(HTTPS_PORT).and_then(|rest| rest.strip_prefix('='));
            match value {
                None => others.push(option),
                Some(_) if https_port.is_some() => return Err(error("https-port is given twice")),
                Some(value) => {
                    let port = value.parse().ok().filter(|port| *port != 0);
                    https_port = Some(port.ok_or_else(|| error("https-port must be 1 to 65535"))?);
                }
            }
        }
        let bind = match others.is_empty() {
            true => addr.to_string(),
            false => format!("{addr}?{}", others.join("&")),
        };
        let BindAddr { addr, proxy_protocol, tls } = bind.parse().map_err(|why: Error| {
            let why = why.to_string();
            error(why.split_once("is not an address: ").map_or(why.as_str(), |(_, why)| why))
        })?;
        if tls == Some(true) {
            return Err(error("what is redirected is plain HTTP: leave https:// and tls=on out"));
        }
        Ok(RedirectAddr { addr, https_port, proxy_protocol })
    }
}

impl fmt::Display for RedirectAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RedirectAddr { addr, https_port, proxy_protocol } = self;
        let (proxy_protocol, tls) = (*proxy_protocol, None);
        let bind = BindAddr { addr: addr.clone(), proxy_protocol, tls }.to_string();
        f.write_str(&bind)?;
        let Some(port) = https_port else { return Ok(()) };
        write!(f, "{}{HTTPS_PORT}={port}", if bind.contains('?') { '&' } else { '?' })
    }
}

impl From<ListenAddr> for RedirectAddr {
    /// An address without options.
    fn from(addr: ListenAddr) -> RedirectAddr {
        RedirectAddr { addr, https_port: None, proxy_protocol: None }
    }
}

impl TryFrom<&str> for RedirectAddr {
    type Error = Error;

    /// Parses the text.
    fn try_from(text: &str) -> Result<RedirectAddr> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_printed_as_they_were_read() {
        for (text, https_port) in [
            ("[::]:80", None),
            ("127.0.0.1:8080?https-port=443", Some(443)),
            ("localhost:80?proxy-protocol=v2", None),
            ("fd://3?proxy-protocol=v1&https-port=8443", Some(8443)),
            ("unix:/run/a?mode=0660&https-port=1", Some(1)),
        ] {
            let redirect: RedirectAddr = text.parse().expect(text);
            assert_eq!((redirect.to_string().as_str(), redirect.https_port), (text, https_port));
        }
    }

    #[test]
    fn the_error_names_the_key_and_the_reason() {
        for (text, what) in [
            ("80", "write :80"),
            ("a:b:c", "give HOST:PORT"),
            (":80?https-port=0", "https-port must be 1 to 65535"),
            (":80?https-port=65536", "https-port must be 1 to 65535"),
            (":80?https-port=1&https-port=2", "given twice"),
            ("https://:80", "plain HTTP"),
            (":80?tls=on", "plain HTTP"),
            (":80?port=443", "unknown option \"port=443\""),
        ] {
            let error = text.parse::<RedirectAddr>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("https-redirect = {text:?} is")), "{error}");
            assert!(error.contains(what), "{error}");
        }
    }
}
