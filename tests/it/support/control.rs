//! The control socket of a server under test: `prefork VERB` as operators run it, and the protocol itself.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::command::{ProcessBuilder, ProcessOutput};
use super::server::Server;
use super::wait;

impl Server {
    /// Returns the path of the control socket.
    pub fn control(&self) -> PathBuf {
        self.control.clone()
    }

    /// Runs `prefork VERB [ARGUMENT]...` to its end.
    #[track_caller]
    pub fn try_verb(&self, words: &[&str]) -> ProcessOutput {
        let socket = ["--control".into(), self.control().into_os_string()];
        ProcessBuilder::verb(words[0]).args(&words[1..]).args(socket).run()
    }

    /// Runs a verb that must succeed, and returns its standard output.
    #[track_caller]
    pub fn run_verb(&self, words: &[&str]) -> String {
        let ended = self.try_verb(words);
        assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{words:?}");
        ended.stdout
    }

    /// Runs a verb that must fail with exit status `code`, and returns its standard error.
    #[track_caller]
    pub fn assert_verb_fails(&self, words: &[&str], code: i32) -> String {
        let ended = self.try_verb(words);
        assert_eq!((ended.status, ended.stdout.as_str()), (Some(code), ""), "{}", ended.stderr);
        assert!(
            ended.stderr.starts_with("prefork: ") && ended.stderr.ends_with('\n'),
            "{}",
            ended.stderr
        );
        ended.stderr
    }

    /// Returns the status of the cluster.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.try_status().expect("the primary answers on its control socket")
    }

    /// Returns the status of the cluster, or `None` if no primary answers.
    pub fn try_status(&self) -> Option<Value> {
        let mut reply = request(&self.control, &json!({ "verb": "status" }))?;
        Some(reply["status"].take()).filter(Value::is_object)
    }

    /// Waits until the primary is in `phase`: `running` or `stopping`, for example.
    #[track_caller]
    pub fn wait_phase(&self, phase: &str) {
        wait::wait_until(&format!("phase {phase}"), || {
            self.try_status().is_some_and(|status| status["primary"]["phase"] == phase)
        });
    }

    /// Waits until `count` workers serve and the primary wants no other number of them.
    #[track_caller]
    pub fn wait_serving(&self, count: usize) {
        wait::wait_until(&format!("{count} workers serve"), || {
            self.try_status().is_some_and(|status| {
                workers_wanted(&status) == count && serving(&status).count() == count
            })
        });
    }

    /// Waits until `count` requests are in progress, by the status.
    #[track_caller]
    pub fn wait_active_requests(&self, count: u64) {
        wait::wait_until(&format!("{count} requests"), || {
            let status = self.status();
            let workers = status["workers"].as_array().expect("workers");
            workers.iter().filter_map(|worker| worker["active"].as_u64()).sum::<u64>() == count
        });
    }

    /// Waits until the primary listens at `count` addresses.
    #[track_caller]
    pub fn wait_listeners(&self, count: usize) {
        wait::wait_until(&format!("{count} listeners"), || {
            let status = self.try_status();
            status.is_some_and(|s| s["listeners"].as_array().map(Vec::len) == Some(count))
        });
    }

    /// Waits until the wanted number of workers of this generation serve: a reload or an upgrade is done.
    #[track_caller]
    pub fn wait_generation(&self, generation: usize) {
        wait::wait_until(&format!("generation {generation} serves"), || {
            self.try_status().is_some_and(|status| {
                let new = serving(&status).filter(|worker| worker["generation"] == generation);
                status["primary"]["generation"] == generation
                    && new.count() == workers_wanted(&status)
            })
        });
    }

    /// Waits until the worker `id`, or a later one, is ready, and as many workers serve as are wanted.
    #[track_caller]
    pub fn wait_worker_id(&self, id: u64) {
        wait::wait_until(&format!("worker {id} or a later one serves"), || {
            self.try_status().is_some_and(|status| {
                let ids = serving(&status).filter_map(|worker| worker["id"].as_u64());
                ids.max() >= Some(id) && serving(&status).count() == workers_wanted(&status)
            })
        });
    }

    /// Waits until the status lists a request in progress whose method and path contain `piece`.
    #[track_caller]
    pub fn wait_request_in_status(&self, piece: &str) {
        wait::wait_until(&format!("{piece} in the status"), || {
            let status = self.try_status().unwrap_or_default();
            let workers = status["workers"].as_array().into_iter().flatten();
            let serving = workers.filter_map(|worker| worker["serving"].as_array()).flatten();
            serving.filter_map(|r| r["request"].as_str()).any(|request| request.contains(piece))
        });
    }

    /// Returns the pid of the worker with this id.
    #[track_caller]
    pub fn worker_pid(&self, id: u64) -> u32 {
        let status = self.status();
        let workers = status["workers"].as_array().expect("workers");
        let worker = workers.iter().find(|worker| worker["id"] == id);
        let pid = worker.and_then(|worker| worker["pid"].as_u64());
        pid.unwrap_or_else(|| panic!("no worker {id} in {status}")) as u32
    }

    /// Waits until there are `count` workers and none of `old`, and returns their pids.
    #[track_caller]
    pub fn wait_new_workers(&self, count: usize, old: &[u32]) -> Vec<u32> {
        wait::wait_until_some(&format!("{count} workers, none of {old:?}"), || {
            let now = self.worker_pids();
            (now.len() == count && !now.iter().any(|pid| old.contains(pid))).then_some(now)
        })
    }
}

/// Returns the workers of a status whose state is `serving`.
pub fn serving(status: &Value) -> impl Iterator<Item = &Value> {
    let workers = status["workers"].as_array().into_iter().flatten();
    workers.filter(|worker| worker["state"] == "serving")
}

/// Returns how many workers of all kinds the primary wants, by its status.
fn workers_wanted(status: &Value) -> usize {
    let kinds = status["primary"]["kinds"].as_array().into_iter().flatten();
    let all = kinds.chain([&status["primary"]]);
    all.map(|kind| kind["workers_wanted"].as_u64().unwrap_or_default() as usize).sum()
}

/// Sends one request to a control socket, and returns the reply, if there is one.
pub fn request(socket: &Path, request: &Value) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(wait::DEADLINE)).ok()?;
    stream.write_all(&frame(&request.to_string())).ok()?;
    let reply = read_frame(&mut stream)?;
    // The primary has closed its end when this returns: tests count the descriptors of the primary.
    stream.shutdown(Shutdown::Write).ok()?;
    let _ = stream.read(&mut [0]);
    Some(reply)
}

/// Encodes a request: its length in four bytes, then its text.
pub fn frame(payload: &str) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short request");
    [&length.to_be_bytes()[..], payload.as_bytes()].concat()
}

/// Reads the next reply on a connection to a control socket; `None` at its end.
pub fn read_frame(stream: &mut UnixStream) -> Option<Value> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut reply = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut reply).ok()?;
    serde_json::from_slice(&reply).ok()
}
