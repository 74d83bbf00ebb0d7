//! Binding: socket options and the guard against a second start.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::{Keeper, ListenAddr, Listener, holder};
use crate::error::{Error, Result};
use crate::identity::Slot;
use crate::socket_file::SocketFile;
use crate::sys;

/// Makes or takes over the listening socket of `addr`.
pub(super) fn acquire(addr: &ListenAddr, backlog: u32) -> Result<(Listener, Option<SocketFile>)> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    let (socket, file) = match addr {
        ListenAddr::Tcp(tcp) => (bind_tcp(*tcp, backlog)?, None),
        ListenAddr::Unix(path) => {
            let (socket, file) =
                SocketFile::bind(path, None, backlog).map_err(|why| Error::bind(addr, why))?;
            (socket, Some(file))
        }
        ListenAddr::Fd(number) => (take_over(addr, *number)?, None),
    };
    Ok((listening(addr, Slot(0), socket)?, file))
}

/// Takes over a socket that was made for `addr` by another image of process `owner`, with its file; without one, it is
/// somebody else's.
pub(super) fn inherit(
    addr: &ListenAddr,
    slot: Slot,
    fd: OwnedFd,
    owner: Option<u32>,
) -> Result<(Listener, Option<SocketFile>)> {
    let file = match addr {
        ListenAddr::Unix(path) => owner.and_then(|owner| SocketFile::inherit(path, owner)),
        ListenAddr::Tcp(_) | ListenAddr::Fd(_) => None,
    };
    Ok((listening(addr, slot, Socket::from(fd))?, file))
}

/// A listening socket of another process, which knows the address.
pub(super) fn adopted(fd: OwnedFd, slot: Slot) -> Result<Listener> {
    let socket = Socket::from(fd);
    let local = socket.local_addr().ok().and_then(|local| local.as_socket());
    let local = local.ok_or_else(|| Error::config("the socket of a slot is no TCP socket"))?;
    listening(&ListenAddr::Tcp(local), slot, socket)
}

/// A further socket of the group of `first`, which does not listen yet: until then the kernel sends nobody there.
pub(super) fn join(first: &Listener, slot: Slot) -> Result<Listener> {
    let local = first.socket.local_addr().map(|local| local.as_socket());
    let local = local.map_err(|e| Error::system(format!("read the name of {}", first.addr), e))?;
    let bind = |addr: SocketAddr| -> io::Result<Socket> {
        let socket = tcp(addr)?;
        socket.set_reuse_port(true)?;
        socket.bind(&addr.into())?;
        Ok(socket)
    };
    let addr = local.ok_or_else(|| Error::config(format!("{} has no port", first.addr)))?;
    if first.keeper == Keeper::Manager {
        // Our own have it from the start. If it cannot be set, nobody can join, which is found out next.
        let _ = first.socket.set_reuse_port(true);
    }
    let socket = bind(addr).map_err(|e| {
        let why = format!("slot {slot} gets no socket of its own: {}", explain(&e, addr));
        Error::bind(&first.addr, why)
    })?;
    listening(&first.addr, slot, socket)
}

/// From here on the kernel sends connections to it.
pub(super) fn listen(joined: &Listener, backlog: u32) -> Result<()> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    joined
        .socket
        .listen(backlog)
        .map_err(|e| Error::bind(&joined.addr, format!("slot {} cannot listen: {e}", joined.slot)))
}

fn listening(addr: &ListenAddr, slot: Slot, socket: Socket) -> Result<Listener> {
    // Shared by all processes that inherit the socket: O_NONBLOCK belongs to the open file description.
    socket
        .set_nonblocking(true)
        .map_err(|e| Error::system(format!("make {addr} non-blocking"), e))?;
    let local =
        socket.local_addr().map_err(|e| Error::system(format!("read the name of {addr}"), e))?;
    let local = match (local.as_socket(), local.as_pathname()) {
        (Some(tcp), _) => format!("http://{tcp}"),
        (None, Some(path)) => format!("unix:{}", path.display()),
        (None, None) => addr.to_string(),
    };
    Ok(Listener { addr: addr.clone(), local, slot, socket, keeper: Keeper::Us, lone: false })
}

/// SO_REUSEPORT is set only *after* bind and listen. With it set before, the kernel would let a second start
/// of the same user share the port and silently take half the traffic; a probe before would leave a race.
/// This way the bind itself is the guard, and the socket is a reuseport one from then on.
fn bind_tcp(addr: SocketAddr, backlog: i32) -> Result<Socket> {
    let bind = || -> io::Result<Socket> {
        let socket = tcp(addr)?;
        socket.bind(&addr.into())?;
        socket.listen(backlog)?;
        socket.set_reuse_port(true)?;
        Ok(socket)
    };
    bind().map_err(|e| Error::bind(addr, explain(&e, addr)))
}

fn tcp(addr: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(addr);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        // [::] is dual stack whatever net.ipv6.bindv6only says; any other address is IPv6 anyway.
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    // Lets us bind while connections of a former run are in TIME_WAIT, never beside a living listener.
    socket.set_reuse_address(true)?;
    // Inherited by every accepted connection: saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

fn explain(error: &io::Error, addr: SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => match holder::of_port(addr) {
            Some(holder) => format!("address already in use (held by {holder})"),
            None => "address already in use".to_string(),
        },
        io::ErrorKind::PermissionDenied if addr.port() < 1024 => format!(
            "permission denied: ports below 1024 need root, CAP_NET_BIND_SERVICE or a socket from systemd \
             ({error})"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("no interface of this machine has this address ({error})")
        }
        _ => error.to_string(),
    }
}

/// A socket that our parent opened: it must be a listening stream socket, and is otherwise left as it is.
fn take_over(addr: &ListenAddr, number: i32) -> Result<Socket> {
    let fd = sys::fd::adopt(number).map_err(|e| {
        Error::bind(addr, format!("descriptor {number} was not passed to this process ({e})"))
    })?;
    let socket = Socket::from(fd);
    match is_stream_listener(&socket) {
        true => Ok(socket),
        false => Err(Error::bind(addr, "the descriptor is not a listening stream socket")),
    }
}

/// Whether it is what can be served.
pub(super) fn is_stream_listener(socket: &Socket) -> bool {
    socket.r#type().is_ok_and(|t| t == Type::STREAM) && socket.is_listener().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> ListenAddr {
        "127.0.0.1:0".parse().expect("address")
    }

    #[test]
    fn the_socket_is_a_reuseport_one_with_nodelay() {
        let (listener, _) = acquire(&loopback(), 16).expect("bind");
        assert!(listener.socket.reuse_port().expect("option"));
        assert!(listener.socket.tcp_nodelay().expect("option"));
        assert!(listener.local.starts_with("http://127.0.0.1:"), "{}", listener.local);
    }

    #[test]
    fn a_second_start_is_refused_and_told_who_holds_the_port() {
        let (first, _) = acquire(&loopback(), 16).expect("bind");
        let again = first.local.trim_start_matches("http://").parse().expect("address");
        let error = acquire(&again, 16).expect_err("taken").to_string();
        let pid = std::process::id();
        assert!(error.contains(&format!("already in use (held by pid {pid}, ")), "{error}");
    }

    #[test]
    fn a_further_socket_joins_and_no_second_start_does() {
        let (first, _) = acquire(&loopback(), 128).expect("bind");
        let joined = join(&first, Slot(1)).expect("join");
        assert_eq!((joined.local.clone(), joined.slot), (first.local.clone(), Slot(1)));
        assert!(!joined.socket.is_listener().expect("option"), "the kernel sends nobody there yet");
        listen(&joined, 128).expect("listen");
        let again = first.local.trim_start_matches("http://").parse().expect("address");
        acquire(&again, 16).expect_err("taken");
        // The kernel spreads: of 64 clients each of both gets some.
        let addr = first.socket.local_addr().expect("name").as_socket().expect("tcp");
        let clients: Vec<_> = (0..64).map(|_| std::net::TcpStream::connect(addr)).collect();
        assert!(clients.iter().all(Result::is_ok));
        let queued =
            |l: &Listener| std::iter::from_fn(|| sys::socket::accept(&l.socket).ok()).count();
        let (one, two) = (queued(&first), queued(&joined));
        assert!(one > 0 && two > 0 && one + two == 64, "{one} and {two}");
    }

    #[test]
    fn a_unix_socket_that_is_in_use_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("dir");
        let text = format!("unix:{}", dir.path().join("s").display());
        let addr: ListenAddr = text.parse().expect("address");
        let _live = acquire(&addr, 16).expect("bind");
        let error = acquire(&addr, 16).expect_err("taken").to_string();
        assert!(
            error.starts_with(&format!("cannot bind {text}: address already in use")),
            "{error}"
        );
    }
}
