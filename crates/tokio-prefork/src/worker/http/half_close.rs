//! Finds out whether a client that closed its sending side during a request still reads.
//!
//! `close(2)` and `shutdown(2)` send the same FIN. A client that has closed its socket answers any data with a reset,
//! so one interim response tells them apart (RFC 9110, section 15.2: clients must parse interim responses they do not
//! know). A Unix socket reports it without a probe.

use std::io;

use super::connection_state::ConnectionState;
use crate::config::HalfClosePolicy;

/// The interim response that is sent as a probe (RFC 2518, section 10.1).
const PROBE_RESPONSE: &[u8] = b"HTTP/1.1 102 Processing\r\n\r\n";

/// How long after the FIN to probe. Most responses have started by then, which makes a probe unnecessary.
const PROBE_DELAY_MS: u64 = 200;

/// A client that has closed its sending side.
#[derive(Debug)]
pub(crate) struct HalfClosedClient {
    since_ms: u64,
    is_probed: bool,
}

/// What is known about a half-closed client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HalfCloseVerdict {
    /// The client may still read.
    MayRead,
    /// A probe of this many bytes was just sent.
    ProbeSent(usize),
    /// The client has closed its socket.
    Gone,
}

impl HalfClosedClient {
    pub(crate) fn new(now_ms: u64) -> HalfClosedClient {
        HalfClosedClient { since_ms: now_ms, is_probed: false }
    }

    /// Checks whether the client still reads; sends the probe with `send` when it is due. `is_hung_up` if the kernel knows that the
    /// client has closed its socket.
    pub(crate) fn check_client(
        &mut self,
        mode: HalfClosePolicy,
        conn: &ConnectionState,
        is_hung_up: bool,
        is_unix: bool,
        now_ms: u64,
        send: impl FnOnce(&[u8]) -> io::Result<usize>,
    ) -> HalfCloseVerdict {
        if mode == HalfClosePolicy::Cancel || is_hung_up {
            return HalfCloseVerdict::Gone;
        }
        if mode != HalfClosePolicy::Probe || is_unix || !self.is_probe_due(conn, now_ms) {
            return HalfCloseVerdict::MayRead;
        }
        match send(PROBE_RESPONSE) {
            Ok(sent) if sent == PROBE_RESPONSE.len() => {
                self.is_probed = true;
                HalfCloseVerdict::ProbeSent(sent)
            }
            // A partly sent probe would corrupt the response that follows.
            Ok(_) => HalfCloseVerdict::Gone,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => HalfCloseVerdict::MayRead,
            Err(_) => HalfCloseVerdict::Gone,
        }
    }

    /// Whether to send the probe now: an interim response must directly precede the final one.
    fn is_probe_due(&self, conn: &ConnectionState, now_ms: u64) -> bool {
        !self.is_probed
            && now_ms.saturating_sub(self.since_ms) >= PROBE_DELAY_MS
            && conn.accepts_interim_responses()
            && !conn.has_response_started()
            && conn.is_flushed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prefork_os::socket::is_hung_up;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    fn connected_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("name")).expect("connect");
        (listener.accept().expect("accept").0, client)
    }

    fn conn_with_request() -> ConnectionState {
        let conn = ConnectionState::new(0);
        conn.begin_request(0);
        conn.set_accepts_interim_responses(true);
        conn
    }

    #[test]
    fn client_that_still_reads_is_probed_once_and_kept() {
        let (near, mut far) = connected_pair();
        far.shutdown(Shutdown::Write).expect("shut down");
        let (conn, mut half) = (conn_with_request(), HalfClosedClient::new(1000));
        let mut check = |now| {
            half.check_client(
                HalfClosePolicy::Probe,
                &conn,
                is_hung_up(&near),
                false,
                now,
                |probe| (&near).write(probe),
            )
        };
        assert_eq!(check(1199), HalfCloseVerdict::MayRead);
        assert_eq!(check(1200), HalfCloseVerdict::ProbeSent(PROBE_RESPONSE.len()));
        assert_eq!(check(9000), HalfCloseVerdict::MayRead);
        let mut got = [0; PROBE_RESPONSE.len()];
        far.read_exact(&mut got).expect("the probe");
        assert_eq!(got, PROBE_RESPONSE);
    }

    #[test]
    fn closed_client_is_detected_by_the_second_check() {
        let (near, far) = connected_pair();
        let send = |probe: &[u8]| (&near).write(probe);
        drop(far);
        let (conn, mut half) = (conn_with_request(), HalfClosedClient::new(0));
        assert_eq!(
            half.check_client(HalfClosePolicy::Finish, &conn, is_hung_up(&near), false, 5000, send),
            HalfCloseVerdict::MayRead
        );
        assert_eq!(
            half.check_client(HalfClosePolicy::Probe, &conn, is_hung_up(&near), false, 200, send),
            HalfCloseVerdict::ProbeSent(PROBE_RESPONSE.len())
        );
        assert_eq!(
            half.check_client(HalfClosePolicy::Probe, &conn, is_hung_up(&near), false, 300, send),
            HalfCloseVerdict::Gone
        );
        assert_eq!(
            half.check_client(HalfClosePolicy::Cancel, &conn, is_hung_up(&near), false, 0, send),
            HalfCloseVerdict::Gone
        );
    }

    #[test]
    fn no_probe_is_sent_where_the_client_could_misread_it() {
        let (near, far) = connected_pair();
        far.shutdown(Shutdown::Write).expect("shut down");
        let mut half = HalfClosedClient::new(0);
        let mut check = |conn: &ConnectionState| {
            half.check_client(
                HalfClosePolicy::Probe,
                conn,
                is_hung_up(&near),
                false,
                1000,
                |probe| (&near).write(probe),
            )
        };
        let http10 = conn_with_request();
        http10.set_accepts_interim_responses(false);
        assert_eq!(check(&http10), HalfCloseVerdict::MayRead, "HTTP/1.0 has no interim responses");
        let begun = conn_with_request();
        begun.set_response_started();
        assert_eq!(check(&begun), HalfCloseVerdict::MayRead, "its response has begun");
        let unflushed = conn_with_request();
        unflushed.record_write(true, 0);
        assert_eq!(
            check(&unflushed),
            HalfCloseVerdict::MayRead,
            "an earlier response is not sent yet"
        );
    }
}
