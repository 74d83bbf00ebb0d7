//! The streams of one connection, and what became of each.

use std::future::Future as _;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};

use super::http2_request::Http2Request;
use super::memory_pipe::MemoryPipe;
use crate::load::connection::PendingRequest;
use crate::load::http_response::{
    BODY_PREFIX_LEN, ParsedResponse, ResponseExpectations, parse_body_pid, parse_decimal,
};
use crate::load::request_failure::RequestFailure;

/// Flow-control window of a stream: 1 MiB.
const STREAM_WINDOW: u32 = 1 << 20;
/// Flow-control window of a connection: 16 MiB.
const CONNECTION_WINDOW: u32 = 1 << 24;
/// Largest response head, in bytes.
const MAX_HEADER_LIST_SIZE: u32 = 1 << 20;
/// How a response of HTTP/1.1 begins.
const PLAIN_HTTP_PREFIX: &[u8] = b"HTTP/";

/// A connection, with up to `max_streams` requests in flight.
pub(crate) struct Http2Connection {
    connection: Connection<MemoryPipe, Bytes>,
    sender: SendRequest<Bytes>,
    pub(crate) pipe: MemoryPipe,
    streams: Vec<StreamSlot>,
    free: Vec<usize>,
    woken: Arc<Mutex<Vec<usize>>>,
    /// Kept to save an allocation each time.
    spare: Vec<usize>,
    max_streams: usize,
    /// Whether the server takes no further request, because of GOAWAY.
    is_going_away: bool,
    /// Whether the server has sent anything.
    has_received: bool,
}

/// A place for one stream; used for one after the other.
struct StreamSlot {
    waker: Waker,
    state: StreamState,
    sent: PendingRequest,
    response: ParsedResponse,
    body_prefix: Vec<u8>,
}

enum StreamState {
    Free,
    Head(ResponseFuture),
    Body(RecvStream),
}

/// A stream that has ended.
#[derive(Debug)]
pub(crate) struct StreamEvent {
    pub(crate) sent: PendingRequest,
    pub(crate) outcome: Result<ParsedResponse, StreamFailure>,
}

/// Why a stream has no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamFailure {
    /// The server says that it has not processed the request (RFC 9113, 6.8 and 8.7), which may be sent again.
    Unprocessed,
    Failed(RequestFailure),
}

/// Marks a stream for polling.
struct StreamWaker {
    index: usize,
    woken: Arc<Mutex<Vec<usize>>>,
}

impl Wake for StreamWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
    }
}

impl Http2Connection {
    /// Starts a connection; preface and SETTINGS wait in the pipe.
    pub(crate) fn start(max_streams: usize) -> Result<Http2Connection, RequestFailure> {
        let pipe = MemoryPipe::default();
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADER_LIST_SIZE);
        let handshake = pin!(builder.handshake::<_, Bytes>(pipe.clone()));
        // Ready at once, because the pipe takes all bytes.
        let Poll::Ready(Ok((sender, connection))) =
            handshake.poll(&mut Context::from_waker(Waker::noop()))
        else {
            return Err(RequestFailure::Local);
        };
        Ok(Http2Connection {
            connection,
            sender,
            pipe,
            streams: Vec::new(),
            free: Vec::new(),
            woken: Arc::default(),
            spare: Vec::new(),
            max_streams,
            is_going_away: false,
            has_received: false,
        })
    }

    /// Returns the number of requests in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.streams.len() - self.free.len()
    }

    /// Returns whether the server has announced the end of the connection.
    pub(crate) fn is_going_away(&self) -> bool {
        self.is_going_away
    }

    pub(crate) fn has_received(&self) -> bool {
        self.has_received
    }

    /// Adds bytes from the server.
    ///
    /// # Errors
    /// They are HTTP/1.1.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> Result<(), RequestFailure> {
        if !self.has_received && bytes.starts_with(PLAIN_HTTP_PREFIX) {
            return Err(RequestFailure::NoHttp2);
        }
        self.has_received = true;
        self.pipe.receive(bytes);
        Ok(())
    }

    /// Sends a request; returns `false` if the server allows no further one now.
    pub(crate) fn send(&mut self, request: &Http2Request, sent: PendingRequest) -> bool {
        let allowed = self.max_streams.min(self.connection.max_concurrent_send_streams());
        if self.is_going_away || self.in_flight() >= allowed {
            return false;
        }
        match self.sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => {
                self.is_going_away = true;
                return false;
            }
            Poll::Pending => return false,
        }
        let started = self.sender.send_request(request.head.clone(), request.body.is_none());
        let Ok((response, mut body)) = started else {
            self.is_going_away = true;
            return false;
        };
        if let Some(bytes) = &request.body {
            // An error shows in the response too.
            let _ = body.send_data(bytes.clone(), true);
        }
        let index = self.free.pop().unwrap_or_else(|| self.add_slot());
        let slot = &mut self.streams[index];
        (slot.state, slot.sent) = (StreamState::Head(response), sent);
        slot.waker.wake_by_ref();
        true
    }

    fn add_slot(&mut self) -> usize {
        let index = self.streams.len();
        let waker = Waker::from(Arc::new(StreamWaker { index, woken: self.woken.clone() }));
        self.streams.push(StreamSlot {
            waker,
            state: StreamState::Free,
            sent: PendingRequest::default(),
            response: ParsedResponse::EMPTY,
            body_prefix: Vec::with_capacity(BODY_PREFIX_LEN),
        });
        index
    }

    /// Processes received bytes, and appends the streams that ended to `events`.
    ///
    /// # Errors
    /// The connection has ended.
    pub(crate) fn advance(
        &mut self,
        expectations: &ResponseExpectations,
        events: &mut Vec<StreamEvent>,
    ) -> Result<(), RequestFailure> {
        loop {
            let ended = match Pin::new(&mut self.connection)
                .poll(&mut Context::from_waker(Waker::noop()))
            {
                Poll::Pending => None,
                Poll::Ready(Ok(())) => Some(RequestFailure::ClosedEarly),
                Poll::Ready(Err(error)) => Some(classify_http2_error(&error)),
            };
            let mut woken = std::mem::take(&mut self.spare);
            std::mem::swap(
                &mut woken,
                &mut self.woken.lock().unwrap_or_else(PoisonError::into_inner),
            );
            let is_idle = woken.is_empty();
            for index in woken.drain(..) {
                self.poll_stream(index, expectations, events);
            }
            self.spare = woken;
            match ended {
                Some(why) => return Err(why),
                None if is_idle => return Ok(()),
                None => {}
            }
        }
    }

    /// Reads what has come on a stream.
    fn poll_stream(
        &mut self,
        index: usize,
        expectations: &ResponseExpectations,
        events: &mut Vec<StreamEvent>,
    ) {
        let slot = &mut self.streams[index];
        let mut context = Context::from_waker(&slot.waker);
        let outcome = loop {
            match &mut slot.state {
                StreamState::Free => return,
                StreamState::Head(future) => match Pin::new(future).poll(&mut context) {
                    Poll::Pending => return,
                    Poll::Ready(Ok(response)) => {
                        slot.response = read_head(&response, expectations);
                        slot.body_prefix.clear();
                        slot.state = StreamState::Body(response.into_body());
                    }
                    Poll::Ready(Err(error)) => break Err(classify_stream_error(&error)),
                },
                StreamState::Body(body) => match body.poll_data(&mut context) {
                    Poll::Pending => return,
                    Poll::Ready(Some(Ok(bytes))) => {
                        slot.response.bytes += bytes.len() as u64;
                        let room = BODY_PREFIX_LEN.saturating_sub(slot.body_prefix.len());
                        slot.body_prefix.extend_from_slice(&bytes[..room.min(bytes.len())]);
                        // Fails only for more than was received.
                        let _ = body.flow_control().release_capacity(bytes.len());
                    }
                    Poll::Ready(Some(Err(error))) => break Err(classify_stream_error(&error)),
                    Poll::Ready(None) => {
                        slot.response.pid =
                            slot.response.pid.or_else(|| parse_body_pid(&slot.body_prefix));
                        break Ok(slot.response);
                    }
                },
            }
        };
        slot.state = StreamState::Free;
        self.free.push(index);
        events.push(StreamEvent { sent: slot.sent, outcome });
    }

    /// Resets the streams of all requests that were sent at or before `before`, and returns these requests.
    pub(crate) fn cancel_sent_before(&mut self, before: u64) -> Vec<PendingRequest> {
        let mut canceled = Vec::new();
        for (index, slot) in self.streams.iter_mut().enumerate() {
            let is_free = matches!(slot.state, StreamState::Free);
            if !is_free && slot.sent.sent_at <= before {
                slot.state = StreamState::Free;
                self.free.push(index);
                canceled.push(slot.sent);
            }
        }
        canceled
    }

    /// Returns the requests in flight.
    pub(crate) fn requests_in_flight(&self) -> impl Iterator<Item = PendingRequest> {
        let active = self.streams.iter().filter(|slot| !matches!(slot.state, StreamState::Free));
        active.map(|slot| slot.sent)
    }
}

/// Reads status, pid and size of a head.
fn read_head(
    response: &http::Response<RecvStream>,
    expectations: &ResponseExpectations,
) -> ParsedResponse {
    let named = expectations.pid_header.as_deref().and_then(|name| response.headers().get(name));
    let pid = named.and_then(|value| parse_decimal(value.as_bytes()));
    let fields = response.headers().iter();
    let bytes = fields.map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
    ParsedResponse {
        status: response.status().as_u16(),
        pid: pid.and_then(|pid| u32::try_from(pid).ok()),
        bytes: bytes as u64,
        ..ParsedResponse::EMPTY
    }
}

fn classify_stream_error(error: &h2::Error) -> StreamFailure {
    let is_unprocessed =
        error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM));
    match is_unprocessed {
        true => StreamFailure::Unprocessed,
        false => StreamFailure::Failed(classify_http2_error(error)),
    }
}

fn classify_http2_error(error: &h2::Error) -> RequestFailure {
    match () {
        () if error.is_io() => RequestFailure::ClosedEarly,
        () if error.is_reset() && error.is_remote() => RequestFailure::StreamReset,
        () if error.is_go_away() && error.is_remote() => RequestFailure::ClosedEarly,
        () => RequestFailure::Malformed,
    }
}

#[cfg(test)]
#[path = "http2_connection_tests.rs"]
mod tests;
