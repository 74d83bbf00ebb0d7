//! Host names of addresses: looked up in a child process, so that a resolver that does not answer holds up nobody.
//!
//! The child is forked from a process with one thread, closes every descriptor but its pipe, and ends with the answer. Its
//! parent waits until a deadline (at the start) or polls the pipe (at a reload).

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

/// How long a lookup of all names may take.
pub(crate) const NAME_LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of an answer that are read at most: a name with more addresses than fit has a few hundred.
const MAX_ANSWER_BYTES: usize = 1 << 16;

/// What each name stands for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Names(BTreeMap<String, Vec<IpAddr>>);

/// A lookup under way.
#[derive(Debug)]
pub(crate) struct Lookup {
    /// The child. Whoever drops this has to reap it.
    pub(crate) pid: u32,
    /// By when it has to have answered.
    pub(crate) deadline: Instant,
    names: Vec<String>,
    reader: PipeReader,
    answer: Vec<u8>,
}

impl Names {
    /// The addresses of `name`.
    pub(super) fn addresses(&self, name: &str) -> &[IpAddr] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    #[cfg(test)]
    pub(super) fn of(name: &str, addresses: &[&str]) -> Names {
        let addresses = addresses.iter().map(|text| text.parse().expect("address")).collect();
        Names(BTreeMap::from([(name.to_string(), addresses)]))
    }
}

/// Looks up the names among `addrs` and waits for it, at most [`NAME_LOOKUP_TIMEOUT`]. For the start, as it blocks.
///
/// # Errors
/// A name has no address, or nobody knows in time.
pub(crate) fn look_up(addrs: &[ListenAddr]) -> Result<Names> {
    let Some(mut lookup) = Lookup::start(addrs)? else { return Ok(Names::default()) };
    let done = loop {
        let left = lookup.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || lookup.is_complete() {
            break lookup.finish();
        }
        if let Err(e) = poll_fds(&[WatchedFd::readable(lookup.as_fd())], Some(left)) {
            break Err(Error::system("wait for the lookup of host names", e));
        }
    };
    // It has answered or is killed: it is about to end.
    while matches!(prefork_os::child::reap_child(lookup.pid), Ok(None)) {
        std::thread::sleep(Duration::from_millis(1));
    }
    done
}

impl Lookup {
    /// Starts to look up the names among `addrs`; `None` if there are none.
    pub(crate) fn start(addrs: &[ListenAddr]) -> Result<Option<Lookup>> {
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
        let failed = |e| Error::system("make a pipe for the lookup of host names", e);
        let (reader, writer) = io::pipe().map_err(failed)?;
        prefork_os::fd::set_nonblocking(&reader).map_err(failed)?;
        // The child has our handlers, whose pipe it closes: no signal may reach it but SIGKILL.
        let blocked = BlockedSignals::block_all()
            .map_err(|e| Error::system("block signals for the lookup of host names", e))?;
        let parent = std::process::id();
        match prefork_os::child::fork_process()? {
            ForkResult::Parent(pid) => {
                drop(blocked);
                let deadline = Instant::now() + NAME_LOOKUP_TIMEOUT;
                Ok(Some(Lookup { pid, deadline, names, reader, answer: Vec::new() }))
            }
            ForkResult::Child => {
                let tied =
                    matches!(prefork_os::parent_death::kill_on_parent_death(parent), Ok(true));
                if tied && prefork_os::fd::close_all_fds_except(&writer).is_ok() {
                    answer(&names, writer);
                }
                prefork_os::child::exit_without_cleanup(exit::OK)
            }
        }
    }

    /// Reads what the child has said so far. Whether that is all. Never blocks.
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

    /// Ends the child, which is not reaped yet, and says what came of it.
    pub(crate) fn finish(&mut self) -> Result<Names> {
        let complete = self.is_complete();
        let _ = prefork_os::child::signal_child(self.pid, Signal::SIGKILL);
        let text = String::from_utf8_lossy(&self.answer);
        let mut names = Names::default();
        for line in text.lines() {
            match line.split('\t').collect::<Vec<_>>()[..] {
                ["address", name, addr] => {
                    let addr: Option<IpAddr> = addr.parse().ok();
                    names.0.entry(name.to_string()).or_default().extend(addr);
                }
                ["failed", name, why] => return Err(unknown(name, why)),
                _ => {}
            }
        }
        let missing = self.names.iter().find(|name| names.addresses(name).is_empty());
        match missing {
            None => Ok(names),
            Some(name) if complete => Err(unknown(name, "it has no address")),
            Some(name) => {
                let limit = NAME_LOOKUP_TIMEOUT.as_secs();
                Err(unknown(name, &format!("the resolver did not answer within {limit} s")))
            }
        }
    }
}

impl AsFd for Lookup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

fn unknown(name: &str, why: &str) -> Error {
    let why = why.escape_debug();
    Error::bind(
        name,
        format!(
            "the host name cannot be looked up: {why}; give an address, or check /etc/hosts and DNS"
        ),
    )
}

/// In the child: looks up all names and writes what they are.
fn answer(names: &[String], mut to: io::PipeWriter) {
    let mut text = String::new();
    for name in names {
        match resolve(name) {
            Ok(addrs) => addrs.iter().for_each(|ip| text += &format!("address\t{name}\t{ip}\n")),
            Err(e) => {
                let why = e.to_string().replace(['\t', '\n'], " ");
                text += &format!("failed\t{name}\t{why}\n");
            }
        }
    }
    // The parent gave up if this fails.
    let _ = to.write_all(text.as_bytes());
}

/// The addresses of `name`, each once, in the order of the resolver. `localhost` always has both loopback addresses, as
/// RFC 6761 wants, whatever the hosts file says.
fn resolve(name: &str) -> io::Result<Vec<IpAddr>> {
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
        // Link-local addresses need a zone, which a name does not give.
        let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !once.contains(&ip) && !link_local {
            once.push(ip);
        }
    }
    Ok(once)
}

/// The addresses that `addr` stands for.
pub(super) fn expand(addr: &ListenAddr, names: &Names) -> Vec<ListenAddr> {
    let ListenAddr::Host(host) = addr else { return vec![addr.clone()] };
    let mut expanded: Vec<ListenAddr> = Vec::new();
    for ip in names.addresses(&host.name) {
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
    fn localhost_is_both_loopback_addresses_each_once() {
        let mut found = resolve("localhost").expect("localhost");
        found.sort_unstable();
        let loopback: Vec<IpAddr> =
            ["127.0.0.1", "::1"].iter().map(|text| text.parse().expect("address")).collect();
        assert!(loopback.iter().all(|ip| found.contains(ip)), "{found:?}");
        let mut once = found.clone();
        once.dedup();
        assert_eq!(once, found);
    }

    #[test]
    fn a_name_that_nobody_knows_is_an_error() {
        assert!(resolve("no-such-name.invalid").is_err());
    }
}
