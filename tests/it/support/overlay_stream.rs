//! The stream of builds that the overlay in the browser follows.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::http::Address;
use super::wait;

/// A page that follows the builds.
pub struct OverlayStream {
    admin: SocketAddr,
    socket: TcpStream,
    received: Vec<u8>,
}

impl OverlayStream {
    /// Follows the builds at an admin listener.
    #[track_caller]
    pub fn open(admin: &Address) -> OverlayStream {
        let Address::Tcp(admin) = admin else { panic!("{admin}") };
        OverlayStream { admin: *admin, socket: connect(*admin), received: Vec::new() }
    }

    /// Waits for the next state of this name, and returns it.
    #[track_caller]
    pub fn wait_state(&mut self, name: &str) -> Value {
        loop {
            let state = self.next_state();
            if state["state"] == name {
                return state;
            }
        }
    }

    /// Waits for the next state.
    #[track_caller]
    fn next_state(&mut self) -> Value {
        loop {
            // A state is one chunk, so nothing is in the middle of it.
            let text = String::from_utf8_lossy(&self.received).into_owned();
            let start = text.find("data: ").map(|at| at + "data: ".len());
            if let Some((start, length)) = start.and_then(|at| Some((at, text[at..].find("\n\n")?)))
            {
                self.received = text.as_bytes()[start + length..].to_vec();
                return serde_json::from_str(&text[start..start + length]).expect("JSON");
            }
            let mut chunk = [0; 65536];
            let length = self.socket.read(&mut chunk).expect("a state");
            self.received.extend_from_slice(&chunk[..length]);
            if length == 0 {
                // A reload replaces the process of the admin listener; a browser connects again, too.
                self.received.clear();
                self.socket = connect(self.admin);
            }
        }
    }
}

#[track_caller]
fn connect(admin: SocketAddr) -> TcpStream {
    let mut socket = TcpStream::connect(admin).expect("connected");
    socket.set_read_timeout(Some(wait::DEADLINE)).expect("a timeout");
    let request = "GET /overlay/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    socket.write_all(request.as_bytes()).expect("sent");
    socket
}
