//! The addresses on which a process listens, by the inode of its socket.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Returns the addresses of all listening TCP sockets in the network namespace of process `pid`, by inode.
///
/// Empty if the process does not exist.
pub(super) fn listening_addresses(pid: u32) -> BTreeMap<u64, SocketAddr> {
    let mut found = BTreeMap::new();
    for table in ["tcp", "tcp6"] {
        let Ok(file) = File::open(format!("/proc/{pid}/net/{table}")) else { continue };
        // Listening sockets come before all others in these tables, which may have many lines.
        let lines = BufReader::new(file).lines().skip(1).map_while(Result::ok);
        found.extend(lines.map_while(|line| parse_listening(&line)));
    }
    found
}

/// Parses a line like `0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 8120 …`. `None` if
/// the socket does not listen.
fn parse_listening(line: &str) -> Option<(u64, SocketAddr)> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    if *words.get(3)? != "0A" {
        return None;
    }
    Some((words.get(9)?.parse().ok()?, parse_address(words.get(1)?)?))
}

/// Parses an address of `/proc/net/tcp`: words of 32 bits in hexadecimal in the byte order of the machine, and a port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| {
        let digits = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::open_fds::socket_inode;
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn the_address_of_a_listening_socket_is_found_by_its_inode() {
        for bind in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
            let Ok(listener) = TcpListener::bind(bind) else { continue };
            let inode = socket_inode(&listener).expect("inode");
            let addresses = listening_addresses(std::process::id());
            assert_eq!(addresses.get(&inode), listener.local_addr().ok().as_ref(), "{bind}");
        }
    }

    #[test]
    fn a_connection_is_not_a_listening_socket() {
        let line = |state: &str| {
            format!("  1: 0100007F:0BB8 0200007F:1F90 {state} 0:0 00:0 0 0 0 8120 1 0 100 0 0 10 0")
        };
        let listening = parse_listening(&line("0A"));
        assert_eq!(listening.map(|(inode, addr)| (inode, addr.port())), Some((8120, 3000)));
        assert_eq!(parse_listening(&line("01")), None);
        for text in ["0100007F", "0100007:0BB8", "0100007G:0BB8", "0100007F:1FFFF", "é100007F:0BB8"]
        {
            assert_eq!(parse_address(text), None, "{text}");
        }
    }
}
