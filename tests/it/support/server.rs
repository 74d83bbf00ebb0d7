//! A server under test: a child process in a directory of its own, which is kept if the test fails.
//!
//! Every server is stopped and inspected at the end of its test, or killed with its workers when the test panics.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};

use nix::sys::signal::Signal;
use tempfile::TempDir;

pub use super::command::ProcessBuilder;
use super::http::{Address, Client, Failure, Response};
use super::{control, log, overrides, process, wait};

/// A server that was started by a test.
pub struct Server {
    child: Child,
    dir: Option<TempDir>,
    addresses: Vec<Address>,
    pub(super) control: PathBuf,
    has_control: bool,
    workers: usize,
    /// Words of ERROR lines that this test expects.
    allowed_errors: Vec<&'static str>,
    /// Whether the primary has been reaped.
    is_reaped: bool,
    /// Whether it speaks TLS as all servers do.
    is_tls: bool,
}

impl Server {
    /// Returns a builder for `prefork serve`.
    pub fn builder() -> ProcessBuilder {
        ProcessBuilder::serve()
    }

    /// Starts the built-in application, and waits until `workers` workers serve.
    #[track_caller]
    pub fn start(workers: usize) -> Server {
        Server::with(workers, &[])
    }

    /// Starts the built-in application with more arguments, and waits until `workers` workers serve.
    #[track_caller]
    pub fn with(workers: usize, args: &[&str]) -> Server {
        Server::builder().workers(workers).args(args).start()
    }

    /// Wraps a process that was just started.
    pub(super) fn new(
        child: Child,
        dir: TempDir,
        workers: usize,
        control: Option<PathBuf>,
        is_tls: bool,
    ) -> Server {
        Server {
            child,
            dir: Some(dir),
            addresses: Vec::new(),
            has_control: control.is_some(),
            control: control.unwrap_or_default(),
            workers,
            allowed_errors: Vec::new(),
            is_reaped: false,
            is_tls,
        }
    }

    /// Waits until all workers serve, and reads the addresses.
    #[track_caller]
    pub fn ready(mut self) -> Server {
        self.addresses = match self.has_control {
            true => self.wait_all_serve(),
            false => self.wait_listening(),
        };
        self.set_speaks_tls(self.is_tls);
        self
    }

    /// Waits until the server listens, and reads the addresses. No worker need be ready.
    #[track_caller]
    pub fn listening(mut self) -> Server {
        self.addresses = self.wait_listening();
        self
    }

    /// Records for clients whether its ports speak TLS.
    fn set_speaks_tls(&self, speaks_tls: bool) {
        for address in &self.addresses {
            if let Address::Tcp(addr) = address
                && self.is_tls
            {
                overrides::set_speaks_tls(addr.port(), speaks_tls);
            }
        }
    }

    /// Waits until all workers serve, by the status, and returns the addresses in it.
    #[track_caller]
    fn wait_all_serve(&self) -> Vec<Address> {
        let status = wait::wait_until_some(&format!("all {} workers serve", self.workers), || {
            assert!(!process::has_ended(self.pid()), "it ended:\n{}", log::tail(&self.log()));
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
        wait::wait_until_some("a listening server", || {
            assert!(!process::has_ended(self.pid()), "it ended:\n{}", log::tail(&self.log()));
            let forked = self.worker_pids().len() == self.workers;
            let addresses = process::listening_addresses(self.pid());
            (forked && !addresses.is_empty()).then_some(addresses)
        })
        .into_iter()
        .map(Address::Tcp)
        .collect()
    }

    /// Accepts lines of level ERROR that contain one of these words; any other fails the test.
    pub fn allow_errors(mut self, words: &[&'static str]) -> Server {
        self.allowed_errors.extend(words);
        self
    }

    /// Returns the first address of the server.
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

    /// Returns the pid of the primary.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("kept until the end").path()
    }

    /// Returns the pids of the living workers, in order: of all children of the primary but those that read stacks or serve the admin
    /// listener.
    pub fn worker_pids(&self) -> Vec<u32> {
        let mut pids = process::children(self.pid());
        pids.retain(|pid| process::command_name(*pid) != "stack-reader");
        pids.retain(|pid| !process::command_line(*pid).contains(": admin (gen "));
        pids
    }

    /// Opens a connection to the first address.
    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::connect(self.address()).unwrap_or_else(|e| panic!("cannot connect: {e:?}"))
    }

    /// Sends a GET request on a new connection, and returns the response.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.try_get(path).unwrap_or_else(|e| panic!("GET {path}: {e:?}"))
    }

    pub fn try_get(&self, path: &str) -> Result<Response, Failure> {
        Client::connect(self.address())?.get(path)
    }

    /// Sends a GET request on a new connection, and does not wait for the response.
    #[track_caller]
    pub fn send_get(&self, path: &str) -> Client {
        let mut client = self.connect();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).expect("send");
        client
    }

    /// Sends a GET request on a new connection, and waits until a worker handles it.
    #[track_caller]
    pub fn start_request(&self, path: &str) -> Client {
        let client = self.send_get(path);
        // The scoreboard leaves out the query.
        self.wait_in_flight(path.split('?').next().unwrap_or(path));
        client
    }

    /// Returns the scoreboard as `/cluster` shows it. Retries if a frozen worker accepted the request.
    #[track_caller]
    pub fn cluster(&self) -> serde_json::Value {
        let answer = wait::wait_until_some("an answer to /cluster", || {
            let mut client = self.connect();
            client.send("GET /cluster HTTP/1.1\r\nHost: test\r\n\r\n").expect("send");
            client.read_within_10_seconds().ok()
        });
        answer.json()
    }

    /// Waits until a request whose method and path contain `piece` is in flight.
    #[track_caller]
    pub fn wait_in_flight(&self, piece: &str) {
        wait::wait_until(&format!("{piece} in flight"), || {
            self.cluster()["workers"].as_array().is_some_and(|workers| {
                let serving = workers.iter().filter_map(|w| w["serving"].as_array()).flatten();
                serving.filter_map(|r| r["request"].as_str()).any(|r| r.contains(piece))
            })
        });
    }

    /// Returns the number of requests in progress, except its own request for `/cluster`.
    #[track_caller]
    pub fn active_requests(&self) -> u64 {
        let cluster = self.cluster();
        let workers = cluster["workers"].as_array().expect("workers");
        workers.iter().filter_map(|worker| worker["active"].as_u64()).sum::<u64>() - 1
    }

    /// Returns the standard error of all processes so far.
    pub fn log(&self) -> String {
        read_log(self.dir())
    }

    /// Counts the lines of the log that contain all of `words`.
    pub fn count_log(&self, words: &[&str]) -> usize {
        log::lines_with(&self.log(), words).count()
    }

    /// Waits for a line of the log that contains all of `words`, and returns it.
    #[track_caller]
    pub fn wait_log(&self, words: &[&str]) -> String {
        wait::wait_until_some(&format!("{words:?} in the log"), || {
            log::lines_with(&self.log(), words).next().map(str::to_string)
        })
    }

    /// Waits for `count` lines of the log that contain all of `words`.
    #[track_caller]
    pub fn wait_log_count(&self, words: &[&str], count: usize) {
        let what = format!("{count} lines with {words:?} in the log");
        wait::wait_until(&what, || self.count_log(words) >= count);
    }

    /// Waits until `total` workers have been replaced since the start, and as many serve as are wanted. Worker ids only
    /// grow, so the latest one tells how many there were.
    #[track_caller]
    pub fn wait_replaced(&self, total: usize) {
        self.wait_worker_id((self.workers + total) as u64);
    }

    /// Sends a signal to the primary.
    pub fn signal(&self, signal: Signal) {
        process::send_signal(self.pid(), signal);
    }

    /// Waits until the primary ends, and returns its exit status.
    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        let status = wait::wait_until_some("the primary's end", || {
            self.child.try_wait().expect("a child of this process")
        });
        self.is_reaped = true;
        status
    }

    /// Sends SIGTERM and waits for a clean exit with status 0; returns the log. See [`Server::wait_clean_exit`].
    #[track_caller]
    pub fn stop(self) -> String {
        self.signal(Signal::SIGTERM);
        self.wait_clean_exit(0)
    }

    /// Waits for an exit with status `code` that leaves no worker, no zombie and no unexpected ERROR line; returns the
    /// log.
    #[track_caller]
    pub fn wait_clean_exit(mut self, code: i32) -> String {
        let zombies = process::zombies(self.pid());
        let status = self.wait_exit();
        let log = self.log();
        assert_eq!((status.code(), status.signal()), (Some(code), None), "{}", log::tail(&log));
        // Zombies that the primary was reaping at that moment are gone by now.
        let lost: Vec<u32> = zombies.into_iter().filter(|p| process::stat(*p).is_some()).collect();
        assert!(lost.is_empty(), "not reaped: {lost:?}\n{}", log::tail(&log));
        for pid in log::worker_pids(&log) {
            assert!(
                process::has_ended(pid),
                "worker {pid} outlived its primary\n{}",
                log::tail(&log)
            );
        }
        self.check_errors(&log);
        log
    }

    /// Kills the primary with SIGKILL, and reaps it.
    pub fn kill_primary(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("a child of this process");
        self.is_reaped = true;
    }

    #[track_caller]
    fn check_errors(&self, log: &str) {
        let unexpected = log.lines().find(|line| {
            let bad = line.contains(" ERROR ") || line.contains("panicked at");
            bad && !self.allowed_errors.iter().any(|word| log::contains_word(line, word))
        });
        assert_eq!(unexpected, None, "unexpected error");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.set_speaks_tls(false);
        let mut workers = process::children(self.pid());
        if !self.is_reaped {
            // The primary first, or it would replace the workers.
            let _ = self.child.kill();
            let _ = self.child.wait();
        } else {
            workers = log::worker_pids(&self.log());
            workers.retain(|pid| process::stat(*pid).is_some_and(|s| s.parent <= 1));
        }
        for pid in workers {
            if std::thread::panicking() || !process::has_ended(pid) {
                process::send_signal(pid, Signal::SIGKILL);
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
