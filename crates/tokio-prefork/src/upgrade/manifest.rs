//! The state that crosses the exec of an upgrade, as JSON.
//!
//! Written by the old image and read by the new one, which may be an older or newer program: unknown fields are
//! skipped, a missing field without a default is an error, and a different version is refused.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::status::{KeptFigures, PoolStatus, SupervisionCounters, TrafficCounters};
use prefork_supervisor::WEB_KIND;

/// The version of the format; changes when a field changes its meaning. A new binary refuses a version it does not
/// know, while the old image still serves.
pub(crate) const MANIFEST_VERSION: u32 = 1;

/// The newest set of optional fields that this program writes and reads. The upgrade check reports the new binary's own
/// number, and an older one is not passed what it would ignore.
///
/// 1: `control`, `pid_file`, `older_boards`, `last_event`. 2: `messages`. 3: `shared`.
/// 4: `isolated_jobs`. 5: `admin`. 6: `ticket_keys_fd`.
pub(crate) const MANIFEST_REVISION: u32 = 6;

/// The first revision whose programs take over the message channels of workers.
pub(crate) const MESSAGES_REVISION: u32 = 2;

/// The first revision whose programs take over shared state.
pub(crate) const SHARED_STATE_REVISION: u32 = 3;

/// The first revision whose programs take over isolated jobs.
pub(crate) const ISOLATED_JOBS_REVISION: u32 = 4;

/// The first revision whose programs take over the admin listener and its process.
pub(crate) const ADMIN_REVISION: u32 = 5;

/// The first revision whose programs take over the keys of session tickets, or close their memory, which no child of theirs may
/// inherit.
pub(crate) const TICKET_KEYS_REVISION: u32 = 6;

/// The largest manifest in bytes: 1024 workers, and as many of each of ten previous images, need less.
pub(super) const MAX_MANIFEST_BYTES: usize = 8 << 20;

/// The state that the old image passes to the new one. Descriptors are numbers that stay open across the exec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UpgradeManifest {
    pub version: u32,
    /// The pid of the primary, the parent of the workers. Only this process may use the manifest.
    pub pid: u32,
    pub started_ms: u64,
    /// How often this process has become a new image.
    pub upgrades: u64,
    pub generation: u64,
    pub next_id: u64,
    pub restarts: u64,
    /// The wanted number of workers, from the configuration or from a later scale command.
    pub workers_wanted: u32,
    /// How many workers the configuration names.
    #[serde(default)]
    pub workers_configured: Option<u32>,
    /// The numbers of workers of the kinds besides `web`.
    #[serde(default)]
    pub kinds: Vec<PassedKind>,
    /// The counters of exited workers.
    pub totals: TrafficCounters,
    /// What else is kept of exited workers.
    #[serde(default)]
    pub kept: KeptFigures,
    /// What the primary has counted.
    #[serde(default)]
    pub supervision: SupervisionCounters,
    /// The CPU pools of exited workers, added up by name.
    #[serde(default)]
    pub pools: Vec<PoolStatus>,
    pub listeners: Vec<PassedListener>,
    pub workers: Vec<PassedWorker>,
    /// Connections that were accepted and are in no worker's queue.
    #[serde(default)]
    pub held: Vec<PassedConnection>,
    /// The slots that the program added (`fork_with`), with the environment variables of their workers.
    #[serde(default)]
    pub environments: Vec<(u32, Vec<(String, String)>)>,
    /// The ids that the program has for the first workers of these slots, which are not forked yet.
    #[serde(default)]
    pub reserved_ids: Vec<(u32, u64)>,
    /// The scoreboard of the old image's workers.
    pub board_fd: i32,
    /// See `MANIFEST_REVISION`; 0 from a program without revisions.
    #[serde(default)]
    pub revision: u32,
    /// Scoreboards of images before the old one; `PassedWorker::board` counts them from 1.
    #[serde(default)]
    pub older_boards: Vec<i32>,
    /// The memories for stacks of `board_fd` and of each of `older_boards`; empty without the feature `stack-traces`.
    #[serde(default)]
    pub stack_fds: Vec<Option<i32>>,
    /// The control socket and its clients; `None` in an upgrade check.
    #[serde(default)]
    pub control: Option<PassedControl>,
    /// The pid file, which is locked through this descriptor; `None` in an upgrade check.
    #[serde(default)]
    pub pid_file: Option<PassedFile>,
    /// The number of the last event; the new image continues from it.
    #[serde(default)]
    pub last_event: u64,
    /// The sockets of the application (`inherit_socket`).
    #[serde(default)]
    pub sockets: Vec<PassedSocket>,
    /// The application's messages; `None` in an upgrade check.
    #[serde(default)]
    pub messages: Option<PassedMessages>,
    /// The shared state.
    #[serde(default)]
    pub shared: Option<PassedSharedState>,
    /// The isolated jobs; `None` in an upgrade check.
    #[serde(default)]
    pub isolated_jobs: Option<PassedIsolatedJobs>,
    /// The admin listener; only its sockets in an upgrade check.
    #[serde(default)]
    pub admin: Option<PassedAdmin>,
    /// The memory with the keys of session tickets; `None` without TLS, and in an upgrade check.
    #[serde(default)]
    pub ticket_keys_fd: Option<i32>,
}

/// The admin listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedAdmin {
    pub listeners: Vec<PassedListener>,
    pub processes: Vec<PassedAdminProcess>,
    /// The memory with the last events.
    pub memory_fd: Option<i32>,
    /// How many processes replaced one that exited unexpectedly.
    pub restarts: u64,
}

/// A living process of the admin listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedAdminProcess {
    pub id: u64,
    pub pid: u32,
    pub generation: u64,
    /// Whether it does not serve: it drains, or was not ready.
    pub is_draining: bool,
    /// `None` if it has closed it.
    pub channel_fd: Option<i32>,
}

/// The isolated jobs that run and wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedIsolatedJobs {
    /// `ISOLATED_JOBS_FORMAT` of the old image. A new image with another one loses the jobs.
    pub format: u32,
    /// The saved jobs, in a memfd.
    pub state_fd: i32,
}

/// The memory of shared state, and its lock files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedSharedState {
    /// Empty in an upgrade check.
    pub memory: Vec<PassedMemory>,
    pub lock_files: Vec<PassedLockFile>,
    /// The event that a lock by name was released.
    #[serde(default)]
    pub release_event: Option<i32>,
}

/// A file in memory with pieces of shared state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedMemory {
    pub fd: i32,
    /// Words that are or were part of a piece. Those after them are zero.
    pub used_words: usize,
    pub pieces: Vec<PassedPiece>,
}

/// A piece of shared state in a file. The new image gets its memory if all but `first_word` is the same there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedPiece {
    pub name: String,
    pub kind: String,
    pub layout: String,
    pub first_word: usize,
    pub words: usize,
}

/// A file whose bytes are locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedLockFile {
    pub name: String,
    pub fd: i32,
}

/// The channels for messages to the workers, and what is in their queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedMessages {
    /// `MESSAGE_FORMAT` of the old image. A new image with another one closes the channels.
    pub format: u32,
    /// The saved queues, in a memfd.
    pub state_fd: i32,
    /// The ids of workers and the descriptors of their channels.
    pub channels: Vec<(u64, i32)>,
}

/// The control socket and its clients.
///
/// A worker that was forked a moment before the exec still has copies of the listening socket and of the lock of the
/// pid file, so a new image that opened them again would find them in use. Passing the descriptors also keeps the
/// socket listening.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedControl {
    /// `None` if clients wait for answers but no new client may connect.
    pub socket: Option<PassedFile>,
    pub clients: Vec<PassedClient>,
    /// The last number given to a client or a request.
    pub last: u64,
}

/// An open descriptor that belongs to a file in the file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedFile {
    pub path: PathBuf,
    /// The file's identity, which distinguishes it from another file at the same path.
    pub inode: u64,
    pub fd: i32,
}

/// A client of the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedClient {
    pub fd: i32,
    /// The client's name in the log.
    #[serde(rename = "who")]
    pub client_name: String,
    pub state: PassedClientState,
}

/// What a client of the control socket waits for. The names of the variants are part of the format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PassedClientState {
    /// The client may send a request; these bytes of it were read.
    #[serde(rename = "Asking")]
    ReadingRequest { received: Vec<u8> },
    /// The client waits until the workers of the new image serve.
    #[serde(rename = "Waiting")]
    WaitingForReply {
        #[serde(rename = "ticket")]
        request_id: u64,
    },
    /// The client follows the events and has received all up to number `after`.
    Following { after: u64 },
}

/// The numbers of workers of a kind besides `web`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedKind {
    pub name: String,
    /// The wanted number, from the declaration or from a later scale command.
    pub wanted: u32,
    /// The number that the program declares.
    pub declared: u32,
}

/// A listening socket and the address by which the configuration knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedListener {
    pub addr: String,
    /// The slot of the socket, where each slot has its own.
    #[serde(default)]
    pub slot: u32,
    /// The other process that keeps the socket open, by name.
    #[serde(default)]
    pub keeper: String,
    pub fd: i32,
}

/// A socket of the application, and the name by which the application asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedSocket {
    pub name: String,
    pub fd: i32,
}

/// An accepted connection that no worker has taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedConnection {
    pub fd: i32,
    /// Whether it came over a Unix socket instead of TCP.
    pub unix: bool,
}

/// A living worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedWorker {
    pub id: u64,
    pub slot: u32,
    #[serde(default = "web_kind")]
    pub kind: String,
    pub generation: u64,
    pub pid: u32,
    /// The pid of its foreign program, which stands for the worker in logs.
    #[serde(default)]
    pub program_pid: Option<u32>,
    /// The number of its first worker page.
    pub row: usize,
    /// How many adjacent worker pages it has.
    #[serde(default = "default_row_count")]
    pub rows: usize,
    /// The scoreboard of the worker pages: 0 is `board_fd`, n is number n - 1 of `older_boards`.
    #[serde(default)]
    pub board: usize,
    /// `None` if the worker has closed it.
    pub channel_fd: Option<i32>,
    /// Both ends of its connection queue, the sending one first. `None` if the worker accepts by itself.
    pub queue_fds: Option<[i32; 2]>,
    pub age_ms: u64,
    /// Whether it serves its slot; otherwise it drains.
    pub serving: bool,
    /// Whether it was forked with the sockets of its slot.
    #[serde(default)]
    pub own_socket: bool,
    /// Further slots whose sockets it accepts from.
    #[serde(default)]
    pub adopts: Vec<u32>,
    /// The index of its listening sockets, where each worker has its own.
    #[serde(default)]
    pub socket_index: u32,
    /// The reading ends of the pipes that its output goes to. Empty if it has the primary's streams.
    #[serde(default)]
    pub outputs: Vec<PassedOutput>,
}

/// The reading end of a pipe that the output of a worker goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedOutput {
    /// Whether it is standard error, not standard output.
    pub is_stderr: bool,
    pub fd: i32,
    /// What was read and not delivered, one character for each byte.
    pub unread: String,
}

/// The kind of workers in a manifest without kinds.
fn web_kind() -> String {
    WEB_KIND.to_string()
}

/// The number of worker pages in a manifest without the field.
fn default_row_count() -> usize {
    1
}

impl UpgradeManifest {
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let bytes = serde_json::to_vec(self)
            .map_err(|e| Error::system("write the upgrade manifest", std::io::Error::from(e)))?;
        if bytes.len() > MAX_MANIFEST_BYTES {
            let limit = MAX_MANIFEST_BYTES;
            return Err(Error::internal(format!("the upgrade manifest exceeds {limit} bytes")));
        }
        Ok(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<UpgradeManifest> {
        let broken = |why: String| {
            let cause = std::io::Error::new(std::io::ErrorKind::InvalidData, why);
            Error::system("read the upgrade manifest", cause)
        };
        let manifest: UpgradeManifest =
            serde_json::from_slice(bytes).map_err(|e| broken(e.to_string()))?;
        if manifest.version != MANIFEST_VERSION {
            let theirs = manifest.version;
            return Err(broken(format!(
                "it is of version {theirs}, this binary reads {MANIFEST_VERSION}"
            )));
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shared_state() -> PassedSharedState {
        PassedSharedState {
            memory: vec![PassedMemory {
                fd: 16,
                used_words: 512,
                pieces: vec![PassedPiece {
                    name: "orders".to_string(),
                    kind: "counter".to_string(),
                    layout: "1".to_string(),
                    first_word: 0,
                    words: 512,
                }],
            }],
            lock_files: vec![PassedLockFile { name: "processes".to_string(), fd: 17 }],
            release_event: Some(18),
        }
    }

    fn admin_process() -> PassedAdmin {
        PassedAdmin {
            listeners: vec![PassedListener {
                addr: "127.0.0.1:9090".to_string(),
                slot: 0,
                keeper: String::new(),
                fd: 19,
            }],
            processes: vec![PassedAdminProcess {
                id: 1,
                pid: 4713,
                generation: 2,
                is_draining: false,
                channel_fd: Some(20),
            }],
            memory_fd: Some(21),
            restarts: 0,
        }
    }

    fn manifest() -> UpgradeManifest {
        UpgradeManifest {
            version: MANIFEST_VERSION,
            pid: 4711,
            started_ms: 1,
            upgrades: 0,
            generation: 2,
            next_id: 5,
            restarts: 1,
            workers_wanted: 2,
            workers_configured: Some(1),
            kinds: vec![PassedKind { name: "consumer".to_string(), wanted: 2, declared: 1 }],
            totals: TrafficCounters::default(),
            supervision: SupervisionCounters { forks: 9, ..SupervisionCounters::default() },
            kept: KeptFigures { cpu_us: 3, ..KeptFigures::default() },
            pools: Vec::new(),
            reserved_ids: vec![(1, 6)],
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
                program_pid: None,
                row: 2,
                rows: 1,
                board: 1,
                channel_fd: Some(7),
                queue_fds: Some([8, 9]),
                age_ms: 10,
                serving: true,
                own_socket: true,
                socket_index: 3,
                adopts: vec![0],
                outputs: vec![PassedOutput { is_stderr: true, fd: 14, unread: "half".to_string() }],
            }],
            held: vec![PassedConnection { fd: 10, unix: true }],
            board_fd: 5,
            revision: MANIFEST_REVISION,
            older_boards: vec![11],
            stack_fds: vec![Some(12), None],
            control: Some(PassedControl {
                socket: Some(PassedFile { path: "/run/c".into(), inode: 1, fd: 12 }),
                clients: vec![PassedClient {
                    fd: 13,
                    client_name: "control uid=0 pid=1".to_string(),
                    state: PassedClientState::WaitingForReply { request_id: 3 },
                }],
                last: 3,
            }),
            pid_file: None,
            last_event: 17,
            sockets: vec![PassedSocket { name: "dns".to_string(), fd: 14 }],
            messages: Some(PassedMessages { format: 1, state_fd: 14, channels: vec![(4, 15)] }),
            isolated_jobs: Some(PassedIsolatedJobs { format: 1, state_fd: 18 }),
            admin: Some(admin_process()),
            ticket_keys_fd: Some(22),
            shared: Some(shared_state()),
        }
    }

    #[test]
    fn reads_a_manifest_without_control_socket() {
        let mut value = serde_json::to_value(manifest()).expect("JSON");
        let fields = value.as_object_mut().expect("object");
        for field in [
            "revision",
            "older_boards",
            "control",
            "pid_file",
            "last_event",
            "messages",
            "isolated_jobs",
            "admin",
            "ticket_keys_fd",
            "workers_configured",
            "kinds",
            "reserved_ids",
            "sockets",
            "shared",
            "kept",
            "supervision",
        ] {
            fields.remove(field).expect(field);
        }
        for field in ["board", "outputs"] {
            value["workers"][0].as_object_mut().expect("object").remove(field).expect(field);
        }
        let read = UpgradeManifest::decode(value.to_string().as_bytes()).expect("decode");
        assert_eq!((read.revision, read.control, read.workers[0].board), (0, None, 0));
    }

    #[test]
    fn reads_a_manifest_without_connection_queues() {
        let mut value = serde_json::to_value(manifest()).expect("JSON");
        value.as_object_mut().expect("object").remove("held");
        value["workers"][0].as_object_mut().expect("object").remove("queue_fds");
        let read = UpgradeManifest::decode(value.to_string().as_bytes()).expect("decode");
        assert_eq!((read.held.len(), read.workers[0].queue_fds), (0, None));
    }

    #[test]
    fn round_trips() {
        let manifest = manifest();
        let read = UpgradeManifest::decode(&manifest.encode().expect("encode")).expect("decode");
        assert_eq!(read, manifest);
    }

    #[test]
    fn reads_a_manifest_without_slots() {
        let mut json = serde_json::to_value(manifest()).expect("json");
        for (list, fields) in [
            ("listeners", &["slot", "keeper"][..]),
            ("workers", &["own_socket", "adopts", "rows", "kind", "socket_index"]),
        ] {
            for one in json[list].as_array_mut().expect("a list") {
                fields
                    .iter()
                    .for_each(|field| drop(one.as_object_mut().expect("map").remove(*field)));
            }
        }
        let read = UpgradeManifest::decode(json.to_string().as_bytes()).expect("decode");
        assert_eq!((read.listeners[1].slot, read.workers[0].own_socket), (0, false));
    }

    #[test]
    fn refuses_another_version_and_names_it() {
        let bytes = UpgradeManifest { version: 99, ..manifest() }.encode().expect("encode");
        let error = UpgradeManifest::decode(&bytes).expect_err("refused").to_string();
        assert!(error.contains("of version 99, this binary reads 1"), "{error}");
    }

    proptest! {
        #[test]
        fn decoding_any_bytes_does_not_panic(bytes: Vec<u8>) {
            let _ = UpgradeManifest::decode(&bytes);
        }

        #[test]
        fn refuses_a_truncated_manifest(cut in 0usize..300) {
            let bytes = manifest().encode().expect("encode");
            let cut = cut.min(bytes.len() - 1);
            prop_assert!(UpgradeManifest::decode(&bytes[..cut]).is_err());
        }
    }
}
