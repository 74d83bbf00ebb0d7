//! What the servers of a comparison need: a certificate, files, and the peers that were found.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::{fs, io};

use super::compare_certificate::CompareCertificate;
use super::compared_server::ComparedServer;
use super::peers::{InstalledPeer, check_peer};
use super::plan::ComparePlan;
use super::run_directory::RunDirectory;
use tokio_prefork::{Error, Result};

/// Files and programs of a run; the default has none, for servers that need none.
#[derive(Debug, Default)]
pub(crate) struct RunResources {
    /// With `--https`, or with peers.
    pub(crate) directory: Option<RunDirectory>,
    /// With `--https`.
    pub(crate) certificate: Option<CompareCertificate>,
    /// By the name of the peer.
    peers: BTreeMap<&'static str, InstalledPeer>,
}

impl RunResources {
    /// Looks for the peers of the plan, and makes a certificate if it needs one.
    ///
    /// # Errors
    /// A peer is not installed or cannot speak TLS; the directory for temporary files cannot be written.
    pub(crate) fn prepare(plan: &ComparePlan) -> Result<RunResources> {
        let mut resources = RunResources::default();
        for peer in plan.servers.iter().filter_map(|server| server.known_peer()) {
            resources
                .peers
                .insert(peer.name, check_peer(peer, plan.https, true).map_err(Error::config)?);
        }
        let has_files = plan.https || !resources.peers.is_empty();
        if has_files || plan.servers.iter().any(ComparedServer::has_own_group) {
            let directory = RunDirectory::create();
            let directory =
                directory.map_err(|e| Error::system("create a temporary directory", e))?;
            if plan.https {
                resources.certificate = Some(CompareCertificate::generate(directory.path())?);
            }
            resources.directory = Some(directory);
        }
        Ok(resources)
    }

    /// Returns an empty directory for the files of a peer.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn peer_directory(&self, name: &str) -> io::Result<PathBuf> {
        let all = self.directory.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let dir = all.path().join(name);
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => fs::create_dir(&dir)?,
        }
        Ok(dir)
    }

    /// Returns the peer that was found under this name.
    pub(crate) fn peer(&self, name: &str) -> Option<&InstalledPeer> {
        self.peers.get(name)
    }
}
