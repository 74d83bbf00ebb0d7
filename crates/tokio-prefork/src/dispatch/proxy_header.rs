//! Reads the header of the PROXY protocol from a new connection, before the application gets it.
//!
//! A header that has arrived with the first bytes costs no further system call. For one that arrives in pieces, a task reads
//! on; `header-timeout` limits that, too. Of protocols other than HTTP no byte behind the header is read, so that the
//! application can have the bare socket.
//!
//! A connection that is refused is closed without an answer: its sender is a load balancer that is set up wrongly, or
//! somebody who pretends to be one. One that is closed before its first byte is a health check, and no error.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::{Buf, BytesMut};
use tokio::io::AsyncReadExt;

use super::first_byte::AcceptedConnection;
use crate::client::{ExpectedProxyHeader, HeaderProgress, ProxiedClient};
use crate::scoreboard::RequestRecorder;
use crate::worker::connection_registry::ConnectionEntry;
use crate::worker::http::connection_state::{CloseRequest, ConnectionPhase};
use crate::worker::lazy_stream::LazyStream;
use crate::worker::local_state::LocalWorkerState;

/// How many bytes to read at once, at most.
const READ_SIZE: usize = 4096;

/// What to do with a connection by its first bytes.
enum Verdict {
    /// Read on: at least this number of bytes of the header is missing.
    ReadOn(usize),
    /// Serve it. `length` is that of the header in bytes, 0 without one.
    Serve { length: usize, client: Option<ProxiedClient> },
    /// Close it for this reason.
    Refuse(&'static str),
}

/// Passes `accepted` to `handle` once its header has been read. If `is_http`, `accepted.first` may have bytes already and
/// gets what follows the header; otherwise nothing is read beyond the header.
pub(super) fn serve_after_header(
    state: &Rc<LocalWorkerState>,
    handle: &Rc<dyn Fn(AcceptedConnection)>,
    expected: ExpectedProxyHeader,
    accepted: AcceptedConnection,
    is_http: bool,
) {
    let verdict = if is_http { judge(expected, &accepted.first) } else { Verdict::ReadOn(1) };
    if !matches!(verdict, Verdict::ReadOn(_)) {
        return conclude(state, &**handle, accepted, &verdict);
    }
    let (state, handle) = (Rc::clone(state), Rc::clone(handle));
    tokio::task::spawn_local(async move {
        let mut accepted = accepted;
        if let Some(verdict) = read_header(&state, expected, &mut accepted, is_http).await {
            conclude(&state, &*handle, accepted, &verdict);
        }
    });
}

/// Judges a connection by its first bytes.
fn judge(expected: ExpectedProxyHeader, first: &[u8]) -> Verdict {
    let ExpectedProxyHeader { protocol, is_trusted } = expected;
    // Neither waits for the rest of such a header, nor parses it.
    if !is_trusted && crate::client::is_proxy_header(first) {
        return Verdict::Refuse("its sender is none of trusted-proxies");
    }
    match crate::client::parse_proxy_header(first, expected.accepted_versions()) {
        HeaderProgress::Incomplete { missing } => Verdict::ReadOn(missing),
        HeaderProgress::Absent if expected.is_required() => {
            Verdict::Refuse("its first bytes are not one")
        }
        HeaderProgress::Absent => Verdict::Serve { length: 0, client: None },
        HeaderProgress::Invalid(reason) => Verdict::Refuse(reason),
        HeaderProgress::Complete { length, client } => {
            debug_assert!(protocol.is_on());
            Verdict::Serve { length, client: Some(client) }
        }
    }
}

/// Serves or closes the connection.
fn conclude(
    state: &LocalWorkerState,
    handle: &dyn Fn(AcceptedConnection),
    mut accepted: AcceptedConnection,
    verdict: &Verdict,
) {
    match verdict {
        Verdict::ReadOn(_) => {}
        Verdict::Refuse(reason) => refuse(state, &accepted, reason),
        Verdict::Serve { length, client } => {
            state.worker_page.byte_meter().add_bytes_in(*length);
            accepted.first.advance(*length);
            if let Some(client) = client {
                accepted.info = accepted.info.map(|info| info.with_proxied_client(*client));
                if accepted.first.is_empty() {
                    // Nothing of a request has arrived yet.
                    accepted.entry.conn.set_phase(ConnectionPhase::New, state.now_ms());
                }
            }
            handle(accepted);
        }
    }
}

fn refuse(state: &LocalWorkerState, accepted: &AcceptedConnection, reason: &str) {
    state.worker_page.proxy_header_refused();
    let peer = accepted.info.as_ref().map(|info| info.peer().to_string()).unwrap_or_default();
    log::debug!("{} closed a connection for its PROXY header: {reason} peer={peer}", state.tag);
}

/// What a read has come to.
enum ReadStep {
    /// There are more bytes.
    More,
    /// The client has closed its side.
    End,
    /// The next bytes, which are left unread, decide.
    Decided(Verdict),
}

/// Reads until the header is complete. Returns `None` if the connection ends before its first byte.
async fn read_header(
    state: &LocalWorkerState,
    expected: ExpectedProxyHeader,
    accepted: &mut AcceptedConnection,
    is_http: bool,
) -> Option<Verdict> {
    let mut first = BytesMut::from(std::mem::take(&mut accepted.first));
    let verdict = loop {
        let missing = match judge(expected, &first) {
            Verdict::ReadOn(missing) => missing,
            verdict => break verdict,
        };
        let stream = &mut accepted.stream;
        let step = match is_http {
            true => {
                read_before_close(&accepted.entry, read_some(stream, &mut first, missing)).await
            }
            false => {
                let read = read_of_header(stream, &mut first, expected);
                read_before_close(&accepted.entry, read).await
            }
        };
        match step {
            Ok(ReadStep::More) => accepted.entry.conn.record_received(state.now_ms()),
            Ok(ReadStep::Decided(verdict)) => break verdict,
            Ok(ReadStep::End) | Err(_) if first.is_empty() => return None,
            Ok(ReadStep::End) | Err(_) if expected.is_required() => {
                break Verdict::Refuse("it has not arrived completely");
            }
            // The next read finds the end, or the error, again.
            Ok(ReadStep::End) | Err(_) => break Verdict::Serve { length: 0, client: None },
        }
    };
    accepted.first = first.freeze();
    Some(verdict)
}

/// Waits for `read`, or until the worker wants the connection closed.
async fn read_before_close(
    entry: &ConnectionEntry,
    read: impl Future<Output = io::Result<ReadStep>>,
) -> io::Result<ReadStep> {
    let mut read = pin!(read);
    poll_fn(|cx| {
        entry.register_waker(cx.waker());
        match read.as_mut().poll(cx) {
            Poll::Pending if entry.conn.close_request() != CloseRequest::None => {
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            polled => polled,
        }
    })
    .await
}

/// Reads what there is.
async fn read_some(
    stream: &mut LazyStream,
    first: &mut BytesMut,
    missing: usize,
) -> io::Result<ReadStep> {
    first.reserve(missing.clamp(512, READ_SIZE));
    match stream.read_buf(first).await? {
        0 => Ok(ReadStep::End),
        _ => Ok(ReadStep::More),
    }
}

/// Reads bytes of the header, and none behind it.
async fn read_of_header(
    stream: &mut LazyStream,
    first: &mut BytesMut,
    expected: ExpectedProxyHeader,
) -> io::Result<ReadStep> {
    stream.readable().await?;
    let known = first.len();
    first.resize(known + READ_SIZE, 0);
    let peeked = prefork_os::socket::peek_nonblocking(stream.socket_fd()?, &mut first[known..]);
    first.truncate(known + peeked.as_ref().copied().unwrap_or(0));
    let verdict = judge(expected, first);
    let wanted = match verdict {
        // The end of the stream, or readiness that is out of date: a read tells, and waits if it has to.
        _ if first.len() == known => 1,
        Verdict::ReadOn(_) => first.len() - known,
        Verdict::Serve { length, client: Some(_) } => length - known,
        Verdict::Serve { .. } | Verdict::Refuse(_) => {
            first.truncate(known);
            return Ok(ReadStep::Decided(verdict));
        }
    };
    first.truncate(known);
    match (&mut *stream).take(wanted as u64).read_buf(first).await? {
        0 => Ok(ReadStep::End),
        _ => Ok(ReadStep::More),
    }
}
