//! Parses the header of the PROXY protocol at the start of a connection's bytes.
//!
//! The crate `proxy-header` decodes complete headers. What it leaves to its user is here: where an incomplete header ends, the
//! strict form of version 1, version 2 with `LOCAL` and any address family, and the checksum.

use proxy_header::{ParseConfig, ProxyHeader as DecodedHeader};

use super::{ProxiedClient, ProxyHeader, ProxyProtocol};

/// The start of version 1.
const V1_START: &[u8] = b"PROXY ";

/// The longest header of version 1 with its line end, in bytes.
const V1_MAX_LENGTH: usize = 107;

/// The start of version 2.
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The length of what stands before the addresses of version 2, in bytes.
const V2_FIXED_LENGTH: usize = 16;

/// The field of version 2 with the checksum of the header.
const PP2_TYPE_CRC32C: u8 = 0x03;

/// The field of version 2 about the client's TLS connection.
const PP2_TYPE_SSL: u8 = 0x20;

/// The bit of that field for a client that has connected over TLS.
const PP2_CLIENT_SSL: u8 = 0x01;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderProgress {
    /// Too few to tell. All of them belong to the header if there is one; it has at least as many bytes more.
    Incomplete { missing: usize },
    /// No header.
    Absent,
    /// A header, of `length` bytes.
    Complete { length: usize, client: ProxiedClient },
    /// A malformed header, or one of a version that is not accepted; with the reason.
    Invalid(&'static str),
}

/// Parses the start of a connection on which headers of `accepted` are allowed.
pub(crate) fn parse_proxy_header(bytes: &[u8], accepted: ProxyProtocol) -> HeaderProgress {
    if starts_alike(bytes, V2_SIGNATURE) {
        return match accepted.accepts(ProxyProtocol::V2) || bytes.len() < V2_SIGNATURE.len() {
            true => parse_v2(bytes),
            false => HeaderProgress::Invalid("it is of version 2"),
        };
    }
    if !starts_alike(bytes, V1_START) {
        return HeaderProgress::Absent;
    }
    match accepted.accepts(ProxyProtocol::V1) || bytes.len() < V1_START.len() {
        true => parse_v1(bytes),
        false => HeaderProgress::Invalid("it is of version 1"),
    }
}

/// Returns whether the bytes begin as a header of either version does, well-formed or not.
pub(crate) fn is_proxy_header(bytes: &[u8]) -> bool {
    bytes.starts_with(V1_START) || bytes.starts_with(V2_SIGNATURE)
}

/// Returns whether one of the two is the start of the other.
fn starts_alike(bytes: &[u8], start: &[u8]) -> bool {
    let length = bytes.len().min(start.len());
    bytes[..length] == start[..length]
}

fn parse_v1(bytes: &[u8]) -> HeaderProgress {
    let searched = &bytes[..bytes.len().min(V1_MAX_LENGTH)];
    let Some(end) = searched.windows(2).position(|pair| pair == b"\r\n") else {
        return match searched.len() < V1_MAX_LENGTH {
            true => HeaderProgress::Incomplete { missing: 1 },
            false => HeaderProgress::Invalid("the line is longer than 107 bytes"),
        };
    };
    let length = end + 2;
    let Ok(line) = std::str::from_utf8(&bytes[..end]) else {
        return HeaderProgress::Invalid("the line is not ASCII");
    };
    let parts: Vec<&str> = line.split(' ').collect();
    let client = match parts.as_slice() {
        // The rest of the line may be anything.
        [_, "UNKNOWN", ..] => Some(ProxiedClient::Unknown),
        [_, "TCP4" | "TCP6", _, _, source, destination]
            if is_v1_port(source) && is_v1_port(destination) =>
        {
            let decoded = decode(&bytes[..length]);
            decoded.and_then(|header| known_client(&header, false))
        }
        _ => None,
    };
    match client {
        Some(client) => HeaderProgress::Complete { length, client },
        None => HeaderProgress::Invalid("the line is malformed"),
    }
}

/// Returns whether the port of a line is decimal without signs and leading zeros.
fn is_v1_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'))
}

fn parse_v2(bytes: &[u8]) -> HeaderProgress {
    let Some((fixed, rest)) = bytes.split_first_chunk::<V2_FIXED_LENGTH>() else {
        return HeaderProgress::Incomplete { missing: 1 };
    };
    let [.., version_and_command, family, high, low] = *fixed;
    if !matches!(version_and_command, 0x20 | 0x21) {
        return HeaderProgress::Invalid("version or command is unknown");
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if rest.len() < length {
        return HeaderProgress::Incomplete { missing: length - rest.len() };
    }
    let length = V2_FIXED_LENGTH + length;
    if version_and_command == 0x20 {
        // Everything else in the header is to be ignored.
        return HeaderProgress::Complete { length, client: ProxiedClient::Proxy };
    }
    match read_v2_client(&bytes[..length], family) {
        Ok(client) => HeaderProgress::Complete { length, client },
        Err(reason) => HeaderProgress::Invalid(reason),
    }
}

/// Reads the complete header of a connection that is passed on.
fn read_v2_client(header: &[u8], family: u8) -> Result<ProxiedClient, &'static str> {
    let Some(decoded) = decode(header) else { return Err("the addresses are malformed") };
    let address_length = match family {
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        _ => 0,
    };
    let (mut is_tls, mut has_checksum) = (false, false);
    // Without an address family, there may be anything where the fields would stand.
    let mut at = if address_length == 0 { header.len() } else { V2_FIXED_LENGTH + address_length };
    while at < header.len() {
        let Some(([kind, high, low], rest)) = header[at..].split_first_chunk() else {
            return Err("a field is cut off");
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let value = rest.get(..length).ok_or("a field is cut off")?;
        let value_at = at + 3;
        match (*kind, value) {
            // Checksums take time, and a header of 64 KiB has room for 9000.
            (PP2_TYPE_CRC32C, _) if has_checksum => return Err("it has two checksums"),
            (PP2_TYPE_CRC32C, value) => {
                has_checksum = true;
                if !is_checksum_right(header, value_at, value) {
                    return Err("the checksum is wrong");
                }
            }
            (PP2_TYPE_SSL, [client, ..]) => is_tls = client & PP2_CLIENT_SSL != 0,
            _ => {}
        }
        at = value_at + length;
    }
    Ok(known_client(&decoded, is_tls).unwrap_or(ProxiedClient::Unknown))
}

fn decode(header: &[u8]) -> Option<DecodedHeader<'_>> {
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    let (decoded, length) = DecodedHeader::parse(header, config).ok()?;
    (length == header.len()).then_some(decoded)
}

fn known_client(header: &DecodedHeader<'_>, is_tls: bool) -> Option<ProxiedClient> {
    let addrs = header.proxied_address()?;
    Some(ProxiedClient::Known(ProxyHeader::new(addrs.source, addrs.destination, is_tls)))
}

/// Returns whether `value`, at `value_at` in the header, is the checksum of the header with zeros in its place.
fn is_checksum_right(header: &[u8], value_at: usize, value: &[u8]) -> bool {
    let Ok(stated) = <[u8; 4]>::try_from(value) else { return false };
    let (before, after) = (&header[..value_at], &header[value_at + 4..]);
    let sum = [before, &[0; 4], after].into_iter().flatten().fold(u32::MAX, |sum, byte| {
        // CRC-32C (Castagnoli) bit by bit, as hardly any header has one.
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| match sum & 1 {
            0 => sum >> 1,
            _ => (sum >> 1) ^ 0x82f6_3b78,
        })
    });
    !sum == u32::from_be_bytes(stated)
}

#[cfg(test)]
mod tests;
