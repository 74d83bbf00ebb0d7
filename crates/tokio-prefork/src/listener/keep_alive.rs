//! TCP keep-alive, set on a listening socket: Linux gives accepted sockets the options of the listening one, so a
//! connection costs no system call.

use std::time::Duration;

use socket2::TcpKeepalive;

use super::Listener;

/// Unanswered probes after which the kernel closes a connection.
const PROBES: u32 = 4;

impl Listener {
    /// Has the kernel close accepted connections whose host has vanished for about `within`; it begins to probe after half
    /// of that without a byte. `None` turns the probes off, also those that the service manager has turned on. Does nothing
    /// on Unix sockets, whose ends never vanish.
    pub(crate) fn set_tcp_keep_alive(&self, within: Option<Duration>) {
        if self.is_unix() {
            return;
        }
        let outcome = match within {
            None => self.socket.set_keepalive(false),
            Some(within) => {
                let probe = TcpKeepalive::new()
                    .with_time(within / 2)
                    .with_interval(within / 2 / PROBES)
                    .with_retries(PROBES);
                self.socket.set_tcp_keepalive(&probe)
            }
        };
        if let Err(e) = outcome {
            log::warn!(
                "cannot set TCP keep-alive on {}: {e}; vanished clients stay longer",
                self.local
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::ListenerSet;
    use socket2::SockRef;
    use std::net::TcpStream;

    #[test]
    fn accepted_connections_inherit_it() {
        let addr = "127.0.0.1:0".parse().expect("address");
        let mut set = ListenerSet::default();
        set.open_missing(&[addr], 16, 1).expect("bind");
        let listener = &set.listeners[0];
        let to = listener.socket.local_addr().expect("name").as_socket().expect("tcp");
        let accept = || {
            let client = TcpStream::connect(to).expect("connect");
            (client, prefork_os::socket::accept_connection(&listener.socket).expect("accept"))
        };
        listener.set_tcp_keep_alive(Some(Duration::from_secs(120)));
        let (_client, accepted) = accept();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.keepalive().expect("option"));
        assert_eq!(accepted.tcp_keepalive_time().expect("option"), Duration::from_secs(60));
        assert_eq!(accepted.tcp_keepalive_interval().expect("option"), Duration::from_secs(15));
        assert_eq!(accepted.tcp_keepalive_retries().expect("option"), PROBES);
        listener.set_tcp_keep_alive(None);
        let (_client, accepted) = accept();
        assert!(!SockRef::from(&accepted).keepalive().expect("option"));
    }
}
