//! Node: its http module as it is, and its cluster module.

use super::{PeerConfiguration, PeerDefinition, PeerFile, PeerListener, PeerSetup};

const SERVER: &str = include_str!("programs/node_server.js");
const CLUSTER: &str = include_str!("programs/node_cluster.js");
const INSTALL: &str = "apt-get install nodejs, or https://nodejs.org/en/download";

pub(crate) const NODE: PeerDefinition = PeerDefinition {
    name: "node",
    about: "a plain server on Node's http module, under prefork run",
    why: "The server is not changed for prefork: its listen() takes the inherited socket.",
    program: "node",
    version_args: &["--version"],
    install: INSTALL,
    listener: PeerListener::Inherited,
    speaks_tls: true,
    configure: |setup| PeerConfiguration {
        command: vec![setup.program.to_string(), setup.file("node_server.js")],
        environment: environment(setup),
        files: vec![PeerFile::text("node_server.js", SERVER)],
    },
};

pub(crate) const NODE_CLUSTER: PeerDefinition = PeerDefinition {
    name: "node-cluster",
    about: "the same server on Node's cluster module",
    why: "Round-robin is Node's default on Linux: the primary accepts, and passes connections on.",
    listener: PeerListener::OwnProcesses,
    configure: |setup| PeerConfiguration {
        command: vec![
            setup.program.to_string(),
            setup.file("node_cluster.js"),
            setup.workers.to_string(),
            "rr".to_string(),
        ],
        environment: [environment(setup), vec![("PORT", setup.port.to_string())]].concat(),
        files: vec![
            PeerFile::text("node_server.js", SERVER),
            PeerFile::text("node_cluster.js", CLUSTER),
        ],
    },
    ..NODE
};

/// Returns the variables that production sets, and those of the certificate.
fn environment(setup: &PeerSetup<'_>) -> Vec<(&'static str, String)> {
    let certificate = setup.certificate.map(|certificate| {
        let file = |path: std::path::PathBuf| path.display().to_string();
        [
            ("TLS_CERT", file(certificate.certificate_file())),
            ("TLS_KEY", file(certificate.key_file())),
        ]
    });
    let mut all = vec![("NODE_ENV", "production".to_string())];
    all.extend(certificate.into_iter().flatten());
    all
}
