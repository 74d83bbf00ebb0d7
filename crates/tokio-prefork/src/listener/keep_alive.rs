//! TCP keep-alive, set on the listening socket: accepted sockets inherit it on Linux, which saves a system call for each
//! connection.

use std::time::Duration;

use socket2::TcpKeepalive;

use super::Listener;

/// Unanswered probes after which the kernel closes a connection.
const KEEP_ALIVE_PROBES: u32 = 4;

impl Listener {
    /// Makes the kernel close accepted connections whose host does not answer for about `within`. Probes begin after half of
    /// that time without a byte. `None` disables the probes, also those that the service manager enabled. Does nothing on
    /// Unix sockets.
    pub(crate) fn set_tcp_keep_alive(&self, within: Option<Duration>) {
        if self.is_unix() {
            return;
        }
        let outcome = match within {
            None => self.socket.set_keepalive(false),
            Some(within) => {
                let probe = TcpKeepalive::new()
                    .with_time(within / 2)
                    .with_interval(within / 2 / KEEP_ALIVE_PROBES)
                    .with_retries(KEEP_ALIVE_PROBES);
                self.socket.set_tcp_keepalive(&probe)
            }
        };
        if let Err(e) = outcome {
            log::warn!(
                "cannot set TCP keep-alive on {}: {e}; connections of unreachable clients stay open longer",
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
    fn accepted_connections_inherit_tcp_keep_alive() {
        let addr = "127.0.0.1:0".parse().expect("address");
        let mut set = ListenerSet::default();
        set.open_missing_sockets(&[addr], 16, 1).expect("bind");
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
        assert_eq!(accepted.tcp_keepalive_retries().expect("option"), KEEP_ALIVE_PROBES);
        listener.set_tcp_keep_alive(None);
        let (_client, accepted) = accept();
        assert!(!SockRef::from(&accepted).keepalive().expect("option"));
    }
}
