//! A service manager as far as a service can tell: a socket that takes messages, and keeps the descriptors in them.

use std::cell::RefCell;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

use super::command::Builder;
use super::wait;

/// Puts standard streams where passed sockets belong, and names the process that they are for.
const PASSING: &str = r#"exec 3<&0 4<&1 5<&2 </dev/null >/dev/null 2>log
LISTEN_PID=$$; export LISTEN_PID; exec "$0" "$@""#;

/// Listens for what services say.
pub struct Manager {
    socket: UnixDatagram,
    heard: RefCell<Vec<String>>,
    /// By name.
    store: RefCell<Vec<(String, OwnedFd)>>,
    dir: TempDir,
}

impl Manager {
    pub fn new() -> Manager {
        let dir = tempfile::Builder::new().prefix("prefork-sd-").tempdir().expect("directory");
        let socket = UnixDatagram::bind(dir.path().join("notify")).expect("bind");
        socket.set_nonblocking(true).expect("non-blocking");
        Manager { socket, heard: RefCell::default(), store: RefCell::default(), dir }
    }

    /// A service that speaks to it.
    pub fn of(&self, builder: Builder) -> Builder {
        builder.env("NOTIFY_SOCKET", &self.dir.path().join("notify").display().to_string())
    }

    /// Everything that was said so far.
    pub fn heard(&self) -> Vec<String> {
        while let Some((text, descriptors)) = self.receive() {
            let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
            let name = field("FDNAME=").unwrap_or_default().to_string();
            if text.contains("FDSTOREREMOVE=1") {
                self.store.borrow_mut().retain(|(kept, _)| *kept != name);
            } else if text.contains("FDSTORE=1") {
                assert_eq!((descriptors.len(), field("FDPOLL=")), (1, Some("0")), "{text}");
                let named = descriptors.into_iter().map(|fd| (name.clone(), fd));
                self.store.borrow_mut().extend(named);
            }
            self.heard.borrow_mut().push(text);
        }
        self.heard.borrow().clone()
    }

    fn receive(&self) -> Option<(String, Vec<OwnedFd>)> {
        let mut buffer = [0; 4096];
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut room = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(&self.socket, &mut slices, &mut room, RecvFlags::CMSG_CLOEXEC).ok()?;
        let mut descriptors = Vec::new();
        for message in room.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                descriptors.extend(passed);
            }
        }
        let length = got.bytes;
        Some((String::from_utf8(buffer[..length].to_vec()).expect("text"), descriptors))
    }

    /// Forgets what was said, so that only what comes is waited for.
    pub fn forget(&self) {
        self.heard();
        self.heard.borrow_mut().clear();
    }

    /// Waits for a message with this in it, and returns it.
    #[track_caller]
    pub fn wait(&self, piece: &str) -> String {
        wait::until_some(&format!("{piece:?} of {:?}", self.heard()), || {
            self.heard().into_iter().find(|message| message.contains(piece))
        })
    }

    /// How many messages have this in them.
    pub fn count(&self, piece: &str) -> usize {
        self.heard().iter().filter(|message| message.contains(piece)).count()
    }

    /// The names of what it keeps.
    pub fn kept(&self) -> Vec<String> {
        self.heard();
        self.store.borrow().iter().map(|(name, _)| name.clone()).collect()
    }

    /// What it keeps, in another order than it came.
    pub fn stored(&self) -> Vec<(String, OwnedFd)> {
        self.heard();
        let store = self.store.borrow();
        let again =
            store.iter().rev().map(|(name, fd)| (name.clone(), fd.try_clone().expect("dup")));
        again.collect()
    }
}

/// A service to which these sockets are passed: three at most.
pub fn passing(builder: Builder, sockets: Vec<(String, OwnedFd)>) -> Builder {
    assert!(sockets.len() <= 3, "standard streams carry them");
    let names: Vec<&str> = sockets.iter().map(|(name, _)| name.as_str()).collect();
    let builder = builder
        .env("LISTEN_FDS", &sockets.len().to_string())
        .env("LISTEN_FDNAMES", &names.join(":"))
        .script(PASSING);
    builder.streams(sockets.into_iter().map(|(_, fd)| fd))
}
