//! Exactly what crosses an exec. Written by the old image, read by the new one, which may be older or newer:
//! unknown fields are skipped, missing ones are an error, and the versions say whether both mean the same.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::scoreboard::Counters;
use prefork_supervisor::WEB_KIND;

/// Changes when a field changes its meaning. Another number is refused while the old image still serves.
const VERSION: u32 = 1;

/// The newest set of optional fields that this image writes and reads. A child that proves a new binary answers with its
/// own number; what an older one would not take over is not passed to it.
///
/// 1: `control`, `pid_file`, `older_boards`, `last_event`.
pub(crate) const REVISION: u32 = 1;

/// The largest manifest in bytes: 1024 workers and as many of each of ten images before need less.
pub(super) const CAP: usize = 8 << 20;

/// What the old image leaves to the new one. Descriptors are numbers that stay open over the exec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub version: u32,
    /// The one whose children the workers are. A manifest is good for this process only.
    pub pid: u32,
    pub started_ms: u64,
    /// How often this process has become a new image.
    pub upgrades: u64,
    pub generation: u64,
    pub next_id: u64,
    pub restarts: u64,
    /// Set by hand since the configuration was read, or what that said.
    pub workers_wanted: u32,
    /// Counted by workers that are dead.
    pub totals: Counters,
    pub listeners: Vec<PassedListener>,
    pub workers: Vec<PassedWorker>,
    /// Connections that were accepted and are in no worker's queue.
    #[serde(default)]
    pub held: Vec<PassedConnection>,
    /// Slots whose workers have variables of their own.
    #[serde(default)]
    pub environments: Vec<(u32, Vec<(String, String)>)>,
    /// The scoreboard that the passed workers write.
    pub board_fd: i32,
    /// See `REVISION`; 0 from an image that knew none.
    #[serde(default)]
    pub revision: u32,
    /// Scoreboards of images before the one that writes this; `PassedWorker::board` counts them from 1.
    #[serde(default)]
    pub older_boards: Vec<i32>,
    /// The control socket and its clients; `None` while a binary is only tried.
    #[serde(default)]
    pub control: Option<PassedControl>,
    /// The pid file, which is locked through this descriptor; `None` while a binary is only tried.
    #[serde(default)]
    pub pid_file: Option<PassedFile>,
    /// The number of the last event: those of the new image go on from it.
    #[serde(default)]
    pub last_event: u64,
}

/// The control socket and its clients. A worker that was forked a moment before the exec still has copies of both the
/// listening socket and the lock of the pid file: a new image that opened them anew would find them in use. Passing the
/// descriptors also keeps the socket listening, so that no client is refused meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedControl {
    /// `None` if clients wait for answers but nobody new may connect.
    pub socket: Option<PassedFile>,
    pub clients: Vec<PassedClient>,
    /// The last number that was given to a client or a request.
    pub last: u64,
}

/// An open descriptor that belongs to a file in the file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedFile {
    pub path: PathBuf,
    /// Tells our file from another one that was put in its place.
    pub inode: u64,
    pub fd: i32,
}

/// A client of the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedClient {
    pub fd: i32,
    /// As it stands in the log.
    pub who: String,
    pub state: PassedState,
}

/// What a client of the control socket is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PassedState {
    /// It may ask something; so much of its request was read.
    Asking { received: Vec<u8> },
    /// It waits until the workers of the new image serve.
    Waiting { ticket: u64 },
    /// It follows the events, and has got all up to `after`.
    Following { after: u64 },
}

/// A listening socket and the address by which the configuration knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedListener {
    pub addr: String,
    /// Which one of the group of this address.
    #[serde(default)]
    pub slot: u32,
    /// Who keeps it besides us, in a word.
    #[serde(default)]
    pub keeper: String,
    pub fd: i32,
}

/// A connection that nobody has begun to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedConnection {
    pub fd: i32,
    /// Over a Unix socket, not TCP.
    pub unix: bool,
}

/// A living worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedWorker {
    pub id: u64,
    pub slot: u32,
    /// Its kind.
    #[serde(default = "web")]
    pub kind: String,
    pub generation: u64,
    pub pid: u32,
    /// The first of its rows on the scoreboard.
    pub row: usize,
    /// How many there are, side by side.
    #[serde(default = "one")]
    pub rows: usize,
    /// The scoreboard of these rows: 0 is `board_fd`, n is number n - 1 of `older_boards`.
    #[serde(default)]
    pub board: usize,
    /// `None` if the worker has closed it.
    pub channel_fd: Option<i32>,
    /// Both ends of the queue of its new connections, the sending one first. `None` if it accepts itself.
    pub queue_fds: Option<[i32; 2]>,
    pub age_ms: u64,
    /// Whether it serves; otherwise it is on its way out.
    pub serving: bool,
    /// Whether it was born with the sockets of its slot.
    #[serde(default)]
    pub own_socket: bool,
    /// Slots whose sockets it accepts from besides.
    #[serde(default)]
    pub adopts: Vec<u32>,
}

/// What an image that knew no other kinds has.
fn web() -> String {
    WEB_KIND.to_string()
}

/// What an image that knew no threads has for each worker.
fn one() -> usize {
    1
}

impl Manifest {
    pub(crate) const VERSION: u32 = VERSION;

    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let bytes = serde_json::to_vec(self)
            .map_err(|e| Error::system("write the upgrade manifest", std::io::Error::from(e)))?;
        if bytes.len() > CAP {
            return Err(Error::config("the upgrade manifest is too large: too many workers"));
        }
        Ok(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Manifest> {
        let broken =
            |why: String| Error::config(format!("the upgrade manifest is unusable: {why}"));
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|e| broken(e.to_string()))?;
        if manifest.version != VERSION {
            let theirs = manifest.version;
            return Err(broken(format!("it is of version {theirs}, this binary reads {VERSION}")));
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn manifest() -> Manifest {
        Manifest {
            version: VERSION,
            pid: 4711,
            started_ms: 1,
            upgrades: 0,
            generation: 2,
            next_id: 5,
            restarts: 1,
            workers_wanted: 2,
            totals: Counters::default(),
            environments: vec![(1, vec![("ROLE".to_string(), "mail".to_string())])],
            listeners: vec![
                PassedListener {
                    addr: "127.0.0.1:3000".to_string(),
                    slot: 0,
                    keeper: "store".to_string(),
                    fd: 3,
                },
                PassedListener {
                    addr: "127.0.0.1:3000".to_string(),
                    slot: 1,
                    keeper: String::new(),
                    fd: 4,
                },
            ],
            workers: vec![PassedWorker {
                id: 4,
                slot: 1,
                kind: "consumer".to_string(),
                generation: 2,
                pid: 4712,
                row: 2,
                rows: 1,
                board: 1,
                channel_fd: Some(7),
                queue_fds: Some([8, 9]),
                age_ms: 10,
                serving: true,
                own_socket: true,
                adopts: vec![0],
            }],
            held: vec![PassedConnection { fd: 10, unix: true }],
            board_fd: 5,
            revision: REVISION,
            older_boards: vec![11],
            control: Some(PassedControl {
                socket: Some(PassedFile { path: "/run/c".into(), inode: 1, fd: 12 }),
                clients: vec![PassedClient {
                    fd: 13,
                    who: "control uid=0 pid=1".to_string(),
                    state: PassedState::Waiting { ticket: 3 },
                }],
                last: 3,
            }),
            pid_file: None,
            last_event: 17,
        }
    }

    #[test]
    fn a_manifest_of_an_image_that_passed_no_control_socket_is_read() {
        let mut value = serde_json::to_value(manifest()).expect("JSON");
        let fields = value.as_object_mut().expect("object");
        for field in ["revision", "older_boards", "control", "pid_file", "last_event"] {
            fields.remove(field).expect(field);
        }
        value["workers"][0].as_object_mut().expect("object").remove("board");
        let read = Manifest::decode(value.to_string().as_bytes()).expect("decode");
        assert_eq!((read.revision, read.control, read.workers[0].board), (0, None, 0));
    }

    #[test]
    fn a_manifest_of_an_image_that_knew_no_queues_is_read() {
        let mut value = serde_json::to_value(manifest()).expect("JSON");
        value.as_object_mut().expect("object").remove("held");
        value["workers"][0].as_object_mut().expect("object").remove("queue_fds");
        let read = Manifest::decode(value.to_string().as_bytes()).expect("decode");
        assert_eq!((read.held.len(), read.workers[0].queue_fds), (0, None));
    }

    #[test]
    fn what_is_written_is_read() {
        let manifest = manifest();
        let read = Manifest::decode(&manifest.encode().expect("encode")).expect("decode");
        assert_eq!(read, manifest);
    }

    #[test]
    fn an_image_that_knew_no_slots_is_followed() {
        let mut json = serde_json::to_value(manifest()).expect("json");
        for (list, fields) in [
            ("listeners", &["slot", "keeper"][..]),
            ("workers", &["own_socket", "adopts", "rows", "kind"]),
        ] {
            for one in json[list].as_array_mut().expect("a list") {
                fields
                    .iter()
                    .for_each(|field| drop(one.as_object_mut().expect("map").remove(*field)));
            }
        }
        let read = Manifest::decode(json.to_string().as_bytes()).expect("decode");
        assert_eq!((read.listeners[1].slot, read.workers[0].own_socket), (0, false));
    }

    #[test]
    fn another_version_is_refused_and_named() {
        let bytes = Manifest { version: 99, ..manifest() }.encode().expect("encode");
        let error = Manifest::decode(&bytes).expect_err("refused").to_string();
        assert!(error.contains("of version 99, this binary reads 1"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = Manifest::decode(&bytes);
        }

        #[test]
        fn a_truncated_manifest_is_refused(cut in 0usize..300) {
            let bytes = manifest().encode().expect("encode");
            let cut = cut.min(bytes.len() - 1);
            prop_assert!(Manifest::decode(&bytes[..cut]).is_err());
        }
    }
}
