//! Binding: socket options and the guard against a second start.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::draining_workers::{self, Release};
use super::orphan_sockets::{self, Freed};
use super::{Keeper, ListenAddr, Listener, UnixAddr, listen_addr, socket_holders};
use crate::error::{Error, Result};
use crate::socket_file::SocketFile;
use crate::text::printable_process;
use prefork_supervisor::Slot;

/// A socket that was made or taken over, and is in no set yet.
pub(super) struct Acquired {
    pub(super) listener: Listener,
    /// Of a Unix socket.
    pub(super) file: Option<SocketFile>,
    /// `false` if the kernel sends nobody there yet: it is bound beside another one of ours, whose connections it
    /// would take.
    pub(super) listens: bool,
}

/// What is told apart in binding.
pub(super) struct Binding<'a> {
    pub(super) backlog: u32,
    /// The sockets that this process listens on already, or is about to.
    pub(super) ours: &'a [&'a Listener],
    /// The port instead of 0.
    pub(super) port: Option<u16>,
    /// Whether descriptors that the parent left open are still there to be named.
    pub(super) may_take_over: bool,
    /// Whether nobody is served yet, so that it may take a few seconds.
    pub(super) may_wait: bool,
}

/// Makes or takes over the listening socket of `addr`.
pub(super) fn acquire(addr: &ListenAddr, binding: &Binding<'_>) -> Result<Acquired> {
    let backlog = queue_length(binding.backlog);
    let mut listens = true;
    let (socket, file) = match addr {
        ListenAddr::Tcp(tcp) => {
            let mut tcp = *tcp;
            binding.port.into_iter().for_each(|port| tcp.set_port(port));
            let bound = bind_tcp(tcp, backlog, binding)?;
            listens = bound.1;
            (bound.0, None)
        }
        ListenAddr::Unix(unix) => {
            bind_unix(unix, backlog, binding.may_wait).map_err(|why| Error::bind(addr, why))?
        }
        ListenAddr::Fd(number) => take_over(addr, *number, binding.may_take_over)?,
        ListenAddr::Host(_) => {
            return Err(Error::bind(addr, "the host name was not looked up"));
        }
    };
    Ok(Acquired { listener: listening(addr, Slot(0), socket)?, file, listens })
}

/// Takes over a socket that was made for `addr` by another image of process `owner`, with its file; without one, it is
/// somebody else's.
pub(super) fn inherit(
    addr: &ListenAddr,
    slot: Slot,
    fd: OwnedFd,
    owner: Option<u32>,
) -> Result<(Listener, Option<SocketFile>)> {
    let socket = Socket::from(fd);
    let file = match addr {
        ListenAddr::Unix(unix) if unix.abstract_name().is_none() => {
            SocketFile::inherit(&unix.path, owner)
        }
        ListenAddr::Fd(_) => file_of(&socket),
        ListenAddr::Unix(_) | ListenAddr::Tcp(_) | ListenAddr::Host(_) => None,
    };
    Ok((listening(addr, slot, socket)?, file))
}

/// The file of a Unix socket that somebody else made, and removes.
fn file_of(socket: &Socket) -> Option<SocketFile> {
    let local = socket.local_addr().ok()?;
    SocketFile::inherit(local.as_pathname()?, None)
}

fn queue_length(backlog: u32) -> i32 {
    i32::try_from(backlog).unwrap_or(i32::MAX)
}

/// A listening socket of another process, which knows the address.
pub(super) fn adopted(fd: OwnedFd, slot: Slot) -> Result<Listener> {
    let socket = Socket::from(fd);
    let local = socket.local_addr().map_err(|e| Error::system("read the name of a socket", e))?;
    let addr = match (local.as_socket(), local.as_pathname()) {
        (Some(tcp), _) => ListenAddr::Tcp(tcp),
        (None, Some(path)) => ListenAddr::Unix(path.into()),
        (None, None) => ListenAddr::Unix(UnixAddr::new("@")),
    };
    listening(&addr, slot, socket)
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
        let why = format!("slot {slot} gets no socket of its own: {}", explain(&e, addr, &[]));
        Error::bind(&first.addr, why)
    })?;
    listening(&first.addr, slot, socket)
}

/// From here on the kernel sends connections to it.
pub(super) fn listen(joined: &Listener, backlog: u32) -> Result<()> {
    joined
        .socket
        .listen(queue_length(backlog))
        .map_err(|e| Error::bind(&joined.addr, format!("slot {} cannot listen: {e}", joined.slot)))
}

fn listening(addr: &ListenAddr, slot: Slot, socket: Socket) -> Result<Listener> {
    // Shared by all processes that inherit the socket: O_NONBLOCK belongs to the open file description.
    socket
        .set_nonblocking(true)
        .map_err(|e| Error::system(format!("make {addr} non-blocking"), e))?;
    // Accepted connections have what their listening socket has. With SO_LINGER, closing one could block a whole loop.
    let _ = socket.set_linger(None);
    let local =
        socket.local_addr().map_err(|e| Error::system(format!("read the name of {addr}"), e))?;
    let local = match (local.as_socket(), local.as_pathname()) {
        (Some(tcp), _) => format!("http://{tcp}"),
        (None, Some(path)) => format!("unix:{}", path.display()),
        (None, None) => addr.to_string(),
    };
    Ok(Listener { addr: addr.clone(), local, slot, socket, keeper: Keeper::Us, lone: false })
}

/// A TCP socket, and whether it listens already: see [`Acquired`].
fn bind_tcp(addr: SocketAddr, backlog: i32, binding: &Binding<'_>) -> Result<(Socket, bool)> {
    let mut error = match bind_alone(addr, backlog) {
        Ok(socket) => return Ok((socket, true)),
        Err(e) => e,
    };
    if error.kind() == io::ErrorKind::AddrInUse {
        let own: Vec<u64> = binding.ours.iter().filter_map(|one| inode(&one.socket)).collect();
        let closed = || -> Vec<u64> {
            let in_the_way = socket_holders::listening(addr).into_iter().map(|one| one.inode);
            in_the_way.filter(|inode| !own.contains(inode)).collect()
        };
        match draining_workers::await_release(closed) {
            Release::HeldBy(pid) => return Err(Error::bind(addr, draining_workers::describe(pid))),
            Release::Released => match bind_alone(addr, backlog) {
                Ok(socket) => return Ok((socket, true)),
                Err(e) => error = e,
            },
            Release::NotOurs => {}
        }
    }
    if error.kind() == io::ErrorKind::AddrInUse {
        if let Some(socket) = bind_beside(addr, binding.ours, &error)? {
            return Ok((socket, false));
        }
        match orphan_sockets::free(&ListenAddr::Tcp(addr), binding.may_wait) {
            Freed::Taken(fd) => {
                return revive(fd, backlog).map(|s| (s, true)).map_err(|e| Error::bind(addr, e));
            }
            Freed::Gone => {
                let again = bind_alone(addr, backlog).map(|socket| (socket, true));
                return again.map_err(|e| Error::bind(addr, explain(&e, addr, &[])));
            }
            Freed::No => {}
        }
    }
    Err(Error::bind(addr, explain(&error, addr, &[])))
}

/// SO_REUSEPORT is set only *after* bind and listen. With it set before, the kernel would let a second start
/// of the same user share the port and silently take half the traffic; a probe before would leave a race.
/// This way the bind itself is the guard, and the socket is a reuseport one from then on.
fn bind_alone(addr: SocketAddr, backlog: i32) -> io::Result<Socket> {
    let socket = tcp(addr)?;
    socket.bind(&addr.into())?;
    socket.listen(backlog)?;
    socket.set_reuse_port(true)?;
    Ok(socket)
}

/// Binds `addr` beside sockets of ours in its way (`127.0.0.1:80` and `[::]:80`), if nobody else's is: as a reuseport
/// socket, which the kernel allows beside others of the same user. `None` if none of ours is in its way.
fn bind_beside(addr: SocketAddr, ours: &[&Listener], error: &io::Error) -> Result<Option<Socket>> {
    let in_the_way: Vec<&&Listener> = ours
        .iter()
        .filter(|one| one.tcp().is_some_and(|local| listen_addr::overlaps(local, addr)))
        .collect();
    let Some(first) = in_the_way.first() else { return Ok(None) };
    let own: Vec<u64> = ours.iter().filter_map(|one| inode(&one.socket)).collect();
    // The kernel would let us join a reuseport socket of any service of this user.
    if socket_holders::listening(addr).iter().any(|one| !own.contains(&one.inode)) {
        return Err(Error::bind(addr, explain(error, addr, &own)));
    }
    // Ours have it; one that was passed to us may not.
    in_the_way.iter().for_each(|one| drop(one.socket.set_reuse_port(true)));
    let bind = || -> io::Result<Socket> {
        let socket = tcp(addr)?;
        socket.set_reuse_port(true)?;
        socket.bind(&addr.into())?;
        Ok(socket)
    };
    bind().map(Some).map_err(|e| {
        let made_by = match first.keeper {
            Keeper::Manager => "that the service manager passed, so change it there",
            Keeper::Us | Keeper::Store => "that was made with another user's rights or without SO_REUSEPORT",
        };
        Error::bind(
            addr,
            format!(
                "this service itself listens on {} already, with a socket {made_by}, and the kernel lets no second one \
                 join it ({e}): restart the service to change the address",
                first.local
            ),
        )
    })
}

/// A socket of a primary that is dead, as if it was bound by us.
fn revive(fd: OwnedFd, backlog: i32) -> io::Result<Socket> {
    let socket = Socket::from(fd);
    // Nobody keeps a program of that primary up to date, and what it meant to close is open again.
    let _ = prefork_os::bpf::detach_reuseport_program(socket.as_fd());
    let _ = socket.detach_filter();
    socket.listen(backlog)?;
    if socket.domain()? != Domain::UNIX {
        socket.set_reuse_port(true)?;
    }
    Ok(socket)
}

fn bind_unix(
    unix: &UnixAddr,
    backlog: i32,
    may_wait: bool,
) -> std::result::Result<(Socket, Option<SocketFile>), String> {
    match unix.abstract_name() {
        None => bind_path(unix, backlog, may_wait).map(|(socket, file)| (socket, Some(file))),
        Some(name) => bind_abstract(unix, name, backlog, may_wait).map(|socket| (socket, None)),
    }
}

fn bind_path(
    unix: &UnixAddr,
    backlog: i32,
    may_wait: bool,
) -> std::result::Result<(Socket, SocketFile), String> {
    let access = unix.access()?;
    let bind = || SocketFile::bind_with(&unix.path, access, backlog);
    bind().or_else(|why| match orphan_sockets::free(&ListenAddr::Unix(unix.clone()), may_wait) {
        Freed::Taken(fd) => {
            let socket = revive(fd, backlog).map_err(|e| e.to_string())?;
            let file = SocketFile::inherit(&unix.path, Some(std::process::id()));
            let file = file.ok_or("its file was removed in this moment; try again")?;
            file.set_access(access)?;
            Ok((socket, file))
        }
        Freed::Gone => bind(),
        Freed::No => Err(why),
    })
}

/// Binds a name that has no file: it ends with the last descriptor of the socket.
fn bind_abstract(
    unix: &UnixAddr,
    name: &[u8],
    backlog: i32,
    may_wait: bool,
) -> std::result::Result<Socket, String> {
    use std::os::unix::ffi::OsStrExt;
    let path = [b"\0", name].concat();
    let bind = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(std::ffi::OsStr::from_bytes(&path))?)?;
        socket.listen(backlog)?;
        Ok(socket)
    };
    let in_use = |e: &io::Error| match e.kind() {
        io::ErrorKind::AddrInUse => {
            let holders = socket_holders::holders_of(&socket_holders::unix_inodes(&unix.path));
            match holders.first().and_then(|holder| printable_process(holder.pid)) {
                Some(holder) => format!("address already in use (held by {holder})"),
                None => "address already in use".to_string(),
            }
        }
        _ => e.to_string(),
    };
    let error = match bind() {
        Ok(socket) => return Ok(socket),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => e,
        Err(e) => return Err(e.to_string()),
    };
    match draining_workers::await_release(|| socket_holders::unix_inodes(&unix.path)) {
        Release::HeldBy(pid) => return Err(draining_workers::describe(pid)),
        Release::Released => return bind().map_err(|e| in_use(&e)),
        Release::NotOurs => {}
    }
    match orphan_sockets::free(&ListenAddr::Unix(unix.clone()), may_wait) {
        Freed::Taken(fd) => revive(fd, backlog).map_err(|e| e.to_string()),
        Freed::Gone => bind().map_err(|e| in_use(&e)),
        Freed::No => Err(in_use(&error)),
    }
}

/// The inode by which `/proc` names a socket.
fn inode(socket: &Socket) -> Option<u64> {
    let file = std::fs::File::from(socket.as_fd().try_clone_to_owned().ok()?);
    file.metadata().ok().map(|meta| meta.ino())
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

fn explain(error: &io::Error, addr: SocketAddr, ours: &[u64]) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => match socket_holders::of_port(addr, ours) {
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
fn take_over(
    addr: &ListenAddr,
    number: i32,
    may_take_over: bool,
) -> Result<(Socket, Option<SocketFile>)> {
    let refused = |e: io::Error| {
        Error::bind(
            addr,
            format!(
                "descriptor {number} was not passed to this process when it started, or was given up since ({e}): restart \
                 the service with it"
            ),
        )
    };
    if !may_take_over {
        return Err(refused(io::Error::other("an upgrade passes only sockets that are in use")));
    }
    let fits = |fd: std::os::fd::BorrowedFd<'_>| {
        fd.try_clone_to_owned().is_ok_and(|fd| is_stream_listener(&Socket::from(fd)))
    };
    match prefork_os::fd::take_inherited_fd_if(number, fits).map_err(refused)? {
        Some(fd) => {
            let socket = Socket::from(fd);
            let file = file_of(&socket);
            Ok((socket, file))
        }
        None => Err(Error::bind(addr, "the descriptor is not a listening stream socket")),
    }
}

/// Whether connections can come to it: it listens, and nobody has shut it down.
pub(super) fn is_alive(socket: &Socket) -> bool {
    let watch =
        prefork_os::poll::WatchedFd::new(socket.as_fd(), prefork_os::poll::PollInterest::HangUp);
    let ended = prefork_os::poll::poll_fds(&[watch], Some(std::time::Duration::ZERO));
    socket.is_listener().unwrap_or(false) && ended.is_ok_and(|ended| ended == [false])
}

/// Whether it is what can be served.
pub(super) fn is_stream_listener(socket: &Socket) -> bool {
    socket.r#type().is_ok_and(|t| t == Type::STREAM) && socket.is_listener().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acquire(addr: &ListenAddr, backlog: u32) -> Result<(Listener, Option<SocketFile>)> {
        let binding =
            Binding { backlog, ours: &[], port: None, may_take_over: true, may_wait: false };
        super::acquire(addr, &binding).map(|acquired| (acquired.listener, acquired.file))
    }

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
        let queued = |l: &Listener| {
            std::iter::from_fn(|| prefork_os::socket::accept_connection(&l.socket).ok()).count()
        };
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
