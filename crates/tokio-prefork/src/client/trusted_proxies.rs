//! The proxies whose statements about clients are believed.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use super::PeerAddr;
use crate::config::ParseValueError;

/// The proxies whose PROXY header and forwarded headers are believed: networks, and Unix sockets. Cheap to clone.
///
/// In text: networks (`10.0.0.0/8`), IP addresses (`::1`) and `unix` for every client of a Unix socket, separated by
/// commas. Default: none, so no client can pretend to be another one.
///
/// ```
/// use tokio_prefork::TrustedProxies;
///
/// let proxies: TrustedProxies = "10.0.0.0/8, 2001:db8::7, unix".parse()?;
/// assert!(proxies.contains("10.1.2.3".parse()?));
/// assert!(proxies.contains("::ffff:10.1.2.3".parse()?));
/// assert!(!proxies.contains("2001:db8::8".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrustedProxies {
    networks: Arc<[IpNet]>,
    has_unix: bool,
}

/// The word for all clients of Unix sockets.
const UNIX: &str = "unix";

impl TrustedProxies {
    /// Returns whether no proxy is trusted.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && !self.has_unix
    }

    /// Returns whether a proxy with this address is trusted. An IPv4 address that is written as an IPv6 address counts as the
    /// IPv4 address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.networks.iter().any(|network| network.contains(&ip))
    }

    /// Adds the proxies of another list.
    pub fn add(&mut self, more: &TrustedProxies) {
        let new = more.networks.iter().filter(|network| !self.networks.contains(network));
        self.networks = self.networks.iter().chain(new).copied().collect();
        self.has_unix |= more.has_unix;
    }

    /// Returns whether the client of a connection is a trusted proxy.
    pub fn contains_peer(&self, peer: &PeerAddr) -> bool {
        match peer {
            PeerAddr::Tcp(addr) => self.contains(addr.ip()),
            PeerAddr::Unix(_) => self.has_unix,
        }
    }
}

impl FromStr for TrustedProxies {
    type Err = ParseValueError;

    /// # Errors
    ///
    /// An element that is neither a network nor an IP address nor `unix`; the reason says what to give.
    fn from_str(text: &str) -> Result<TrustedProxies, ParseValueError> {
        let mut proxies = Vec::new();
        let mut has_unix = false;
        for element in text.split(',').map(str::trim).filter(|element| !element.is_empty()) {
            if element.eq_ignore_ascii_case(UNIX) {
                has_unix = true;
                continue;
            }
            let network = parse_network(element).map_err(|reason| {
                ParseValueError::new(text, format!("has {element:?}, which {reason}"))
            })?;
            if !proxies.contains(&network) {
                proxies.push(network);
            }
        }
        Ok(TrustedProxies { networks: proxies.into(), has_unix })
    }
}

fn parse_network(text: &str) -> Result<IpNet, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(ip.to_canonical()));
    }
    let parsed = text.split_once('/').and_then(|(ip, prefix)| {
        // Stricter than the parser of networks: 010.0.0.0/8 is 8.0.0.0/8 to some programs.
        let is_decimal = prefix.bytes().all(|b| b.is_ascii_digit());
        let has_leading_zero = prefix.len() > 1 && prefix.starts_with('0');
        let prefix = prefix.parse().ok().filter(|_| is_decimal && !has_leading_zero)?;
        IpNet::new(ip.parse().ok()?, prefix).ok()
    });
    let network = parsed.ok_or_else(|| match text {
        "*" => "is no network: for all clients give 0.0.0.0/0, ::/0 and unix".to_string(),
        _ => "is no network: give addresses such as 10.0.0.0/8 or ::1, or unix".to_string(),
    })?;
    if network.trunc() != network {
        return Err(format!("has bits behind its prefix: give {}", network.trunc()));
    }
    Ok(to_ipv4_network(network).unwrap_or(network))
}

/// Converts a network of IPv4 addresses that are written as IPv6 addresses (`::ffff:10.0.0.0/104`).
fn to_ipv4_network(network: IpNet) -> Option<IpNet> {
    let IpNet::V6(v6) = network else { return None };
    let (addr, prefix) = (v6.addr().to_ipv4_mapped()?, v6.prefix_len().checked_sub(96)?);
    Ipv4Net::new(addr, prefix).ok().map(IpNet::V4)
}

impl fmt::Display for TrustedProxies {
    /// Formats the list so that it can be parsed again. An address is shown without a prefix length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for network in self.networks.iter() {
            f.write_str(separator)?;
            match network.prefix_len() == network.max_prefix_len() {
                true => network.addr().fmt(f)?,
                false => network.fmt(f)?,
            }
            separator = ", ";
        }
        if self.has_unix { write!(f, "{separator}{UNIX}") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_printed_as_it_is_parsed() {
        for (text, shown) in [
            ("", ""),
            (" , ,", ""),
            ("10.0.0.0/8,unix", "10.0.0.0/8, unix"),
            ("UNIX", "unix"),
            ("127.0.0.1/32, ::1/128, ::1", "127.0.0.1, ::1"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("0.0.0.0/0, ::/0", "0.0.0.0/0, ::/0"),
        ] {
            let proxies: TrustedProxies = text.parse().expect(text);
            assert_eq!(proxies.to_string(), shown);
            assert_eq!(proxies.to_string().parse(), Ok(proxies), "{text}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_advice() {
        for (text, advice) in [
            ("10.0.0.0/33", "such as"),
            ("10.0.0/8", "such as"),
            ("localhost", "such as"),
            ("unix:", "such as"),
            ("10.1.2.3/8", "give 10.0.0.0/8"),
            ("2001:db8::1/32", "give 2001:db8::/32"),
            ("*", "0.0.0.0/0, ::/0 and unix"),
            ("10.0.0.1:80", "such as"),
            ("fe80::1%lo", "such as"),
            ("fe80::%lo/64", "such as"),
            ("010.0.0.0/8", "such as"),
            ("10.0.0.0/08", "such as"),
            ("10.0.0.0/+8", "such as"),
            ("10.0.0.0/", "such as"),
            ("10.0.0.0/255.0.0.0", "such as"),
            ("::/129", "such as"),
        ] {
            let error = text.parse::<TrustedProxies>().expect_err(text);
            assert!(error.reason().contains(advice), "{text}: {error}");
        }
    }

    #[test]
    fn an_address_is_in_its_networks_in_either_notation() {
        let proxies: TrustedProxies = "10.0.0.0/8, 2001:db8::/32".parse().expect("a list");
        for (ip, is_in) in [
            ("10.255.0.1", true),
            ("::ffff:10.255.0.1", true),
            ("11.0.0.1", false),
            ("2001:db8:ffff::1", true),
            ("2001:db9::1", false),
            ("::ffff:11.0.0.1", false),
        ] {
            assert_eq!(proxies.contains(ip.parse().expect("an address")), is_in, "{ip}");
        }
        let all_v6: TrustedProxies = "::/0".parse().expect("a list");
        assert!(!all_v6.contains("::ffff:10.0.0.1".parse().expect("an address")));
        assert!(!TrustedProxies::default().contains("127.0.0.1".parse().expect("an address")));
    }
}
