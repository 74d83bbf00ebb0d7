//! Replacing the program of this process, and the sealed memory file that hands state over to the next program.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// The error of exec for an executable file in a format that this machine cannot run.
pub const ENOEXEC: i32 = nix::errno::Errno::ENOEXEC as i32;

/// Replaces the program of this process with the one at `path`. Returns only on failure.
///
/// The new program inherits the pid and all descriptors that are not close-on-exec. `args` includes the program name.
pub fn exec_program(path: &Path, args: &[OsString], env: &[(OsString, OsString)]) -> io::Error {
    let run = || -> io::Result<std::convert::Infallible> {
        let path = to_c_string(path.as_os_str())?;
        let args = args.iter().map(|arg| to_c_string(arg)).collect::<io::Result<Vec<_>>>()?;
        let env = env
            .iter()
            .map(|(name, value)| {
                let mut pair = name.clone();
                pair.push("=");
                pair.push(value);
                to_c_string(&pair)
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(nix::unistd::execve(&path, &args, &env)?)
    };
    match run() {
        Ok(never) => match never {},
        Err(e) => e,
    }
}

fn to_c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Creates a memory file with these contents and seals it, so that no process can change it.
pub fn create_sealed_memfd(name: &str, contents: &[u8]) -> io::Result<OwnedFd> {
    let file = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut written = 0;
    while written < contents.len() {
        written += nix::unistd::write(&file, &contents[written..])?;
    }
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::all()))?;
    Ok(file)
}

/// Reads the whole `file` from its beginning, independent of its offset.
///
/// # Errors
/// `FileTooLarge` if it has more than `max_bytes` bytes.
pub fn read_memfd(file: impl AsFd, max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; max_bytes + 1];
    let mut length = 0;
    while length < bytes.len() {
        match nix::sys::uio::pread(file.as_fd(), &mut bytes[length..], length as i64)? {
            0 => break,
            n => length += n,
        }
    }
    if length > max_bytes {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    bytes.truncate(length);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_memfd_can_be_read_and_not_written() {
        let file = create_sealed_memfd("test", b"contents").expect("sealed");
        assert_eq!(read_memfd(&file, 8).expect("read"), b"contents");
        assert_eq!(read_memfd(&file, 8).expect("again"), b"contents");
        assert!(read_memfd(&file, 7).is_err());
        assert!(nix::unistd::write(&file, b"x").is_err());
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let error = exec_program(Path::new("/nonexistent"), &[], &[]);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
