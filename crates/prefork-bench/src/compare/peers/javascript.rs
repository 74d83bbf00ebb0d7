//! Servers in JavaScript: Node as it is, with its cluster module and under PM2; Bun and Deno.

use super::{
    PeerConfiguration, PeerDefinition, PeerFile, PeerListener, PeerProgram, PeerSetup, words,
};

const NODE_SERVER: &str = include_str!("programs/node_server.js");
const NODE_CLUSTER_PROGRAM: &str = include_str!("programs/node_cluster.js");
const FETCH_HANDLER: &str = include_str!("programs/fetch_handler.js");
const BUN_SERVER: &str = include_str!("programs/bun_server.js");
const DENO_SERVER: &str = include_str!("programs/deno_server.js");

pub(crate) const NODE: PeerDefinition = PeerDefinition {
    name: "node",
    about: "a plain server on Node's http module, under prefork run",
    why: "The server is not changed for prefork: its listen() takes the inherited socket.",
    program: PeerProgram::OnPath { name: "node", version_args: &["--version"] },
    install: "apt-get install nodejs, or https://nodejs.org/en/download",
    listener: PeerListener::Inherited,
    speaks_tls: true,
    configure: |setup| PeerConfiguration {
        command: words(&[setup.program, &setup.file("node_server.js")]),
        environment: production(setup),
        files: vec![PeerFile::text("node_server.js", NODE_SERVER)],
    },
};

pub(crate) const NODE_CLUSTER: PeerDefinition = PeerDefinition {
    name: "node-cluster",
    about: "the same server on Node's cluster module",
    why: "Round-robin is Node's default on Linux: the primary accepts, and passes connections on.",
    listener: PeerListener::OwnProcesses,
    configure: |setup| {
        let (file, workers) = (setup.file("node_cluster.js"), setup.workers.to_string());
        PeerConfiguration {
            command: words(&[setup.program, &file, &workers, "rr"]),
            environment: with_port(setup, production(setup)),
            files: vec![
                PeerFile::text("node_server.js", NODE_SERVER),
                PeerFile::text("node_cluster.js", NODE_CLUSTER_PROGRAM),
            ],
        }
    },
    ..NODE
};

pub(crate) const PM2: PeerDefinition = PeerDefinition {
    name: "pm2",
    about: "the same server in PM2's cluster mode",
    why: "pm2-runtime is PM2 without a daemon, for containers; its cluster mode is Node's cluster module.",
    program: PeerProgram::OnPath { name: "pm2-runtime", version_args: &["--version"] },
    install: "npm install -g pm2",
    listener: PeerListener::OwnProcesses,
    configure: |setup| {
        let (file, workers) = (setup.file("node_server.js"), setup.workers.to_string());
        let mut environment = with_port(setup, production(setup));
        environment.push(("PM2_HOME", setup.file("pm2")));
        PeerConfiguration {
            command: words(&[setup.program, "start", &file, "-i", &workers]),
            environment,
            files: vec![PeerFile::text("node_server.js", NODE_SERVER)],
        }
    },
    ..NODE
};

pub(crate) const BUN: PeerDefinition = PeerDefinition {
    name: "bun",
    about: "a server on Bun.serve, with processes on a shared port",
    why: "Processes with reusePort, as Bun's guide for clusters has it.",
    program: PeerProgram::OnPath { name: "bun", version_args: &["--version"] },
    install: "npm install -g bun, or https://bun.sh",
    listener: PeerListener::OwnProcesses,
    speaks_tls: true,
    configure: |setup| {
        let (file, workers) = (setup.file("bun_server.js"), setup.workers.to_string());
        PeerConfiguration {
            command: words(&[setup.program, &file, &workers]),
            environment: with_port(setup, production(setup)),
            files: vec![
                PeerFile::text("bun_server.js", BUN_SERVER),
                PeerFile::text("fetch_handler.js", FETCH_HANDLER),
            ],
        }
    },
};

pub(crate) const DENO: PeerDefinition = PeerDefinition {
    name: "deno",
    about: "a server on Deno.serve, with processes on a shared port",
    why: "Processes with reusePort; the threads of deno serve --parallel have no TLS.",
    program: PeerProgram::OnPath { name: "deno", version_args: &["--version"] },
    install: "npm install -g deno, or https://deno.com",
    listener: PeerListener::OwnProcesses,
    speaks_tls: true,
    configure: |setup| {
        // reusePort is unstable with TLS only.
        let mut command = words(&[setup.program, "run", "--unstable-net", "--allow-net"]);
        command.extend(words(&["--allow-env", "--allow-read", "--allow-run"]));
        command.extend([setup.file("deno_server.js"), setup.workers.to_string()]);
        PeerConfiguration {
            command,
            environment: with_port(setup, production(setup)),
            files: vec![
                PeerFile::text("deno_server.js", DENO_SERVER),
                PeerFile::text("fetch_handler.js", FETCH_HANDLER),
            ],
        }
    },
};

/// Returns the variables that production sets, and those of the certificate.
fn production(setup: &PeerSetup<'_>) -> Vec<(&'static str, String)> {
    let mut all = vec![("NODE_ENV", "production".to_string())];
    if let Some((certificate, key)) = setup.certificate_files() {
        all.extend([("TLS_CERT", certificate), ("TLS_KEY", key)]);
    }
    all
}

fn with_port(
    setup: &PeerSetup<'_>,
    mut environment: Vec<(&'static str, String)>,
) -> Vec<(&'static str, String)> {
    environment.push(("PORT", setup.port.to_string()));
    environment
}
