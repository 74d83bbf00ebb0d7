//! A client that waits for each step: connect, send a request, receive its response.
//!
//! For loads in which order and number of the requests count, not their rate.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::Socket;

use crate::load::LoadPlan;
use crate::load::connection::io_error_kind;
use crate::load::http_response::{
    ParsedResponse, ResponseExpectations, ResponseParser, ResponseReader,
};
use crate::load::request_failure::RequestFailure;
use crate::load::request_failure::response_error_kind;
use crate::load::target_url::ServerAddress;
use crate::load::tls::{TlsClient, TlsStream};
use crate::load::transport::{ReadOutcome, Transport};
use prefork_os::poll::{WatchedFd, poll_fds};
use tokio_prefork::Result;

/// Size of the buffer for received bytes.
const BUFFER_SIZE: usize = 64 * 1024;

/// Opens connections to one server, all with the same request.
pub(crate) struct BlockingClient {
    pub(crate) address: ServerAddress,
    tls: Option<TlsClient>,
    request: Vec<u8>,
    response_parser: ResponseParser,
    /// Longest wait in each step.
    timeout: Duration,
    buffer: Vec<u8>,
}

/// A connection of a [`BlockingClient`].
pub(crate) struct BlockingConnection {
    transport: Transport,
    response_reader: ResponseReader,
}

impl BlockingClient {
    /// Creates the client of the plan's target, request and timeout.
    ///
    /// # Errors
    /// The target does not accept connections, or the options of TLS are wrong.
    pub(crate) fn from_plan(plan: &LoadPlan) -> Result<BlockingClient> {
        let tls = match plan.target.is_https() {
            true => Some(
                TlsClient::from_options(&plan.tls, plan.target.server_name(), false)?.for_thread(),
            ),
            false => None,
        };
        Ok(BlockingClient {
            address: plan.target.find_reachable_address()?,
            tls,
            request: plan.encode_request(),
            response_parser: ResponseParser::new(ResponseExpectations {
                is_head_request: plan.method == "HEAD",
                pid_header: plan.pid_header.clone(),
            }),
            timeout: plan.timeout,
            buffer: vec![0; BUFFER_SIZE],
        })
    }

    /// Connects, from the given address of this machine or one that the kernel chooses, and shakes hands if the target
    /// has TLS.
    pub(crate) fn connect(
        &mut self,
        source: Option<IpAddr>,
    ) -> std::result::Result<BlockingConnection, RequestFailure> {
        self.connect_with(|socket| match source {
            Some(source) => socket.bind(&SocketAddr::new(source, 0).into()),
            None => Ok(()),
        })
    }

    /// Connects, after `prepare` has set options of the socket.
    pub(crate) fn connect_with(
        &mut self,
        prepare: impl FnOnce(&Socket) -> io::Result<()>,
    ) -> std::result::Result<BlockingConnection, RequestFailure> {
        let socket = self.address.connect_blocking(self.timeout, prepare);
        let socket = socket.map_err(|e| io_error_kind(&e))?;
        let tls = self.tls.as_ref().map(TlsStream::start).transpose()?.map(Box::new);
        let transport = Transport::new(socket, tls);
        let mut connection =
            BlockingConnection { transport, response_reader: ResponseReader::new() };
        connection.shake_hands(&mut self.buffer)?;
        Ok(connection)
    }

    /// Sends the request, without waiting for the response.
    pub(crate) fn send(
        &self,
        connection: &mut BlockingConnection,
    ) -> std::result::Result<(), RequestFailure> {
        let transport = &mut connection.transport;
        let mut sent = 0;
        while sent < self.request.len() {
            let written = transport.write(&self.request[sent..])?;
            // The write timeout of the socket has passed.
            if written == 0 || transport.flush()? {
                return Err(RequestFailure::TimedOut);
            }
            sent += written;
        }
        Ok(())
    }

    /// Receives the response to a request that was sent.
    pub(crate) fn receive(
        &mut self,
        connection: &mut BlockingConnection,
    ) -> std::result::Result<ParsedResponse, RequestFailure> {
        let BlockingConnection { transport, response_reader } = connection;
        loop {
            let mut response = None;
            let (outcome, _) = transport.read(&mut self.buffer, |bytes| {
                let read = response_reader.read_bytes(bytes, &mut self.response_parser);
                let (_, complete) = read.map_err(response_error_kind)?;
                response = response.or(complete);
                Ok(())
            })?;
            match outcome {
                _ if response.is_some() => {}
                ReadOutcome::Ended { .. } => response = response_reader.finish_at_eof(),
                // The read timeout of the socket has passed.
                ReadOutcome::Blocked => return Err(RequestFailure::TimedOut),
                ReadOutcome::Drained | ReadOutcome::Filled => continue,
            }
            return response.ok_or(RequestFailure::ClosedEarly);
        }
    }

    /// Receives up to `limit` bytes of a response, and of TLS around it, if they are there; does not wait. Returns how many
    /// bytes came, and the response that ended with them.
    ///
    /// The connection must be [nonblocking](BlockingConnection::set_nonblocking).
    pub(crate) fn receive_some(
        &mut self,
        connection: &mut BlockingConnection,
        limit: usize,
    ) -> std::result::Result<(usize, Option<ParsedResponse>), RequestFailure> {
        let BlockingConnection { transport, response_reader } = connection;
        let (mut received, mut response) = (0, None);
        while received < limit && response.is_none() {
            // An incomplete record of TLS stands at the beginning of the buffer.
            let kept = transport.tls.as_ref().map_or(0, |tls| tls.incomplete_len());
            let room = (limit - received).min(BUFFER_SIZE - kept.min(BUFFER_SIZE - 1));
            let mut came = 0;
            let (outcome, _) = transport.read(&mut self.buffer[..kept + room], |bytes| {
                came += bytes.len();
                let (_, complete) = response_reader
                    .read_bytes(bytes, &mut self.response_parser)
                    .map_err(response_error_kind)?;
                response = response.or(complete);
                Ok(())
            })?;
            received += came;
            match outcome {
                ReadOutcome::Blocked => break,
                ReadOutcome::Ended { .. } if response.is_none() => {
                    response = response_reader.finish_at_eof();
                    return response
                        .map(|one| (received, Some(one)))
                        .ok_or(RequestFailure::ClosedEarly);
                }
                ReadOutcome::Drained if came == 0 => break,
                _ => {}
            }
        }
        Ok((received, response))
    }

    /// Sends the request and receives its response.
    pub(crate) fn exchange(
        &mut self,
        connection: &mut BlockingConnection,
    ) -> std::result::Result<ParsedResponse, RequestFailure> {
        self.send(connection)?;
        self.receive(connection)
    }
}

impl BlockingConnection {
    fn shake_hands(&mut self, buffer: &mut [u8]) -> std::result::Result<(), RequestFailure> {
        self.transport.flush()?;
        while self.transport.is_handshaking() {
            match self.transport.read(buffer, |_| Ok(()))?.0 {
                ReadOutcome::Blocked => return Err(RequestFailure::HandshakeTimedOut),
                ReadOutcome::Ended { .. } => return Err(RequestFailure::HandshakeRefused),
                ReadOutcome::Drained | ReadOutcome::Filled => {}
            }
            self.transport.flush()?;
        }
        Ok(())
    }

    /// Makes reads and writes return at once.
    pub(crate) fn set_nonblocking(&self) -> std::result::Result<(), RequestFailure> {
        self.transport.socket.set_nonblocking(true).map_err(|e| io_error_kind(&e))
    }

    /// Returns whether the server has neither closed the connection nor sent anything; does not wait.
    pub(crate) fn is_idle(&self) -> bool {
        let watched = [WatchedFd::readable(self.transport.socket.as_fd())];
        poll_fds(&watched, Some(Duration::ZERO)).is_ok_and(|ready| !ready[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::TargetUrl;
    use crate::load_kinds::test_server::TestServer;

    fn client_of(server: &TestServer, path: &str) -> BlockingClient {
        let target = TargetUrl::parse(&format!("{}{path}", server.url())).expect("url");
        let plan = LoadPlan { timeout: Duration::from_millis(500), ..LoadPlan::new(target) };
        BlockingClient::from_plan(&plan).expect("a client")
    }

    #[test]
    fn a_kept_connection_answers_several_requests_and_is_idle_between_them() {
        let server = TestServer::start();
        let mut client = client_of(&server, "/");
        let mut connection = client.connect(Some("127.0.0.7".parse().expect("ip"))).expect("open");
        for _ in 0..3 {
            let response = client.exchange(&mut connection).expect("a response");
            assert_eq!((response.status, response.pid), (200, Some(std::process::id())));
            assert!(connection.is_idle());
        }
    }

    #[test]
    fn a_response_that_does_not_come_times_out() {
        let server = TestServer::start();
        let mut client = client_of(&server, "/never");
        let mut connection = client.connect(None).expect("open");
        assert_eq!(client.exchange(&mut connection), Err(RequestFailure::TimedOut));
    }

    #[test]
    fn a_connection_that_the_server_has_closed_is_not_idle() {
        let server = TestServer::start();
        let mut client = client_of(&server, "/close");
        let mut connection = client.connect(None).expect("open");
        assert_eq!(client.exchange(&mut connection).map(|response| response.status), Ok(200));
        let begun = std::time::Instant::now();
        while connection.is_idle() {
            assert!(begun.elapsed() < Duration::from_secs(10), "still open");
            std::thread::park_timeout(Duration::from_millis(1));
        }
        assert_eq!(client.exchange(&mut connection), Err(RequestFailure::ClosedEarly));
    }
}
