//! Clients that block: one request at a time each, with its time. And connections that are only held.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::fail;
use super::load::{CLOSE, KEEP, response_length};

/// Times that a client keeps at most.
const TIMES: usize = 4_000_000;

/// How requests are sent, each on a connection of its own.
#[derive(Clone, Copy)]
pub struct Plan {
    pub clients: usize,
    /// Requests per second of all together; `None` sends the next when the last is answered.
    pub pace: Option<f64>,
    /// A request that waited for so long has failed.
    pub patience: Duration,
}

/// What clients saw.
#[derive(Default)]
pub struct Seen {
    /// Of each request that was answered, in milliseconds, from when it was due.
    pub times: Vec<f64>,
    pub failed: u64,
    pub refused: u64,
}

/// Clients at work until they are stopped.
pub struct Probes {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Seen>>,
}

impl Probes {
    pub fn start(addr: SocketAddr, plan: Plan) -> Probes {
        let stop = Arc::new(AtomicBool::new(false));
        let interval = plan.pace.map(|pace| Duration::from_secs_f64(plan.clients as f64 / pace));
        let begun = Instant::now();
        let run = |client: usize| {
            let stop = Arc::clone(&stop);
            let first = interval.map(|each| begun + each * client as u32 / plan.clients as u32);
            std::thread::spawn(move || client_of(addr, plan.patience, first.zip(interval), &stop))
        };
        let threads = (0..plan.clients).map(run).collect();
        Probes { stop, threads }
    }

    /// Sends no more, and waits for what is under way.
    pub fn stop(self) -> Seen {
        self.stop.store(true, Relaxed);
        let mut all = Seen::default();
        for thread in self.threads {
            let Ok(seen) = thread.join() else { fail("a client panicked") };
            all.times.extend(seen.times);
            all.failed += seen.failed;
            all.refused += seen.refused;
        }
        all
    }
}

/// One client. `due` is when its first request is, and the time between two.
fn client_of(
    addr: SocketAddr,
    patience: Duration,
    mut due: Option<(Instant, Duration)>,
    stop: &AtomicBool,
) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Relaxed) {
        let mut begun = Instant::now();
        if let Some((next, interval)) = &mut due {
            std::thread::sleep(next.saturating_duration_since(begun));
            begun = *next;
            *next += *interval;
        }
        match ask(addr, patience, begun) {
            Ok(ms) if seen.times.len() < TIMES => seen.times.push(ms),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
                seen.refused += 1;
                // Whoever is not there now is not there at once.
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(_) => seen.failed += 1,
        }
    }
    seen
}

/// One request on a connection of its own: the milliseconds from `begun` until its response was complete.
///
/// # Errors
///
/// It was refused, failed or was not answered for `patience`.
pub fn ask(addr: SocketAddr, patience: Duration, begun: Instant) -> std::io::Result<f64> {
    let mut stream = TcpStream::connect_timeout(&addr, patience)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(CLOSE)?;
    read_response(&mut stream)?;
    let took = begun.elapsed().as_secs_f64() * 1000.0;
    // The server closes first, as in the load generator: its end has the TIME_WAIT.
    let _ = stream.read(&mut [0; 64]);
    Ok(took)
}

/// The body of a response.
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

/// A connection that is kept, and who serves it.
pub struct Held {
    stream: TcpStream,
    pub pid: u32,
}

/// Opens `count` connections, one after the other has its answer, or all before the first answer is read.
///
/// # Errors
///
/// A connection that failed, or was not answered for `patience`.
pub fn hold(
    addr: SocketAddr,
    count: usize,
    burst: bool,
    patience: Duration,
) -> std::io::Result<Vec<Held>> {
    let open = || -> std::io::Result<Held> {
        let mut stream = TcpStream::connect_timeout(&addr, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(KEEP)?;
        Ok(Held { stream, pid: 0 })
    };
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        let mut held = open()?;
        if !burst {
            held.learn()?;
        }
        all.push(held);
    }
    for held in all.iter_mut().filter(|held| held.pid == 0) {
        held.learn()?;
    }
    Ok(all)
}

impl Held {
    fn learn(&mut self) -> std::io::Result<()> {
        let body = String::from_utf8_lossy(&read_response(&mut self.stream)?).into_owned();
        let pid = body.trim().rsplit(' ').next().and_then(|pid| pid.parse().ok());
        self.pid = pid.ok_or_else(|| std::io::Error::other(format!("who answered? {body}")))?;
        Ok(())
    }
}

/// Opens connections that never say a word, at a steady rate, until it is stopped.
pub struct Silent {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Silent {
    /// `rate` a second; each is closed when `most` newer ones are open.
    pub fn start(addr: SocketAddr, rate: f64, most: usize) -> Silent {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut open, mut opened) = (VecDeque::new(), 0);
            let (interval, mut next) = (Duration::from_secs_f64(1.0 / rate), Instant::now());
            while !told.load(Relaxed) {
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
                next += interval;
                if let Ok(socket) = say_nothing(addr) {
                    open.push_back(socket);
                    opened += 1;
                }
                if open.len() > most {
                    open.pop_front();
                }
            }
            opened
        });
        Silent { stop, thread }
    }

    /// How many were opened. All are closed.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap_or_else(|_| fail("the thread with silent clients panicked"))
    }
}

fn say_nothing(addr: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // EINPROGRESS is what it says; whether it gets through is the server's business.
    let _ = socket.connect(&addr.into());
    Ok(socket)
}
