//! What a configuration's addresses are, given the sockets that there are: names looked up, known sockets found again,
//! sockets that a wider address covers kept open.

use std::net::SocketAddr;

use super::host_lookup::{self, Names};
use super::{Acquired, ListenAddr, Listener, ListenerSet};
use crate::error::{ErrorKind, Result};
use prefork_supervisor::Slot;

/// How often a free port is tried that is to be free on all addresses of a name.
const PORT_ATTEMPTS: u32 = 32;

impl ListenerSet {
    /// This image was begun by an upgrade.
    pub(crate) fn set_upgraded(&mut self) {
        self.upgraded = true;
    }

    /// From now on somebody is served, and nothing may wait.
    pub(crate) fn set_serving(&mut self) {
        self.serving = true;
    }

    /// Replaces host names by their addresses, and other words for a socket that is open by those under which it is
    /// known. Adds the open sockets that an address of `bind` covers: `127.0.0.1:80` stays open when `:80` is asked for,
    /// as closing it would drop the connections that are about to be made to it.
    pub(crate) fn fit(&mut self, bind: &mut Vec<ListenAddr>, names: &Names) {
        let mut fitted: Vec<ListenAddr> = Vec::new();
        for addr in bind.iter() {
            let mut expanded = host_lookup::expand(addr, names);
            if matches!(addr, ListenAddr::Host(_)) {
                self.drop_unavailable(addr, &mut expanded);
            }
            if matches!(addr, ListenAddr::Host(host) if host.port == 0) {
                self.share_port(&expanded);
            }
            for addr in expanded {
                // Rights of a file may have changed: the words of the new configuration count.
                let known = self.known_as(&addr).unwrap_or(addr);
                if !fitted.contains(&known) {
                    fitted.push(known);
                }
            }
        }
        let wanted: Vec<SocketAddr> = fitted.iter().filter_map(|a| self.address_of(a)).collect();
        for listener in self.listeners.iter().filter(|listener| listener.slot == Slot(0)) {
            let covered = listener.tcp().is_some_and(|local| {
                wanted.iter().any(|wide| super::listen_addr::covers(*wide, local))
            });
            if covered && !fitted.contains(&listener.addr) {
                fitted.push(listener.addr.clone());
            }
        }
        *bind = fitted;
    }

    /// Leaves out addresses of a name that this machine does not have (`::1` where IPv6 is off), unless there are no
    /// others: then binding tells why.
    fn drop_unavailable(&self, name: &ListenAddr, addrs: &mut Vec<ListenAddr>) {
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
                "{name} is also {addr}, which no interface of this machine has: not listening there"
            );
        }
        *addrs = there;
    }

    fn share_port(&mut self, group: &[ListenAddr]) {
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

    /// Under which words a socket on exactly this address is open.
    fn known_as(&self, addr: &ListenAddr) -> Option<ListenAddr> {
        let ListenAddr::Tcp(tcp) = addr else { return None };
        if self.has(addr, Slot(0)) || tcp.port() == 0 {
            return None;
        }
        let same = |listener: &&Listener| listener.tcp() == Some(*tcp);
        self.listeners.iter().find(same).map(|listener| listener.addr.clone())
    }

    /// The TCP address with the real port, as far as it is known.
    fn address_of(&self, addr: &ListenAddr) -> Option<SocketAddr> {
        let open = self.listeners.iter().find(|listener| listener.addr == *addr);
        open.and_then(Listener::tcp).or(match addr {
            ListenAddr::Tcp(tcp) if tcp.port() != 0 => Some(*tcp),
            _ => None,
        })
    }

    /// Opens what is missing of the addresses of one name, all with one port.
    pub(super) fn acquire_group(
        &self,
        group: &[ListenAddr],
        backlog: u32,
        opened: &mut Vec<Acquired>,
    ) -> Result<()> {
        let known = self.listeners.iter().chain(opened.iter().map(|one| &one.listener));
        let mut known = known.filter(|listener| group.contains(&listener.addr));
        let port = known.find_map(Listener::tcp).map(|local| local.port());
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.acquire_at(group, backlog, port, opened) {
                Ok(new) => {
                    opened.extend(new);
                    return Ok(());
                }
                // The port that was free on the first address is not so on another.
                Err(e)
                    if port.is_none() && attempt < PORT_ATTEMPTS && e.kind() == ErrorKind::Bind => {
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn acquire_at(
        &self,
        group: &[ListenAddr],
        backlog: u32,
        mut port: Option<u16>,
        opened: &[Acquired],
    ) -> Result<Vec<Acquired>> {
        let mut new: Vec<Acquired> = Vec::new();
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
        set.open_missing(&addrs(texts), 16, 1).expect("bind");
        set
    }

    fn port(set: &ListenerSet) -> u16 {
        set.listeners[0].tcp().expect("address").port()
    }

    #[test]
    fn all_addresses_of_a_name_get_one_port_and_keep_it() {
        let names = Names::of("two", &["127.0.0.1", "127.0.0.2", "127.0.0.1"]);
        let mut set = ListenerSet::default();
        for _ in 0..2 {
            let mut bind = addrs(&["two:0"]);
            set.fit(&mut bind, &names);
            assert_eq!(bind, addrs(&["127.0.0.1:0", "127.0.0.2:0"]));
            set.open_missing(&bind, 16, 1).expect("bind");
            let locals: Vec<_> = set.listeners.iter().filter_map(Listener::tcp).collect();
            assert_eq!(locals.len(), 2);
            assert_eq!(locals[0].port(), locals[1].port());
        }
        // One that the name got later joins them.
        let mut bind = addrs(&["two:0"]);
        set.fit(&mut bind, &Names::of("two", &["127.0.0.1", "127.0.0.2", "127.0.0.3"]));
        set.open_missing(&bind, 16, 1).expect("bind");
        let ports: Vec<_> =
            set.listeners.iter().filter_map(Listener::tcp).map(|l| l.port()).collect();
        assert_eq!(ports, [port(&set); 3]);
    }

    #[test]
    fn a_socket_that_is_open_is_found_under_its_port() {
        let mut set = open(&["127.0.0.1:0"]);
        let mut bind = addrs(&[&format!("127.0.0.1:{}", port(&set)), "127.0.0.1:0"]);
        set.fit(&mut bind, &Names::default());
        assert_eq!(bind, addrs(&["127.0.0.1:0"]));
        assert!(set.open_missing(&bind, 16, 1).expect("open").locals.is_empty());
    }

    #[test]
    fn a_wider_address_opens_beside_a_narrower_one_which_stays() {
        for wide in ["[::]", "0.0.0.0"] {
            let mut set = open(&["127.0.0.1:0"]);
            let all = format!("{wide}:{}", port(&set));
            let mut bind = addrs(&[&all]);
            set.fit(&mut bind, &Names::default());
            assert_eq!(bind, addrs(&[&all, "127.0.0.1:0"]));
            let opened = set.open_missing(&bind, 16, 1).expect("bind");
            assert_eq!((opened.locals.len(), opened.narrower.len()), (1, 0));
            assert!(set.remove_unnamed(&bind.iter().collect::<Vec<_>>()).is_empty());
            // And back: nothing is opened, the wide one closes.
            let mut bind = addrs(&[&format!("127.0.0.1:{}", port(&set))]);
            set.fit(&mut bind, &Names::default());
            assert_eq!(bind, addrs(&["127.0.0.1:0"]));
            assert_eq!(set.remove_unnamed(&bind.iter().collect::<Vec<_>>()).len(), 1);
        }
    }

    #[test]
    fn a_narrower_address_beside_a_wider_one_takes_its_connections() {
        for (wide, narrow) in [("[::]", "127.0.0.1"), ("[::]", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")]
        {
            let mut set = open(&[&format!("{wide}:0")]);
            let bind = addrs(&[&format!("{narrow}:{}", port(&set))]);
            let opened = set.open_missing(&bind, 16, 3).expect("bind");
            assert_eq!(opened.narrower, bind);
            assert_eq!(set.listeners.iter().filter(|l| l.addr == bind[0]).count(), 3);
        }
    }

    #[test]
    fn a_socket_of_another_service_of_this_user_is_not_joined() {
        let set = open(&["127.0.0.1:0"]);
        // As another service of this user would: with SO_REUSEPORT.
        let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
            .expect("socket");
        other.set_reuse_port(true).expect("option");
        let there: SocketAddr = format!("127.0.0.2:{}", port(&set)).parse().expect("address");
        other.bind(&there.into()).expect("bind");
        other.listen(1).expect("listen");
        let mut set = set;
        let bind = addrs(&[&format!("0.0.0.0:{}", port(&set))]);
        let error = set.open_missing(&bind, 16, 1).expect_err("another's").to_string();
        assert!(error.contains("address already in use (held by "), "{error}");
    }
}
