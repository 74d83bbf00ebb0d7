//! Creation of listening sockets: socket options, and the guard against a second start on the same address.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::draining_workers::{self, CloseOutcome, DRAINING_WORKER_RELEASE_TIMEOUT};
use super::orphan_sockets::{self, OrphanRelease};
use super::{BoundAddr, ListenAddr, Listener, SocketKeeper, UnixAddr, listen_addr, socket_holders};
use crate::error::{Error, Result};
use crate::socket_file::{SocketFileError, UnixSocketFile};
use crate::text::printable_process;
use prefork_os::unix_path::is_longer_than_address;
use prefork_supervisor::Slot;

/// A socket that was created or inherited and is not in the [`ListenerSet`](super::ListenerSet) yet.
pub(super) struct OpenedSocket {
    pub(super) listener: Listener,
    /// The file of a Unix socket.
    pub(super) file: Option<UnixSocketFile>,
    /// Whether it listens already. A socket beside another one of this service only binds, as listening would take over
    /// connections.
    pub(super) listens: bool,
}

/// What opening a socket depends on besides its address.
pub(super) struct BindContext<'a> {
    pub(super) backlog: u32,
    /// The sockets that this process has opened so far.
    pub(super) ours: &'a [&'a Listener],
    /// The port to use in place of 0.
    pub(super) port: Option<u16>,
    /// Whether inherited descriptors can still be named as `fd://N`.
    pub(super) may_take_inherited: bool,
    /// Whether opening may take a few seconds, because no worker serves yet.
    pub(super) may_wait: bool,
    /// Whether `[::]` accepts IPv6 only.
    pub(super) ipv6_only: bool,
}

/// Creates the listening socket of `addr`, or takes it over.
pub(super) fn open_socket(addr: &ListenAddr, binding: &BindContext<'_>) -> Result<OpenedSocket> {
    let backlog = backlog_as_c_int(binding.backlog);
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
            bind_unix(unix, backlog, binding.may_wait).map_err(|e| e.into_bind_error(addr))?
        }
        ListenAddr::Fd(number) => take_inherited_socket(addr, *number, binding.may_take_inherited)?,
        ListenAddr::Host(_) => {
            return Err(Error::internal(format!("the host name of {addr} was not looked up")));
        }
    };
    Ok(OpenedSocket { listener: new_listener(addr, Slot(0), socket)?, file, listens })
}

/// Takes over a socket that another image opened for `addr`. `owner` is the process that removes its file; `None` if
/// another service does. The socket keeps its blocking mode if `keeps_mode`: foreign programs share it.
pub(super) fn adopt_inherited(
    addr: &ListenAddr,
    slot: Slot,
    fd: OwnedFd,
    owner: Option<u32>,
    keeps_mode: bool,
) -> Result<(Listener, Option<UnixSocketFile>)> {
    let socket = Socket::from(fd);
    let file = match addr {
        ListenAddr::Unix(unix) if unix.abstract_name().is_none() => {
            UnixSocketFile::inherit(&unix.path, owner)
        }
        ListenAddr::Fd(_) => unowned_socket_file(&socket),
        ListenAddr::Unix(_) | ListenAddr::Tcp(_) | ListenAddr::Host(_) => None,
    };
    let listener = match keeps_mode {
        true => wrap_listener(addr, slot, socket)?,
        false => new_listener(addr, slot, socket)?,
    };
    Ok((listener, file))
}

/// Returns the file of a Unix socket that another process created and removes.
fn unowned_socket_file(socket: &Socket) -> Option<UnixSocketFile> {
    let local = socket.local_addr().ok()?;
    UnixSocketFile::inherit(local.as_pathname()?, None)
}

fn backlog_as_c_int(backlog: u32) -> i32 {
    i32::try_from(backlog).unwrap_or(i32::MAX)
}

/// Returns the listener of a descriptor from another process, with the address that the kernel has.
pub(super) fn listener_from_fd(fd: OwnedFd, slot: Slot) -> Result<Listener> {
    let socket = Socket::from(fd);
    let local = socket.local_addr().map_err(|e| Error::system("read the name of a socket", e))?;
    let addr = match (local.as_socket(), local.as_pathname()) {
        (Some(tcp), _) => ListenAddr::Tcp(tcp),
        (None, Some(path)) => ListenAddr::Unix(path.into()),
        (None, None) => ListenAddr::Unix(UnixAddr::new("@")),
    };
    new_listener(&addr, slot, socket)
}

/// Binds another socket of the reuseport group of `first`. It gets no connections before [`start_listening`].
pub(super) fn bind_slot_socket(first: &Listener, slot: Slot) -> Result<Listener> {
    let local = first.socket.local_addr().map(|local| local.as_socket());
    let local = local.map_err(|e| Error::system(format!("read the name of {}", first.addr), e))?;
    let bind = |addr: SocketAddr| -> io::Result<Socket> {
        // All sockets of a group have the same setting.
        let ipv6_only = addr.is_ipv6() && first.socket.only_v6()?;
        let socket = new_tcp_socket(addr, ipv6_only)?;
        socket.set_reuse_port(true)?;
        socket.bind(&addr.into())?;
        Ok(socket)
    };
    let addr = local.ok_or_else(|| {
        Error::internal(format!("the socket of {} has no TCP address", first.addr))
    })?;
    if first.keeper == SocketKeeper::ServiceManager {
        // Sockets of this service have the option from the start. If it cannot be set here, the bind below fails.
        let _ = first.socket.set_reuse_port(true);
    }
    let socket = bind(addr).map_err(|e| {
        let why =
            format!("cannot bind a socket for slot {slot}: {}", bind_error_text(&e, addr, &[]));
        Error::bind(&first.addr, why).with_source(e)
    })?;
    new_listener(&first.addr, slot, socket)
}

/// Starts listening: from now on the kernel sends connections to the socket.
pub(super) fn start_listening(joined: &Listener, backlog: u32) -> Result<()> {
    joined.socket.listen(backlog_as_c_int(backlog)).map_err(|e| {
        let why = format!("slot {} cannot listen: {e}", joined.slot);
        Error::bind(&joined.addr, why).with_source(e)
    })
}

fn new_listener(addr: &ListenAddr, slot: Slot, socket: Socket) -> Result<Listener> {
    // Shared by all processes that inherit the socket: O_NONBLOCK belongs to the open file description.
    socket
        .set_nonblocking(true)
        .map_err(|e| Error::system(format!("make {addr} non-blocking"), e))?;
    wrap_listener(addr, slot, socket)
}

fn wrap_listener(addr: &ListenAddr, slot: Slot, socket: Socket) -> Result<Listener> {
    // Accepted connections inherit SO_LINGER, with which closing one could block the event loop.
    let _ = socket.set_linger(None);
    let local =
        socket.local_addr().map_err(|e| Error::system(format!("read the name of {addr}"), e))?;
    let local = match (local.as_socket(), local.as_pathname()) {
        (Some(tcp), _) => BoundAddr::Http(tcp),
        (None, Some(path)) => BoundAddr::Unix(match addr {
            // The kernel has a short form that is of no use to others.
            ListenAddr::Unix(unix) if is_longer_than_address(&unix.path) => unix.path.clone(),
            _ => path.to_path_buf(),
        }),
        (None, None) => BoundAddr::Unnamed(addr.clone()),
    };
    Ok(Listener {
        addr: addr.clone(),
        local,
        slot,
        socket,
        keeper: SocketKeeper::Primary,
        is_shared_by_all: false,
        is_given_to_programs: false,
    })
}

/// Binds a TCP address. Returns the socket and whether it listens already (see [`OpenedSocket`]).
fn bind_tcp(addr: SocketAddr, backlog: i32, binding: &BindContext<'_>) -> Result<(Socket, bool)> {
    let mut error = match bind_exclusively(addr, backlog, binding.ipv6_only) {
        Ok(socket) => return Ok((socket, true)),
        Err(e) => e,
    };
    if error.kind() == io::ErrorKind::AddrInUse {
        let own: Vec<u64> =
            binding.ours.iter().filter_map(|one| socket_inode(&one.socket)).collect();
        let closed = || -> Vec<u64> {
            let in_the_way =
                socket_holders::listening_sockets_at(addr).into_iter().map(|one| one.inode);
            in_the_way.filter(|inode| !own.contains(inode)).collect()
        };
        match draining_workers::wait_until_workers_close(closed, DRAINING_WORKER_RELEASE_TIMEOUT) {
            CloseOutcome::HeldBy(pid) => {
                return Err(Error::bind(addr, draining_workers::held_by_worker_error(pid))
                    .with_source(error));
            }
            CloseOutcome::Closed => match bind_exclusively(addr, backlog, binding.ipv6_only) {
                Ok(socket) => return Ok((socket, true)),
                Err(e) => error = e,
            },
            CloseOutcome::NotOurs => {}
        }
    }
    if error.kind() == io::ErrorKind::AddrInUse {
        if let Some(socket) = bind_beside_own_sockets(addr, binding, &error)? {
            return Ok((socket, false));
        }
        match orphan_sockets::release_from_orphans(&ListenAddr::Tcp(addr), binding.may_wait) {
            OrphanRelease::SocketTaken(fd) => {
                return reuse_orphan_socket(fd, backlog)
                    .map(|s| (s, true))
                    .map_err(|e| Error::bind(addr, &e).with_source(e));
            }
            OrphanRelease::AddressFree => {
                let again =
                    bind_exclusively(addr, backlog, binding.ipv6_only).map(|socket| (socket, true));
                return again
                    .map_err(|e| Error::bind(addr, bind_error_text(&e, addr, &[])).with_source(e));
            }
            OrphanRelease::NotOrphaned => {}
        }
    }
    Err(Error::bind(addr, bind_error_text(&error, addr, &[])).with_source(error))
}

/// Binds and listens, and sets SO_REUSEPORT only *after* that.
///
/// With the option set before, the kernel would let a second start of the same user share the port and take half of its
/// traffic. A check before the bind would leave a race; this way the bind itself is the check.
fn bind_exclusively(addr: SocketAddr, backlog: i32, ipv6_only: bool) -> io::Result<Socket> {
    let socket = new_tcp_socket(addr, ipv6_only)?;
    socket.bind(&addr.into())?;
    socket.listen(backlog)?;
    socket.set_reuse_port(true)?;
    Ok(socket)
}

/// Binds `addr` beside overlapping sockets of this service (`127.0.0.1:80` and `[::]:80`) as a reuseport socket.
/// Returns `None` if no socket of this service overlaps.
fn bind_beside_own_sockets(
    addr: SocketAddr,
    binding: &BindContext<'_>,
    error: &io::Error,
) -> Result<Option<Socket>> {
    let ours = binding.ours;
    let in_the_way: Vec<&&Listener> = ours
        .iter()
        .filter(|one| one.tcp().is_some_and(|local| listen_addr::bind_addrs_overlap(local, addr)))
        .collect();
    let Some(first) = in_the_way.first() else { return Ok(None) };
    let own: Vec<u64> = ours.iter().filter_map(|one| socket_inode(&one.socket)).collect();
    // The kernel would let this socket join a reuseport group of any service of the same user.
    if socket_holders::listening_sockets_at(addr).iter().any(|one| !own.contains(&one.inode)) {
        return Err(Error::bind(addr, bind_error_text(error, addr, &own))
            .with_source(io::Error::from(io::ErrorKind::AddrInUse)));
    }
    // Sockets of this service have the option; a passed socket may lack it.
    in_the_way.iter().for_each(|one| drop(one.socket.set_reuse_port(true)));
    let bind = || -> io::Result<Socket> {
        let socket = new_tcp_socket(addr, binding.ipv6_only)?;
        socket.set_reuse_port(true)?;
        socket.bind(&addr.into())?;
        Ok(socket)
    };
    bind().map(Some).map_err(|e| {
        let made_by = match first.keeper {
            SocketKeeper::ServiceManager => "that the service manager passed (change it there)",
            SocketKeeper::Primary | SocketKeeper::FdStore => "that another user created or that lacks SO_REUSEPORT",
        };
        Error::bind(
            addr,
            format!(
                "this service itself listens on {} already, with a socket {made_by}, and the kernel lets no second one \
                 join it ({e}): restart the service to change the address",
                first.local
            ),
        )
        .with_source(e)
    })
}

/// Takes over the socket of a dead primary and prepares it like a newly bound one.
fn reuse_orphan_socket(fd: OwnedFd, backlog: i32) -> io::Result<Socket> {
    let socket = Socket::from(fd);
    // No process updates the tables of that primary's BPF program, and its filter may drop new connections.
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
) -> Result<(Socket, Option<UnixSocketFile>), SocketFileError> {
    match unix.abstract_name() {
        None => bind_path(unix, backlog, may_wait).map(|(socket, file)| (socket, Some(file))),
        Some(name) => bind_abstract(unix, name, backlog, may_wait).map(|socket| (socket, None)),
    }
}

fn bind_path(
    unix: &UnixAddr,
    backlog: i32,
    may_wait: bool,
) -> Result<(Socket, UnixSocketFile), SocketFileError> {
    let access = unix.access()?;
    let bind = || UnixSocketFile::bind_with_permissions(&unix.path, access, backlog);
    bind().or_else(|error| {
        match orphan_sockets::release_from_orphans(&ListenAddr::Unix(unix.clone()), may_wait) {
            OrphanRelease::SocketTaken(fd) => {
                let socket = reuse_orphan_socket(fd, backlog)
                    .map_err(|e| SocketFileError::from_io(&e, &e))?;
                let file = UnixSocketFile::inherit(&unix.path, Some(std::process::id()));
                let removed = || "its file was removed at the same time; try again".to_string();
                let file = file.ok_or_else(removed)?;
                file.set_permissions(access)?;
                Ok((socket, file))
            }
            OrphanRelease::AddressFree => bind(),
            OrphanRelease::NotOrphaned => Err(error),
        }
    })
}

/// Binds an abstract name, which has no file and ends with the last descriptor of the socket.
fn bind_abstract(
    unix: &UnixAddr,
    name: &[u8],
    backlog: i32,
    may_wait: bool,
) -> Result<Socket, SocketFileError> {
    use std::os::unix::ffi::OsStrExt;
    let path = [b"\0", name].concat();
    let bind = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(std::ffi::OsStr::from_bytes(&path))?)?;
        socket.listen(backlog)?;
        Ok(socket)
    };
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::AddrInUse => {
            let holders = socket_holders::processes_holding(&socket_holders::unix_listener_inodes(
                &unix.path,
            ));
            let holder = holders.first().and_then(|holder| printable_process(holder.pid));
            SocketFileError::InUse { holder }
        }
        _ => SocketFileError::from_io(&e, &e),
    };
    let error = match bind() {
        Ok(socket) => return Ok(socket),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => e,
        Err(e) => return Err(failed(e)),
    };
    let in_the_way = || socket_holders::unix_listener_inodes(&unix.path);
    match draining_workers::wait_until_workers_close(in_the_way, DRAINING_WORKER_RELEASE_TIMEOUT) {
        CloseOutcome::HeldBy(pid) => {
            let why = draining_workers::held_by_worker_error(pid);
            return Err(SocketFileError::from_io(why, &error));
        }
        CloseOutcome::Closed => return bind().map_err(failed),
        CloseOutcome::NotOurs => {}
    }
    match orphan_sockets::release_from_orphans(&ListenAddr::Unix(unix.clone()), may_wait) {
        OrphanRelease::SocketTaken(fd) => reuse_orphan_socket(fd, backlog).map_err(failed),
        OrphanRelease::AddressFree => bind().map_err(failed),
        OrphanRelease::NotOrphaned => Err(failed(error)),
    }
}

/// Returns the inode by which `/proc` identifies a socket.
fn socket_inode(socket: &Socket) -> Option<u64> {
    let file = std::fs::File::from(socket.as_fd().try_clone_to_owned().ok()?);
    file.metadata().ok().map(|meta| meta.ino())
}

fn new_tcp_socket(addr: SocketAddr, ipv6_only: bool) -> io::Result<Socket> {
    let domain = Domain::for_address(addr);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        // [::] is dual stack unless configured, whatever net.ipv6.bindv6only says; any other address is IPv6 only.
        socket.set_only_v6(ipv6_only || !addr.ip().is_unspecified())?;
    }
    // Allows the bind while connections of a former run are in TIME_WAIT, never beside another listener.
    socket.set_reuse_address(true)?;
    // Inherited by accepted connections: saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

fn bind_error_text(error: &io::Error, addr: SocketAddr, ours: &[u64]) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => match socket_holders::describe_port_holder(addr, ours) {
            Some(holder) => format!("address already in use (held by {holder})"),
            None => "address already in use".to_string(),
        },
        io::ErrorKind::PermissionDenied if addr.port() < 1024 => format!(
            "permission denied: ports below 1024 need root, CAP_NET_BIND_SERVICE or a socket from systemd; \
             take another port, such as 8080, if you have none of them ({error})"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("no interface of this machine has this address ({error})")
        }
        _ => error.to_string(),
    }
}

/// Takes descriptor `number`, which the parent process opened. It must be a listening stream socket.
fn take_inherited_socket(
    addr: &ListenAddr,
    number: i32,
    may_take_inherited: bool,
) -> Result<(Socket, Option<UnixSocketFile>)> {
    let refused = |e: io::Error| {
        Error::bind(
            addr,
            format!(
                "descriptor {number} was not passed to this process at its start, or was closed since ({e}): restart the \
                 service with it"
            ),
        )
    };
    if !may_take_inherited {
        return Err(refused(io::Error::other("an upgrade passes only sockets in use")));
    }
    let fits = |fd: std::os::fd::BorrowedFd<'_>| {
        fd.try_clone_to_owned().is_ok_and(|fd| is_stream_listener(&Socket::from(fd)))
    };
    match prefork_os::fd::take_inherited_fd_if(number, fits).map_err(refused)? {
        Some(fd) => {
            let socket = Socket::from(fd);
            let file = unowned_socket_file(&socket);
            Ok((socket, file))
        }
        None => Err(Error::bind(addr, "the descriptor is not a listening stream socket")),
    }
}

/// Returns whether the socket listens and was not shut down.
pub(super) fn is_listening(socket: &Socket) -> bool {
    let watch =
        prefork_os::poll::WatchedFd::new(socket.as_fd(), prefork_os::poll::PollInterest::HangUp);
    let ended = prefork_os::poll::poll_fds(&[watch], Some(std::time::Duration::ZERO));
    socket.is_listener().unwrap_or(false) && ended.is_ok_and(|ended| ended == [false])
}

/// Returns whether the socket is a listening stream socket.
pub(super) fn is_stream_listener(socket: &Socket) -> bool {
    socket.r#type().is_ok_and(|t| t == Type::STREAM) && socket.is_listener().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acquire(addr: &ListenAddr, backlog: u32) -> Result<(Listener, Option<UnixSocketFile>)> {
        let binding = BindContext {
            backlog,
            ours: &[],
            port: None,
            may_take_inherited: true,
            may_wait: false,
            ipv6_only: false,
        };
        super::open_socket(addr, &binding).map(|acquired| (acquired.listener, acquired.file))
    }

    fn loopback() -> ListenAddr {
        "127.0.0.1:0".parse().expect("address")
    }

    #[test]
    fn a_listening_socket_has_reuseport_and_nodelay() {
        let (listener, _) = acquire(&loopback(), 16).expect("bind");
        assert!(listener.socket.reuse_port().expect("option"));
        assert!(listener.socket.tcp_nodelay().expect("option"));
        assert!(listener.local.to_string().starts_with("http://127.0.0.1:"), "{}", listener.local);
    }

    #[test]
    fn a_second_start_is_refused_and_names_the_process_that_holds_the_port() {
        let (first, _) = acquire(&loopback(), 16).expect("bind");
        let again = first.local.to_listen_addr();
        let error = acquire(&again, 16).expect_err("taken").to_string();
        let pid = std::process::id();
        assert!(error.contains(&format!("already in use (held by pid {pid}, ")), "{error}");
    }

    #[test]
    fn a_slot_socket_joins_the_group_and_a_second_start_does_not() {
        let (first, _) = acquire(&loopback(), 128).expect("bind");
        let joined = bind_slot_socket(&first, Slot(1)).expect("join");
        assert_eq!((joined.local.clone(), joined.slot), (first.local.clone(), Slot(1)));
        assert!(!joined.socket.is_listener().expect("option"), "no connections before listen");
        start_listening(&joined, 128).expect("listen");
        let again = first.local.to_listen_addr();
        acquire(&again, 16).expect_err("taken");
        // The kernel distributes 64 clients over both.
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
    fn a_unix_socket_in_use_is_refused_with_its_path() {
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
