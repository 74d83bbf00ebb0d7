//! The names of a worker's listening sockets, by which a connection is attributed to one of them.

use std::os::fd::AsFd;
use std::sync::Arc;

use prefork_os::socket_name::{SocketName, local_name};

use super::{ForwardedHeaders, ProxyProtocol};
use crate::config::Config;
use crate::https_redirect::HttpsRedirect;
use crate::listener::{ListenAddr, Listener};

/// A listening socket: its address for display, and its name in the kernel.
#[derive(Debug)]
pub(crate) struct ListenerName {
    /// The address with the real port.
    pub(super) addr: ListenAddr,
    /// `None` if the kernel has none, which is an unnamed Unix socket.
    name: Option<SocketName>,
    pub(super) settings: ListenerSettings,
}

/// How the connections of a listening socket are served.
#[derive(Debug, Clone, Default)]
pub(super) struct ListenerSettings {
    /// Whether they begin with a PROXY header.
    pub(super) proxy_protocol: ProxyProtocol,
    /// Which headers of trusted proxies are believed.
    pub(super) forwarded_headers: ForwardedHeaders,
    /// Whether they speak TLS.
    pub(super) is_tls: bool,
    /// What answers the requests in place of the application, if they are only redirected to https.
    pub(super) https_redirect: Option<Arc<HttpsRedirect>>,
}

impl ListenerSettings {
    /// Returns what `config` says about the connections of `listener`.
    fn new(listener: &Listener, config: &Config, https_port: Option<u16>) -> ListenerSettings {
        let redirect = config.bind_options_at(&listener.addr).https_redirect;
        let redirect = redirect.map(|to| {
            HttpsRedirect::new(to.https_port.or(https_port), config.acme_challenge_dir())
        });
        let is_unix = matches!(listener.real_addr(), ListenAddr::Unix(_));
        ListenerSettings {
            is_tls: config.speaks_tls_at(&listener.addr, is_unix),
            proxy_protocol: config.proxy_protocol_at(&listener.addr),
            forwarded_headers: config.forwarded_headers,
            https_redirect: redirect.map(Arc::new),
        }
    }
}

/// The listening sockets that a worker was forked with.
#[derive(Debug, Default)]
pub(crate) struct ListenerNames {
    names: Vec<Arc<ListenerName>>,
    addrs: Vec<ListenAddr>,
    /// The settings for connections that came by none of them.
    settings: ListenerSettings,
}

impl ListenerName {
    /// Reads the name of a listening socket.
    fn new(listener: &Listener, settings: ListenerSettings) -> Arc<ListenerName> {
        let (addr, name) = (listener.real_addr(), local_name(&listener.socket).ok());
        Arc::new(ListenerName { addr, name, settings })
    }

    /// Whether its connections speak TLS.
    pub(crate) fn is_tls(&self) -> bool {
        self.settings.is_tls
    }

    /// Whether connections have other local addresses than the socket: it listens on all addresses of the machine.
    pub(super) fn is_wildcard(&self) -> bool {
        matches!(&self.name, Some(SocketName::Tcp(addr)) if addr.ip().is_unspecified())
    }

    /// Whether a connection with this local name can have come by this socket. An exact match is better than a wildcard.
    fn match_with(&self, local: &SocketName) -> Option<NameMatch> {
        match (self.name.as_ref()?, local) {
            (own, local) if own == local => Some(NameMatch::Exact),
            (SocketName::Tcp(own), SocketName::Tcp(local)) => {
                let is_same_family = own.is_ipv4() == local.is_ipv4();
                let covers =
                    own.ip().is_unspecified() && is_same_family && own.port() == local.port();
                covers.then_some(NameMatch::Wildcard)
            }
            _ => None,
        }
    }
}

/// How well a listening socket fits a connection; the best is the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum NameMatch {
    Wildcard,
    Exact,
}

impl ListenerNames {
    /// Reads the names of the sockets of one worker. Several sockets of one address count as one.
    pub(crate) fn new<'a>(
        listeners: impl IntoIterator<Item = &'a Listener>,
        config: &Config,
    ) -> ListenerNames {
        let settings = ListenerSettings {
            proxy_protocol: config.proxy_protocol,
            forwarded_headers: config.forwarded_headers,
            is_tls: false,
            https_redirect: None,
        };
        let listeners: Vec<&Listener> = listeners.into_iter().collect();
        let https_port = first_https_port(&listeners, config);
        let mut all = ListenerNames { settings, ..ListenerNames::default() };
        for listener in listeners {
            let settings = ListenerSettings::new(listener, config, https_port);
            let name = ListenerName::new(listener, settings);
            if !all.addrs.contains(&name.addr) {
                all.addrs.push(name.addr.clone());
                all.names.push(name);
            }
        }
        all
    }

    /// Returns the name of a listening socket, perhaps that of another slot.
    pub(crate) fn name_of(&self, listener: &Listener) -> Arc<ListenerName> {
        let name = ListenerName::new(listener, self.settings.clone());
        let is_same = |known: &&Arc<ListenerName>| known.name == name.name && name.name.is_some();
        self.names.iter().find(is_same).map_or(name, Arc::clone)
    }

    /// Returns a name for a connection that came by none of the worker's sockets: its own local address.
    pub(super) fn name_of_connection(&self, local: &SocketName) -> Arc<ListenerName> {
        let addr = match local {
            SocketName::Tcp(addr) => ListenAddr::Tcp(*addr),
            SocketName::Unix(name) => ListenAddr::from_unix_name(name.as_deref()),
        };
        Arc::new(ListenerName { addr, name: Some(local.clone()), settings: self.settings.clone() })
    }

    /// Returns the addresses with their real ports.
    pub(crate) fn addrs(&self) -> &[ListenAddr] {
        &self.addrs
    }

    /// Returns whether a connection that another process has accepted speaks TLS, as far as its local name shows it.
    pub(crate) fn is_tls_connection(&self, connection: impl AsFd) -> bool {
        self.names.iter().any(|one| one.is_tls())
            && local_name(connection)
                .is_ok_and(|local| self.find(&local).is_some_and(|one| one.is_tls()))
    }

    /// Returns the socket that a connection with this local name came by, as far as its name shows it.
    pub(super) fn find(&self, local: &SocketName) -> Option<&Arc<ListenerName>> {
        let matches = self.names.iter().filter_map(|one| Some((one.match_with(local)?, one)));
        matches.max_by_key(|(how, _)| *how).map(|(_, one)| one)
    }
}

/// Returns the port of the first address of `bind` that speaks TLS over TCP.
fn first_https_port(listeners: &[&Listener], config: &Config) -> Option<u16> {
    let of_addr = |addr: &ListenAddr| {
        let listener = listeners.iter().find(|listener| listener.addr == *addr)?;
        let ListenAddr::Tcp(real) = listener.real_addr() else { return None };
        config.speaks_tls_at(addr, false).then_some(real.port())
    };
    config.bind.iter().find_map(of_addr)
}

/// Returns the local name of a connection as an address.
pub(super) fn local_listen_addr(local: SocketName) -> ListenAddr {
    match local {
        SocketName::Tcp(addr) => ListenAddr::Tcp(super::peer_addr::canonical(addr)),
        SocketName::Unix(name) => ListenAddr::from_unix_name(name.as_deref()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn listening_on(addrs: &[&str]) -> ListenerNames {
        let parse = |text: &&str| -> SocketAddr { text.parse().expect("an address") };
        let named = |addr: SocketAddr| {
            let (name, settings) = (Some(SocketName::Tcp(addr)), ListenerSettings::default());
            Arc::new(ListenerName { addr: ListenAddr::Tcp(addr), name, settings })
        };
        let names = addrs.iter().map(parse).map(named).collect();
        ListenerNames { names, ..ListenerNames::default() }
    }

    #[test]
    fn a_connection_belongs_to_the_listener_that_fits_best() {
        let all = listening_on(&["0.0.0.0:80", "127.0.0.1:80", "[::]:81", "0.0.0.0:82"]);
        for (local, listener) in [
            ("127.0.0.1:80", Some("127.0.0.1:80")),
            ("192.0.2.7:80", Some("0.0.0.0:80")),
            ("[::ffff:192.0.2.7]:81", Some("[::]:81")),
            ("[2001:db8::1]:81", Some("[::]:81")),
            ("192.0.2.7:83", None),
        ] {
            let local = SocketName::Tcp(local.parse().expect("an address"));
            let found = all.find(&local).map(|one| one.addr.to_string());
            assert_eq!(found.as_deref(), listener, "{local:?}");
        }
    }

    #[test]
    fn a_unix_connection_belongs_to_the_socket_of_its_path() {
        let path = SocketName::Unix(Some(b"/run/app.sock"[..].into()));
        let addr: ListenAddr = "unix:/run/app.sock".parse().expect("an address");
        let (name, settings) = (Some(path.clone()), ListenerSettings::default());
        let name = Arc::new(ListenerName { addr, name, settings });
        let all = ListenerNames { names: vec![name], ..ListenerNames::default() };
        assert_eq!(
            all.find(&path).map(|one| one.addr.to_string()).as_deref(),
            Some("unix:/run/app.sock")
        );
        assert!(all.find(&SocketName::Unix(None)).is_none());
    }
}
