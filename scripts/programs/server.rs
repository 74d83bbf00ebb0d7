//! A server of the standard library alone, with a thread for each connection, that takes its socket from LISTEN_FDS. It
//! knows no signals: `rustc server.rs`.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::FromRawFd;

fn serve(stream: TcpStream) -> std::io::Result<()> {
    let body = format!("Handled by PID {}\n", std::process::id());
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    loop {
        loop {
            match lines.next() {
                Some(line) if line.as_ref().is_ok_and(|line| !line.is_empty()) => {}
                Some(line) => break drop(line?),
                None => return Ok(()),
            }
        }
        (&stream).write_all(answer.as_bytes())?;
    }
}

fn main() {
    let is_own = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    assert!(is_own, "no socket in LISTEN_FDS");
    // SAFETY: the descriptor is this program's by the protocol of LISTEN_FDS.
    let listener = unsafe { TcpListener::from_raw_fd(3) };
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || serve(stream));
    }
}
