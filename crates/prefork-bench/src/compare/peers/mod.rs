//! Other servers that `--peer NAME` knows: how to find them, and how to start them so that a comparison is fair.
//!
//! Each is configured as its own documentation says for production, with as many workers as the other servers, without an access
//! log, and with connections that are kept for any number of requests. All answer `/`, `/bytes/N`, `/fib/N` and `/sleep/N` like
//! `prefork serve`, as far as they can.

mod installed_peer;
mod javascript;
mod nginx;
mod puma;
mod python;
mod rust;

use std::path::Path;

use super::compare_certificate::CompareCertificate;
use installed_peer::find_installed;
pub(crate) use installed_peer::{InstalledPeer, PeerError};

/// A server that is known by name.
#[derive(Debug)]
pub(crate) struct PeerDefinition {
    /// Name on the command line and in reports.
    pub(crate) name: &'static str,
    /// What it is, in a phrase.
    pub(crate) about: &'static str,
    /// Why it is configured so, in a sentence.
    pub(crate) why: &'static str,
    /// Where its executable comes from.
    pub(crate) program: PeerProgram,
    /// Command that installs it.
    pub(crate) install: &'static str,
    /// The process that opens the listening socket: the peer, or `prefork run`.
    pub(crate) listener: PeerListener,
    /// Whether it speaks TLS with the files of a certificate and its key.
    pub(crate) speaks_tls: bool,
    /// Returns its command line and files.
    pub(crate) configure: fn(&PeerSetup<'_>) -> PeerConfiguration,
}

/// Where the executable of a peer comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PeerProgram {
    /// Found on PATH; the arguments make it print its version.
    OnPath { name: &'static str, version_args: &'static [&'static str] },
    /// Built by cargo from sources in this program. The version shown is that of `package`.
    Cargo { binary: &'static str, package: &'static str },
}

impl PeerProgram {
    /// Returns the name of the executable.
    pub(crate) fn name(self) -> &'static str {
        match self {
            PeerProgram::OnPath { name, .. } | PeerProgram::Cargo { binary: name, .. } => name,
        }
    }
}

/// The process that opens the listening socket of a peer and starts its processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerListener {
    /// `prefork run`: each worker is a program with one process on an inherited socket.
    Inherited,
    /// The peer itself, on a port that it is told, with as many processes as there are workers.
    OwnProcesses,
    /// The peer itself, on a port that it is told, in one process with as many threads as there are workers.
    OwnThreads,
}

/// What a configuration depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerSetup<'a> {
    /// Path of the executable.
    pub(crate) program: &'a str,
    /// Directory of the files of the configuration.
    pub(crate) dir: &'a Path,
    /// Port to listen on, as text: `{port}` under `prefork run`, which replaces it.
    pub(crate) port: &'a str,
    /// Number of processes.
    pub(crate) workers: usize,
    /// Files of certificate and key; `None` for plain HTTP.
    pub(crate) certificate: Option<&'a CompareCertificate>,
    /// Directory whose files to serve in place of the paths of the built-in application.
    pub(crate) static_root: Option<&'a Path>,
}

impl PartialEq for PeerDefinition {
    fn eq(&self, other: &PeerDefinition) -> bool {
        self.name == other.name
    }
}

impl Eq for PeerDefinition {}

impl PeerDefinition {
    /// Returns how many processes serve requests in a comparison with this number of workers.
    pub(crate) fn process_count(&self, workers: usize) -> usize {
        match self.listener {
            PeerListener::Inherited | PeerListener::OwnProcesses => workers,
            PeerListener::OwnThreads => 1,
        }
    }
}

impl PeerSetup<'_> {
    /// Returns the path of a file of the configuration.
    pub(crate) fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Returns the paths of certificate and key.
    fn certificate_files(&self) -> Option<(String, String)> {
        let files = |one: &CompareCertificate| (one.certificate_file(), one.key_file());
        let (certificate, key) = self.certificate.map(files)?;
        Some((certificate.display().to_string(), key.display().to_string()))
    }
}

/// How a peer is started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PeerConfiguration {
    /// The executable and its arguments.
    pub(crate) command: Vec<String>,
    /// Environment variables.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Files in the directory of the setup.
    pub(crate) files: Vec<PeerFile>,
}

/// A file of a peer's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerFile {
    /// Path below the directory of the setup.
    pub(crate) path: String,
    pub(crate) content: PeerFileContent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PeerFileContent {
    /// A program or a configuration, which reports show.
    Text(String),
    /// A body of zero bytes, of this length.
    Zeros(u64),
}

impl PeerFile {
    pub(crate) fn text(path: &str, text: impl Into<String>) -> PeerFile {
        PeerFile { path: path.to_string(), content: PeerFileContent::Text(text.into()) }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub(crate) fn write(&self, dir: &Path) -> std::io::Result<()> {
        let path = dir.join(&self.path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match &self.content {
            PeerFileContent::Text(text) => std::fs::write(path, text),
            PeerFileContent::Zeros(length) => std::fs::File::create(path)?.set_len(*length),
        }
    }
}

/// Returns the words of a command.
fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

/// All peers that are known by name, in the order of the documentation.
pub(crate) fn all_peers() -> impl Iterator<Item = &'static PeerDefinition> {
    [
        &nginx::NGINX,
        &rust::HYPER,
        &rust::AXUM,
        &rust::ACTIX,
        &javascript::NODE,
        &javascript::NODE_CLUSTER,
        &javascript::PM2,
        &javascript::BUN,
        &javascript::DENO,
        &python::UVICORN,
        &python::UVICORN_WORKERS,
        &python::GUNICORN,
        &python::GUNICORN_GTHREAD,
        &python::GUNICORN_WORKERS,
        &python::GRANIAN,
        &puma::PUMA,
        &puma::PUMA_CLUSTER,
    ]
    .into_iter()
}

/// Returns the peer of this name.
///
/// # Errors
/// Lists the known names.
pub(crate) fn find_peer(name: &str) -> Result<&'static PeerDefinition, String> {
    let names = all_peers().map(|peer| peer.name).collect::<Vec<_>>().join(", ");
    all_peers().find(|peer| peer.name == name).ok_or(format!(
        "{name:?} is not a known peer: give {names}, all for those that are installed, or NAME=COMMAND, for example \
         mine='node server.js'"
    ))
}

/// Finds a peer on this machine; builds it if it must be built and `may_build`.
///
/// # Errors
/// It is not installed, or cannot speak TLS and should; says what to do.
pub(crate) fn check_peer(
    peer: &PeerDefinition,
    https: bool,
    may_build: bool,
) -> Result<InstalledPeer, PeerError> {
    if https && !peer.speaks_tls {
        return Err(format!(
            "peer {}: it has no TLS as it is configured here; compare it without --https",
            peer.name
        ));
    }
    match peer.program {
        PeerProgram::OnPath { name, version_args } => find_installed(peer, name, version_args),
        PeerProgram::Cargo { binary, package } => {
            rust::find_built(peer, binary, package, may_build)
        }
    }
}

#[cfg(test)]
mod tests;
