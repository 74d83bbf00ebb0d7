//! Reads the files of certificates and keys, without a copy outside of locked pages.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use prefork_os::locked_memory::LockedBytes;

/// The largest file of a certificate chain or key, in bytes.
const MAX_FILE_BYTES: u64 = 256 << 10;

/// What a path begins with that names a file in `$CREDENTIALS_DIRECTORY`.
const CREDENTIAL: &str = "credential:";

/// The variable with the directory of the files of `LoadCredential` and its siblings.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// The permission bits of users who are neither the owner nor in the group.
const OTHERS_ACCESS: u32 = 0o007;

/// A file of certificates or keys, in locked pages.
pub(super) struct SecretFile {
    pub(super) bytes: LockedBytes,
    metadata: Metadata,
}

impl SecretFile {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is no regular file, is empty, too large or not PEM; the reason completes a sentence that begins with the
    /// file.
    pub(super) fn read(path: &Path) -> Result<SecretFile, String> {
        let cannot_read = |e: io::Error| match e.kind() {
            ErrorKind::NotFound => format!("cannot be read: {e}; give the path of a PEM file"),
            ErrorKind::PermissionDenied => {
                format!("cannot be read: {e}; the user of the primary must be able to read it")
            }
            _ => format!("cannot be read: {e}"),
        };
        let path = resolve_credential(path)?;
        // Opening a FIFO would wait for its writer, in the primary.
        let mut options = File::options();
        options.read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits());
        let mut file = options.open(path).map_err(cannot_read)?;
        let metadata = file.metadata().map_err(cannot_read)?;
        if metadata.is_dir() {
            return Err("is a directory: give the file in it".to_string());
        }
        if !metadata.is_file() {
            return Err("is no regular file".to_string());
        }
        if metadata.len() > MAX_FILE_BYTES {
            return Err(too_large());
        }
        // It may grow until it is read, and the size of a file of /proc is 0.
        let mut bytes = LockedBytes::zeroed(MAX_FILE_BYTES.min(metadata.len() + 4096) as usize)
            .map_err(cannot_read)?;
        bytes.fill_from(&mut file).map_err(|e| match e.kind() {
            ErrorKind::FileTooLarge => too_large(),
            _ => cannot_read(e),
        })?;
        match bytes.as_slice() {
            [] => Err("is empty".to_string()),
            // The tag and the length of an ASN.1 SEQUENCE.
            [0x30, 0x80..=0x84, ..] => Err(
                "is binary (DER or PKCS#12), and PEM is needed: convert it with openssl x509, openssl pkey or openssl pkcs12"
                    .to_string(),
            ),
            _ => Ok(SecretFile { bytes, metadata }),
        }
    }

    /// Returns a warning if users other than the owner and the group can read or change the file.
    pub(super) fn access_warning(&self) -> Option<String> {
        let mode = self.metadata.mode() & 0o777;
        (mode & OTHERS_ACCESS != 0).then(|| {
            format!("can be read or changed by every user (mode {mode:04o}): run chmod o= on it")
        })
    }
}

fn too_large() -> String {
    format!("is larger than {} KiB: it is no file of certificates or a key", MAX_FILE_BYTES >> 10)
}

/// Returns the path of a credential of the service manager, or `path` if it names none.
fn resolve_credential(path: &Path) -> Result<PathBuf, String> {
    let Some(name) = path.to_str().and_then(|text| text.strip_prefix(CREDENTIAL)) else {
        return Ok(path.to_path_buf());
    };
    let mut components = Path::new(name).components();
    if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
        return Err("is not the name of a credential: give credential:NAME without a /".to_string());
    }
    match std::env::var_os(CREDENTIALS_DIRECTORY) {
        Some(dir) => Ok(Path::new(&dir).join(name)),
        None => Err(format!(
            "needs {CREDENTIALS_DIRECTORY}, which is not set: add LoadCredential={name}:PATH to the systemd unit"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_of_text_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let path = |name: &str| dir.path().join(name);
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("a FIFO");
        std::fs::write(path("empty"), "").expect("written");
        std::fs::write(path("der"), [0x30, 0x82, 1, 2]).expect("written");
        File::create(path("huge")).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
        for (path, why) in [
            (path("none"), "cannot be read: No such file"),
            (dir.path().into(), "is a directory"),
            (path("fifo"), "is no regular file"),
            ("/dev/zero".into(), "is no regular file"),
            (path("empty"), "is empty"),
            (path("der"), "is binary"),
            (path("huge"), "is larger than 256 KiB"),
            ("/proc/kallsyms".into(), "is larger than 256 KiB"),
            ("credential:a/b".into(), "without a /"),
            ("credential:..".into(), "is not the name"),
            ("credential:".into(), "is not the name"),
            ("credential:site.pem".into(), "add LoadCredential=site.pem:PATH"),
        ] {
            let error = SecretFile::read(&path).map(drop).expect_err(why);
            assert!(error.contains(why), "{}: {error}", path.display());
        }
    }
}
