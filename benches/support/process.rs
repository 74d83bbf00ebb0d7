//! A server in a process of its own, and what `/proc` says about it and its children.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::fail;

/// How long a server may take to stop before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running server; stopped when dropped.
pub struct Server {
    child: Child,
    pub addr: SocketAddr,
}

/// One line of a server's log, and when we read it.
pub type Line = (Instant, String);

impl Server {
    /// Starts `command`, which listens on a port of its choice and logs to stderr, and waits until a line of
    /// its log contains `ready`. Each line is given to `each`, in a thread of its own.
    pub fn start(
        command: &mut Command,
        ready: &'static str,
        mut each: impl FnMut(Line) + Send + 'static,
    ) -> Server {
        let spawned = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|e| fail(format_args!("cannot start it: {e}")));
        let Some(log) = child.stderr.take() else { fail("the server has no stderr") };
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut addr = None;
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                let now = Instant::now();
                let bound = line.split_once("listening on http://").map(|(_, addr)| addr.parse());
                if let Some(Ok(bound)) = bound {
                    addr = Some(bound);
                }
                let is_ready = line.contains(ready);
                each((now, line));
                if let (true, Some(addr)) = (is_ready, addr) {
                    // Only the first time somebody listens.
                    let _ = tell.send(addr);
                }
            }
        });
        match told.recv_timeout(Duration::from_secs(10)) {
            Ok(addr) => Server { child, addr },
            Err(_) => {
                let _ = child.kill();
                fail("the server did not say that it is ready within 10 s")
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Microseconds of CPU time that the process, its children and all their threads have used.
    pub fn cpu_us(&self) -> f64 {
        tree(self.pid()).into_iter().map(cpu_ns).sum::<u64>() as f64 / 1000.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let asked = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if asked.elapsed() > PATIENCE {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A process and its children. Neither server has grandchildren.
fn tree(pid: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap_or_else(|e| fail(format_args!("no /proc: {e}")));
    let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let of_it = |candidate: &u32| *candidate == pid || parent(*candidate) == Some(pid);
    pids.filter(of_it).collect()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Run time of all threads of a process: the first number of each `schedstat`.
fn cpu_ns(pid: u32) -> u64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let run_time = |task: std::fs::DirEntry| -> Option<u64> {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    tasks.flatten().filter_map(run_time).sum()
}
