//! The measured servers: `prefork serve` under each dispatch policy, and peers that are installed.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use tokio_prefork::Dispatch;

use super::peer::PEER_FLAG;
use super::process::Server;
use super::{cleanup, fail};

const FLOOR_SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/floor/floor.c");
const CLUSTER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/crates/prefork-bench/src/compare/peers/programs/node_cluster.js"
);

/// A server that can be started for a measurement.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum BenchTarget {
    /// `prefork serve --dispatch`.
    Prefork(Dispatch),
    /// The minimal epoll server in C: how its sockets are shared, and whether it shuts down connections before it
    /// closes them.
    Floor {
        sockets: &'static str,
        shutdown: bool,
    },
    /// A plain hyper server, a thread and a SO_REUSEPORT socket per core.
    Hyper,
    Nginx {
        reuseport: bool,
    },
    /// Node's cluster with this policy.
    Node(&'static str),
}

/// The target that ratios refer to.
pub const REFERENCE: BenchTarget = BenchTarget::Floor { sockets: "reuseport", shutdown: true };

const PEERS: [BenchTarget; 8] = [
    REFERENCE,
    BenchTarget::Floor { sockets: "shared", shutdown: true },
    BenchTarget::Floor { sockets: "reuseport", shutdown: false },
    BenchTarget::Hyper,
    BenchTarget::Nginx { reuseport: false },
    BenchTarget::Nginx { reuseport: true },
    BenchTarget::Node("rr"),
    BenchTarget::Node("none"),
];

impl BenchTarget {
    pub fn name(self) -> &'static str {
        match self {
            BenchTarget::Prefork(policy) => policy.name(),
            BenchTarget::Floor { sockets: "shared", .. } => "floor-shared",
            BenchTarget::Floor { shutdown: false, .. } => "floor-no-shutdown",
            BenchTarget::Floor { .. } => "floor",
            BenchTarget::Hyper => "hyper-threads",
            BenchTarget::Nginx { reuseport: false } => "nginx",
            BenchTarget::Nginx { reuseport: true } => "nginx-reuseport",
            BenchTarget::Node("rr") => "node-rr",
            BenchTarget::Node(_) => "node-none",
        }
    }

    /// Returns the name for the table.
    pub fn title(self) -> String {
        match self {
            BenchTarget::Prefork(policy) => format!("prefork {policy}"),
            peer => peer.name().to_string(),
        }
    }

    /// Returns whether the target's workers are processes, which can be stopped and killed one by one.
    pub fn has_processes(self) -> bool {
        self != BenchTarget::Hyper
    }

    /// Returns whether the target can replace all its workers without a pause.
    pub fn can_reload(self) -> bool {
        matches!(self, BenchTarget::Prefork(_) | BenchTarget::Nginx { .. })
    }
}

/// Everything that is needed to start targets.
pub struct BenchSetup {
    /// Sockets, configurations and the compiled floor.
    directory: tempfile::TempDir,
    pub targets: Vec<BenchTarget>,
    started: AtomicU32,
}

impl BenchSetup {
    /// Selects policies and peers from comma-separated lists, by default all. Peers that are not installed are
    /// reported.
    pub fn new(policies: Option<&str>, peers: Option<&str>) -> BenchSetup {
        let directory =
            tempfile::tempdir().unwrap_or_else(|e| fail(format_args!("no temp directory: {e}")));
        cleanup::register_directory(directory.path());
        let ours: Vec<BenchTarget> = Dispatch::ALL.into_iter().map(BenchTarget::Prefork).collect();
        let mut targets = select_targets("--policies", policies, &ours);
        let mut peers = select_targets("--peers", peers, &PEERS);
        let mut leave_out = |kind: fn(&BenchTarget) -> bool, missing: Option<String>| {
            if let (true, Some(why)) = (peers.iter().any(kind), missing) {
                eprintln!("left out: {why}");
                peers.retain(|peer| !kind(peer));
            }
        };
        leave_out(
            |peer| matches!(peer, BenchTarget::Floor { .. }),
            compile_floor(directory.path()),
        );
        leave_out(
            |peer| matches!(peer, BenchTarget::Nginx { .. }),
            why_not_installed("nginx", "-v", "nginx-light"),
        );
        leave_out(
            |peer| matches!(peer, BenchTarget::Node(_)),
            why_not_installed("node", "--version", "nodejs"),
        );
        targets.extend(peers);
        if targets.is_empty() {
            fail("no target is left to measure");
        }
        BenchSetup { directory, targets, started: AtomicU32::new(0) }
    }

    /// Returns an unused path in the temporary directory.
    fn unused_path(&self, suffix: &str) -> PathBuf {
        let n = self.started.fetch_add(1, Relaxed);
        self.directory.path().join(format!("{n}{suffix}"))
    }

    /// Starts a target.
    ///
    /// # Errors
    ///
    /// The server does not start.
    pub fn start(&self, target: BenchTarget, workers: usize) -> Result<RunningTarget, String> {
        let tied = |program: &Path| {
            cleanup::command_ended_with_bench(program)
                .map_err(|e| format!("cannot find this program: {e}"))
        };
        let (mut control, count) = (None, workers.to_string());
        let server = match target {
            BenchTarget::Prefork(policy) => {
                let socket = self.unused_path(".sock");
                let mut command = tied(Path::new(env!("CARGO_BIN_EXE_prefork")))?;
                command.args(["serve", "-b", "127.0.0.1:0", "--dispatch", policy.name()]);
                command.args(["-w", &count, "--control"]).arg(&socket);
                control = Some(socket);
                Server::try_start(&mut command, |(_, line)| repeat_dispatch_warning(&line))
                    .and_then(|server| {
                        server.wait_for_workers(workers)?;
                        Ok(server)
                    })
            }
            BenchTarget::Floor { sockets, shutdown } => {
                let mut command = tied(&self.directory.path().join("floor"))?;
                command.args([&count, sockets]);
                if !shutdown {
                    command.arg("no-shutdown");
                }
                Server::try_start(&mut command, |_| {})
            }
            BenchTarget::Hyper => {
                let this = std::env::current_exe()
                    .map_err(|e| format!("cannot find this program: {e}"))?;
                let mut command = tied(&this)?;
                command.args([PEER_FLAG, &count]);
                Server::try_start(&mut command, |_| {})
            }
            BenchTarget::Nginx { reuseport } => self.start_nginx(reuseport, workers),
            BenchTarget::Node(policy) => {
                let mut command = tied(Path::new("node"))?;
                command.args([CLUSTER, &count, policy]);
                Server::try_start(&mut command, |_| {})
            }
        }?;
        Ok(RunningTarget { server, control })
    }

    fn start_nginx(&self, reuseport: bool, workers: usize) -> Result<Server, String> {
        let mut outcome = Err(String::new());
        // nginx cannot bind port 0, and another process may take the port that was free: so retry.
        for _ in 0..3 {
            let home = self.unused_path(".nginx");
            let port = free_port().map_err(|e| format!("no free port: {e}"))?;
            let config = nginx_config(&home, port, reuseport, workers);
            std::fs::create_dir(&home)
                .and_then(|()| std::fs::write(home.join("nginx.conf"), config))
                .map_err(|e| format!("cannot write {}: {e}", home.display()))?;
            let mut command = cleanup::command_ended_with_bench("nginx")
                .map_err(|e| format!("cannot find this program: {e}"))?;
            command.arg("-p").arg(&home).arg("-c").arg(home.join("nginx.conf"));
            let addr = SocketAddr::from(([127, 0, 0, 1], port));
            outcome = Server::start_at(&mut command, addr).and_then(|server| {
                // nginx listens before it forks.
                server.wait_for_workers(workers)?;
                Ok(server)
            });
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }
}

/// A target that serves.
pub struct RunningTarget {
    pub server: Server,
    /// The control socket, if the target is prefork.
    pub control: Option<PathBuf>,
}

/// Repeats a warning about the dispatch policy once, as a fallback changes the figures.
fn repeat_dispatch_warning(line: &str) {
    static REPEATED_WARNINGS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let Some((_, warning)) = line.split_once(" WARN ") else { return };
    let lower = warning.to_lowercase();
    if ["dispatch", "least-conn", "bpf"].iter().any(|word| lower.contains(word))
        && REPEATED_WARNINGS.lock().is_ok_and(|mut logged| logged.insert(lower))
    {
        eprintln!("prefork: {}", warning.trim());
    }
}

fn select_targets(flag: &str, names: Option<&str>, of: &[BenchTarget]) -> Vec<BenchTarget> {
    let Some(names) = names else { return of.to_vec() };
    let find = |name: &str| {
        let found = of.iter().copied().find(|one| one.name() == name);
        let known = || of.iter().map(|one| one.name()).collect::<Vec<_>>().join(", ");
        found.unwrap_or_else(|| {
            fail(format_args!("{flag} {name}: give none or some of {}", known()))
        })
    };
    let names = names.split(',').map(str::trim).filter(|name| *name != "none" && !name.is_empty());
    names.map(find).collect()
}

/// Returns why the program cannot be used, with the package that has it.
fn why_not_installed(program: &str, harmless: &str, package: &str) -> Option<String> {
    let mut command = Command::new(program);
    command.arg(harmless).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let works = command.status().is_ok_and(|status| status.success());
    (!works).then(|| format!("{program} is not installed (apt-get install {package})"))
}

/// Compiles the floor server; returns why that is impossible.
fn compile_floor(directory: &Path) -> Option<String> {
    let mut command = Command::new("cc");
    command.args(["-O2", "-o"]).arg(directory.join("floor")).arg(FLOOR_SERVER);
    match command.output() {
        Ok(done) if done.status.success() => None,
        Ok(done) => Some(format!("cc {FLOOR_SERVER}: {}", String::from_utf8_lossy(&done.stderr))),
        Err(_) => Some("the floor: cc is not installed (apt-get install gcc libc6-dev)".into()),
    }
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn nginx_config(home: &Path, port: u16, reuseport: bool, workers: usize) -> String {
    let user = if nix::unistd::geteuid().is_root() { "user root;" } else { "" };
    let option = if reuseport { " reuseport" } else { "" };
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temp = |kind: &str| format!("{kind}_temp_path {}/{kind};", home.display());
    let temp = kinds.map(temp).join(" ");
    format!(
        "{user} daemon off; worker_processes {workers}; worker_rlimit_nofile 16384;
        pid {home}/pid; error_log stderr emerg;
        events {{ worker_connections 8192; }}
        http {{
            access_log off; keepalive_timeout 300s; keepalive_requests 1000000000; tcp_nodelay on; {temp}
            server {{
                listen 127.0.0.1:{port} backlog=4096{option};
                default_type 'text/plain; charset=utf-8';
                location / {{ return 200 'Handled by PID $pid\\n'; }}
            }}
        }}
        ",
        home = home.display()
    )
}
