//! The real binary as a child process, in a directory of its own: started and waited for, stopped politely
//! and inspected afterwards, and never left behind. If the test fails its directory stays, and is named.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};

use nix::sys::signal::Signal;
use tempfile::TempDir;

pub use super::command::Builder;
use super::http::{Address, Client, Failure, Response};
use super::{control, log, process, wait};

/// A started server.
pub struct Server {
    child: Child,
    dir: Option<TempDir>,
    addresses: Vec<Address>,
    pub(super) control: PathBuf,
    has_control: bool,
    workers: usize,
    /// Pieces of ERROR lines that this test expects.
    allowed: Vec<&'static str>,
    /// Reaped, and inspected as far as asked for.
    over: bool,
}

impl Server {
    /// What to start, before it is started.
    pub fn builder() -> Builder {
        Builder::serve()
    }

    /// `workers` workers of the built-in application, ready to serve.
    #[track_caller]
    pub fn start(workers: usize) -> Server {
        Server::with(workers, &[])
    }

    /// The same, with more arguments.
    #[track_caller]
    pub fn with(workers: usize, args: &[&str]) -> Server {
        Server::builder().workers(workers).args(args).start()
    }

    /// A process that was just started; `ready` waits for it.
    pub(super) fn new(
        child: Child,
        dir: TempDir,
        workers: usize,
        control: Option<PathBuf>,
    ) -> Server {
        Server {
            child,
            dir: Some(dir),
            addresses: Vec::new(),
            has_control: control.is_some(),
            control: control.unwrap_or_default(),
            workers,
            allowed: Vec::new(),
            over: false,
        }
    }

    /// Waits until all workers serve, and learns where.
    #[track_caller]
    pub fn ready(mut self) -> Server {
        self.addresses = match self.has_control {
            true => self.wait_all_serve(),
            false => self.wait_listening(),
        };
        self
    }

    /// Waits until all workers serve, by the status, and returns the addresses in it.
    #[track_caller]
    fn wait_all_serve(&self) -> Vec<Address> {
        let status = wait::until_some(&format!("all {} workers serve", self.workers), || {
            assert!(!process::is_gone(self.pid()), "it ended:\n{}", log::tail(&self.log()));
            let status = self.try_status()?;
            let is_running = status["primary"]["phase"] == "running";
            let serve = control::serving(&status).count();
            (is_running && serve == self.workers).then_some(status)
        });
        let names = status["listeners"].as_array().into_iter().flatten();
        names.filter_map(|name| name.as_str()).map(parse_address).collect()
    }

    /// Waits until the primary listens and has forked all workers, by `/proc`, and returns the addresses.
    #[track_caller]
    fn wait_listening(&self) -> Vec<Address> {
        wait::until_some("a listening server", || {
            assert!(!process::is_gone(self.pid()), "it ended:\n{}", log::tail(&self.log()));
            let forked = self.worker_pids().len() == self.workers;
            let addresses = process::listening_addresses(self.pid());
            (forked && !addresses.is_empty()).then_some(addresses)
        })
        .into_iter()
        .map(Address::Tcp)
        .collect()
    }

    /// Lines of level ERROR that contain one of these words do not fail the test.
    pub fn allow(mut self, words: &[&'static str]) -> Server {
        self.allowed.extend(words);
        self
    }

    /// The first address it listens on.
    pub fn address(&self) -> &Address {
        &self.addresses[0]
    }

    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    pub fn port(&self) -> u16 {
        match self.address() {
            Address::Tcp(addr) => addr.port(),
            Address::Unix(path) => panic!("{} has no port", path.display()),
        }
    }

    /// The primary.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("kept until the end").path()
    }

    /// Its living workers.
    pub fn worker_pids(&self) -> Vec<u32> {
        process::children(self.pid())
    }

    /// A new connection.
    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::connect(self.address()).unwrap_or_else(|e| panic!("cannot connect: {e:?}"))
    }

    /// One request on a connection of its own, which must be answered.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.try_get(path).unwrap_or_else(|e| panic!("GET {path}: {e:?}"))
    }

    pub fn try_get(&self, path: &str) -> Result<Response, Failure> {
        Client::connect(self.address())?.get(path)
    }

    /// What all processes say on the scoreboard. Asks again if the worker that took the question was frozen in
    /// that moment.
    #[track_caller]
    pub fn cluster(&self) -> serde_json::Value {
        let answer = wait::until_some("an answer to /cluster", || {
            let mut client = self.connect();
            client.send("GET /cluster HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
            client.soon().ok()
        });
        answer.json()
    }

    /// Waits until a request whose method and path contain `piece` is being answered.
    #[track_caller]
    pub fn wait_in_flight(&self, piece: &str) {
        wait::until(&format!("{piece} in flight"), || {
            self.cluster()["workers"].as_array().is_some_and(|workers| {
                let serving = workers.iter().filter_map(|w| w["serving"].as_array()).flatten();
                serving.filter_map(|r| r["request"].as_str()).any(|r| r.contains(piece))
            })
        });
    }

    /// Everything it has written to stderr.
    pub fn log(&self) -> String {
        read_log(self.dir())
    }

    /// How many lines of the log contain all of `words`.
    pub fn count_log(&self, words: &[&str]) -> usize {
        log::lines_with(&self.log(), words).count()
    }

    /// Waits for a line of the log that contains all of `words`, and returns it.
    #[track_caller]
    pub fn wait_log(&self, words: &[&str]) -> String {
        wait::until_some(&format!("{words:?} in the log"), || {
            log::lines_with(&self.log(), words).next().map(str::to_string)
        })
    }

    /// Waits for `count` lines of the log that contain all of `words`.
    #[track_caller]
    pub fn wait_log_count(&self, words: &[&str], count: usize) {
        let what = format!("{count} lines with {words:?} in the log");
        wait::until(&what, || self.count_log(words) >= count);
    }

    /// Waits until `total` workers have been replaced since the start, and as many serve as are wanted. Worker ids only
    /// grow, so the latest one tells how many there were.
    #[track_caller]
    pub fn wait_replaced(&self, total: usize) {
        self.wait_worker_id((self.workers + total) as u64);
    }

    /// To the primary.
    pub fn signal(&self, signal: Signal) {
        process::send(self.pid(), signal);
    }

    /// Waits for the primary's end, which somebody has asked for.
    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        let status =
            wait::until_some("the primary's end", || self.child.try_wait().expect("our own child"));
        self.over = true;
        status
    }

    /// SIGTERM, and everything a good end means: see [`Server::finish`].
    #[track_caller]
    pub fn stop(self) -> String {
        self.signal(Signal::SIGTERM);
        self.finish(0)
    }

    /// Waits for an end that was asked for: the right status, nobody left, nothing unexpected in the log,
    /// which is returned.
    #[track_caller]
    pub fn finish(mut self, code: i32) -> String {
        let zombies = process::zombies(self.pid());
        let status = self.wait_exit();
        let log = self.log();
        assert_eq!((status.code(), status.signal()), (Some(code), None), "{}", log::tail(&log));
        // It may have been reaping these as we looked, but then it has.
        let lost: Vec<u32> = zombies.into_iter().filter(|p| process::stat(*p).is_some()).collect();
        assert!(lost.is_empty(), "not reaped: {lost:?}\n{}", log::tail(&log));
        for pid in log::worker_pids(&log) {
            assert!(
                process::is_gone(pid),
                "worker {pid} outlived its primary\n{}",
                log::tail(&log)
            );
        }
        self.check_errors(&log);
        log
    }

    /// SIGKILL to the primary, which is all that a test of orphans asks for.
    pub fn kill_primary(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("our own child");
        self.over = true;
    }

    #[track_caller]
    fn check_errors(&self, log: &str) {
        let unexpected = log.lines().find(|line| {
            let bad = line.contains(" ERROR ") || line.contains("panicked at");
            bad && !self.allowed.iter().any(|word| log::contains_word(line, word))
        });
        assert_eq!(unexpected, None, "unexpected error");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut workers = process::children(self.pid());
        if !self.over {
            // The primary first, or it would replace the others.
            let _ = self.child.kill();
            let _ = self.child.wait();
        } else {
            workers = log::worker_pids(&self.log());
            workers.retain(|pid| process::stat(*pid).is_some_and(|s| s.parent <= 1));
        }
        for pid in workers {
            if std::thread::panicking() || !process::is_gone(pid) {
                process::send(pid, Signal::SIGKILL);
            }
        }
        if let Some(dir) = self.dir.take()
            && std::thread::panicking()
        {
            let log = read_log(dir.path());
            eprintln!(
                "--- kept: {}; the end of its log:\n{}",
                dir.keep().display(),
                log::tail(&log)
            );
        }
    }
}

/// An address as the status names it.
fn parse_address(name: &str) -> Address {
    if let Some(path) = name.strip_prefix("unix:") {
        return Address::Unix(PathBuf::from(path));
    }
    let tcp = name.rsplit("://").next().and_then(|text| text.parse().ok());
    Address::Tcp(tcp.unwrap_or_else(|| panic!("{name:?} is not an address")))
}

fn read_log(dir: &Path) -> String {
    fs::read(dir.join("log"))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

pub(super) fn create_log(dir: &Path) -> File {
    File::create(dir.join("log")).expect("log file")
}
