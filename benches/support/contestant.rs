//! Who is measured: `prefork serve` with each policy, and peers, as far as they are installed.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use tokio_prefork::Dispatch;

use super::peer::PEER;
use super::process::Server;
use super::{cleanup, fail};

const FLOOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/floor/floor.c");
const CLUSTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/peers/cluster.js");

/// A server that can be started as often as one likes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Contestant {
    /// `prefork serve --dispatch`.
    Prefork(Dispatch),
    /// The raw epoll server: how its sockets are shared, and how it ends connections.
    Floor {
        sockets: &'static str,
        manners: &'static str,
    },
    /// A plain hyper server, a thread and a SO_REUSEPORT socket per core.
    Hyper,
    Nginx {
        reuseport: bool,
    },
    /// Node's cluster with this policy.
    Node(&'static str),
}

/// What ratios refer to.
pub const REFERENCE: Contestant = Contestant::Floor { sockets: "reuseport", manners: "polite" };

const PEERS: [Contestant; 8] = [
    REFERENCE,
    Contestant::Floor { sockets: "shared", manners: "polite" },
    Contestant::Floor { sockets: "reuseport", manners: "hasty" },
    Contestant::Hyper,
    Contestant::Nginx { reuseport: false },
    Contestant::Nginx { reuseport: true },
    Contestant::Node("rr"),
    Contestant::Node("none"),
];

impl Contestant {
    pub fn name(self) -> &'static str {
        match self {
            Contestant::Prefork(policy) => policy.name(),
            Contestant::Floor { sockets: "shared", .. } => "floor-shared",
            Contestant::Floor { manners: "hasty", .. } => "floor-hasty",
            Contestant::Floor { .. } => "floor",
            Contestant::Hyper => "hyper-threads",
            Contestant::Nginx { reuseport: false } => "nginx",
            Contestant::Nginx { reuseport: true } => "nginx-reuseport",
            Contestant::Node("rr") => "node-rr",
            Contestant::Node(_) => "node-none",
        }
    }

    /// As it stands in a table.
    pub fn title(self) -> String {
        match self {
            Contestant::Prefork(policy) => format!("prefork {policy}"),
            peer => peer.name().to_string(),
        }
    }

    /// Whether its workers are processes, which can be stopped and killed one by one.
    pub fn has_processes(self) -> bool {
        self != Contestant::Hyper
    }

    /// Whether it can replace all its workers without a pause.
    pub fn can_reload(self) -> bool {
        matches!(self, Contestant::Prefork(_) | Contestant::Nginx { .. })
    }
}

/// What is needed to start them.
pub struct Ground {
    /// Sockets, configurations and the compiled floor.
    directory: tempfile::TempDir,
    pub contestants: Vec<Contestant>,
    started: AtomicU32,
}

impl Ground {
    /// Chooses the policies and peers named in lists with commas, all of them by default, and looks which
    /// peers there are. Those that are missing are named with what installs them.
    pub fn new(policies: Option<&str>, peers: Option<&str>) -> Ground {
        let directory =
            tempfile::tempdir().unwrap_or_else(|e| fail(format_args!("no temp directory: {e}")));
        cleanup::directory(directory.path());
        let ours: Vec<Contestant> = Dispatch::ALL.into_iter().map(Contestant::Prefork).collect();
        let mut contestants = chosen("--policies", policies, &ours);
        let mut peers = chosen("--peers", peers, &PEERS);
        let mut leave_out = |kind: fn(&Contestant) -> bool, missing: Option<String>| {
            if let (true, Some(why)) = (peers.iter().any(kind), missing) {
                eprintln!("left out: {why}");
                peers.retain(|peer| !kind(peer));
            }
        };
        leave_out(|peer| matches!(peer, Contestant::Floor { .. }), compile_floor(directory.path()));
        leave_out(
            |peer| matches!(peer, Contestant::Nginx { .. }),
            missing("nginx", "-v", "nginx-light"),
        );
        leave_out(
            |peer| matches!(peer, Contestant::Node(_)),
            missing("node", "--version", "nodejs"),
        );
        contestants.extend(peers);
        if contestants.is_empty() {
            fail("nobody is left to measure");
        }
        Ground { directory, contestants, started: AtomicU32::new(0) }
    }

    /// A path in the temporary directory that nobody has used.
    fn fresh(&self, suffix: &str) -> PathBuf {
        let n = self.started.fetch_add(1, Relaxed);
        self.directory.path().join(format!("{n}{suffix}"))
    }

    /// Starts one.
    ///
    /// # Errors
    ///
    /// Why it does not serve.
    pub fn start(&self, who: Contestant, workers: usize) -> Result<Running, String> {
        let tied = |program: &Path| cleanup::tied(program).map_err(|e| format!("who am I: {e}"));
        let (mut control, count) = (None, workers.to_string());
        let server = match who {
            Contestant::Prefork(policy) => {
                let socket = self.fresh(".sock");
                let mut command = tied(Path::new(env!("CARGO_BIN_EXE_prefork")))?;
                command.args(["serve", "-b", "127.0.0.1:0", "--dispatch", policy.name()]);
                command.args(["-w", &count, "--control"]).arg(&socket);
                control = Some(socket);
                Server::try_start(&mut command, "workers serve", |(_, line)| repeat_once(&line))
            }
            Contestant::Floor { sockets, manners } => {
                let mut command = tied(&self.directory.path().join("floor"))?;
                command.args([&count, sockets, manners]);
                Server::try_start(&mut command, "listening on", |_| {})
            }
            Contestant::Hyper => {
                let this = std::env::current_exe().map_err(|e| format!("who am I: {e}"))?;
                let mut command = tied(&this)?;
                command.args([PEER, &count]);
                Server::try_start(&mut command, "listening on", |_| {})
            }
            Contestant::Nginx { reuseport } => self.start_nginx(reuseport, workers),
            Contestant::Node(policy) => {
                let mut command = tied(Path::new("node"))?;
                command.args([CLUSTER, &count, policy]);
                Server::try_start(&mut command, "listening on", |_| {})
            }
        }?;
        Ok(Running { server, control })
    }

    fn start_nginx(&self, reuseport: bool, workers: usize) -> Result<Server, String> {
        let mut outcome = Err(String::new());
        // It cannot listen on a port of its choice: somebody may take the one that we found.
        for _ in 0..3 {
            let home = self.fresh(".nginx");
            let port = free_port().map_err(|e| format!("no free port: {e}"))?;
            let config = nginx_config(&home, port, reuseport, workers);
            std::fs::create_dir(&home)
                .and_then(|()| std::fs::write(home.join("nginx.conf"), config))
                .map_err(|e| format!("cannot write {}: {e}", home.display()))?;
            let mut command = cleanup::tied("nginx").map_err(|e| format!("who am I: {e}"))?;
            command.arg("-p").arg(&home).arg("-c").arg(home.join("nginx.conf"));
            let addr = SocketAddr::from(([127, 0, 0, 1], port));
            outcome = Server::start_at(&mut command, addr).and_then(|server| {
                // It listens before it forks.
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

/// A contestant that serves.
pub struct Running {
    pub server: Server,
    /// The control socket of a prefork.
    pub control: Option<PathBuf>,
}

/// A policy that cannot do what it would like to says so in a warning: whoever reads the figures must know.
fn repeat_once(line: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let Some((_, warning)) = line.split_once(" WARN ") else { return };
    let lower = warning.to_lowercase();
    if ["dispatch", "least-conn", "bpf"].iter().any(|word| lower.contains(word))
        && SAID.lock().is_ok_and(|mut said| said.insert(lower))
    {
        eprintln!("prefork: {}", warning.trim());
    }
}

fn chosen(flag: &str, names: Option<&str>, of: &[Contestant]) -> Vec<Contestant> {
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

/// Why the program cannot be used, and what installs it.
fn missing(program: &str, harmless: &str, package: &str) -> Option<String> {
    let mut command = Command::new(program);
    command.arg(harmless).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let works = command.status().is_ok_and(|status| status.success());
    (!works).then(|| format!("{program} is not installed (apt-get install {package})"))
}

/// Why there is no floor.
fn compile_floor(directory: &Path) -> Option<String> {
    let mut command = Command::new("cc");
    command.args(["-O2", "-o"]).arg(directory.join("floor")).arg(FLOOR);
    match command.output() {
        Ok(done) if done.status.success() => None,
        Ok(done) => Some(format!("cc {FLOOR}: {}", String::from_utf8_lossy(&done.stderr))),
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
