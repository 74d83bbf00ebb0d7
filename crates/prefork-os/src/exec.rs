//! Becoming another program, and starting one.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// The error of a file that is executable and no program of this machine.
pub const ENOEXEC: i32 = nix::errno::Errno::ENOEXEC as i32;

/// Replaces this process's program by the one at `path`, which gets the open descriptors that are not
/// close-on-exec. Returns only if that failed.
pub fn exec_program(path: &Path, args: &[OsString], env: &[(OsString, OsString)]) -> io::Error {
    let run = || -> io::Result<std::convert::Infallible> {
        let path = c_string(path.as_os_str())?;
        let args = args.iter().map(|arg| c_string(arg)).collect::<io::Result<Vec<_>>>()?;
        let env = env
            .iter()
            .map(|(name, value)| {
                let mut pair = name.clone();
                pair.push("=");
                pair.push(value);
                c_string(&pair)
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(nix::unistd::execve(&path, &args, &env)?)
    };
    match run() {
        Ok(never) => match never {},
        Err(e) => e,
    }
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}
/// A file in memory with these contents that nobody can change any more.
pub fn create_sealed_memfd(name: &str, contents: &[u8]) -> io::Result<OwnedFd> {
    let file = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut written = 0;
    while written < contents.len() {
        written += nix::unistd::write(&file, &contents[written..])?;
    }
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::all()))?;
    Ok(file)
}

/// The contents of such a file, at most `cap` bytes, wherever its offset stands.
pub fn read_memfd(file: impl AsFd, cap: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; cap + 1];
    let mut length = 0;
    while length < bytes.len() {
        match nix::sys::uio::pread(file.as_fd(), &mut bytes[length..], length as i64)? {
            0 => break,
            n => length += n,
        }
    }
    if length > cap {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    bytes.truncate(length);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_file_is_read_whole_and_cannot_be_changed() {
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
