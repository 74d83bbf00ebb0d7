//! Unix sockets at paths that are longer than a socket address.
//!
//! An address has room for 107 bytes. A longer path is reached through a descriptor of its directory, as
//! `/proc/self/fd/N/NAME`. The kernel keeps this text as the name of a socket that is bound so.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use socket2::SockAddr;

/// The longest path in an address: the size of `sun_path` without the final NUL.
pub const MAX_ADDRESS_BYTES: usize = 107;

/// The longest file name of a socket with a longer path: what `/proc/self/fd/2147483647/` leaves of an address.
pub const MAX_NAME_BYTES: usize = 82;

/// The longest path that the kernel accepts.
const MAX_PATH_BYTES: usize = 4095;

/// Returns whether `path` is too long for an address, so that it is reached through its directory.
pub fn is_longer_than_address(path: &Path) -> bool {
    path.as_os_str().len() > MAX_ADDRESS_BYTES
}

/// Checks that a socket can be at `path`. The error is a reason: `its file name has 90 bytes ...`.
pub fn check_path_length(path: &Path) -> Result<(), String> {
    let name_length = path.file_name().map_or(0, |name| name.len());
    if path.as_os_str().len() > MAX_PATH_BYTES {
        let length = path.as_os_str().len();
        return Err(format!("the path has {length} bytes and may have {MAX_PATH_BYTES}"));
    }
    if is_longer_than_address(path) && name_length > MAX_NAME_BYTES {
        return Err(format!(
            "the path has more than {MAX_ADDRESS_BYTES} bytes, so that its file name of {name_length} bytes may have \
             {MAX_NAME_BYTES}: give a shorter one"
        ));
    }
    Ok(())
}

/// The address of a socket at a path of any length. Valid in this process, as long as this value lives.
#[derive(Debug, Clone)]
pub struct UnixPathAddr {
    addr: SockAddr,
    /// The directory that the address leads through.
    _directory: Option<Arc<File>>,
}

impl UnixPathAddr {
    /// Returns the address of the socket at `path`, which need not exist.
    ///
    /// # Errors
    ///
    /// The path is too long (see [`check_path_length`]), or it is long and its directory cannot be opened.
    pub fn new(path: &Path) -> io::Result<UnixPathAddr> {
        check_path_length(path).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        let (Some(directory), Some(name), true) =
            (path.parent(), path.file_name(), is_longer_than_address(path))
        else {
            return Ok(UnixPathAddr { addr: SockAddr::unix(path)?, _directory: None });
        };
        let flags = (OFlag::O_PATH | OFlag::O_DIRECTORY).bits();
        let directory = File::options().read(true).custom_flags(flags).open(directory)?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        Ok(UnixPathAddr { addr: SockAddr::unix(short)?, _directory: Some(Arc::new(directory)) })
    }

    /// Returns the address, to bind or to connect to.
    pub fn addr(&self) -> &SockAddr {
        &self.addr
    }
}

/// Calls `act` with the address of a socket at `path`, to bind or to connect to. The address is valid during the call.
///
/// # Errors
///
/// As [`UnixPathAddr::new`], and what `act` returns.
pub fn with_unix_addr<T>(
    path: &Path,
    act: impl FnOnce(&SockAddr) -> io::Result<T>,
) -> io::Result<T> {
    act(UnixPathAddr::new(path)?.addr())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn a_socket_at_a_long_path_can_be_bound_and_connected_to() {
        let dir = tempfile::tempdir().expect("directory");
        let long = dir.path().join("a".repeat(100)).join("b".repeat(100));
        std::fs::create_dir_all(&long).expect("directories");
        for path in [long.join("app.sock"), long.join("n".repeat(MAX_NAME_BYTES))] {
            let listener = Socket::new(Domain::UNIX, Type::STREAM, None).expect("socket");
            with_unix_addr(&path, |addr| listener.bind(addr)).expect("bind");
            listener.listen(1).expect("listen");
            assert!(path.exists());
            let client = Socket::new(Domain::UNIX, Type::STREAM, None).expect("socket");
            with_unix_addr(&path, |addr| client.connect(addr)).expect("connect");
            drop(listener.accept().expect("accept"));
            assert_eq!((&client).read(&mut [0; 1]).expect("end"), 0);
        }
    }

    #[test]
    fn a_file_name_that_does_not_fit_is_an_error_with_its_limit() {
        let path = Path::new("/tmp").join("d".repeat(100)).join("n".repeat(MAX_NAME_BYTES + 1));
        let why = check_path_length(&path).expect_err("too long");
        assert!(why.contains("83 bytes may have 82"), "{why}");
        assert!(with_unix_addr(&path, |_| Ok(())).is_err());
        check_path_length(Path::new(&"n".repeat(MAX_ADDRESS_BYTES))).expect("fits into an address");
        assert!(check_path_length(Path::new(&"d/".repeat(2048))).is_err());
    }

    #[test]
    fn a_missing_directory_is_not_found() {
        let path = Path::new("/no").join("d".repeat(120)).join("app.sock");
        let error = with_unix_addr(&path, |_| Ok(())).expect_err("missing");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
