//! Who holds an address: read from `/proc`, as far as our rights allow.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::ListenAddr;
use crate::sys::process;

/// The process that listens on the port of `addr`, if `/proc` tells: `pid 812, nginx`.
pub(super) fn of_port(addr: SocketAddr) -> Option<String> {
    let sockets = sockets_of_port(addr);
    // The oldest: a primary stands before its workers.
    pids().into_iter().find(|pid| holds_any(*pid, &sockets)).and_then(process::describe)
}

/// Every process that holds the socket that listens on `addr`, by pid.
pub(crate) fn holders(addr: &ListenAddr) -> Vec<u32> {
    let sockets = match addr {
        ListenAddr::Tcp(addr) => sockets_of_port(*addr),
        ListenAddr::Unix(path) => {
            let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
            named(inodes_of_path(&table, path))
        }
        ListenAddr::Fd(_) => Vec::new(),
    };
    pids().into_iter().filter(|pid| holds_any(*pid, &sockets)).collect()
}

fn sockets_of_port(addr: SocketAddr) -> Vec<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter();
    let tables = tables.filter_map(|table| fs::read_to_string(table).ok());
    named(tables.flat_map(|table| listening_inodes(&table, addr)).collect())
}

/// As the links in `/proc/PID/fd` name sockets.
fn named(inodes: Vec<u64>) -> Vec<String> {
    inodes.into_iter().map(|inode| format!("socket:[{inode}]")).collect()
}

/// Inodes of listening sockets at `path` in a table like `/proc/net/unix`. It shows paths as they were bound, so
/// a relative one is looked for as it was given, and as it is in full.
fn inodes_of_path(table: &str, path: &Path) -> Vec<u64> {
    let full = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let lines = table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        // The flags say whether it listens; the connections it accepted have the same path.
        let listens = fields.nth(3)? == "00010000";
        let inode = fields.nth(2)?.parse().ok()?;
        let bound = Path::new(fields.next()?);
        (listens && (bound == path || bound == full)).then_some(inode)
    });
    lines.collect()
}

/// Inodes of sockets in state LISTEN (0A) in a table like `/proc/net/tcp` that collide with `addr`.
fn listening_inodes(table: &str, addr: SocketAddr) -> Vec<u64> {
    let port = format!("{:04X}", addr.port());
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (ip, its_port) = fields.nth(1)?.split_once(':')?;
            let state = fields.nth(1)?;
            let inode = fields.nth(5)?.parse().ok()?;
            (its_port == port && state == "0A" && collides(ip, addr.ip())).then_some(inode)
        })
        .collect()
}

/// Whether a listener on `hex` (as `/proc` prints it) stands in the way of `ip`.
fn collides(hex: &str, ip: IpAddr) -> bool {
    let any = hex.bytes().all(|b| b == b'0');
    let same = match ip {
        IpAddr::V4(v4) => hex.ends_with(&format!("{:08X}", u32::from(v4).swap_bytes())),
        IpAddr::V6(v6) => {
            let words = v6.octets();
            let printed: String = words
                .chunks_exact(4)
                .map(|w| format!("{:02X}{:02X}{:02X}{:02X}", w[3], w[2], w[1], w[0]))
                .collect();
            hex == printed
        }
    };
    any || same || ip.is_unspecified()
}

fn pids() -> Vec<u32> {
    let Ok(dir) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> =
        dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

fn holds_any(pid: u32, sockets: &[String]) -> bool {
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    fds.flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .any(|target| target.to_str().is_some_and(|t| sockets.iter().any(|s| s == t)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0
   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0
   2: 0100007F:0BB8 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0
";

    #[test]
    fn listeners_in_the_way_are_found_and_others_are_not() {
        let find = |addr: &str| listening_inodes(TABLE, addr.parse().expect("address"));
        assert_eq!(find("127.0.0.1:3000"), [4711]);
        assert_eq!(find("0.0.0.0:3000"), [4711]);
        assert_eq!(find("127.0.0.2:3000"), Vec::<u64>::new());
        assert_eq!(find("127.0.0.1:8080"), [4712]);
    }

    #[test]
    fn only_the_unix_socket_that_listens_is_found() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path
ffff0: 00000002 00000000 00010000 0001 01 100 /nowhere/a.sock
ffff1: 00000003 00000000 00000000 0001 03 101 /nowhere/a.sock
ffff2: 00000002 00000000 00010000 0001 01 102 /nowhere/b.sock
ffff3: 00000002 00000000 00010000 0001 01 103
";
        assert_eq!(inodes_of_path(table, Path::new("/nowhere/a.sock")), [100]);
        assert_eq!(inodes_of_path(table, Path::new("/nowhere/c.sock")), Vec::<u64>::new());
    }
}
