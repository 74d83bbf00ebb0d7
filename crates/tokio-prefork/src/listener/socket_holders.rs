//! Finds the processes that hold a listening socket, in `/proc` as far as permissions allow.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::ListenAddr;
use super::listen_addr::bind_addrs_overlap;
use crate::text::printable_process;

/// A listening TCP socket of this network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ListeningSocket {
    pub(super) addr: SocketAddr,
    /// User id of the process that created it.
    pub(super) uid: u32,
    pub(super) inode: u64,
}

/// A process and its descriptors of certain sockets, each with the socket's inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SocketHolder {
    pub(super) pid: u32,
    pub(super) sockets: Vec<(i32, u64)>,
}

/// Returns the process that listens at `addr` with another socket than `ours`, if `/proc` shows it: `pid 812, nginx`.
pub(super) fn describe_port_holder(addr: SocketAddr, ours: &[u64]) -> Option<String> {
    let inodes: Vec<u64> = listening_sockets_at(addr).iter().map(|one| one.inode).collect();
    let inodes: Vec<u64> = inodes.into_iter().filter(|inode| !ours.contains(inode)).collect();
    // The lowest pid: usually a primary, not one of its workers.
    processes_holding(&inodes).first().and_then(|holder| printable_process(holder.pid))
}

/// Returns the pids of all processes that hold a socket listening at `addr`.
pub(super) fn listener_pids(addr: &ListenAddr) -> Vec<u32> {
    let inodes = match addr {
        ListenAddr::Tcp(addr) => listening_sockets_at(*addr).iter().map(|one| one.inode).collect(),
        ListenAddr::Unix(unix) => unix_listener_inodes(&unix.path),
        ListenAddr::Fd(_) | ListenAddr::Host(_) => Vec::new(),
    };
    processes_holding(&inodes).into_iter().map(|holder| holder.pid).collect()
}

/// Returns all processes that hold one of these sockets, ordered by pid.
pub(super) fn processes_holding(inodes: &[u64]) -> Vec<SocketHolder> {
    if inodes.is_empty() {
        return Vec::new();
    }
    let all = running_pids()
        .into_iter()
        .map(|pid| SocketHolder { pid, sockets: held_sockets(pid, inodes) });
    all.filter(|holder| !holder.sockets.is_empty()).collect()
}

/// Returns the TCP sockets that listen at addresses overlapping `addr`.
pub(super) fn listening_sockets_at(addr: SocketAddr) -> Vec<ListeningSocket> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter();
    let tables = tables.filter_map(|table| fs::read_to_string(table).ok());
    tables.flat_map(|table| parse_listening_sockets(&table, addr)).collect()
}

/// Returns the inodes of Unix sockets that listen at `path`; `@NAME` is an abstract name.
pub(super) fn unix_listener_inodes(path: &Path) -> Vec<u64> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    parse_unix_listener_inodes(&table, path)
}

/// Parses `/proc/net/unix` for listening sockets at `path`. The table has paths as they were bound, so a relative path
/// is compared as given and in its absolute form.
fn parse_unix_listener_inodes(table: &str, path: &Path) -> Vec<u64> {
    let full = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let lines = table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        // Accepted connections have the same path; only the flag distinguishes them from the listener.
        let listens = fields.nth(3)? == "00010000";
        let inode = fields.nth(2)?.parse().ok()?;
        let bound = Path::new(fields.next()?);
        (listens && (bound == path || bound == full)).then_some(inode)
    });
    lines.collect()
}

/// Parses a table like `/proc/net/tcp` for sockets in state LISTEN (0A) that overlap `addr`.
fn parse_listening_sockets(table: &str, addr: SocketAddr) -> Vec<ListeningSocket> {
    let lines = table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (ip, port) = fields.nth(1)?.split_once(':')?;
        let state = fields.nth(1)?;
        let uid = fields.nth(3)?.parse().ok()?;
        let inode = fields.nth(1)?.parse().ok()?;
        let its = SocketAddr::new(parse_proc_address(ip)?, u16::from_str_radix(port, 16).ok()?);
        (state == "0A" && bind_addrs_overlap(its, addr)).then_some(ListeningSocket {
            addr: its,
            uid,
            inode,
        })
    });
    lines.collect()
}

/// Parses an address as `/proc/net` prints it: 32-bit words in native byte order.
fn parse_proc_address(hex: &str) -> Option<IpAddr> {
    let words: Option<Vec<u32>> = hex
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok())
        .collect();
    match words?[..] {
        [v4] => Some(IpAddr::V4(Ipv4Addr::from(v4.to_ne_bytes()))),
        [a, b, c, d] => {
            let mut bytes = [0; 16];
            for (at, word) in bytes.chunks_exact_mut(4).zip([a, b, c, d]) {
                at.copy_from_slice(&word.to_ne_bytes());
            }
            let v6 = Ipv6Addr::from(bytes);
            Some(v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4))
        }
        _ => None,
    }
}

fn running_pids() -> Vec<u32> {
    let Ok(dir) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> =
        dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// Returns whether process `pid` holds a socket with one of these inodes.
pub(super) fn process_holds_any(pid: u32, inodes: &[u64]) -> bool {
    !held_sockets(pid, inodes).is_empty()
}

/// Returns the descriptors of process `pid` that are sockets with one of these inodes.
fn held_sockets(pid: u32, inodes: &[u64]) -> Vec<(i32, u64)> {
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let sockets = fds.flatten().filter_map(|fd| {
        let number = fd.file_name().to_str()?.parse().ok()?;
        let target = fs::read_link(fd.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
        inodes.contains(&inode).then_some((number, inode))
    });
    sockets.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROC_NET_TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000    12        0 4711 1 0 100 0
   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0
   2: 0100007F:0BB8 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0
";
    const PROC_NET_TCP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000001000000:0BB8 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4714 1 0 100 0
   1: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4715 1 0 100 0
";

    #[test]
    fn only_listeners_that_overlap_the_address_are_found() {
        let find = |table: &str, addr: &str| -> Vec<u64> {
            let found = parse_listening_sockets(table, addr.parse().expect("address"));
            found.into_iter().map(|one| one.inode).collect()
        };
        assert_eq!(find(PROC_NET_TCP, "127.0.0.1:3000"), [4711]);
        assert_eq!(find(PROC_NET_TCP, "0.0.0.0:3000"), [4711]);
        assert_eq!(find(PROC_NET_TCP, "[::]:3000"), [4711]);
        assert_eq!(find(PROC_NET_TCP, "127.0.0.2:3000"), Vec::<u64>::new());
        assert_eq!(find(PROC_NET_TCP, "127.0.0.1:8080"), [4712]);
        assert_eq!(find(PROC_NET_TCP6, "[::1]:3000"), [4714]);
        assert_eq!(find(PROC_NET_TCP6, "127.0.0.1:3000"), Vec::<u64>::new());
        assert_eq!(find(PROC_NET_TCP6, "127.0.0.1:8080"), [4715]);
        assert_eq!(
            parse_listening_sockets(PROC_NET_TCP, "127.0.0.1:3000".parse().expect("address"))[0]
                .uid,
            12
        );
    }

    #[test]
    fn only_the_unix_socket_that_listens_is_found() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path
ffff0: 00000002 00000000 00010000 0001 01 100 /nowhere/a.sock
ffff1: 00000003 00000000 00000000 0001 03 101 /nowhere/a.sock
ffff2: 00000002 00000000 00010000 0001 01 102 /nowhere/b.sock
ffff3: 00000002 00000000 00010000 0001 01 103
ffff4: 00000002 00000000 00010000 0001 01 104 @name
";
        assert_eq!(parse_unix_listener_inodes(table, Path::new("/nowhere/a.sock")), [100]);
        assert_eq!(
            parse_unix_listener_inodes(table, Path::new("/nowhere/c.sock")),
            Vec::<u64>::new()
        );
        assert_eq!(parse_unix_listener_inodes(table, Path::new("@name")), [104]);
    }
}
