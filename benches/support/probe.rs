//! Blocking clients that measure each request, and connections that are only kept open.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::fail;
use super::load::{CLOSE_REQUEST, KEEP_ALIVE_REQUEST, response_length};

/// Maximum number of times that a client records.
const MAX_TIMES: usize = 4_000_000;

/// How requests are sent, each on a new connection.
#[derive(Clone, Copy)]
pub struct Plan {
    pub clients: usize,
    /// Requests per second of all clients; `None` sends the next request after the response.
    pub pace: Option<f64>,
    /// Wait above which a request counts as failed.
    pub timeout: Duration,
}

/// Results of all clients.
#[derive(Default)]
pub struct ProbeResults {
    /// Milliseconds of each answered request, from when it was due.
    pub times: Vec<f64>,
    pub failed: u64,
    pub refused: u64,
}

/// Clients that run until they are stopped.
pub struct Probes {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<ProbeResults>>,
}

impl Probes {
    pub fn start(addr: SocketAddr, plan: Plan) -> Probes {
        let stop = Arc::new(AtomicBool::new(false));
        let interval = plan.pace.map(|pace| Duration::from_secs_f64(plan.clients as f64 / pace));
        let begun = Instant::now();
        let run = |client: usize| {
            let stop = Arc::clone(&stop);
            let first = interval.map(|each| begun + each * client as u32 / plan.clients as u32);
            std::thread::spawn(move || run_client(addr, plan.timeout, first.zip(interval), &stop))
        };
        let threads = (0..plan.clients).map(run).collect();
        Probes { stop, threads }
    }

    /// Stops sending, waits for requests in flight, and returns the results.
    pub fn stop(self) -> ProbeResults {
        self.stop.store(true, Relaxed);
        let mut all = ProbeResults::default();
        for thread in self.threads {
            let Ok(seen) = thread.join() else { fail("a client panicked") };
            all.times.extend(seen.times);
            all.failed += seen.failed;
            all.refused += seen.refused;
        }
        all
    }
}

/// Runs one client; `due` is the time of its first request and the interval.
fn run_client(
    addr: SocketAddr,
    timeout: Duration,
    mut due: Option<(Instant, Duration)>,
    stop: &AtomicBool,
) -> ProbeResults {
    let mut seen = ProbeResults::default();
    while !stop.load(Relaxed) {
        let mut begun = Instant::now();
        if let Some((next, interval)) = &mut due {
            std::thread::sleep(next.saturating_duration_since(begun));
            begun = *next;
            *next += *interval;
        }
        match timed_request(addr, timeout, begun) {
            Ok(ms) if seen.times.len() < MAX_TIMES => seen.times.push(ms),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
                seen.refused += 1;
                // A request that is late already is sent at once.
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(_) => seen.failed += 1,
        }
    }
    seen
}

/// Sends a request on a new connection, and returns the milliseconds from `begun` to the complete response.
///
/// # Errors
///
/// The connection was refused, failed or timed out.
pub fn timed_request(addr: SocketAddr, timeout: Duration, begun: Instant) -> std::io::Result<f64> {
    let mut stream = TcpStream::connect_timeout(&addr, timeout)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(CLOSE_REQUEST)?;
    read_response(&mut stream)?;
    let took = begun.elapsed().as_secs_f64() * 1000.0;
    // The server closes first, so the TIME_WAIT is on its side.
    let _ = stream.read(&mut [0; 64]);
    Ok(took)
}

/// Reads a response, and returns its body.
fn read_response(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let (mut response, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        response.extend_from_slice(&buffer[..n]);
        if response_length(&response).is_some_and(|length| length <= response.len()) {
            let head = response.windows(4).position(|window| window == b"\r\n\r\n");
            return Ok(response.split_off(head.unwrap_or(0) + 4));
        }
    }
}

/// A kept connection and the pid of the worker that serves it.
pub struct KeptConnection {
    stream: TcpStream,
    pub pid: u32,
}

/// Opens `count` connections, each after the response to the previous one, or all before the first response.
///
/// # Errors
///
/// A connection failed or timed out.
pub fn open_kept_connections(
    addr: SocketAddr,
    count: usize,
    burst: bool,
    timeout: Duration,
) -> std::io::Result<Vec<KeptConnection>> {
    let open = || -> std::io::Result<KeptConnection> {
        let mut stream = TcpStream::connect_timeout(&addr, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.write_all(KEEP_ALIVE_REQUEST)?;
        Ok(KeptConnection { stream, pid: 0 })
    };
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        let mut held = open()?;
        if !burst {
            held.read_pid()?;
        }
        all.push(held);
    }
    for held in all.iter_mut().filter(|held| held.pid == 0) {
        held.read_pid()?;
    }
    Ok(all)
}

impl KeptConnection {
    fn read_pid(&mut self) -> std::io::Result<()> {
        let body = String::from_utf8_lossy(&read_response(&mut self.stream)?).into_owned();
        let pid = body.trim().rsplit(' ').next().and_then(|pid| pid.parse().ok());
        self.pid = pid.ok_or_else(|| std::io::Error::other(format!("no pid in {body}")))?;
        Ok(())
    }
}

/// Opens silent connections at a steady rate until it is stopped.
pub struct SilentConnections {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl SilentConnections {
    /// Opens `rate` connections per second, of which the newest `max_open` stay open.
    pub fn start(addr: SocketAddr, rate: f64, max_open: usize) -> SilentConnections {
        let stop = Arc::new(AtomicBool::new(false));
        let stop_flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut open, mut opened) = (VecDeque::new(), 0);
            let (interval, mut next) = (Duration::from_secs_f64(1.0 / rate), Instant::now());
            while !stop_flag.load(Relaxed) {
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
                next += interval;
                if let Ok(socket) = connect_silently(addr) {
                    open.push_back(socket);
                    opened += 1;
                }
                if open.len() > max_open {
                    open.pop_front();
                }
            }
            opened
        });
        SilentConnections { stop, thread }
    }

    /// Closes all connections, and returns how many were opened.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap_or_else(|_| fail("the thread with silent clients panicked"))
    }
}

fn connect_silently(addr: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // The connect is non-blocking: EINPROGRESS is expected.
    let _ = socket.connect(&addr.into());
    Ok(socket)
}
