//! A server that keeps connections open between requests, and knows nothing of draining: it dies of its stop signal.
//!
//! `GET /` is answered at once, `GET /sleep/MS` after this time, `GET /parts/COUNT/MS` with so many chunks, each after this time.

use std::io::{self, Read, Write};
use std::time::Duration;

use socket2::Socket;

/// Accepts for ever, and serves each connection in a thread of its own.
pub fn serve(listener: &Socket) {
    while let Ok((connection, _)) = listener.accept() {
        // The client may be gone.
        std::thread::spawn(move || answer_requests(connection));
    }
}

fn answer_requests(mut connection: Socket) -> io::Result<()> {
    let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        let end = request.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let Some(end) = end else {
            match connection.read(&mut buffer)? {
                0 => return Ok(()),
                length => request.extend_from_slice(&buffer[..length]),
            }
            continue;
        };
        let head: Vec<u8> = request.drain(..end + 4).collect();
        answer(&mut connection, &String::from_utf8_lossy(&head))?;
    }
}

fn answer(connection: &mut Socket, head: &str) -> io::Result<()> {
    let path = head.split(' ').nth(1).unwrap_or_default();
    let words: Vec<&str> = path.split('/').skip(1).collect();
    let number = |word: &str| word.parse::<u64>().unwrap_or(0);
    match words.as_slice() {
        ["parts", count, time] => {
            connection.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            for _ in 0..number(count) {
                pause(Duration::from_millis(number(time)));
                connection.write_all(b"4\r\npart\r\n")?;
            }
            connection.write_all(b"0\r\n\r\n")
        }
        words => {
            if let ["sleep", time] = words {
                pause(Duration::from_millis(number(time)));
            }
            let body = format!("Handled by PID {}\n", std::process::id());
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
            connection.write_all(answer.as_bytes())
        }
    }
}

fn pause(time: Duration) {
    let end = std::time::Instant::now() + time;
    while let Some(left) = end.checked_duration_since(std::time::Instant::now()) {
        std::thread::park_timeout(left);
    }
}
