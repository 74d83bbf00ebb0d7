//! Common code of the compared Rust servers: the answers of the built-in application of `prefork serve`, and the start.

use std::hint::black_box;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Socket, Type};

/// Computes a Fibonacci number recursively, as CPU load.
pub fn fib(n: u64) -> u64 {
    if n < 2 { n } else { fib(black_box(n - 1)) + fib(black_box(n - 2)) }
}

/// Returns the answer to `GET /`.
pub fn pid_answer() -> String {
    format!("Handled by PID {}\n", std::process::id())
}

/// Returns the number of threads from the command line.
pub fn thread_count() -> usize {
    let text = std::env::args().nth(1).unwrap_or_default();
    text.parse().ok().filter(|n| (1..=64).contains(n)).unwrap_or_else(|| {
        eprintln!("usage: {} 1..64 PORT", std::env::args().next().unwrap_or_default());
        std::process::exit(64)
    })
}

/// Opens a listening socket. If `shared`, other sockets may have the same address.
pub fn listen(addr: SocketAddr, shared: bool) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&addr.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Returns the loopback address with the port from the command line.
pub fn address() -> SocketAddr {
    let port = std::env::args().nth(2).and_then(|text| text.parse().ok()).unwrap_or(0);
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Prints the address, and ends the process when its standard input is closed.
pub fn report_ready(addr: SocketAddr) {
    eprintln!("listening on http://{addr}");
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0)
    });
}
