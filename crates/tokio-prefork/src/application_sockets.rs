//! Sockets of the application that outlive an upgrade in place, and those that the service manager passes by name.
//!
//! The old image passes their descriptors with the names in the manifest. The check of a new binary gets them too: a
//! second bind of the same address would fail while the old image serves.

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{BoxError, Error, Result};
use crate::systemd::{ActivationFd, parse_own_activation_fds};
use crate::upgrade::{self, PassedSocket};
use prefork_os::fd::take_inherited_fd;

/// The longest name, as for systemd's `FileDescriptorName=`.
const MAX_NAME_BYTES: usize = 255;

/// A duplicate of a socket that the application has, with its name.
#[derive(Debug, Clone)]
pub(crate) struct ApplicationSocket {
    pub(crate) name: String,
    pub(crate) fd: Arc<OwnedFd>,
}

/// What this process was passed, and what the application has asked for.
#[derive(Debug)]
struct Registry {
    /// The sockets of the previous image that nobody has asked for. `None` before the manifest was read.
    passed: Option<Vec<PassedSocket>>,
    sockets: Vec<ApplicationSocket>,
    /// Descriptors of the service manager that are no listening sockets of the cluster.
    taken_activation_fds: Vec<RawFd>,
}

static REGISTRY: Mutex<Registry> =
    Mutex::new(Registry { passed: None, sockets: Vec::new(), taken_activation_fds: Vec::new() });

fn lock_registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the socket `name` that the previous image or the service manager has passed to this process, or opens it.
///
/// Call it in `main`, before [`serve`](crate::Cluster::serve): for a UDP socket that the workers share, for an admin socket
/// of [`PrimaryHandle::on_readable`](crate::PrimaryHandle::on_readable), or for a listener that the program makes
/// ([`ConfigBuilder::listener`](crate::ConfigBuilder::listener)). A socket that the program opens by itself works too,
/// until an upgrade in place: the new binary opens it once more while the old image has it, which fails for an address in
/// use. With this, the new image gets the same socket, and nothing that was sent to it is lost.
///
/// `S` is any type of a descriptor: [`UdpSocket`](std::net::UdpSocket), [`UnixListener`](std::os::unix::net::UnixListener),
/// [`OwnedFd`]. A second call with the same name returns a duplicate. The socket is open in the workers only if the
/// function passed to `serve` captures it. A new binary that does not ask for it closes it.
///
/// Under systemd, `FileDescriptorName=NAME` in the socket unit passes the socket under this name (datagram sockets too).
///
/// ```no_run
/// use std::net::UdpSocket;
/// use tokio_prefork::{Cluster, Config, inherit_socket};
///
/// fn run() -> tokio_prefork::Result<()> {
///     let dns = inherit_socket("dns", || UdpSocket::bind("127.0.0.1:5353"))?;
///     let config = Config::builder().listen("127.0.0.1:3000")?.build()?;
///     Cluster::new(config).serve_connections(move |_worker| {
///         let dns = dns.try_clone();
///         async move {
///             let dns = dns?;
///             dns.set_nonblocking(true)?;
///             let dns = tokio::net::UdpSocket::from_std(dns)?;
///             tokio::task::spawn_local(async move {
///                 let mut packet = [0; 512];
///                 while let Ok((length, from)) = dns.recv_from(&mut packet).await {
///                     let _ = dns.send_to(&packet[..length], from).await;
///                 }
///             });
///             Ok(|_connection| async {})
///         }
///     })
/// }
/// ```
///
/// # Errors
/// `open` fails, the name is empty, longer than 255 bytes or contains `:` or control characters, or the descriptor
/// cannot be duplicated.
pub fn inherit_socket<S, E>(name: &str, open: impl FnOnce() -> Result<S, E>) -> Result<S>
where
    S: AsFd + From<OwnedFd>,
    E: Into<BoxError>,
{
    check_name(name)?;
    if let Some(fd) = lock_registry().take_known(name)? {
        return Ok(S::from(fd));
    }
    let socket =
        open().map_err(|e| Error::application(format!("cannot open the socket {name:?}"), e))?;
    let copy = duplicate(name, &socket)?;
    lock_registry().add(name, copy);
    Ok(socket)
}

fn check_name(name: &str) -> Result<()> {
    let is_valid = |c: char| !c.is_control() && c != ':';
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(is_valid) {
        return Err(Error::config(format!(
            "{name:?} is no name of a socket: give 1 to {MAX_NAME_BYTES} bytes without `:` and control characters"
        )));
    }
    Ok(())
}

fn duplicate(name: &str, socket: &impl AsFd) -> Result<OwnedFd> {
    let copy = socket.as_fd().try_clone_to_owned();
    copy.map_err(|e| Error::system(format!("duplicate the socket {name:?}"), e))
}

impl Registry {
    /// Returns a socket that the application has asked for before, or that was passed to this process.
    fn take_known(&mut self, name: &str) -> Result<Option<OwnedFd>> {
        if let Some(known) = self.sockets.iter().find(|known| known.name == name) {
            return duplicate(name, &known.fd).map(Some);
        }
        let Some(number) = self.find_passed(name)? else { return Ok(None) };
        let fd = take_inherited_fd(number)
            .map_err(|e| Error::system(format!("take over the socket {name:?}"), e))?;
        let copy = duplicate(name, &fd)?;
        self.add(name, copy);
        Ok(Some(fd))
    }

    fn add(&mut self, name: &str, fd: OwnedFd) {
        self.sockets.push(ApplicationSocket { name: name.to_string(), fd: Arc::new(fd) });
    }

    /// Returns the number of a passed descriptor, which counts as taken from here on.
    fn find_passed(&mut self, name: &str) -> Result<Option<RawFd>> {
        let passed = match &mut self.passed {
            Some(passed) => passed,
            None => self.passed.insert(upgrade::read_passed_sockets()?),
        };
        if let Some(index) = passed.iter().position(|one| one.name == name) {
            return Ok(Some(passed.swap_remove(index).fd));
        }
        if upgrade::is_started_by_upgrade() {
            // The variables are those of the first image; its descriptors are not.
            return Ok(None);
        }
        let fds = parse_own_activation_fds()?;
        let named = fds.into_iter().map(|one| (one.fd, one.name));
        let mut free = named.filter(|(fd, _)| !self.taken_activation_fds.contains(fd));
        let found = free.find(|(_, one)| one == name).map(|(fd, _)| fd);
        self.taken_activation_fds.extend(found);
        Ok(found)
    }
}

/// Removes the descriptors that the application has taken from those that the service manager passed as listening
/// sockets.
pub(crate) fn remove_taken(activation_fds: &mut Vec<ActivationFd>) {
    let registry = lock_registry();
    activation_fds.retain(|one| !registry.taken_activation_fds.contains(&one.fd));
}

/// Records the sockets that the manifest names, unless the application has read them already.
pub(crate) fn record_passed(passed: &[PassedSocket]) {
    lock_registry().passed.get_or_insert_with(|| passed.to_vec());
}

/// Closes the sockets of the previous image that the application has not asked for.
pub(crate) fn close_unclaimed() {
    let unclaimed = lock_registry().passed.replace(Vec::new());
    for one in unclaimed.into_iter().flatten() {
        log::info!("closing the socket {:?} of the previous image: nobody asks for it", one.name);
        drop(take_inherited_fd(one.fd));
    }
}

/// Returns the sockets that the next image gets.
pub(crate) fn registered() -> Vec<ApplicationSocket> {
    lock_registry().sockets.clone()
}

/// Closes the primary's duplicates in a forked worker.
pub(crate) fn close_in_worker() {
    lock_registry().sockets.clear();
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_second_call_with_the_same_name_returns_the_same_socket() {
        let open = || UdpSocket::bind("127.0.0.1:0");
        let first = inherit_socket("twice", open).expect("opened");
        let again = || -> Result<UdpSocket, std::io::Error> { panic!("opened before") };
        let second = inherit_socket("twice", again).expect("known");
        let addr = |socket: &UdpSocket| socket.local_addr().expect("an address");
        assert_eq!(addr(&first), addr(&second));
        assert!(registered().iter().any(|one| one.name == "twice"));
    }

    #[test]
    fn a_socket_that_cannot_be_opened_is_named_in_the_error() {
        let open = || Err::<UdpSocket, _>("no such port");
        let error = inherit_socket("broken", open).expect_err("an error").to_string();
        assert!(error.contains("\"broken\"") && error.contains("no such port"), "{error}");
        let open = || UdpSocket::bind("127.0.0.1:0");
        for name in ["", "a:b", "a\nb", &"x".repeat(256)] {
            assert!(inherit_socket(name, open).is_err(), "{name:?}");
        }
    }
}
