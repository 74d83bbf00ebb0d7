//! What the peers have in common: the answers of the built-in application of `prefork serve`, and how they start.

use std::hint::black_box;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Socket, Type};

/// The slow way, on purpose.
pub fn fib(n: u64) -> u64 {
    if n < 2 { n } else { fib(black_box(n - 1)) + fib(black_box(n - 2)) }
}

/// The answer of `/`.
pub fn who() -> String {
    format!("Handled by PID {}\n", std::process::id())
}

/// What the command line says: how many threads.
pub fn threads() -> usize {
    let text = std::env::args().nth(1).unwrap_or_default();
    text.parse().ok().filter(|n| (1..=64).contains(n)).unwrap_or_else(|| {
        eprintln!("usage: {} 1..64", std::env::args().next().unwrap_or_default());
        std::process::exit(64)
    })
}

/// A listening socket; `shared`: others may have the same address.
pub fn listen(addr: SocketAddr, shared: bool) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&addr.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A port that is free.
pub fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Says where it listens, and ends the process when whoever started it closes its standard input.
pub fn ready(addr: SocketAddr) {
    eprintln!("listening on http://{addr}");
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0)
    });
}
