//! Lookup of host names in a child process, so that a resolver that does not answer never blocks the primary.
//!
//! The child is forked from a process with one thread, closes every descriptor but its pipe, writes the answer and
//! exits. Its parent waits until a deadline (at the start) or polls the pipe (at a reload).

use std::collections::BTreeMap;
use std::io::{self, PipeReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::ListenAddr;
use crate::error::{Error, Result, exit};
use prefork_os::child::ForkResult;
use prefork_os::poll::{WatchedFd, poll_fds};
use prefork_os::signal::{BlockedSignals, Signal};

/// How long the lookup of all host names may take.
pub(crate) const NAME_LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer that is read, in bytes: enough for hundreds of addresses.
const MAX_ANSWER_BYTES: usize = 1 << 16;

/// The addresses of each host name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct ResolvedHosts(BTreeMap<String, Vec<IpAddr>>);

/// A lookup in progress.
#[derive(Debug)]
pub(crate) struct HostLookup {
    /// The child process. The owner of this value must reap it.
    pub(crate) pid: u32,
    /// When to give up.
    pub(crate) deadline: Instant,
    names: Vec<String>,
    reader: PipeReader,
    answer: Vec<u8>,
}

impl ResolvedHosts {
    /// Returns the addresses of `name`, none if it is unknown.
    pub(super) fn addresses_of(&self, name: &str) -> &[IpAddr] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    #[cfg(test)]
    pub(super) fn with_one_host(name: &str, addresses: &[&str]) -> ResolvedHosts {
        let addresses = addresses.iter().map(|text| text.parse().expect("address")).collect();
        ResolvedHosts(BTreeMap::from([(name.to_string(), addresses)]))
    }
}

/// Looks up the host names among `addrs`. Blocks for at most [`NAME_LOOKUP_TIMEOUT`], so it is for the start.
///
/// # Errors
///
/// A name has no address, or the resolver does not answer in time.
pub(crate) fn resolve_hosts(addrs: &[ListenAddr]) -> Result<ResolvedHosts> {
    let Some(mut lookup) = HostLookup::start(addrs)? else { return Ok(ResolvedHosts::default()) };
    let done = loop {
        let left = lookup.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || lookup.is_complete() {
            break lookup.finish();
        }
        if let Err(e) = poll_fds(&[WatchedFd::readable(lookup.as_fd())], Some(left)) {
            break Err(Error::system("wait for the lookup of host names", e));
        }
    };
    // The child has answered or was killed: it exits soon.
    while matches!(prefork_os::child::reap_child(lookup.pid), Ok(None)) {
        std::thread::sleep(Duration::from_millis(1));
    }
    done
}

impl HostLookup {
    /// Starts a lookup of the host names among `addrs`; `None` if there are none.
    pub(crate) fn start(addrs: &[ListenAddr]) -> Result<Option<HostLookup>> {
        let mut names: Vec<String> = addrs
            .iter()
            .filter_map(|addr| match addr {
                ListenAddr::Host(host) => Some(host.name.clone()),
                _ => None,
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return Ok(None);
        }
        let failed = |e| Error::system("create a pipe for the lookup of host names", e);
        let (reader, writer) = io::pipe().map_err(failed)?;
        prefork_os::fd::set_nonblocking(&reader).map_err(failed)?;
        // The child closes the pipe that the signal handlers write to, so all signals but SIGKILL stay blocked in it.
        let blocked = BlockedSignals::block_all()
            .map_err(|e| Error::system("block signals for the lookup of host names", e))?;
        let parent = std::process::id();
        match prefork_os::child::fork_process()? {
            ForkResult::Parent(pid) => {
                drop(blocked);
                let deadline = Instant::now() + NAME_LOOKUP_TIMEOUT;
                Ok(Some(HostLookup { pid, deadline, names, reader, answer: Vec::new() }))
            }
            ForkResult::Child => {
                let tied =
                    matches!(prefork_os::parent_death::kill_on_parent_death(parent), Ok(true));
                if tied && prefork_os::fd::close_all_fds_except(&writer).is_ok() {
                    write_lookup_answer(&names, writer);
                }
                prefork_os::child::exit_without_cleanup(exit::OK)
            }
        }
    }

    /// Reads the available part of the answer without blocking. Returns whether the answer is complete.
    pub(crate) fn is_complete(&mut self) -> bool {
        let mut piece = [0u8; 4096];
        loop {
            match self.reader.read(&mut piece) {
                Ok(0) => return true,
                Ok(n) if self.answer.len() < MAX_ANSWER_BYTES => {
                    self.answer.extend_from_slice(&piece[..n]);
                }
                Ok(_) => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return e.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Kills the child without reaping it, and returns the addresses of all names.
    ///
    /// # Errors
    ///
    /// A name has no address, or the resolver did not answer.
    pub(crate) fn finish(&mut self) -> Result<ResolvedHosts> {
        let complete = self.is_complete();
        let _ = prefork_os::child::signal_child(self.pid, Signal::SIGKILL);
        let text = String::from_utf8_lossy(&self.answer);
        let mut names = ResolvedHosts::default();
        for line in text.lines() {
            match line.split('\t').collect::<Vec<_>>()[..] {
                ["address", name, addr] => {
                    let addr: Option<IpAddr> = addr.parse().ok();
                    names.0.entry(name.to_string()).or_default().extend(addr);
                }
                ["failed", name, why] => return Err(lookup_error(name, why)),
                _ => {}
            }
        }
        let missing = self.names.iter().find(|name| names.addresses_of(name).is_empty());
        match missing {
            None => Ok(names),
            Some(name) if complete => Err(lookup_error(name, "it has no address")),
            Some(name) => {
                let limit = NAME_LOOKUP_TIMEOUT.as_secs();
                Err(lookup_error(name, &format!("the resolver did not answer within {limit} s")))
            }
        }
    }
}

impl AsFd for HostLookup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

fn lookup_error(name: &str, why: &str) -> Error {
    let why = why.escape_debug();
    Error::bind(
        name,
        format!(
            "the host name cannot be looked up: {why}; give an address, or check /etc/hosts and DNS"
        ),
    )
}

/// Looks up all names and writes the answer, in the child.
fn write_lookup_answer(names: &[String], mut to: io::PipeWriter) {
    let mut text = String::new();
    for name in names {
        match resolve_host(name) {
            Ok(addrs) => addrs.iter().for_each(|ip| text += &format!("address\t{name}\t{ip}\n")),
            Err(e) => {
                let why = e.to_string().replace(['\t', '\n'], " ");
                text += &format!("failed\t{name}\t{why}\n");
            }
        }
    }
    // A failed write means that the parent gave up.
    let _ = to.write_all(text.as_bytes());
}

/// Returns the addresses of `name` without duplicates, in the order of the resolver. `localhost` always has both
/// loopback addresses, as RFC 6761 requires.
fn resolve_host(name: &str) -> io::Result<Vec<IpAddr>> {
    let is_localhost = name.trim_end_matches('.') == "localhost";
    let found = (name, 0).to_socket_addrs().map(|found| found.map(|addr| addr.ip()).collect());
    let mut found: Vec<IpAddr> = match found {
        Err(_) if is_localhost => Vec::new(),
        other => other?,
    };
    if is_localhost {
        found.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
    }
    let mut once: Vec<IpAddr> = Vec::new();
    for ip in found {
        // Link-local addresses need a zone, which a host name cannot give.
        let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !once.contains(&ip) && !link_local {
            once.push(ip);
        }
    }
    Ok(once)
}

/// Replaces a host name by its addresses; other addresses stay as they are.
pub(super) fn expand_host(addr: &ListenAddr, names: &ResolvedHosts) -> Vec<ListenAddr> {
    let ListenAddr::Host(host) = addr else { return vec![addr.clone()] };
    let mut expanded: Vec<ListenAddr> = Vec::new();
    for ip in names.addresses_of(&host.name) {
        let one = ListenAddr::Tcp(SocketAddr::new(*ip, host.port));
        if !expanded.contains(&one) {
            expanded.push(one);
        }
    }
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_resolves_to_both_loopback_addresses() {
        let mut found = resolve_host("localhost").expect("localhost");
        found.sort_unstable();
        let loopback: Vec<IpAddr> =
            ["127.0.0.1", "::1"].iter().map(|text| text.parse().expect("address")).collect();
        assert!(loopback.iter().all(|ip| found.contains(ip)), "{found:?}");
        let mut once = found.clone();
        once.dedup();
        assert_eq!(once, found);
    }

    #[test]
    fn an_unknown_host_name_is_an_error() {
        assert!(resolve_host("no-such-name.invalid").is_err());
    }
}
