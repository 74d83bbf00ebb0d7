//! Resolution of `bind` against the open sockets: host names become addresses, open sockets are found again, and
//! sockets that a wildcard address covers stay open.

use std::net::SocketAddr;

use super::host_lookup::{self, ResolvedHosts};
use super::{ListenAddr, Listener, ListenerSet, OpenedSocket};
use crate::error::{ErrorKind, Result};
use prefork_supervisor::Slot;

/// How many ephemeral ports to try until one is free on all addresses of a host name.
const PORT_ATTEMPTS: u32 = 32;

impl ListenerSet {
    /// Records that an upgrade started this image: inherited descriptors can no longer be named as `fd://N`.
    pub(crate) fn set_started_by_upgrade(&mut self) {
        self.is_started_by_upgrade = true;
    }

    /// Records that workers serve, so that opening sockets may no longer wait.
    pub(crate) fn set_has_started_serving(&mut self) {
        self.has_started_serving = true;
    }

    /// Sets whether sockets of `[::]` that are opened from now on accept IPv6 only.
    pub(crate) fn set_ipv6_only(&mut self, ipv6_only: bool) {
        self.ipv6_only = ipv6_only;
    }

    /// Replaces host names by their addresses, and addresses of open sockets by the form under which they were opened.
    /// Adds the open sockets that an address of `bind` covers: `127.0.0.1:80` stays open for `:80`, as closing it would
    /// reset connections. Returns for each address the index of the one in `bind` that it stands for.
    pub(crate) fn resolve_bind_addrs(
        &mut self,
        bind: &mut Vec<ListenAddr>,
        names: &ResolvedHosts,
    ) -> Vec<usize> {
        let (mut fitted, mut origins): (Vec<ListenAddr>, Vec<usize>) = (Vec::new(), Vec::new());
        for (index, addr) in bind.iter().enumerate() {
            if addr.is_free_port() && bind[..index].contains(addr) {
                fitted.extend(self.another_port(addr, bind, &fitted));
                origins.resize(fitted.len(), index);
                continue;
            }
            let mut expanded = host_lookup::expand_host(addr, names);
            if matches!(addr, ListenAddr::Host(_)) {
                self.drop_unavailable_addrs(addr, &mut expanded);
            }
            if matches!(addr, ListenAddr::Host(host) if host.port == 0) {
                self.record_same_port_group(&expanded);
            }
            for addr in expanded {
                // The address as now written replaces the old form: it may change mode and owner of a socket file.
                let known = self.open_address_of(&addr).unwrap_or(addr);
                if !fitted.contains(&known) {
                    fitted.push(known);
                    origins.push(index);
                }
            }
        }
        let with_origin = fitted.iter().zip(&origins);
        let wanted: Vec<(SocketAddr, usize)> = with_origin
            .filter_map(|(a, origin)| Some((self.socket_addr_of(a)?, *origin)))
            .collect();
        for listener in self.listeners.iter().filter(|listener| listener.slot == Slot(0)) {
            let Some(local) = listener.tcp() else { continue };
            let covering = wanted.iter().find(|(wide, _)| {
                let is_other_family = self.ipv6_only && wide.is_ipv6() && local.is_ipv4();
                !is_other_family && super::listen_addr::wildcard_covers(*wide, local)
            });
            if let Some((_, origin)) = covering
                && !fitted.contains(&listener.addr)
            {
                fitted.push(listener.addr.clone());
                origins.push(*origin);
            }
        }
        *bind = fitted;
        origins
    }

    /// Returns an address for the second and later times that `bind` names the same IP address with port 0: an open socket
    /// that nothing else in `bind` stands for, or a port that is free now.
    ///
    /// `None` if the machine does not have the address, which opening the first one reports.
    fn another_port(
        &self,
        addr: &ListenAddr,
        bind: &[ListenAddr],
        fitted: &[ListenAddr],
    ) -> Option<ListenAddr> {
        let ListenAddr::Tcp(wanted) = addr else { return None };
        let is_left = |open: &ListenAddr| {
            matches!(open, ListenAddr::Tcp(tcp) if tcp.ip() == wanted.ip() && tcp.port() != 0)
                && !bind.contains(open)
                && !fitted.contains(open)
        };
        let open = self.listeners.iter().map(|listener| &listener.addr).find(|open| is_left(open));
        // Another program may take the port before the socket is opened; then the start or the reload fails.
        let free = || std::net::TcpListener::bind(wanted).ok()?.local_addr().ok();
        open.cloned().or_else(|| free().map(ListenAddr::Tcp))
    }

    /// Removes addresses that this machine does not have, such as `::1` without IPv6. Keeps them if there are no
    /// others, so that binding reports the error.
    fn drop_unavailable_addrs(&self, name: &ListenAddr, addrs: &mut Vec<ListenAddr>) {
        let has = |addr: &ListenAddr| match addr {
            ListenAddr::Tcp(tcp) => {
                let there = SocketAddr::new(tcp.ip(), 0);
                self.has(addr, Slot(0)) || std::net::UdpSocket::bind(there).is_ok()
            }
            _ => true,
        };
        let (there, missing): (Vec<_>, Vec<_>) = addrs.drain(..).partition(has);
        if there.is_empty() {
            *addrs = missing;
            return;
        }
        for addr in missing {
            log::warn!(
                "{name} resolves to {addr} as well, which no interface of this machine has: not listening there"
            );
        }
        *addrs = there;
    }

    fn record_same_port_group(&mut self, group: &[ListenAddr]) {
        let meets = |known: &Vec<ListenAddr>| known.iter().any(|addr| group.contains(addr));
        match self.same_port.iter_mut().find(|known| meets(known)) {
            Some(known) => {
                for addr in group {
                    if !known.contains(addr) {
                        known.push(addr.clone());
                    }
                }
            }
            None => self.same_port.push(group.to_vec()),
        }
    }

    /// Returns the form under which a socket with exactly this address was opened.
    fn open_address_of(&self, addr: &ListenAddr) -> Option<ListenAddr> {
        let ListenAddr::Tcp(tcp) = addr else { return None };
        if self.has(addr, Slot(0)) || tcp.port() == 0 {
            return None;
        }
        let same = |listener: &&Listener| listener.tcp() == Some(*tcp);
        self.listeners.iter().find(same).map(|listener| listener.addr.clone())
    }

    /// Returns the TCP address with the real port, if it is known.
    fn socket_addr_of(&self, addr: &ListenAddr) -> Option<SocketAddr> {
        let open = self.listeners.iter().find(|listener| listener.addr == *addr);
        open.and_then(Listener::tcp).or(match addr {
            ListenAddr::Tcp(tcp) if tcp.port() != 0 => Some(*tcp),
            _ => None,
        })
    }

    /// Opens the missing addresses of one host name, all on one port.
    pub(super) fn open_on_one_port(
        &self,
        group: &[ListenAddr],
        backlog: u32,
        opened: &mut Vec<OpenedSocket>,
    ) -> Result<()> {
        let known = self.listeners.iter().chain(opened.iter().map(|one| &one.listener));
        let mut known = known.filter(|listener| group.contains(&listener.addr));
        let port = known.find_map(Listener::tcp).map(|local| local.port());
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.open_at_port(group, backlog, port, opened) {
                Ok(new) => {
                    opened.extend(new);
                    return Ok(());
                }
                // The port that the first address got is in use at another address.
                Err(e)
                    if port.is_none() && attempt < PORT_ATTEMPTS && e.kind() == ErrorKind::Bind => {
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn open_at_port(
        &self,
        group: &[ListenAddr],
        backlog: u32,
        mut port: Option<u16>,
        opened: &[OpenedSocket],
    ) -> Result<Vec<OpenedSocket>> {
        let mut new: Vec<OpenedSocket> = Vec::new();
        let is_open = |addr: &ListenAddr| {
            self.has(addr, Slot(0)) || opened.iter().any(|one| one.listener.addr == *addr)
        };
        for addr in group.iter().filter(|addr| !is_open(addr)) {
            let one = self.acquire(addr, backlog, port, opened)?;
            port = port.or(one.listener.tcp().map(|local| local.port()));
            new.push(one);
        }
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(texts: &[&str]) -> Vec<ListenAddr> {
        texts.iter().map(|text| text.parse().expect("address")).collect()
    }

    fn open(texts: &[&str]) -> ListenerSet {
        let mut set = ListenerSet::default();
        set.open_missing_sockets(&addrs(texts), 16, 1).expect("bind");
        set
    }

    fn port(set: &ListenerSet) -> u16 {
        set.listeners[0].tcp().expect("address").port()
    }

    #[test]
    fn all_addresses_of_a_host_name_share_one_port() {
        let names = ResolvedHosts::with_one_host("two", &["127.0.0.1", "127.0.0.2", "127.0.0.1"]);
        let mut set = ListenerSet::default();
        for _ in 0..2 {
            let mut bind = addrs(&["two:0"]);
            set.resolve_bind_addrs(&mut bind, &names);
            assert_eq!(bind, addrs(&["127.0.0.1:0", "127.0.0.2:0"]));
            set.open_missing_sockets(&bind, 16, 1).expect("bind");
            let locals: Vec<_> = set.listeners.iter().filter_map(Listener::tcp).collect();
            assert_eq!(locals.len(), 2);
            assert_eq!(locals[0].port(), locals[1].port());
        }
        // An address that the name gets later joins them.
        let mut bind = addrs(&["two:0"]);
        set.resolve_bind_addrs(
            &mut bind,
            &ResolvedHosts::with_one_host("two", &["127.0.0.1", "127.0.0.2", "127.0.0.3"]),
        );
        set.open_missing_sockets(&bind, 16, 1).expect("bind");
        let ports: Vec<_> =
            set.listeners.iter().filter_map(Listener::tcp).map(|l| l.port()).collect();
        assert_eq!(ports, [port(&set); 3]);
    }

    #[test]
    fn port_0_named_again_is_another_port_that_stays_over_reloads() {
        let mut set = open(&["127.0.0.1:0"]);
        let names = ResolvedHosts::default();
        let mut seen = Vec::new();
        for _ in 0..2 {
            let mut bind = addrs(&["127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"]);
            set.resolve_bind_addrs(&mut bind, &names);
            set.open_missing_sockets(&bind, 16, 1).expect("bind");
            let mut ports: Vec<u16> =
                set.listeners.iter().filter_map(Listener::tcp).map(|addr| addr.port()).collect();
            ports.sort_unstable();
            ports.dedup();
            assert_eq!((bind.len(), ports.len()), (3, 3), "{bind:?}");
            seen.push(ports);
        }
        assert_eq!(seen[0], seen[1]);
        // Named once: the others close.
        let mut bind = addrs(&["127.0.0.1:0"]);
        set.resolve_bind_addrs(&mut bind, &names);
        assert_eq!(set.remove_sockets_not_in(&bind.iter().collect::<Vec<_>>()).len(), 2);
    }

    #[test]
    fn an_open_socket_is_found_by_its_real_port() {
        let mut set = open(&["127.0.0.1:0"]);
        let mut bind = addrs(&[&format!("127.0.0.1:{}", port(&set)), "127.0.0.1:0"]);
        set.resolve_bind_addrs(&mut bind, &ResolvedHosts::default());
        assert_eq!(bind, addrs(&["127.0.0.1:0"]));
        assert!(set.open_missing_sockets(&bind, 16, 1).expect("open").locals.is_empty());
    }

    #[test]
    fn a_wildcard_address_opens_beside_a_specific_one_which_stays_open() {
        for wide in ["[::]", "0.0.0.0"] {
            let mut set = open(&["127.0.0.1:0"]);
            let all = format!("{wide}:{}", port(&set));
            let mut bind = addrs(&[&all]);
            set.resolve_bind_addrs(&mut bind, &ResolvedHosts::default());
            assert_eq!(bind, addrs(&[&all, "127.0.0.1:0"]));
            let opened = set.open_missing_sockets(&bind, 16, 1).expect("bind");
            assert_eq!((opened.locals.len(), opened.took_over_traffic.len()), (1, 0));
            assert!(set.remove_sockets_not_in(&bind.iter().collect::<Vec<_>>()).is_empty());
            // Back to the specific address: nothing is opened, the wildcard socket closes.
            let mut bind = addrs(&[&format!("127.0.0.1:{}", port(&set))]);
            set.resolve_bind_addrs(&mut bind, &ResolvedHosts::default());
            assert_eq!(bind, addrs(&["127.0.0.1:0"]));
            assert_eq!(set.remove_sockets_not_in(&bind.iter().collect::<Vec<_>>()).len(), 1);
        }
    }

    #[test]
    fn an_ipv6_only_wildcard_leaves_ipv4_to_others() {
        let mut set = ListenerSet::default();
        set.set_ipv6_only(true);
        set.open_missing_sockets(&addrs(&["[::]:0"]), 16, 3).expect("bind");
        let other = std::net::TcpListener::bind(("0.0.0.0", port(&set)));
        drop(other.expect("IPv4 is free"));
        for listener in &set.listeners {
            assert!(listener.socket.only_v6().expect("option"), "slot {}", listener.slot);
        }
        // A socket for IPv4 is not covered, so it closes when it is not named any more.
        let mut set = open(&["127.0.0.1:0"]);
        set.set_ipv6_only(true);
        let mut bind = addrs(&[&format!("[::]:{}", port(&set))]);
        let named = bind.clone();
        set.resolve_bind_addrs(&mut bind, &ResolvedHosts::default());
        assert_eq!(bind, named);
    }

    #[test]
    fn a_specific_address_beside_a_wildcard_takes_its_connections() {
        for (wide, narrow) in [("[::]", "127.0.0.1"), ("[::]", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")]
        {
            let mut set = open(&[&format!("{wide}:0")]);
            let bind = addrs(&[&format!("{narrow}:{}", port(&set))]);
            let opened = set.open_missing_sockets(&bind, 16, 3).expect("bind");
            assert_eq!(opened.took_over_traffic, bind);
            assert_eq!(set.listeners.iter().filter(|l| l.addr == bind[0]).count(), 3);
        }
    }

    #[test]
    fn a_reuseport_socket_of_another_service_is_not_joined() {
        let set = open(&["127.0.0.1:0"]);
        // Like another service of the same user: with SO_REUSEPORT.
        let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
            .expect("socket");
        other.set_reuse_port(true).expect("option");
        let there: SocketAddr = format!("127.0.0.2:{}", port(&set)).parse().expect("address");
        other.bind(&there.into()).expect("bind");
        other.listen(1).expect("listen");
        let mut set = set;
        let bind = addrs(&[&format!("0.0.0.0:{}", port(&set))]);
        let error = set
            .open_missing_sockets(&bind, 16, 1)
            .expect_err("another service listens")
            .to_string();
        assert!(error.contains("address already in use (held by "), "{error}");
    }
}
