//! The script that lets an unmodified Node program use the sockets that it inherits ("Node shim").
//!
//! A Node program that calls `listen(3000)` binds a port itself, which no second worker can. Node loads the script before the
//! program, by `--require` in `NODE_OPTIONS`. The script passes the inherited socket to the server instead. It has a channel to
//! the guard, a socket pair, on which it reports what the program says, and is told to drain and to stop.

mod applies;
mod script_file;

use std::cell::Cell;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use serde_json::{Value, json};
use tokio::io::unix::AsyncFd;

use super::arguments::FIRST_FD;
use super::{Program, StopSignal};
use crate::error::{Error, Result};
use crate::listener::{ListenAddr, Listener};
use applies::is_node_program;
use prefork_os::async_fd::register_readable;
use prefork_supervisor::Slot;
use script_file::ScriptFile;

const SCRIPT: &str = include_str!("node_shim.cjs");
/// The variable with the script's instructions.
const SHIM_VARIABLE: &str = "PREFORK_NODE_SHIM";
const NODE_OPTIONS: &str = "NODE_OPTIONS";
/// The variable by which PM2 numbers the processes of an application from 0. Programs and packages read it.
const INSTANCE_VARIABLE: &str = "NODE_APP_INSTANCE";
/// The most bytes of the script's reports that are read at a time. It writes each of its few words once.
const MAX_REPORT_BYTES: usize = 256;

/// The script's side of one running program. Dropping it removes the script, which the program's worker threads load too.
pub(super) struct NodeShim {
    script: ScriptFile,
    instructions: String,
    slot: u32,
    channel: AsyncFd<OwnedFd>,
    /// The end for the program, until it has started.
    program_end: Cell<Option<UnixStream>>,
    is_listening: Cell<bool>,
    is_ready: Cell<bool>,
}

/// Returns whether a program with this executable gets the script: it is Node, starts Node, or is a script for Node, and no argument
/// has the number of a descriptor.
pub(super) fn applies_to(executable: &Path, program: &Program) -> bool {
    is_node_program(executable, program.arguments()) && !program.names_descriptors()
}

impl NodeShim {
    /// Writes the script into the directory for temporary files, and creates the channel.
    ///
    /// # Errors
    /// No directory for temporary files can be written, or there are no descriptors left.
    pub(super) fn prepare(
        listeners: &[Listener],
        slot: Slot,
        backlog: u32,
        stop_signal: StopSignal,
    ) -> Result<NodeShim> {
        let cannot = |e| Error::system("create the channel to the script for Node programs", e);
        let script = ScriptFile::write(SCRIPT)?;
        let (own_end, program_end) = UnixStream::pair().map_err(cannot)?;
        own_end.set_nonblocking(true).map_err(cannot)?;
        let channel = FIRST_FD + listeners.len();
        let instructions = json!({
            "sockets": describe_sockets(listeners).map_err(cannot)?,
            "channel": { "fd": channel, "inode": inode(&program_end).map_err(cannot)? },
            "backlog": backlog,
            "stop": format!("SIG{stop_signal}"),
            "node_option": node_option(script.path()),
        });
        Ok(NodeShim {
            script,
            instructions: instructions.to_string(),
            slot: slot.0,
            channel: register_readable(own_end.into()).map_err(cannot)?,
            program_end: Cell::new(Some(program_end)),
            is_listening: Cell::new(false),
            is_ready: Cell::new(false),
        })
    }

    /// Adds what makes Node load the script to the environment of the program.
    pub(super) fn add_variables(&self, environment: &mut Vec<(OsString, OsString)>) {
        let mut set = |name: &str, change: &dyn Fn(Option<OsString>) -> OsString| {
            let position = environment.iter().position(|(other, _)| other == name);
            let old = position.map(|position| environment.swap_remove(position).1);
            environment.push((name.into(), change(old)));
        };
        set(NODE_OPTIONS, &|old| {
            let mut options = old.unwrap_or_default();
            if !options.is_empty() {
                options.push(" ");
            }
            options.push(node_option(self.script.path()));
            options
        });
        set(SHIM_VARIABLE, &|_| self.instructions.clone().into());
        set(INSTANCE_VARIABLE, &|old| old.unwrap_or_else(|| self.slot.to_string().into()));
    }

    /// Returns the program's end of the channel, which it gets as the descriptor after the listening sockets. Afterwards there is
    /// none.
    pub(super) fn take_program_end(&self) -> Option<UnixStream> {
        self.program_end.take()
    }

    /// Waits until the program has called `process.send('ready')`, as it would under PM2 with `wait_ready`.
    pub(super) async fn wait_for_ready(&self) {
        loop {
            self.read_reports();
            if self.is_ready.get() {
                return;
            }
            // The descriptor is registered, so this fails only when the runtime ends.
            let Ok(mut ready) = self.channel.readable().await else { break };
            ready.clear_ready();
            if !self.read_reports() {
                break;
            }
        }
        std::future::pending().await
    }

    /// Tells the program to end each connection with its next response.
    pub(super) fn begin_drain(&self) {
        self.tell("drain\n");
    }

    /// Asks the program to stop, as if it had received the stop signal: its own handlers are called, and without any it closes its
    /// servers and exits. Returns false if no process of the program listens with the script: then a signal has to be sent.
    ///
    /// A signal would reach npm or a shell, if one of these has started the program.
    pub(super) fn ask_to_stop(&self) -> bool {
        self.read_reports();
        self.is_listening.get() && self.tell("stop\n")
    }

    fn tell(&self, line: &str) -> bool {
        // A few bytes, which fit. If not, or if nobody reads it, the program gets a signal.
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        send(self.channel.as_raw_fd(), line.as_bytes(), flags) == Ok(line.len())
    }

    /// Reads what the script has reported. Returns false at the end of the channel.
    fn read_reports(&self) -> bool {
        let mut buffer = [0; MAX_REPORT_BYTES];
        loop {
            match nix::unistd::read(&self.channel, &mut buffer) {
                Ok(0) => return false,
                // The script writes a word at a time, and each one once, so none is split.
                Ok(length) => {
                    for word in buffer[..length].split(|byte| *byte == b'\n') {
                        match word {
                            b"listening" => self.is_listening.set(true),
                            b"ready" => self.is_ready.set(true),
                            _ => {}
                        }
                    }
                }
                Err(Errno::EINTR) => {}
                Err(e) => return e == Errno::EAGAIN,
            }
        }
    }
}

fn describe_sockets(listeners: &[Listener]) -> io::Result<Vec<Value>> {
    let describe = |(index, listener): (usize, &Listener)| {
        let (fd, inode) = (FIRST_FD + index, inode(listener)?);
        Ok(match (listener.tcp(), listener.real_addr()) {
            (Some(addr), _) => {
                json!({ "fd": fd, "inode": inode, "host": addr.ip().to_string(), "port": addr.port() })
            }
            (None, ListenAddr::Unix(path)) => {
                json!({ "fd": fd, "inode": inode, "path": path.path.to_string_lossy() })
            }
            (None, addr) => json!({ "fd": fd, "inode": inode, "path": addr.to_string() }),
        })
    };
    listeners.iter().enumerate().map(describe).collect()
}

fn inode(fd: impl AsFd) -> io::Result<u64> {
    Ok(nix::sys::stat::fstat(fd)?.st_ino)
}

/// Returns the option that loads the script. Node splits `NODE_OPTIONS` at spaces, and reads `"` and `\` as a shell does.
fn node_option(script: &Path) -> String {
    let path = script.to_string_lossy();
    let needs_quotes = path.contains(|c: char| c.is_whitespace() || c == '"' || c == '\\');
    match needs_quotes {
        false => format!("--require={path}"),
        true => format!("\"--require={}\"", path.replace('\\', r"\\").replace('"', "\\\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::io::{Read, Write};

    fn prepared() -> NodeShim {
        NodeShim::prepare(&[], Slot(3), 1024, StopSignal::default()).expect("prepare")
    }

    fn variable<'a>(environment: &'a [(OsString, OsString)], name: &str) -> Option<&'a OsStr> {
        environment.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_os_str())
    }

    fn in_runtime(test: impl AsyncFnOnce()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(test());
    }

    #[test]
    fn node_options_of_the_user_are_kept() {
        in_runtime(async || {
            let shim = prepared();
            let mut environment =
                vec![("NODE_OPTIONS".into(), "--trace-warnings".into()), ("A".into(), "b".into())];
            shim.add_variables(&mut environment);
            let options = variable(&environment, NODE_OPTIONS).expect("set").to_string_lossy();
            assert_eq!(options, format!("--trace-warnings {}", node_option(shim.script.path())));
            assert_eq!(variable(&environment, INSTANCE_VARIABLE), Some(OsStr::new("3")));
            assert_eq!(variable(&environment, "A"), Some(OsStr::new("b")));
            let instructions =
                variable(&environment, SHIM_VARIABLE).expect("set").to_string_lossy();
            let instructions: Value = serde_json::from_str(&instructions).expect("JSON");
            assert_eq!(instructions["stop"], "SIGTERM");
            assert_eq!(instructions["channel"]["fd"], 3);
        });
    }

    #[test]
    fn a_path_with_spaces_is_quoted_for_node() {
        assert_eq!(node_option(Path::new("/tmp/a.cjs")), "--require=/tmp/a.cjs");
        assert_eq!(node_option(Path::new("/t mp/\"a")), r#""--require=/t mp/\"a""#);
    }

    #[test]
    fn a_program_that_listens_is_asked_to_stop_on_the_channel() {
        in_runtime(async || {
            let shim = prepared();
            let mut program = shim.take_program_end().expect("first");
            assert!(!shim.ask_to_stop(), "nobody listens yet");
            program.write_all(b"listening\n").expect("write");
            assert!(shim.ask_to_stop());
            let mut text = [0; 16];
            let length = program.read(&mut text).expect("read");
            assert_eq!(&text[..length], b"stop\n");
            drop(program);
            assert!(!shim.ask_to_stop(), "nobody reads any more");
        });
    }

    #[test]
    fn ready_is_reported_once_the_program_says_so() {
        in_runtime(async || {
            let shim = prepared();
            let mut program = shim.take_program_end().expect("first");
            program.write_all(b"listening\n").expect("write");
            let soon = std::time::Duration::from_millis(20);
            assert!(tokio::time::timeout(soon, shim.wait_for_ready()).await.is_err());
            program.write_all(b"ready\n").expect("write");
            shim.wait_for_ready().await;
        });
    }
}
