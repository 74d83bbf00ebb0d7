//! A load generator on epoll with a few threads.
//!
//! It keeps `depth` requests in flight on each connection, and parses only the first response of a connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::fail;

pub const KEEP_ALIVE_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
pub const CLOSE_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";

/// Wait above which a response counts as late.
const LATE_RESPONSE_THRESHOLD: Duration = Duration::from_secs(1);
/// Wait above which a request counts as failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The kind of load.
#[derive(Clone, Copy)]
pub struct Plan {
    pub connections: usize,
    pub threads: usize,
    /// Requests in flight on each connection.
    pub depth: usize,
    /// Whether each request has a connection of its own.
    pub close: bool,
    /// Whether the first request is sent a moment after connecting, as over a network, where the server may accept
    /// before data arrives.
    pub delays_request: bool,
}

/// Counts of the outcomes of all requests until now.
#[derive(Default)]
pub struct Counts {
    /// Responses with status 200, complete.
    pub answered: AtomicU64,
    /// Requests whose connection ended before their response was complete.
    pub failed: AtomicU64,
    /// Connections that were refused.
    pub refused: AtomicU64,
    /// Requests that waited longer than [`LATE_RESPONSE_THRESHOLD`], answered or not.
    pub late: AtomicU64,
    /// The longest wait of a request, in microseconds.
    pub worst_us: AtomicU64,
    stop: AtomicBool,
}

/// A load that runs until it is stopped.
pub struct Load {
    pub counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(addr: SocketAddr, plan: Plan) -> Load {
        let counts = Arc::new(Counts::default());
        let run = |thread: usize| {
            let counts = Arc::clone(&counts);
            let share = (plan.connections + plan.threads - 1 - thread) / plan.threads;
            std::thread::spawn(move || Client::new(addr, plan, share, &counts).run())
        };
        let threads = (0..plan.threads).map(run).collect();
        Load { counts, threads }
    }

    pub fn answered(&self) -> u64 {
        self.counts.answered.load(Relaxed)
    }

    /// Stops the load, and returns answered, failed and refused requests, without those in flight.
    pub fn stop(self) -> (u64, u64, u64) {
        self.counts.stop.store(true, Relaxed);
        for thread in self.threads {
            if thread.join().is_err() {
                fail("a thread of the load generator panicked");
            }
        }
        let counts = &self.counts;
        (counts.answered.load(Relaxed), counts.failed.load(Relaxed), counts.refused.load(Relaxed))
    }
}

/// The connections of one thread.
struct Client<'a> {
    addr: SocketAddr,
    plan: Plan,
    counts: &'a Counts,
    epoll: Epoll,
    conns: Vec<Option<Connection>>,
    /// `depth` requests in a row.
    request: Vec<u8>,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// When it connected or last sent a request.
    sent: Instant,
    /// Whether the first request is still to be sent.
    mute: bool,
    /// Requests in flight.
    waiting: usize,
    /// Bytes received of the current response.
    have: usize,
    /// Length of a response, by the first one: all responses on a connection have the same length.
    length: usize,
    /// Bytes of the first response.
    first: Vec<u8>,
}

/// State of a connection after a read.
enum AfterRead {
    Open,
    Over,
    Broken,
}

impl<'a> Client<'a> {
    fn new(addr: SocketAddr, plan: Plan, share: usize, counts: &'a Counts) -> Client<'a> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .unwrap_or_else(|e| fail(format_args!("epoll: {e}")));
        let request =
            if plan.close { CLOSE_REQUEST.to_vec() } else { KEEP_ALIVE_REQUEST.repeat(plan.depth) };
        let conns = (0..share).map(|_| None).collect();
        Client { addr, plan, counts, epoll, conns, request, buffer: vec![0; 64 * 1024] }
    }

    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 64];
        let tick = EpollTimeout::from(20u8);
        let mut looked = Instant::now();
        while !self.counts.stop.load(Relaxed) {
            for key in 0..self.conns.len() {
                if self.conns[key].is_none() {
                    self.connect(key);
                }
            }
            let ready = self.epoll.wait(&mut events, tick).unwrap_or(0);
            for event in &events[..ready] {
                self.read_and_send(event.data() as usize);
            }
            if looked.elapsed() > LATE_RESPONSE_THRESHOLD {
                looked = Instant::now();
                self.fail_overdue(REQUEST_TIMEOUT);
            }
        }
        // A request in flight counts with the time that it has waited until now.
        self.conns.iter().flatten().for_each(|conn| self.record_wait(conn.sent.elapsed()));
    }

    /// Returns the connections that have waited for longer than `limit`.
    fn connections_waiting_longer_than(&self, limit: Duration) -> impl Iterator<Item = usize> {
        let conns = self.conns.iter().enumerate();
        conns.filter_map(move |(key, conn)| (conn.as_ref()?.sent.elapsed() > limit).then_some(key))
    }

    fn fail_overdue(&mut self, limit: Duration) {
        for key in self.connections_waiting_longer_than(limit).collect::<Vec<_>>() {
            if let Some(conn) = self.conns[key].take() {
                self.counts.failed.fetch_add(conn.waiting as u64, Relaxed);
                self.record_wait(conn.sent.elapsed());
            }
        }
    }

    fn record_wait(&self, waited: Duration) {
        self.counts.worst_us.fetch_max(waited.as_micros() as u64, Relaxed);
        self.counts.late.fetch_add(u64::from(waited > LATE_RESPONSE_THRESHOLD), Relaxed);
    }

    fn connect(&mut self, key: usize) {
        let sent = Instant::now();
        let connect = || -> std::io::Result<TcpStream> {
            let mut stream = TcpStream::connect(self.addr)?;
            stream.set_nodelay(true)?;
            let mut interest = EpollFlags::EPOLLOUT;
            if !self.plan.delays_request {
                // The empty socket buffer takes the whole request at once.
                stream.write_all(&self.request)?;
                interest = EpollFlags::EPOLLIN;
            }
            stream.set_nonblocking(true)?;
            self.epoll.add(&stream, EpollEvent::new(interest, key as u64))?;
            Ok(stream)
        };
        match connect() {
            Ok(stream) => {
                let waiting = if self.plan.close { 1 } else { self.plan.depth };
                let (have, length, first) = (0, 0, Vec::new());
                self.conns[key] = Some(Connection {
                    stream,
                    sent,
                    mute: self.plan.delays_request,
                    waiting,
                    have,
                    length,
                    first,
                });
            }
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
                self.counts.refused.fetch_add(1, Relaxed);
            }
            Err(_) => {
                self.counts.failed.fetch_add(1, Relaxed);
            }
        }
    }

    /// Reads from a connection, and sends a request for each complete response.
    fn read_and_send(&mut self, key: usize) {
        let Some(conn) = &mut self.conns[key] else { return };
        if std::mem::take(&mut conn.mute) {
            let mut readable = EpollEvent::new(EpollFlags::EPOLLIN, key as u64);
            if self.epoll.modify(&conn.stream, &mut readable).is_ok()
                && conn.stream.write_all(&self.request).is_ok()
            {
                return;
            }
            // The read reports the error.
        }
        let (answered, after) = conn.read(&mut self.buffer, self.plan.close);
        self.counts.answered.fetch_add(answered as u64, Relaxed);
        conn.waiting -= answered.min(conn.waiting);
        let mut over = !matches!(after, AfterRead::Open);
        let sent = conn.sent;
        if !over && answered > 0 && !self.plan.close {
            over = conn
                .stream
                .write_all(&self.request[..answered * KEEP_ALIVE_REQUEST.len()])
                .is_err();
            conn.waiting += answered;
            conn.sent = Instant::now();
        }
        if over {
            self.counts.failed.fetch_add(conn.waiting as u64, Relaxed);
            // Closing the socket removes it from epoll.
            self.conns[key] = None;
        }
        if over || answered > 0 {
            self.record_wait(sent.elapsed());
        }
    }
}

impl Connection {
    /// Returns how many responses were completed, and the state of the connection.
    fn read(&mut self, buffer: &mut [u8], until_end: bool) -> (usize, AfterRead) {
        let n = match self.stream.read(buffer) {
            Ok(0) if until_end && is_complete(&self.first) => return (1, AfterRead::Over),
            Ok(0) => return (0, AfterRead::Broken),
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return (0, AfterRead::Open);
            }
            Err(_) => return (0, AfterRead::Broken),
        };
        if until_end {
            self.first.extend_from_slice(&buffer[..n]);
            return (0, AfterRead::Open);
        }
        // Any other response has another length, so check where a response begins.
        if self.have == 0 && n >= 12 && self.length > 0 && !is_ok(buffer) {
            fail("the server did not answer with 200");
        }
        if self.length == 0 {
            self.first.extend_from_slice(&buffer[..n]);
            let Some(length) = response_length(&self.first) else { return (0, AfterRead::Open) };
            self.length = length;
            self.have = self.first.len();
        } else {
            self.have += n;
        }
        let complete = self.have / self.length;
        self.have %= self.length;
        (complete, AfterRead::Open)
    }
}

pub fn is_ok(response: &[u8]) -> bool {
    response.starts_with(b"HTTP/1.1 200")
}

fn is_complete(response: &[u8]) -> bool {
    response_length(response) == Some(response.len())
}

/// Returns the length of head and body, once the head is complete.
pub fn response_length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    if !is_ok(bytes) {
        fail(format_args!("unexpected answer: {}", String::from_utf8_lossy(&bytes[..head])));
    }
    let text = std::str::from_utf8(&bytes[..head]).ok()?.to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"))?;
    Some(head + length.trim().parse::<usize>().ok()?)
}
