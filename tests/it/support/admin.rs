//! The admin socket of `tests/programs/primary_loop.rs`, which runs commands in the primary.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use super::{Server, wait};

/// A connection to the admin socket.
pub struct Admin(BufReader<UnixStream>);

impl Admin {
    pub fn connect(server: &Server) -> Admin {
        let client = UnixStream::connect(server.dir().join("admin.sock")).expect("connected");
        client.set_read_timeout(Some(wait::DEADLINE)).expect("a timeout");
        Admin(BufReader::new(client))
    }

    /// Sends a command without waiting for its answer.
    pub fn send(&mut self, command: &str) {
        self.0.get_ref().write_all(command.as_bytes()).expect("sent");
    }

    /// Sends a command to the primary and returns its answer.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> String {
        self.send(command);
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("an answer");
        answer.trim_end().to_string()
    }

    /// Returns the notes of hooks and timers so far.
    pub fn notes(&mut self) -> Vec<String> {
        self.ask("notes").split(',').map(str::to_string).collect()
    }
}
