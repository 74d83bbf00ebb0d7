//! Replacement of listening sockets that clients cannot reach any more, at a reload: the file of a Unix socket was
//! removed, or the socket was shut down.

use super::bind_socket::{self, BindContext};
use super::{ListenAddr, Listener, ListenerSet, SocketKeeper};
use crate::error::{Error, Result};
use prefork_supervisor::Slot;

/// The result of replacing unreachable sockets.
#[derive(Debug, Default)]
pub(crate) struct RepairedSockets {
    /// Addresses of the new sockets, which the workers must serve at once.
    pub(crate) addrs: Vec<ListenAddr>,
    /// The old sockets, whose queued connections must still be served.
    pub(crate) replaced: Vec<Listener>,
}

impl ListenerSet {
    /// Replaces the sockets of `addrs` that clients cannot reach, and sets mode and owner of Unix socket files.
    ///
    /// # Errors
    ///
    /// A socket cannot be bound again, as another process has its address now or another process created it.
    pub(crate) fn repair_sockets(
        &mut self,
        addrs: &[ListenAddr],
        backlog: u32,
    ) -> Result<RepairedSockets> {
        let mut repaired = RepairedSockets::default();
        for addr in addrs {
            let broken = |one: &Listener| one.addr == *addr && !self.is_reachable(one);
            let Some(index) = self.listeners.iter().position(broken) else {
                self.set_socket_file_access(addr)?;
                continue;
            };
            self.replace(index, backlog, &mut repaired)?;
            // The other sockets of its reuseport group.
            while let Some(index) = {
                let broken =
                    |one: &Listener| one.addr == *addr && !bind_socket::is_listening(&one.socket);
                self.listeners.iter().position(broken)
            } {
                self.replace(index, backlog, &mut repaired)?;
            }
        }
        Ok(repaired)
    }

    fn is_reachable(&self, listener: &Listener) -> bool {
        let file = self.files.iter().find(|(addr, _)| *addr == listener.addr);
        bind_socket::is_listening(&listener.socket)
            && file.is_none_or(|(_, file)| file.is_in_place())
    }

    fn replace(
        &mut self,
        index: usize,
        backlog: u32,
        repaired: &mut RepairedSockets,
    ) -> Result<()> {
        let old = &self.listeners[index];
        let (addr, slot, local) = (old.addr.clone(), old.slot, old.local.clone());
        let passed =
            matches!(addr, ListenAddr::Fd(_)) || old.keeper == SocketKeeper::ServiceManager;
        if passed {
            return Err(Error::bind(
                &addr,
                format!(
                    "the socket at {local} was passed to this process and cannot be reached any more (its file is gone, \
                     or it was shut down): restart the process that created it, and this service"
                ),
            ));
        }
        let mut new = if slot == Slot(0) {
            let port = old.tcp().map(|local| local.port());
            // The old socket occupies its address as long as a worker holds it.
            let ours: Vec<&Listener> = self.listeners.iter().collect();
            let binding = BindContext {
                backlog,
                ours: &ours,
                port,
                may_take_inherited: false,
                may_wait: false,
                ipv6_only: self.ipv6_only,
            };
            let new = bind_socket::open_socket(&addr, &binding)?;
            let file = new.file.map(|file| (addr.clone(), file));
            if !new.listens {
                bind_socket::start_listening(&new.listener, backlog)?;
            }
            // The old file is not in its place, so it is not removed.
            self.files.retain(|(known, _)| *known != addr);
            self.files.extend(file);
            new.listener
        } else {
            let first = self.listeners.iter().find(|one| one.addr == addr && one.slot == Slot(0));
            let first = first
                .ok_or_else(|| Error::internal(format!("the first socket of {addr} is gone")))?;
            let new = bind_socket::bind_slot_socket(first, slot)?;
            bind_socket::start_listening(&new, backlog)?;
            new
        };
        new.is_shared_by_all = self.listeners[index].is_shared_by_all;
        repaired.replaced.push(std::mem::replace(&mut self.listeners[index], new));
        if !repaired.addrs.contains(&addr) {
            repaired.addrs.push(addr);
        }
        Ok(())
    }

    fn set_socket_file_access(&mut self, addr: &ListenAddr) -> Result<()> {
        let ListenAddr::Unix(unix) = addr else { return Ok(()) };
        let Some((known, file)) = self.files.iter_mut().find(|(known, _)| known == addr) else {
            return Ok(());
        };
        let same = matches!(known, ListenAddr::Unix(old)
            if (old.mode, &old.owner, &old.group) == (unix.mode, &unix.owner, &unix.group));
        if !same {
            let access = unix.access().map_err(|why| Error::bind(addr, why))?;
            file.set_permissions(access).map_err(|why| Error::bind(addr, why))?;
            *known = addr.clone();
            let listeners = self.listeners.iter_mut().filter(|one| one.addr == *addr);
            listeners.for_each(|one| one.addr = addr.clone());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::open;
    use super::*;

    #[test]
    fn reachable_sockets_are_not_replaced() {
        let dir = tempfile::tempdir().expect("dir");
        let unix = format!("unix:{}", dir.path().join("s").display());
        let (mut set, addrs) = open(&["127.0.0.1:0", &unix], 2);
        let repaired = set.repair_sockets(&addrs, 16).expect("no repair");
        assert!(repaired.addrs.is_empty() && repaired.replaced.is_empty());
    }

    #[test]
    fn a_removed_socket_file_is_created_again() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let (mut set, addrs) = open(&[&format!("unix:{}", path.display())], 1);
        std::fs::remove_file(&path).expect("remove");
        let repaired = set.repair_sockets(&addrs, 16).expect("repair");
        assert_eq!((repaired.addrs, repaired.replaced.len()), (addrs.clone(), 1));
        std::os::unix::net::UnixStream::connect(&path).expect("reachable");
        assert!(set.repair_sockets(&addrs, 16).expect("second repair").addrs.is_empty());
        drop(set);
        assert!(!path.exists());
    }

    #[test]
    fn a_foreign_file_at_the_path_is_an_error_and_is_not_removed() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let (mut set, addrs) = open(&[&format!("unix:{}", path.display())], 1);
        std::fs::remove_file(&path).expect("remove");
        std::fs::write(&path, "data").expect("write");
        let why = set.repair_sockets(&addrs, 16).expect_err("a regular file").to_string();
        assert!(why.contains("is not a socket"), "{why}");
        std::fs::remove_file(&path).expect("remove");
        let _other = std::os::unix::net::UnixListener::bind(&path).expect("bind");
        let why = set.repair_sockets(&addrs, 16).expect_err("another process listens").to_string();
        assert!(why.contains("already in use"), "{why}");
        drop(set);
        assert!(path.exists());
    }

    #[test]
    fn a_socket_that_was_shut_down_is_replaced_on_the_same_port() {
        for slots in [1, 3] {
            let (mut set, addrs) = open(&["127.0.0.1:0"], slots);
            let local = set.listeners[0].tcp();
            for listener in &set.listeners {
                listener.socket.shutdown(std::net::Shutdown::Both).expect("shutdown");
            }
            let repaired = set.repair_sockets(&addrs, 16).expect("repair");
            assert_eq!(repaired.replaced.len() as u32, slots);
            drop(repaired);
            assert!(
                set.listeners
                    .iter()
                    .all(|l| l.tcp() == local && bind_socket::is_listening(&l.socket))
            );
            std::net::TcpStream::connect(local.expect("address")).expect("reachable");
        }
    }

    #[test]
    fn a_changed_mode_is_applied_to_the_existing_socket_file() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let (mut set, _) = open(&[&format!("unix:{}?mode=0600", path.display())], 1);
        let mode = || std::fs::metadata(&path).expect("file").mode() & 0o777;
        assert_eq!(mode(), 0o600);
        let addr = format!("unix:{}?mode=0666", path.display()).parse().expect("address");
        assert!(set.repair_sockets(&[addr], 16).expect("repair").addrs.is_empty());
        assert_eq!(mode(), 0o666);
    }
}
