//! A small HTTP/1.1 server in this process, for tests: one thread for each connection.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

/// A server whose threads end with their connections and with the process.
pub(crate) struct TestServer {
    url: String,
}

impl TestServer {
    /// Starts a server on a free port of 127.0.0.1.
    pub(crate) fn start() -> TestServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || serve_connection(&stream));
            }
        });
        TestServer { url }
    }

    /// Returns `http://ADDRESS:PORT`.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

/// Answers requests until the connection ends, by their path: `/` with the pid, `/bytes/N` with N bytes, `/close` once,
/// `/never` not at all.
fn serve_connection(stream: &TcpStream) {
    let mut reader = BufReader::new(stream);
    while let Some(path) = read_request(&mut reader) {
        let body = match path.strip_prefix("/bytes/") {
            Some(size) => vec![b'x'; size.parse().expect("a size")],
            None => format!("Handled by PID {}", std::process::id()).into_bytes(),
        };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut writer = stream;
        let is_sent = match path.as_str() {
            "/never" => true,
            _ => writer.write_all(&[head.as_bytes(), &body].concat()).is_ok(),
        };
        if !is_sent || path == "/close" {
            return;
        }
    }
}

/// Reads the head of a request and returns its path; `None` at the end of the connection.
fn read_request(reader: &mut BufReader<&TcpStream>) -> Option<String> {
    let mut lines = reader.lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_string();
    lines.find(|line| line.is_empty()).map(|_| path)
}
