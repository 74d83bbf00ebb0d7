//! The socket on which a program says that it is ready: the receiving side of sd_notify(3).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, setsockopt, sockopt};
use tokio::io::unix::AsyncFd;

use prefork_os::async_fd::register_readable;
use prefork_os::process::parent_pid;
use prefork_os::system::random_u64;

/// The longest message that is read. systemd takes 4096 bytes.
const MAX_MESSAGE_BYTES: usize = 4096;

/// The most descriptors of one message (SCM_MAX_FD). With less room, further ones would stay open unseen.
const MAX_DESCRIPTORS: usize = 253;

/// How many generations of processes are followed from a sender up to this process.
const MAX_GENERATIONS: usize = 64;

/// What a program has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notification {
    /// `READY=1`.
    Ready,
    /// `WATCHDOG=1`.
    Watchdog,
    /// `WATCHDOG=trigger`: the program says that it hangs.
    WatchdogTrigger,
    /// `STOPPING=1`: it exits by its own decision.
    Stopping,
    /// `STATUS=`: a line for people.
    Status(String),
}

/// The socket of one worker.
pub(super) struct NotifySocket {
    socket: AsyncFd<OwnedFd>,
    address: String,
}

impl NotifySocket {
    /// Binds a socket with an abstract name that nobody can guess.
    pub(super) fn bind() -> io::Result<NotifySocket> {
        let name = format!("prefork-notify/{}/{:016x}", std::process::id(), random_u64()?);
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        let socket = register_readable(socket.into())?;
        Ok(NotifySocket { socket, address: format!("@{name}") })
    }

    /// Returns the value of `NOTIFY_SOCKET`.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Waits for the next message, and returns what it says that is understood. Messages of other users than this process's and root
    /// are dropped, unless a descendant of this process sends them: a program may change its user.
    ///
    /// The sender's pid alone would not do: systemd-notify(1) has often exited by then.
    pub(super) async fn receive(&self) -> Vec<Notification> {
        loop {
            // The descriptor is registered, so this fails only when the runtime ends.
            let Ok(mut ready) = self.socket.readable().await else {
                return std::future::pending().await;
            };
            match ready.try_io(receive_message) {
                Ok(Ok((sender, text))) if is_trusted(sender) => return parse_message(&text),
                Ok(_) | Err(_) => {}
            }
        }
    }
}

/// The user and the pid of the sender, as the kernel says. `None` if it says nothing.
type Sender = Option<(u32, u32)>;

fn is_trusted(sender: Sender) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    sender.is_some_and(|(user, pid)| user == own || user == 0 || is_descendant(pid))
}

/// Returns whether process `pid` descends from this one. All that a program starts does, as this process is a subreaper.
fn is_descendant(pid: u32) -> bool {
    let own = std::process::id();
    let ancestors = std::iter::successors(Some(pid), |pid| parent_pid(*pid));
    ancestors.skip(1).take(MAX_GENERATIONS).any(|pid| pid == own)
}

fn receive_message(socket: impl AsFd) -> io::Result<(Sender, String)> {
    let mut buffer = [0; MAX_MESSAGE_BYTES];
    let mut control = nix::cmsg_space!(nix::sys::socket::UnixCredentials, [RawFd; MAX_DESCRIPTORS]);
    let mut parts = [io::IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message =
        recvmsg::<UnixAddr>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let (mut sender, length) = (None, message.bytes);
    for part in message.cmsgs()? {
        match part {
            ControlMessageOwned::ScmCredentials(one) => {
                sender = u32::try_from(one.pid()).ok().map(|pid| (one.uid(), pid));
            }
            // Of FDSTORE=1 and BARRIER=1: the sender of a barrier waits until they are closed.
            ControlMessageOwned::ScmRights(fds) => close_all(&fds),
            _ => {}
        }
    }
    Ok((sender, String::from_utf8_lossy(&buffer[..length]).into_owned()))
}

/// Closes descriptors that came with a message.
fn close_all(fds: &[RawFd]) {
    for fd in fds {
        // The kernel has just made it, so nobody else has it.
        let _ = nix::unistd::close(*fd);
    }
}

fn parse_message(text: &str) -> Vec<Notification> {
    text.lines()
        .filter_map(|line| match line.split_once('=')? {
            ("READY", "1") => Some(Notification::Ready),
            ("WATCHDOG", "1") => Some(Notification::Watchdog),
            ("WATCHDOG", "trigger") => Some(Notification::WatchdogTrigger),
            ("STOPPING", "1") => Some(Notification::Stopping),
            ("STATUS", status) => Some(Notification::Status(status.to_string())),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(future)
    }

    #[test]
    fn messages_of_the_same_user_are_understood() {
        let text = "STATUS=warm\nREADY=1\nMAINPID=1\nWATCHDOG=1";
        let wanted =
            vec![Notification::Status("warm".into()), Notification::Ready, Notification::Watchdog];
        assert_eq!(parse_message(text), wanted);
        block_on(async {
            let socket = NotifySocket::bind().expect("bind");
            let address = SocketAddr::from_abstract_name(&socket.address()[1..]).expect("name");
            let sender = UnixDatagram::unbound().expect("socket");
            sender.send_to_addr(b"READY=1", &address).expect("send");
            sender.send_to_addr(b"STOPPING=1", &address).expect("send");
            assert_eq!(socket.receive().await, [Notification::Ready]);
            assert_eq!(socket.receive().await, [Notification::Stopping]);
        });
    }

    #[test]
    fn a_message_of_another_user_counts_if_a_descendant_sends_it() {
        let other_user = 1 + nix::unistd::geteuid().as_raw();
        // The shell replaces nothing: `exit` keeps it from executing the last command in its place.
        let script = "exec 3<&0; cat <&3 & echo $!; wait; exit";
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", script]).stdin(std::process::Stdio::piped());
        let mut shell = shell.stdout(std::process::Stdio::piped()).spawn().expect("sh");
        let mut line = String::new();
        let output = io::BufReader::new(shell.stdout.take().expect("piped"));
        io::BufRead::read_line(&mut { output }, &mut line).expect("a line");
        let grandchild = line.trim().parse().expect("a pid");
        assert!(is_trusted(Some((other_user, shell.id()))));
        assert!(is_trusted(Some((other_user, grandchild))));
        let parent = std::os::unix::process::parent_id();
        for stranger in [parent, 1, 0, u32::MAX] {
            assert!(!is_trusted(Some((other_user, stranger))), "{stranger}");
        }
        assert!(!is_trusted(None));
        drop(shell.stdin.take());
        shell.wait().expect("reaped");
    }

    #[test]
    fn descriptors_that_come_with_a_message_are_closed() {
        block_on(async {
            let socket = NotifySocket::bind().expect("bind");
            let address = SocketAddr::from_abstract_name(&socket.address()[1..]).expect("name");
            let (sender, (reader, writer)) =
                (UnixDatagram::unbound().expect("socket"), io::pipe().expect("pipe"));
            sender.connect_addr(&address).expect("connect");
            let fds = [writer.as_raw_fd(); MAX_DESCRIPTORS];
            let (text, control) =
                ([io::IoSlice::new(b"FDSTORE=1\nREADY=1")], ControlMessage::ScmRights(&fds));
            sendmsg::<UnixAddr>(sender.as_raw_fd(), &text, &[control], MsgFlags::empty(), None)
                .expect("send");
            drop(writer);
            assert_eq!(socket.receive().await, [Notification::Ready]);
            let end = io::read_to_string(reader).expect("no writer is left");
            assert_eq!(end, "");
        });
    }
}
