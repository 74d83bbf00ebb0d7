//! One thread of WebSocket clients, on one epoll instance.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tungstenite::{Error, Message};

use super::EchoCounters;
use super::echo_connection::EchoConnection;
use crate::load::LoadPlan;
use crate::load::counters::record_latency;

/// Longest wait for events.
const EPOLL_TIMEOUT_MS: u8 = 20;

/// When messages are sent and counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct EchoWindow {
    /// Messages count that are sent and have come back after this time,
    pub(super) measure_from: Instant,
    /// and before this one. No message is sent after it.
    pub(super) measure_until: Instant,
    /// How long the last messages are waited for.
    pub(super) timeout: Duration,
}

impl EchoWindow {
    /// Returns the length of the measurement.
    pub(super) fn duration(&self) -> Duration {
        self.measure_until - self.measure_from
    }

    pub(super) fn begin_now(load: &LoadPlan) -> EchoWindow {
        let measure_from = Instant::now() + load.warm_up;
        let measure_until = measure_from + load.duration;
        EchoWindow { measure_from, measure_until, timeout: load.timeout }
    }
}

/// Connections, and when each has sent the message that it waits for.
pub(super) struct EchoThread<'a> {
    connections: Vec<Option<WaitingConnection>>,
    message: Bytes,
    window: &'a EchoWindow,
    is_over: &'a AtomicBool,
    counters: EchoCounters,
}

struct WaitingConnection {
    socket: EchoConnection,
    /// `None` if no message is in flight.
    sent_at: Option<Instant>,
}

impl<'a> EchoThread<'a> {
    pub(super) fn new(
        connections: Vec<EchoConnection>,
        message_size: usize,
        window: &'a EchoWindow,
        is_over: &'a AtomicBool,
    ) -> EchoThread<'a> {
        // Bytes that differ, so that a part of a message is not taken for another.
        let message: Vec<u8> = (0..message_size).map(|at| (at % 251) as u8).collect();
        EchoThread {
            connections: connections
                .into_iter()
                .map(|socket| Some(WaitingConnection { socket, sent_at: None }))
                .collect(),
            message: message.into(),
            window,
            is_over,
            counters: EchoCounters::new(),
        }
    }

    /// Sends messages until the end of the measurement, and waits for the last ones.
    pub(super) fn run(mut self) -> io::Result<EchoCounters> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let interest = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        for (at, connection) in self.connections.iter().flatten().enumerate() {
            epoll.add(connection.socket.get_ref(), EpollEvent::new(interest, at as u64))?;
        }
        let mut events = [EpollEvent::empty(); 256];
        for at in 0..self.connections.len() {
            self.advance(at, Self::send);
        }
        while !self.is_over.load(Relaxed) && !self.is_complete() {
            let ready = match epoll.wait(&mut events, EpollTimeout::from(EPOLL_TIMEOUT_MS)) {
                Err(nix::errno::Errno::EINTR) => 0,
                ready => ready?,
            };
            for event in &events[..ready] {
                self.advance(event.data() as usize, Self::receive);
            }
        }
        // Messages in flight have had no time if the measurement was stopped.
        let is_stopped = self.is_over.load(Relaxed);
        for connection in self.connections.iter().flatten() {
            if connection.sent_at.is_some() && !is_stopped {
                self.counters.record_failure("a message did not come back in time".to_string());
            }
        }
        Ok(self.counters)
    }

    /// Returns whether no message is in flight after the end, or the last ones have been waited for long enough.
    fn is_complete(&self) -> bool {
        let now = Instant::now();
        let waits =
            || self.connections.iter().flatten().any(|connection| connection.sent_at.is_some());
        now >= self.window.measure_until + self.window.timeout
            || (now >= self.window.measure_until && !waits())
            || self.connections.iter().all(Option::is_none)
    }

    /// Does `step` with a connection, and closes the connection if it fails.
    fn advance(
        &mut self,
        at: usize,
        step: fn(&mut EchoThread<'a>, &mut WaitingConnection) -> Result<(), Error>,
    ) {
        let Some(mut connection) = self.connections[at].take() else { return };
        match step(self, &mut connection) {
            Ok(()) => self.connections[at] = Some(connection),
            Err(why) => self.counters.record_failure(why.to_string()),
        }
    }

    /// Sends a message, unless the measurement is over.
    fn send(&mut self, connection: &mut WaitingConnection) -> Result<(), Error> {
        let now = Instant::now();
        if now >= self.window.measure_until {
            return Ok(());
        }
        connection.sent_at = Some(now);
        ignore_would_block(connection.socket.send(Message::Binary(self.message.clone())))
    }

    /// Writes what waits for the socket, and reads all messages that have come.
    fn receive(&mut self, connection: &mut WaitingConnection) -> Result<(), Error> {
        ignore_would_block(connection.socket.flush())?;
        loop {
            match connection.socket.read() {
                Ok(Message::Binary(echo)) => self.record_echo(connection, &echo)?,
                // tungstenite answers pings and a close frame; what follows a close frame is an error.
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(Message::Close(frame)) => {
                    let code =
                        frame.map_or("without a code".to_string(), |frame| frame.to_string());
                    return Err(io::Error::other(format!("closed by the server: {code}")).into());
                }
                Ok(_) => {
                    return Err(io::Error::other("the server sent another kind of message").into());
                }
                Err(Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(Error::Io(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Err(why),
            }
        }
    }

    fn record_echo(
        &mut self,
        connection: &mut WaitingConnection,
        echo: &[u8],
    ) -> Result<(), Error> {
        let Some(sent_at) = connection.sent_at.take().filter(|_| echo == self.message) else {
            return Err(
                io::Error::other("the server sent another message than it had received").into()
            );
        };
        let now = Instant::now();
        if sent_at >= self.window.measure_from && now < self.window.measure_until {
            record_latency(&mut self.counters.latency, (now - sent_at).as_nanos() as u64);
        }
        self.send(connection)
    }
}

/// Ignores that a socket is full: epoll reports when it has room.
fn ignore_would_block(written: Result<(), Error>) -> Result<(), Error> {
    match written {
        Err(Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
        other => other,
    }
}
