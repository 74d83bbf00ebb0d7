//! The token that clients of the admin listener present.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};

/// The longest token in bytes.
const MAX_TOKEN_BYTES: u64 = 4096;

/// The permission bits with which other users could read or replace a file.
const FOREIGN_ACCESS: u32 = 0o006;

/// The token that clients of the admin listener present. Not shown in debug output.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct AdminToken(Arc<[u8]>);

impl AdminToken {
    /// Reads a token file, without the white space around the token.
    ///
    /// # Errors
    /// The file cannot be read, other users can read or write it, or it holds no token.
    pub(crate) fn read(path: &Path) -> Result<AdminToken> {
        let failed = |why: &dyn fmt::Display| {
            Error::config(format!("admin-token-file = {} {why}", path.display()))
        };
        let cannot_read = |e| failed(&format!("cannot be read: {e}"));
        // Opening a FIFO would wait for its writer, in the primary.
        let mut options = File::options();
        options.read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits());
        let mut file = options.open(path).map_err(cannot_read)?;
        let metadata = file.metadata().map_err(cannot_read)?;
        if !metadata.is_file() {
            return Err(failed(&"is no regular file: write the token to a file"));
        }
        let mode = metadata.permissions().mode() & 0o777;
        if mode & FOREIGN_ACCESS != 0 {
            return Err(failed(&format!(
                "can be read or written by every user (mode {mode:04o}): run chmod 0600 on it"
            )));
        }
        let mut text = Vec::new();
        (&mut file).take(MAX_TOKEN_BYTES + 1).read_to_end(&mut text).map_err(cannot_read)?;
        let token = text.trim_ascii();
        if token.is_empty() {
            return Err(failed(
                &"is empty: write a token to it, such as that of openssl rand -hex 32",
            ));
        }
        if text.len() as u64 > MAX_TOKEN_BYTES || !token.iter().all(u8::is_ascii_graphic) {
            return Err(failed(&format!(
                "holds no token: give up to {MAX_TOKEN_BYTES} printable ASCII characters without spaces"
            )));
        }
        Ok(AdminToken(token.into()))
    }

    /// Returns whether `presented` is the token, in a time that does not depend on where they differ.
    #[cfg(feature = "admin")]
    pub(crate) fn is(&self, presented: &[u8]) -> bool {
        let differences = self.0.iter().enumerate().fold(0u8, |differences, (index, byte)| {
            let other = presented.get(index).copied().unwrap_or_default();
            std::hint::black_box(differences | (byte ^ other))
        });
        differences == 0 && presented.len() == self.0.len()
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn read(text: &[u8], mode: u32) -> Result<AdminToken> {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("token");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
        AdminToken::read(&path)
    }

    #[test]
    fn a_token_is_read_without_its_line_end() {
        for mode in [0o600, 0o400, 0o640] {
            assert_eq!(read(b" s3cret\r\n", mode).expect("read"), AdminToken(b"s3cret"[..].into()));
        }
    }

    #[test]
    fn files_without_a_token_or_open_to_every_user_are_refused() {
        for (text, mode, why) in [
            (&b"s3cret"[..], 0o644, "mode 0644"),
            (b"s3cret", 0o602, "mode 0602"),
            (b"\n", 0o600, "is empty"),
            (b"two words", 0o600, "holds no token"),
            ("gr\u{fc}n".as_bytes(), 0o600, "holds no token"),
            (&[b'x'; 5000], 0o600, "holds no token"),
        ] {
            let error = read(text, mode).expect_err(why);
            assert!(error.to_string().contains(why), "{error}");
            assert_eq!(error.exit_status(), crate::error::exit::CONFIG);
        }
        assert!(AdminToken::read(Path::new("/no/such/file")).is_err());
        let dir = tempfile::tempdir().expect("dir");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).expect("a FIFO");
        let error = AdminToken::read(&fifo).expect_err("nobody writes to it");
        assert!(error.to_string().contains("is no regular file"), "{error}");
        assert!(AdminToken::read(Path::new("/dev/null")).is_err());
    }

    #[cfg(feature = "admin")]
    #[test]
    fn only_the_token_itself_is_equal() {
        let token = AdminToken(b"s3cret"[..].into());
        assert!(token.is(b"s3cret"));
        for other in [&b""[..], b"s3cre", b"s3cret!", b"S3cret", b"xxxxxx", b"s3cret\0"] {
            assert!(!token.is(other), "{other:?}");
        }
        assert_eq!(format!("{token:?}"), "AdminToken(..)");
    }
}
