//! A server in a process of its own, and what `/proc` says about it and its children.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{cleanup, fail};

/// How long a server may take to start.
const START: Duration = Duration::from_secs(10);
/// How long a server may take to stop before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running server; stopped when dropped.
pub struct Server {
    child: Child,
    pub addr: SocketAddr,
}

/// One line of a server's log, and when we read it.
pub type Line = (Instant, String);

/// CPU time in microseconds.
#[derive(Clone, Copy, Default)]
pub struct Cpu {
    /// What the scheduler has counted, exactly.
    pub total: f64,
    /// In user mode and in the kernel: in steps of 10 ms, and good for their proportion only.
    pub user: f64,
    pub system: f64,
}

impl Server {
    /// Starts `command`, which listens on a port of its choice and logs to stderr, and waits until a line of
    /// its log contains `ready`. Each line is given to `each`, in a thread of its own.
    pub fn start(
        command: &mut Command,
        ready: &'static str,
        each: impl FnMut(Line) + Send + 'static,
    ) -> Server {
        Server::try_start(command, ready, each).unwrap_or_else(|why| fail(why))
    }

    /// The same for a server that may be missing.
    ///
    /// # Errors
    ///
    /// Why it does not serve, with what it said last.
    pub fn try_start(
        command: &mut Command,
        ready: &'static str,
        mut each: impl FnMut(Line) + Send + 'static,
    ) -> Result<Server, String> {
        let (tell, told) = channel();
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut server = Server::spawn(command, nowhere, move |line| {
            let _ = tell.send(line.1.clone());
            each(line);
        })?;
        server.addr = listening(&told, ready)?;
        // From now on nobody listens to what it says but `each`.
        Ok(server)
    }

    /// Starts a `command` that listens on `addr` and says nothing, and waits until somebody can connect.
    ///
    /// # Errors
    ///
    /// Why it does not serve.
    pub fn start_at(command: &mut Command, addr: SocketAddr) -> Result<Server, String> {
        let mut server = Server::spawn(command, addr, |(_, line)| eprintln!("bench: {line}"))?;
        let begun = Instant::now();
        while TcpStream::connect_timeout(&addr, START).is_err() {
            if !matches!(server.child.try_wait(), Ok(None)) || begun.elapsed() > START {
                return Err(format!("it does not listen on {addr}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    fn spawn(
        command: &mut Command,
        addr: SocketAddr,
        each: impl FnMut(Line) + Send + 'static,
    ) -> Result<Server, String> {
        let spawned = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|e| format!("cannot start it: {e}"))?;
        cleanup::started(child.id());
        let log = child.stderr.take();
        let server = Server { child, addr };
        let log = log.ok_or("the server has no stderr")?;
        let mut each = each;
        std::thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                each((Instant::now(), line));
            }
        });
        Ok(server)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The processes that serve: the children, or the only process if there are none.
    pub fn workers(&self) -> Vec<u32> {
        let workers = children(self.pid());
        if workers.is_empty() { vec![self.pid()] } else { workers }
    }

    /// Waits until there are so many workers.
    ///
    /// # Errors
    ///
    /// There are not within 10 s.
    pub fn wait_for_workers(&self, count: usize) -> Result<(), String> {
        let begun = Instant::now();
        while children(self.pid()).len() != count {
            if begun.elapsed() > START {
                return Err(format!("it has not {count} workers after {START:?}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Microseconds of CPU time that the process, its children and all their threads have used.
    pub fn cpu_us(&self) -> f64 {
        self.tree().map(cpu_ns).sum::<u64>() as f64 / 1000.0
    }

    /// The same, with what went where.
    pub fn cpu(&self) -> Cpu {
        let mut sum = Cpu { total: self.cpu_us(), ..Cpu::default() };
        for pid in self.tree() {
            // Fields 14 and 15; the first one after the name is the third.
            let field = |n: usize| stat(pid, n - 3).unwrap_or(0) as f64 * 10_000.0;
            sum.user += field(14);
            sum.system += field(15);
        }
        sum
    }

    /// How often the process, its children and all their threads went to sleep.
    pub fn voluntary_switches(&self) -> u64 {
        self.tree().map(voluntary_switches).sum()
    }

    /// Signals the first process.
    pub fn signal(&self, signal: Signal) {
        // We have not reaped it: the pid is its own.
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    fn tree(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.pid()).chain(children(self.pid()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
        // Peers end with their standard input.
        drop(self.child.stdin.take());
        let asked = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if asked.elapsed() > PATIENCE {
                let workers = children(self.pid());
                let _ = self.child.kill();
                for pid in workers {
                    let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        cleanup::ended(self.pid());
    }
}

/// Waits for the line with the address and for one that contains `ready`, which may be the same.
fn listening(told: &Receiver<String>, ready: &str) -> Result<SocketAddr, String> {
    let (begun, mut addr, mut last) = (Instant::now(), None, String::new());
    loop {
        let left = START.saturating_sub(begun.elapsed());
        match told.recv_timeout(left) {
            Ok(line) => {
                let bound = line.split_once("listening on http://").map(|(_, addr)| addr.parse());
                if let Some(Ok(bound)) = bound {
                    addr = Some(bound);
                }
                if let (true, Some(addr)) = (line.contains(ready), addr) {
                    return Ok(addr);
                }
                last = line;
            }
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("it was not ready within 10 s, and said last: {last}"));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(format!("it ended, and said last: {last}"));
            }
        }
    }
}

/// The children of a process. No server has grandchildren.
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

/// A process's `stat` from behind the name, which stands in parentheses and may contain anything.
fn stat_text(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.to_string())
}

/// A number in a process's `stat`, counted from behind the name.
fn stat(pid: u32, field: usize) -> Option<u64> {
    stat_text(pid)?.split(' ').nth(field)?.parse().ok()
}

/// A file of each thread of a process.
fn of_tasks(pid: u32, file: &'static str) -> impl Iterator<Item = String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(move |task| std::fs::read_to_string(task.path().join(file)).ok())
}

/// Run time of all threads of a process: the first number of each `schedstat`.
fn cpu_ns(pid: u32) -> u64 {
    let run_time = |text: String| -> Option<u64> { text.split(' ').next()?.parse().ok() };
    of_tasks(pid, "schedstat").filter_map(run_time).sum()
}

fn voluntary_switches(pid: u32) -> u64 {
    let switches = |text: String| -> Option<u64> {
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
    };
    of_tasks(pid, "status").filter_map(switches).sum()
}
