//! An HTTP server that sleeps for a known time before each response: for checks of statistics, which need servers whose true
//! difference is known. Only the standard library: `rustc -O sleeping_server.rs`.
//!
//!   sleeping_server MICROSECONDS
//!
//! Says where it listens on standard error, as `prefork compare --peer` expects.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";

fn main() {
    let micros = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let delay = Duration::from_micros(micros.expect("usage: sleeping_server MICROSECONDS"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    eprintln!("listening on http://{}", listener.local_addr().expect("bound"));
    for stream in listener.incoming().flatten() {
        thread::spawn(move || serve(stream, delay));
    }
}

/// Answers each request `delay` after it has arrived, however long it takes to wake up: the end of the wait is busy.
fn serve(mut stream: TcpStream, delay: Duration) {
    let _ = stream.set_nodelay(true);
    let (mut buffer, mut length) = ([0; 4096], 0);
    loop {
        match stream.read(&mut buffer[length..]) {
            Ok(0) | Err(_) => return,
            Ok(more) => length += more,
        }
        let due = Instant::now() + delay;
        if !buffer[..length].ends_with(b"\r\n\r\n") {
            continue;
        }
        length = 0;
        // A sleep ends up to 60 us late.
        thread::park_timeout(delay.saturating_sub(Duration::from_micros(100)));
        while Instant::now() < due {
            std::hint::spin_loop();
        }
        if stream.write_all(RESPONSE).is_err() {
            return;
        }
    }
}
