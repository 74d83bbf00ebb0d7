//! What trusted proxies say about the client of a request: `X-Forwarded-For`, `-Proto` and `-Host`, or `Forwarded` (RFC 7239).
//!
//! Each proxy appends the address that its request came from. So the list is read from the right, and only as long as the
//! proxy that has written an element is trusted: whatever stands further left may have been made up by the client. An
//! element that names no address (`unknown`, `_hidden`, or nonsense) ends the list. This is nginx's `real_ip_recursive`.
//!
//! `Forwarded` is read only of requests without `X-Forwarded-For`. Hops of both are never mixed: most proxies append to
//! one of the two, and pass the other one on as the client has sent it.
//!
//! Elements are separated from the right as well. An unterminated quote that a client has sent can therefore not swallow
//! what a proxy appends to it.

use std::net::{IpAddr, Ipv6Addr};

use hyper::header::{FORWARDED, GetAll, HeaderMap, HeaderName, HeaderValue};

use super::{ClientAddr, ForwardedHeaders, TrustedProxies};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// How many proxies are followed. No real chain is as long.
const MAX_HOPS: usize = 64;

/// The longest host name with its port (RFC 1035: 255), in bytes.
const MAX_HOST_LENGTH: usize = 255 + ":65535".len();

/// What the headers of trusted proxies say. `None` is what they do not say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ForwardedFacts {
    pub(super) client: Option<ClientAddr>,
    pub(super) is_https: Option<bool>,
    pub(super) host: Option<String>,
}

/// Reads the headers of a request whose sender is trusted.
pub(super) fn read_forwarded_headers(
    headers: &HeaderMap,
    trusted: &TrustedProxies,
    kind: ForwardedHeaders,
) -> ForwardedFacts {
    let is_standard = match kind {
        ForwardedHeaders::Auto => {
            headers.contains_key(FORWARDED) && !headers.contains_key(X_FORWARDED_FOR)
        }
        ForwardedHeaders::XForwarded => false,
        ForwardedHeaders::Forwarded => true,
    };
    match is_standard {
        true => read_forwarded(headers, trusted),
        false => read_x_forwarded(headers, trusted),
    }
}

fn read_x_forwarded(headers: &HeaderMap, trusted: &TrustedProxies) -> ForwardedFacts {
    let hops = || elements_from_right(headers.get_all(X_FORWARDED_FOR));
    let (mut client, mut position) = (None, 0);
    for (index, element) in hops().take(MAX_HOPS).enumerate() {
        let Some(hop) = std::str::from_utf8(element).ok().and_then(parse_plain_node) else {
            break;
        };
        let is_proxy = is_trusted(&hop, trusted);
        (client, position) = (Some(hop), index);
        if !is_proxy {
            break;
        }
    }
    let hop_count = hops().count();
    // A list as long as that of the addresses belongs to it. The last element is the nearest proxy's in any case.
    let of_client = |name: HeaderName| {
        let values = || elements_from_right(headers.get_all(&name));
        let index = if values().count() == hop_count { position } else { 0 };
        std::str::from_utf8(values().nth(index)?).ok().map(str::to_string)
    };
    ForwardedFacts {
        client,
        is_https: of_client(X_FORWARDED_PROTO).and_then(|proto| parse_scheme(&proto)),
        host: of_client(X_FORWARDED_HOST).and_then(|host| owned_host(&host)),
    }
}

fn read_forwarded(headers: &HeaderMap, trusted: &TrustedProxies) -> ForwardedFacts {
    let mut facts = ForwardedFacts::default();
    for element in elements_from_right(headers.get_all(FORWARDED)).take(MAX_HOPS) {
        let parsed = std::str::from_utf8(element).ok().and_then(ForwardedElement::parse);
        let Some(ForwardedElement { node, proto, host }) = parsed else { break };
        facts.is_https = proto.and_then(|proto| parse_scheme(&proto)).or(facts.is_https);
        facts.host = host.and_then(|host| owned_host(&host)).or(facts.host);
        let Some(Node::Ip(hop)) = node else { break };
        let is_proxy = is_trusted(&hop, trusted);
        facts.client = Some(hop);
        if !is_proxy {
            break;
        }
    }
    facts
}

fn is_trusted(hop: &ClientAddr, trusted: &TrustedProxies) -> bool {
    hop.ip().is_some_and(|ip| trusted.contains(ip))
}

/// Returns the elements of a list header from right to left, over all its lines, without white space and without the
/// empty ones. A comma in a quoted string does not separate.
fn elements_from_right<'a>(
    lines: GetAll<'a, HeaderValue>,
) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    let lines = lines.iter().rev();
    lines.flat_map(|line| ElementsFromRight(Some(line.as_bytes()))).filter(|e| !e.is_empty())
}

/// The elements of one header line, from right to left.
struct ElementsFromRight<'a>(Option<&'a [u8]>);

impl<'a> Iterator for ElementsFromRight<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let line = self.0?;
        let mut is_quoted = false;
        for (at, byte) in line.iter().enumerate().rev() {
            match byte {
                b'"' if !is_escaped(&line[..at]) => is_quoted = !is_quoted,
                b',' if !is_quoted => {
                    self.0 = Some(&line[..at]);
                    return Some(line[at + 1..].trim_ascii());
                }
                _ => {}
            }
        }
        self.0 = None;
        Some(line.trim_ascii())
    }
}

/// Returns whether a backslash stands before the byte that follows `before` and is not itself escaped.
fn is_escaped(before: &[u8]) -> bool {
    before.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// The value of `for` in `Forwarded`.
#[derive(Debug, PartialEq, Eq)]
enum Node {
    Ip(ClientAddr),
    /// `unknown` or an obfuscated identifier, which begins with an underscore.
    Hidden,
}

/// What one proxy has appended to `Forwarded`.
#[derive(Debug, Default, PartialEq, Eq)]
struct ForwardedElement {
    node: Option<Node>,
    proto: Option<String>,
    host: Option<String>,
}

impl ForwardedElement {
    /// Parses `for=192.0.2.1;proto=https;host=example.org`. `None` if it is malformed, or names a parameter twice.
    fn parse(text: &str) -> Option<ForwardedElement> {
        let (mut element, mut rest) = (ForwardedElement::default(), text);
        let (mut names, mut by) = (0u32, None);
        while !rest.is_empty() {
            rest = rest.trim_start_matches([' ', '\t']);
            if let Some(after) = rest.strip_prefix(';') {
                rest = after;
                continue;
            }
            let (name, after) = rest.split_once('=')?;
            let (value, after) = parse_value(after)?;
            rest = after.trim_start_matches([' ', '\t']);
            let is_name = !name.is_empty() && name.bytes().all(is_token_byte);
            if !is_name || !(rest.is_empty() || rest.starts_with(';')) {
                return None;
            }
            let (bit, slot) = match name.to_ascii_lowercase().as_str() {
                "for" => {
                    if element.node.replace(parse_node(&value)?).is_some() {
                        return None;
                    }
                    continue;
                }
                "proto" => (1, &mut element.proto),
                "host" => (2, &mut element.host),
                "by" => (4, &mut by),
                _ => continue,
            };
            if names & bit != 0 {
                return None;
            }
            names |= bit;
            *slot = Some(value);
        }
        Some(element)
    }
}

/// Parses a token or a quoted string at the start of `text`. Returns its value and what follows.
fn parse_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.bytes().position(|byte| !is_token_byte(byte)).unwrap_or(text.len());
        let (token, rest) = text.split_at(end);
        return (!token.is_empty()).then(|| (token.to_string(), rest));
    };
    let (mut value, mut chars) = (String::new(), quoted.char_indices());
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(char),
        }
    }
    None
}

/// Returns whether `byte` may be part of a token (RFC 9110, section 5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Parses a node of RFC 7239: an IPv4 address, an IPv6 address in brackets, `unknown` or `_name`, perhaps with a port.
fn parse_node(text: &str) -> Option<Node> {
    let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((_, after)) => text.split_at(text.len() - after.len()),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        None => return None,
        Some(hidden) if is_obfuscated(hidden) => None,
        Some(port) => Some(parse_port(port)?),
    };
    if name.eq_ignore_ascii_case("unknown") || is_obfuscated(name) {
        return Some(Node::Hidden);
    }
    let ip = match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => IpAddr::from(v6.parse::<Ipv6Addr>().ok()?),
        None => IpAddr::V4(name.parse().ok()?),
    };
    Some(Node::Ip(ClientAddr::Ip { ip: ip.to_canonical(), port }))
}

/// Parses an element of `X-Forwarded-For`: an IP address, with or without a port; IPv6 with or without brackets.
fn parse_plain_node(text: &str) -> Option<ClientAddr> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ClientAddr::Ip { ip: ip.to_canonical(), port: None });
    }
    match parse_node(text)? {
        Node::Ip(hop) => Some(hop),
        Node::Hidden => None,
    }
}

/// Returns whether this is an obfuscated identifier or port: an underscore and a name.
fn is_obfuscated(text: &str) -> bool {
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    text.strip_prefix('_').is_some_and(|name| !name.is_empty() && name.bytes().all(is_name_byte))
}

fn parse_port(text: &str) -> Option<u16> {
    let is_number = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// Returns whether the scheme is a secure one; `None` if it is not one of HTTP or WebSocket.
fn parse_scheme(text: &str) -> Option<bool> {
    let is_any = |names: [&str; 2]| names.iter().any(|name| text.eq_ignore_ascii_case(name));
    if is_any(["https", "wss"]) {
        return Some(true);
    }
    is_any(["http", "ws"]).then_some(false)
}

fn owned_host(text: &str) -> Option<String> {
    parse_host_and_port(text).map(str::to_string)
}

/// Returns the text if it is a host name or IP address, perhaps with a port. The colon before an empty port, which RFC 3986
/// allows, is left out.
pub(super) fn parse_host_and_port(text: &str) -> Option<&str> {
    let host = text.strip_suffix(':').unwrap_or(text);
    is_host_and_port(host).then_some(host)
}

fn is_host_and_port(text: &str) -> bool {
    if text.len() > MAX_HOST_LENGTH {
        return false;
    }
    if let Some(rest) = text.strip_prefix('[') {
        let is_port = |after: &str| {
            after.is_empty() || after.strip_prefix(':').and_then(parse_port).is_some()
        };
        let parts = rest.split_once(']');
        return parts.is_some_and(|(v6, port)| v6.parse::<Ipv6Addr>().is_ok() && is_port(port));
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    // A name may end with a dot; an empty label before that could be taken for a path.
    let has_empty_label = name.starts_with('.') || name.contains("..");
    let is_name = !name.is_empty() && name.len() <= 255 && name.bytes().all(is_name_byte);
    let is_name = is_name && !has_empty_label;
    is_name && port.is_none_or(|port| parse_port(port).is_some())
}

#[cfg(test)]
mod tests;
