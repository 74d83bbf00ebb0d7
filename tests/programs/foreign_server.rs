//! A server that knows nothing of tokio-prefork: it accepts at once from the sockets that it inherits, answers one request on
//! each connection, and dies of its stop signal. `/healthz` has the status in the file `health`, if there is one; `hang` stands for
//! none, and `hang once` for none from the first one that reads it.
//!
//! Words change what it does: `ignores-term`, `shuts-down-at-term` (its listening sockets, with shutdown(2)), `never-accepts`
//! (and is ready nevertheless), `boots-slowly` (for a second), `keeps-connections` (open after a response), `listens-elsewhere` (on an
//! address of its own, without the sockets that it inherits), `never-waits` (for connections: it looks from time to time, as one that
//! is always busy), `closes-sockets` (its listening sockets, when there is a file `close`, which it removes).

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prefork_os::signal::{Signal, register_signal_flag};
use socket2::Socket;

use crate::kept_connections;

/// How often it looks whether a signal has arrived.
const SIGNAL_CHECK_INTERVAL: Duration = Duration::from_millis(2);

/// Serves until a signal ends it.
pub fn serve(words: impl Iterator<Item = String>) -> ExitCode {
    let words: Vec<String> = words.collect();
    let has = |word: &str| words.iter().any(|one| one == word);
    let is_terminated = (has("ignores-term") || has("shuts-down-at-term"))
        .then(|| register_signal_flag(Signal::SIGTERM).expect("signal handler"));
    let listeners = inherited_listeners();
    if has("listens-elsewhere") {
        drop(listeners);
        let own = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        return ExitCode::from(u8::from(own.accept().is_ok()));
    }
    if has("never-waits") {
        accept_without_waiting(&listeners[0], || false);
    }
    if has("closes-sockets") {
        report_ready();
        accept_without_waiting(&listeners[0], || std::fs::remove_file("close").is_ok());
        drop(listeners);
        loop {
            std::thread::park();
        }
    }
    if has("boots-slowly") {
        std::thread::park_timeout(Duration::from_secs(1));
    }
    if !has("never-accepts") {
        accept_in_threads(&listeners, has("keeps-connections"));
    }
    report_ready();
    loop {
        std::thread::park_timeout(SIGNAL_CHECK_INTERVAL);
        let is_told = is_terminated.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed));
        if is_told && has("shuts-down-at-term") {
            for listener in &listeners {
                listener.shutdown(Shutdown::Both).expect("shutdown");
            }
            return ExitCode::SUCCESS;
        }
    }
}

/// Accepts from the inherited sockets in threads of their own.
pub fn accept_in_background() {
    accept_in_threads(&inherited_listeners(), false);
}

fn accept_in_threads(listeners: &[Socket], keeps_connections: bool) {
    for listener in listeners {
        let listener = listener.try_clone().expect("duplicate");
        match keeps_connections {
            true => std::thread::spawn(move || kept_connections::serve(&listener)),
            false => std::thread::spawn(move || accept_for_ever(&listener)),
        };
    }
}

/// Answers on one connection after the other until there is an end, and closes none before.
fn accept_without_waiting(listener: &Socket, is_end: impl Fn() -> bool) {
    listener.set_nonblocking(true).expect("non-blocking");
    let mut connections = Vec::new();
    while !is_end() {
        match listener.accept() {
            Ok((mut connection, _)) => {
                let _ = answer(&mut connection);
                connections.push(connection);
            }
            Err(_) => std::thread::park_timeout(SIGNAL_CHECK_INTERVAL),
        }
    }
}

fn inherited_listeners() -> Vec<Socket> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    assert_eq!(variable("LISTEN_PID"), std::process::id().to_string(), "they are for another one");
    let count: i32 = variable("LISTEN_FDS").parse().expect("LISTEN_FDS");
    let listener = |fd| prefork_os::fd::take_inherited_fd(fd).expect("a descriptor").into();
    (3..3 + count).map(listener).collect()
}

/// Says `READY=1` to the guard.
pub fn report_ready() {
    report("READY=1");
}

/// Says something to the guard.
pub fn report(text: &str) {
    let socket = UnixDatagram::unbound().expect("socket");
    let name = std::env::var("NOTIFY_SOCKET").expect("NOTIFY_SOCKET");
    match name.strip_prefix('@') {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            let addr = std::os::unix::net::SocketAddr::from_abstract_name(name).expect("name");
            socket.send_to_addr(text.as_bytes(), &addr).expect("said")
        }
        None => socket.send_to(text.as_bytes(), name).expect("said"),
    };
}

fn accept_for_ever(listener: &Socket) {
    // The end of its sockets ends the thread, not the program.
    while let Ok((mut connection, _)) = listener.accept() {
        // The client may be gone.
        let _ = answer(&mut connection);
    }
}

fn answer(connection: &mut Socket) -> std::io::Result<()> {
    let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
    while !request.ends_with(b"\r\n\r\n") {
        match connection.read(&mut buffer)? {
            0 => return Ok(()),
            length => request.extend_from_slice(&buffer[..length]),
        }
    }
    let is_probe = request.starts_with(b"GET /healthz ");
    let status = if is_probe { health_status() } else { "200 OK".to_string() };
    let body = format!("Handled by PID {}\n", std::process::id());
    let length = body.len();
    write!(
        connection,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn health_status() -> String {
    let status = std::fs::read_to_string("health").unwrap_or_else(|_| "200 OK".to_string());
    if status == "hang once" {
        let _ = std::fs::remove_file("health");
    }
    match status.starts_with("hang") {
        true => loop {
            std::thread::park();
        },
        false => status,
    }
}
