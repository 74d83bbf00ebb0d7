//! A server in a process of its own, and figures of `/proc` about it and its children.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{cleanup, fail, probe};

/// How long a server may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A running server, which is stopped when dropped.
pub struct Server {
    child: Child,
    pub addr: SocketAddr,
}

/// A line of a server's log with the time when it was read.
pub type TimedLine = (Instant, String);

/// CPU time in microseconds.
#[derive(Clone, Copy, Default)]
pub struct Cpu {
    /// Exact CPU time, by the scheduler.
    pub total: f64,
    /// CPU time in user mode and in the kernel, in steps of 10 ms: only their ratio is useful.
    pub user: f64,
    pub system: f64,
}

impl Server {
    /// Starts a server that logs its address to standard error, and waits until it answers. Each line of the log is
    /// passed to `on_line`, in a thread.
    pub fn start(command: &mut Command, on_line: impl FnMut(TimedLine) + Send + 'static) -> Server {
        Server::try_start(command, on_line).unwrap_or_else(|why| fail(why))
    }

    /// Like [`Server::start`], for a server that may fail to start.
    ///
    /// # Errors
    ///
    /// The server does not start; with the last line of its log.
    pub fn try_start(
        command: &mut Command,
        mut on_line: impl FnMut(TimedLine) + Send + 'static,
    ) -> Result<Server, String> {
        let (sender, lines) = channel();
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut server = Server::spawn(command, nowhere, move |line| {
            let _ = sender.send(line.1.clone());
            on_line(line);
        })?;
        server.addr = wait_for_address(&lines)?;
        server.wait_until_server_answers()?;
        Ok(server)
    }

    fn wait_until_server_answers(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        while probe::timed_request(self.addr, START_TIMEOUT, Instant::now()).is_err() {
            if !matches!(self.child.try_wait(), Ok(None)) || begun.elapsed() > START_TIMEOUT {
                return Err(format!("it does not answer on {}", self.addr));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Starts a server that listens on `addr` without a log, and waits until it accepts connections.
    ///
    /// # Errors
    ///
    /// The server does not start.
    pub fn start_at(command: &mut Command, addr: SocketAddr) -> Result<Server, String> {
        let mut server = Server::spawn(command, addr, |(_, line)| eprintln!("bench: {line}"))?;
        let begun = Instant::now();
        while TcpStream::connect_timeout(&addr, START_TIMEOUT).is_err() {
            if !matches!(server.child.try_wait(), Ok(None)) || begun.elapsed() > START_TIMEOUT {
                return Err(format!("it does not listen on {addr}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    fn spawn(
        command: &mut Command,
        addr: SocketAddr,
        on_line: impl FnMut(TimedLine) + Send + 'static,
    ) -> Result<Server, String> {
        let spawned = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|e| format!("cannot start it: {e}"))?;
        cleanup::register_server(child.id());
        let log = child.stderr.take();
        let server = Server { child, addr };
        let log = log.ok_or("the server has no stderr")?;
        let mut on_line = on_line;
        std::thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                on_line((Instant::now(), line));
            }
        });
        Ok(server)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the pids of the serving processes: the children, or the process itself if it has none.
    pub fn workers(&self) -> Vec<u32> {
        let workers = children(self.pid());
        if workers.is_empty() { vec![self.pid()] } else { workers }
    }

    /// Waits until there are `count` workers.
    ///
    /// # Errors
    ///
    /// There are not that many within 10 s.
    pub fn wait_for_workers(&self, count: usize) -> Result<(), String> {
        let begun = Instant::now();
        while children(self.pid()).len() != count {
            if begun.elapsed() > START_TIMEOUT {
                return Err(format!("it has not {count} workers after {START_TIMEOUT:?}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Returns the CPU time of the process, its children and all their threads in microseconds.
    pub fn cpu_us(&self) -> f64 {
        self.tree().map(cpu_ns).sum::<u64>() as f64 / 1000.0
    }

    /// Returns the CPU time of the process, its children and all their threads.
    pub fn cpu(&self) -> Cpu {
        let mut sum = Cpu { total: self.cpu_us(), ..Cpu::default() };
        for pid in self.tree() {
            // Fields 14 and 15; the first field after the name is the third.
            let field = |n: usize| stat(pid, n - 3).unwrap_or(0) as f64 * 10_000.0;
            sum.user += field(14);
            sum.system += field(15);
        }
        sum
    }

    /// Sums the voluntary context switches of the process, its children and all their threads.
    pub fn voluntary_switches(&self) -> u64 {
        self.tree().map(voluntary_switches).sum()
    }

    /// Sends a signal to the first process.
    pub fn signal(&self, signal: Signal) {
        // The process has not been reaped, so the pid is its own.
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    fn tree(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.pid()).chain(children(self.pid()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
        // Peers end when their standard input is closed.
        drop(self.child.stdin.take());
        let options = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if options.elapsed() > STOP_TIMEOUT {
                let workers = children(self.pid());
                let _ = self.child.kill();
                for pid in workers {
                    let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        cleanup::unregister_server(self.pid());
    }
}

/// Waits for a line of the log with an address of this machine.
fn wait_for_address(lines: &Receiver<String>) -> Result<SocketAddr, String> {
    let (begun, mut last) = (Instant::now(), String::new());
    loop {
        let left = START_TIMEOUT.saturating_sub(begun.elapsed());
        match lines.recv_timeout(left) {
            Ok(line) => match address_in(&line) {
                Some(addr) => return Ok(addr),
                None => last = line,
            },
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("not ready within {START_TIMEOUT:?}; its last line: {last}"));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(format!("it ended; its last line: {last}"));
            }
        }
    }
}

/// Returns the address `127.0.0.1:PORT` in a line.
fn address_in(line: &str) -> Option<SocketAddr> {
    let address = &line[line.find("127.0.0.1:")?..];
    let end = address.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':');
    address[..end.unwrap_or(address.len())].parse().ok()
}

/// Returns the children of a process. No server has grandchildren.
pub fn children(pid: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap_or_else(|e| fail(format_args!("no /proc: {e}")));
    let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|candidate| is_child(*candidate, pid)).collect()
}

/// Whether `child` is a child of `parent` and alive.
pub fn is_child(child: u32, parent: u32) -> bool {
    let parent = parent.to_string();
    stat_text(child).is_some_and(|text| {
        let mut fields = text.split(' ');
        fields.next() != Some("Z") && fields.next() == Some(parent.as_str())
    })
}

/// Returns the `stat` of a process after the name, which is in parentheses and may contain anything.
fn stat_text(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.to_string())
}

/// Returns a number in the `stat` of a process, counted from after the name.
fn stat(pid: u32, field: usize) -> Option<u64> {
    stat_text(pid)?.split(' ').nth(field)?.parse().ok()
}

/// Reads a file of each thread of a process.
fn thread_files(pid: u32, file: &'static str) -> impl Iterator<Item = String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(move |task| std::fs::read_to_string(task.path().join(file)).ok())
}

/// Sums the run time of all threads of a process, the first number of each `schedstat`.
fn cpu_ns(pid: u32) -> u64 {
    let run_time = |text: String| -> Option<u64> { text.split(' ').next()?.parse().ok() };
    thread_files(pid, "schedstat").filter_map(run_time).sum()
}

fn voluntary_switches(pid: u32) -> u64 {
    let switches = |text: String| -> Option<u64> {
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
    };
    thread_files(pid, "status").filter_map(switches).sum()
}
