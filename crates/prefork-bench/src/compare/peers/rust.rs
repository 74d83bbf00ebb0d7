//! Servers in Rust, whose sources come with this program: hyper, axum and actix-web, with a thread per worker.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{InstalledPeer, PeerConfiguration, PeerDefinition, PeerError, PeerListener};
use super::{PeerFile, PeerProgram, PeerSetup, installed_peer::find_on_path, words};
use prefork_os::parent_death::set_parent_death_signal;
use prefork_os::signal::Signal;

/// The package that is built: path and content of each file.
const PACKAGE: [(&str, &str); 6] = [
    ("Cargo.toml", include_str!("programs/rust/manifest.toml")),
    ("Cargo.lock", include_str!("programs/rust/lockfile.toml")),
    ("src/lib.rs", include_str!("programs/rust/lib.rs")),
    ("src/bin/hyper.rs", include_str!("programs/rust/hyper.rs")),
    ("src/bin/axum.rs", include_str!("programs/rust/axum.rs")),
    ("src/bin/actix.rs", include_str!("programs/rust/actix.rs")),
];

pub(crate) const HYPER: PeerDefinition = PeerDefinition {
    name: "hyper",
    about: "plain hyper, a current-thread runtime and a SO_REUSEPORT socket per thread",
    why: "A runtime per core without shared queues is the fastest way to run hyper.",
    program: PeerProgram::Cargo { binary: "hyper", package: "hyper" },
    install: "cargo, from https://rustup.rs or apt-get install cargo; it is built at the first use",
    listener: PeerListener::OwnThreads,
    speaks_tls: false,
    configure,
};

pub(crate) const AXUM: PeerDefinition = PeerDefinition {
    name: "axum",
    about: "axum on tokio's multi-thread runtime",
    why: "axum::serve as in axum's examples, with TCP_NODELAY, which it advises.",
    program: PeerProgram::Cargo { binary: "axum", package: "axum" },
    ..HYPER
};

pub(crate) const ACTIX: PeerDefinition = PeerDefinition {
    name: "actix",
    about: "actix-web, a thread with its own runtime per worker",
    why: "HttpServer with its defaults, and as many workers as the other servers.",
    program: PeerProgram::Cargo { binary: "actix", package: "actix-web" },
    ..HYPER
};

fn configure(setup: &PeerSetup<'_>) -> PeerConfiguration {
    let workers = setup.workers.to_string();
    let name = Path::new(setup.program).file_name().unwrap_or_default().to_string_lossy();
    let source = format!("src/bin/{name}.rs");
    // For the report: what runs was built from these files elsewhere.
    let files =
        PACKAGE.iter().filter(|(path, _)| ["Cargo.toml", "src/lib.rs", &source].contains(path));
    PeerConfiguration {
        command: words(&[setup.program, &workers, setup.port]),
        environment: Vec::new(),
        files: files.map(|(path, text)| PeerFile::text(path, *text)).collect(),
    }
}

/// Finds a built server; builds all of them if `may_build`.
///
/// # Errors
/// It was not built, cargo is missing, or the build fails.
pub(super) fn find_built(
    peer: &PeerDefinition,
    binary: &str,
    package: &str,
    may_build: bool,
) -> Result<InstalledPeer, PeerError> {
    let name = peer.name;
    let dir = cache_dir().ok_or(format!(
        "peer {name}: neither XDG_CACHE_HOME nor HOME says where to build it; set one of them"
    ))?;
    let program = dir.join("target/release").join(binary);
    if !program.is_file() {
        if !may_build {
            return Err(format!("peer {name}: not built yet; --peer {name} builds it"));
        }
        let cargo = find_on_path("cargo", &std::env::var_os("PATH").unwrap_or_default());
        let cargo = cargo
            .ok_or(format!("peer {name}: cargo is not on PATH; install it: {}", peer.install))?;
        build(&cargo, &dir).map_err(|why| format!("peer {name}: cannot build it: {why}"))?;
    }
    let version = locked_version(package).unwrap_or_default();
    Ok(InstalledPeer { program, version: format!("{package} {version}") })
}

/// Writes the package and builds it, with cargo's own progress on standard error.
fn build(cargo: &Path, dir: &Path) -> Result<(), String> {
    for (path, text) in PACKAGE {
        let written = PeerFile::text(path, text).write(dir);
        written.map_err(|e| format!("cannot write {}: {e}", dir.join(path).display()))?;
    }
    eprintln!("building hyper, axum and actix-web servers in {}", dir.display());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--locked"]).current_dir(dir);
    command.env("CARGO_TARGET_DIR", dir.join("target"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    set_parent_death_signal(&mut command, Signal::SIGTERM);
    let status = command.status().map_err(|e| format!("{}: {e}", cargo.display()))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("cargo build in {} failed ({status}), see above", dir.display())),
    }
}

/// Returns where the package is built: below the user's cache, by the content of the package.
fn cache_dir() -> Option<PathBuf> {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or(absolute("HOME").map(|home| home.join(".cache")))?;
    let mut hasher = DefaultHasher::new();
    PACKAGE.hash(&mut hasher);
    Some(cache.join("prefork").join(format!("peers-{:016x}", hasher.finish())))
}

/// Returns the version of a package in the lock file.
fn locked_version(package: &str) -> Option<&'static str> {
    let name = format!("name = \"{package}\"");
    let mut lines = PACKAGE[1].1.lines().skip_while(|line| **line != name);
    lines.nth(1)?.strip_prefix("version = \"")?.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_rust_peers_are_those_of_the_lock_file() {
        for package in ["hyper", "axum", "actix-web"] {
            let version = locked_version(package).expect(package);
            assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{version}");
        }
    }
}
