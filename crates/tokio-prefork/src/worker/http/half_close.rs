//! Clients that have closed their sending side while a response is being made: whether they are still there.
//!
//! `close(2)` and `shutdown(2)` send the same FIN. A client that has closed its socket answers anything that is sent to
//! it with a reset, so a single interim response tells (RFC 9110, section 15.2: a client has to parse those it does not
//! know). Unix sockets tell without.

use std::os::fd::AsFd;

use super::connection_state::Conn;
use crate::config::HalfClose;

/// The interim response (RFC 2518, section 10.1).
const PROBE: &[u8] = b"HTTP/1.1 102 Processing\r\n\r\n";

/// How long after the FIN: most responses have begun by then, which tells as well.
const PROBE_DELAY_MS: u64 = 200;

/// A client that has sent its FIN.
#[derive(Debug)]
pub(crate) struct HalfClosed {
    since_ms: u64,
    is_probed: bool,
}

/// What is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// It may be there.
    MayRead,
    /// It was sent this many bytes to find out.
    Probed(usize),
    /// It has gone.
    Gone,
}

impl HalfClosed {
    pub(crate) fn new(now_ms: u64) -> HalfClosed {
        HalfClosed { since_ms: now_ms, is_probed: false }
    }

    /// Looks after the client at the other end of `socket`.
    pub(crate) fn look(
        &mut self,
        mode: HalfClose,
        conn: &Conn,
        socket: impl AsFd,
        is_unix: bool,
        now_ms: u64,
    ) -> Peer {
        if mode == HalfClose::Cancel || prefork_os::socket::is_hung_up(&socket) {
            return Peer::Gone;
        }
        if mode != HalfClose::Probe || is_unix || !self.is_probe_due(conn, now_ms) {
            return Peer::MayRead;
        }
        match prefork_os::socket::write_nonblocking(&socket, PROBE) {
            Ok(sent) if sent == PROBE.len() => {
                self.is_probed = true;
                Peer::Probed(sent)
            }
            // Part of a response head cannot be taken back.
            Ok(_) => Peer::Gone,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Peer::MayRead,
            Err(_) => Peer::Gone,
        }
    }

    /// Nothing may stand between the interim response and the one that it announces.
    fn is_probe_due(&self, conn: &Conn, now_ms: u64) -> bool {
        !self.is_probed
            && now_ms.saturating_sub(self.since_ms) >= PROBE_DELAY_MS
            && conn.takes_interim_responses()
            && !conn.response_has_begun()
            && conn.is_flushed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{Shutdown, TcpListener, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("name")).expect("connect");
        (listener.accept().expect("accept").0, client)
    }

    fn answering() -> Conn {
        let conn = Conn::new(0);
        conn.request_begun(0);
        conn.set_takes_interim_responses(true);
        conn
    }

    #[test]
    fn a_client_that_reads_is_probed_once_and_kept() {
        let (near, mut far) = pair();
        far.shutdown(Shutdown::Write).expect("shut down");
        let (conn, mut half) = (answering(), HalfClosed::new(1000));
        let mut look = |now| half.look(HalfClose::Probe, &conn, &near, false, now);
        assert_eq!(look(1199), Peer::MayRead);
        assert_eq!(look(1200), Peer::Probed(PROBE.len()));
        assert_eq!(look(9000), Peer::MayRead);
        let mut got = [0; PROBE.len()];
        far.read_exact(&mut got).expect("the probe");
        assert_eq!(got, PROBE);
    }

    #[test]
    fn a_client_that_has_closed_is_found_out() {
        let (near, far) = pair();
        drop(far);
        let (conn, mut half) = (answering(), HalfClosed::new(0));
        assert_eq!(half.look(HalfClose::Finish, &conn, &near, false, 5000), Peer::MayRead);
        assert_eq!(
            half.look(HalfClose::Probe, &conn, &near, false, 200),
            Peer::Probed(PROBE.len())
        );
        assert_eq!(half.look(HalfClose::Probe, &conn, &near, false, 300), Peer::Gone);
        assert_eq!(half.look(HalfClose::Cancel, &conn, &near, false, 0), Peer::Gone);
    }

    #[test]
    fn nothing_is_sent_where_it_would_be_misunderstood() {
        let (near, far) = pair();
        far.shutdown(Shutdown::Write).expect("shut down");
        let mut half = HalfClosed::new(0);
        let mut look = |conn: &Conn| half.look(HalfClose::Probe, conn, &near, false, 1000);
        let old = answering();
        old.set_takes_interim_responses(false);
        assert_eq!(look(&old), Peer::MayRead, "HTTP/1.0 has no interim responses");
        let begun = answering();
        begun.response_begun();
        assert_eq!(look(&begun), Peer::MayRead, "its response has begun");
        let unflushed = answering();
        unflushed.sent(true, 0);
        assert_eq!(look(&unflushed), Peer::MayRead, "an earlier one is not sent yet");
    }
}
