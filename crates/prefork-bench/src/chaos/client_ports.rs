//! Which client connections a process has, by the ports of the clients, read from `/proc`.

use std::collections::BTreeSet;
use std::fs;

/// State of a listening socket in `/proc/net/tcp`.
const LISTEN_STATE: &str = "0A";

/// Returns the clients' ports of the TCP connections that a process has open, sorted.
///
/// The process must be stopped, or the result is out of date. Returns `None` if this user may not look at it.
pub(crate) fn client_ports(pid: u32) -> Option<Vec<u16>> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let links = links.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let inodes: BTreeSet<String> = links.filter_map(|link| socket_inode(link.to_str()?)).collect();
    let tables =
        ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")));
    // IPv6 may be off, but there is a table of IPv4.
    let [Ok(ipv4), ipv6] = tables else { return None };
    let ipv6 = ipv6.unwrap_or_default();
    let mut ports: Vec<u16> =
        [ipv4, ipv6].iter().flat_map(|table| peer_ports(table, &inodes)).collect();
    ports.sort_unstable();
    Some(ports)
}

fn socket_inode(link: &str) -> Option<String> {
    Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_string())
}

/// Returns the remote ports of the connections with these inodes.
fn peer_ports(table: &str, inodes: &BTreeSet<String>) -> Vec<u16> {
    let port = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (remote, state, inode) = (fields.get(2)?, fields.get(3)?, fields.get(9)?);
        let is_own = *state != LISTEN_STATE && inodes.contains(*inode);
        let (_, port) = remote.rsplit_once(':').filter(|_| is_own)?;
        u16::from_str_radix(port, 16).ok()
    };
    table.lines().skip(1).filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_ports_of_own_clients_are_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // Without IPv6 there is nothing to find.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let client = TcpStream::connect(listener.local_addr().expect("address"));
            let port = client.as_ref().expect("connect").local_addr().expect("address").port();
            let waiting = client_ports(std::process::id()).expect("own sockets");
            assert!(!waiting.contains(&port), "a connection in the queue is in no process");
            let (accepted, _) = listener.accept().expect("accept");
            let ports = client_ports(std::process::id()).expect("own sockets");
            assert!(ports.contains(&port), "{port} is not in {ports:?}");
            drop(accepted);
        }
        assert_eq!(client_ports(0), None);
    }
}
