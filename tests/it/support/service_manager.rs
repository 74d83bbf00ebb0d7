//! A fake systemd: a notification socket with a file descriptor store, and socket activation.

use std::cell::RefCell;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

use super::command::ProcessBuilder;
use super::wait;

/// Moves the standard streams to descriptors 3 to 5, where passed sockets belong, and sets `LISTEN_PID`.
const SOCKET_ACTIVATION_SCRIPT: &str = r#"exec 3<&0 4<&1 5<&2 </dev/null >/dev/null 2>log
LISTEN_PID=$$; export LISTEN_PID; exec "$0" "$@""#;

/// Receives the notifications of services, and stores the descriptors in them.
pub struct ServiceManager {
    socket: UnixDatagram,
    received: RefCell<Vec<String>>,
    /// The descriptor store, by name.
    store: RefCell<Vec<(String, OwnedFd)>>,
    dir: TempDir,
}

impl ServiceManager {
    pub fn new() -> ServiceManager {
        let dir = tempfile::Builder::new().prefix("prefork-sd-").tempdir().expect("directory");
        let socket = UnixDatagram::bind(dir.path().join("notify")).expect("bind");
        socket.set_nonblocking(true).expect("non-blocking");
        ServiceManager { socket, received: RefCell::default(), store: RefCell::default(), dir }
    }

    /// Sets `NOTIFY_SOCKET` of a service.
    pub fn attach(&self, builder: ProcessBuilder) -> ProcessBuilder {
        builder.env("NOTIFY_SOCKET", &self.dir.path().join("notify").display().to_string())
    }

    /// Returns all messages so far.
    pub fn messages(&self) -> Vec<String> {
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
            self.received.borrow_mut().push(text);
        }
        self.received.borrow().clone()
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

    /// Discards all messages so far.
    pub fn clear_messages(&self) {
        self.messages();
        self.received.borrow_mut().clear();
    }

    /// Waits for a message that contains `piece`, and returns it.
    #[track_caller]
    pub fn wait_message(&self, piece: &str) -> String {
        wait::wait_until_some(&format!("{piece:?} of {:?}", self.messages()), || {
            self.messages().into_iter().find(|message| message.contains(piece))
        })
    }

    /// Counts the messages that contain `piece`.
    pub fn count_messages(&self, piece: &str) -> usize {
        self.messages().iter().filter(|message| message.contains(piece)).count()
    }

    /// Returns the names in the descriptor store.
    pub fn stored_names(&self) -> Vec<String> {
        self.messages();
        self.store.borrow().iter().map(|(name, _)| name.clone()).collect()
    }

    /// Returns copies of the stored descriptors, in reverse order.
    pub fn stored_descriptors(&self) -> Vec<(String, OwnedFd)> {
        self.messages();
        let store = self.store.borrow();
        let again =
            store.iter().rev().map(|(name, fd)| (name.clone(), fd.try_clone().expect("dup")));
        again.collect()
    }
}

/// Passes up to three sockets to a service, as systemd does (`LISTEN_FDS`).
pub fn pass_sockets(builder: ProcessBuilder, sockets: Vec<(String, OwnedFd)>) -> ProcessBuilder {
    assert!(sockets.len() <= 3, "standard streams carry them");
    let names: Vec<&str> = sockets.iter().map(|(name, _)| name.as_str()).collect();
    let builder = builder
        .env("LISTEN_FDS", &sockets.len().to_string())
        .env("LISTEN_FDNAMES", &names.join(":"))
        .script(SOCKET_ACTIVATION_SCRIPT);
    builder.standard_streams(sockets.into_iter().map(|(_, fd)| fd))
}
