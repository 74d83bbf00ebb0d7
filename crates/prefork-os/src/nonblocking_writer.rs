//! Non-blocking writes to a descriptor of unknown kind, such as standard error, whose reader may be slow or stopped.
//!
//! Setting `O_NONBLOCK` is not an option: it belongs to the open file description, which is shared with the shell, the
//! service manager or the next program of a pipeline. [`NonblockingWriter`] chooses a method per kind of file that does
//! not affect other processes.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::stat::{FileStat, SFlag, fstat};

use super::{libc, poll, socket};
use crate::fd::unread_bytes;

/// Maximum number of bytes that a write to a pipe transfers atomically. Linux's value of the POSIX constant.
pub const PIPE_BUF: usize = 4096;

/// How often a write is tried again after EINTR.
const MAX_EINTR_RETRIES: usize = 16;

/// The kind of file that a descriptor refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A pipe or FIFO.
    Pipe,
    /// A socket of any family.
    Socket,
    /// A terminal or pseudo-terminal.
    Terminal,
    /// Any other character device, such as `/dev/null`.
    CharacterDevice,
    /// A block device.
    BlockDevice,
}

/// Returns the kind and the identity of the file that `fd` refers to.
pub fn identify_file(fd: impl AsFd) -> io::Result<(FileKind, FileId)> {
    let stat = fstat(&fd)?;
    let kind = match file_kind_of_mode(stat.st_mode) {
        FileKind::CharacterDevice if fd.as_fd().is_terminal() => FileKind::Terminal,
        kind => kind,
    };
    Ok((kind, FileId::from_stat(&stat)))
}

/// Returns the kind of file that a `st_mode` value encodes. Terminals are [`FileKind::CharacterDevice`] here.
pub fn file_kind_of_mode(mode: u32) -> FileKind {
    match SFlag::from_bits_truncate(mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => FileKind::Directory,
        SFlag::S_IFIFO => FileKind::Pipe,
        SFlag::S_IFSOCK => FileKind::Socket,
        SFlag::S_IFBLK => FileKind::BlockDevice,
        SFlag::S_IFCHR => FileKind::CharacterDevice,
        _ => FileKind::Regular,
    }
}

/// The identity of a file: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId(u64, u64);

impl FileId {
    fn from_stat(stat: &FileStat) -> FileId {
        FileId(stat.st_dev, stat.st_ino)
    }
}

/// How to write to a file without blocking.
#[derive(Debug)]
enum WriteMethod {
    /// `write(2)`, for files without a reader.
    Plain,
    /// `send(2)` with `MSG_DONTWAIT`.
    Socket,
    /// `pwritev2(2)` with `RWF_NOWAIT`: pipes since Linux 6.5, and some devices.
    NoWait,
    /// `write(2)` to a new open file description with `O_NONBLOCK`: terminals, and pipes before Linux 6.5.
    Reopened(OwnedFd),
    /// `poll(2)` before `write(2)`: files that cannot be reopened, such as a pipe of another user before Linux 6.5.
    ///
    /// Another writer could fill the pipe in between, so writes stop when it is half full.
    Polled,
}

/// Writes to a descriptor without blocking on the reader at its other end.
///
/// Writes to regular files may still wait for the disk.
#[derive(Debug)]
pub struct NonblockingWriter {
    kind: FileKind,
    id: FileId,
    method: WriteMethod,
}

impl NonblockingWriter {
    /// Creates a writer for the file that `fd` refers to now.
    ///
    /// # Errors
    /// fstat(2) fails.
    pub fn new(fd: impl AsFd) -> io::Result<NonblockingWriter> {
        let (kind, id) = identify_file(&fd)?;
        let method = match kind {
            FileKind::Regular | FileKind::BlockDevice | FileKind::Directory => WriteMethod::Plain,
            FileKind::Socket => WriteMethod::Socket,
            FileKind::Pipe | FileKind::CharacterDevice => WriteMethod::NoWait,
            FileKind::Terminal => reopen(&fd),
        };
        Ok(NonblockingWriter { kind, id, method })
    }

    /// Returns whether `fd` still refers to the file that this writer was created for.
    pub fn is_same_file(&self, fd: impl AsFd) -> bool {
        fstat(&fd).is_ok_and(|stat| FileId::from_stat(&stat) == self.id)
    }

    /// Returns the maximum size in bytes of an atomic write, or `None` for kinds of file without such a limit.
    pub fn max_atomic_write(&self) -> Option<usize> {
        let bounded = matches!(self.kind, FileKind::Pipe | FileKind::Terminal);
        bounded.then_some(PIPE_BUF)
    }

    /// Writes once, without blocking. Returns the number of bytes written, which may be fewer than given.
    ///
    /// # Errors
    /// `WouldBlock` if the reader is behind and the buffer is full; any other error of write(2).
    pub fn write(&mut self, fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
        let fd = fd.as_fd();
        for _ in 0..MAX_EINTR_RETRIES {
            match self.write_once(fd, bytes) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e)
                    if is_nowait_unsupported(&e) && matches!(self.method, WriteMethod::NoWait) =>
                {
                    self.method = reopen(fd);
                }
                outcome => return outcome,
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write_once(&self, fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
        // A terminal sends SIGTTOU to background processes that write to it. The primary handles that signal, so the
        // kernel would restart the write and send the signal again, forever. With SIGTTOU blocked the write succeeds.
        let _mask = (self.kind == FileKind::Terminal).then(BlockedSigttou::block);
        match &self.method {
            WriteMethod::Plain => Ok(nix::unistd::write(fd, bytes)?),
            WriteMethod::Socket => socket::write_nonblocking(fd, bytes),
            WriteMethod::NoWait => write_nowait(fd, bytes),
            WriteMethod::Reopened(own) => Ok(nix::unistd::write(own, bytes)?),
            WriteMethod::Polled if can_write_atomically(fd, self.kind)? => {
                Ok(nix::unistd::write(fd, bytes)?)
            }
            WriteMethod::Polled => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// Waits until `fd` is writable or has failed, or `timeout` has passed.
pub fn wait_until_writable(fd: impl AsFd, timeout: Duration) -> io::Result<()> {
    poll::poll_fds(&[poll::WatchedFd::new(fd.as_fd(), poll::PollInterest::Writable)], Some(timeout))
        .map(drop)
}

/// Blocks SIGTTOU in the calling thread while this value exists, and then restores the previous mask.
struct BlockedSigttou(Option<SigSet>);

impl BlockedSigttou {
    fn block() -> BlockedSigttou {
        let (mut set, mut before) = (SigSet::empty(), SigSet::empty());
        set.add(Signal::SIGTTOU);
        let done = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut before));
        BlockedSigttou(done.is_ok().then_some(before))
    }
}

impl Drop for BlockedSigttou {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Restoring a mask that the kernel returned cannot fail.
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(before), None);
        }
    }
}

/// Reopens the file that `fd` refers to, as an open file description whose flags no other process shares.
fn reopen(fd: impl AsFd) -> WriteMethod {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let opened = OpenOptions::new().write(true).custom_flags(flags.bits()).open(path);
    // The path may lead to another file by now.
    match opened {
        Ok(own) if are_same_file(&fd, &own) => WriteMethod::Reopened(own.into()),
        Ok(_) | Err(_) => WriteMethod::Polled,
    }
}

fn are_same_file(one: impl AsFd, other: impl AsFd) -> bool {
    matches!((fstat(&one), fstat(&other)), (Ok(a), Ok(b)) if FileId::from_stat(&a) == FileId::from_stat(&b))
}

/// Returns whether the kernel lacks `pwritev2` (ENOSYS) or this file does not support RWF_NOWAIT.
fn is_nowait_unsupported(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::EPERM))
}

fn write_nowait(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let slice = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // An offset of -1 means the file position; 32-bit systems pass it in two halves. musl has no function for this
    // call.
    let position: libc::c_long = -1;
    // SAFETY: the kernel reads one iovec and, through it, `bytes.len()` bytes of `bytes`; both outlive the call.
    let written = unsafe {
        libc::syscall(
            libc::SYS_pwritev2,
            fd.as_raw_fd(),
            &raw const slice,
            1 as libc::c_long,
            position,
            position,
            libc::RWF_NOWAIT,
        )
    };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Returns whether a write of [`PIPE_BUF`] bytes would not block, if there is no other writer.
fn can_write_atomically(fd: BorrowedFd<'_>, kind: FileKind) -> io::Result<bool> {
    let watch = poll::WatchedFd::new(fd, poll::PollInterest::Writable);
    if !poll::poll_fds(&[watch], Some(Duration::ZERO))?.contains(&true) {
        return Ok(false);
    }
    if kind != FileKind::Pipe {
        return Ok(true);
    }
    let size = fcntl(fd, FcntlArg::F_GETPIPE_SZ)?;
    Ok(unread_bytes(fd)? <= usize::try_from(size).unwrap_or(0) / 2)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::syscall_result;

    /// Returns a full pipe with its writer, and the number of bytes in it.
    fn create_full_pipe(
        method: impl Fn(&OwnedFd) -> WriteMethod,
    ) -> (io::PipeReader, OwnedFd, NonblockingWriter, usize) {
        let (reader, writer) = io::pipe().expect("pipe");
        let writer = OwnedFd::from(writer);
        let (kind, id) = identify_file(&writer).expect("stat");
        let mut output = NonblockingWriter { kind, id, method: method(&writer) };
        let mut written = 0;
        let line = [b'x'; 1000];
        let error = loop {
            match output.write(&writer, &line) {
                Ok(n) => written += n,
                Err(e) => break e,
            }
            assert!(written < 1 << 24, "a pipe has an end");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        (reader, writer, output, written)
    }

    #[test]
    fn a_full_pipe_would_block_with_every_method_until_it_is_read() {
        let methods: [fn(&OwnedFd) -> WriteMethod; 3] =
            [|_| WriteMethod::NoWait, |fd| reopen(fd), |_| WriteMethod::Polled];
        for method in methods {
            let (mut reader, writer, mut output, written) = create_full_pipe(method);
            let mut all = vec![0; written];
            reader.read_exact(&mut all).expect("what was written");
            assert_eq!(output.write(&writer, b"again").expect("room"), 5);
        }
    }

    #[test]
    fn the_shared_open_file_description_keeps_its_flags() {
        let (_reader, writer, _, _) = create_full_pipe(|fd| reopen(fd));
        let flags = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETFL).expect("flags");
        assert!(!OFlag::from_bits_truncate(flags).contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn a_full_socket_would_block() {
        let (near, _far) = UnixStream::pair().expect("pair");
        let mut output = NonblockingWriter::new(&near).expect("writer");
        let error = std::iter::repeat_with(|| output.write(&near, &[b'x'; 1000]))
            .take(1 << 16)
            .find_map(Result::err);
        assert_eq!(error.map(|e| e.kind()), Some(io::ErrorKind::WouldBlock));
    }

    #[test]
    fn a_pipe_without_a_reader_is_an_error() {
        let (reader, writer) = io::pipe().expect("pipe");
        drop(reader);
        let mut output = NonblockingWriter::new(&writer).expect("writer");
        // The Rust runtime ignores SIGPIPE.
        let error = output.write(&writer, b"x").expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_stopped_terminal_would_block() {
        let (_controller, terminal) = open_pseudo_terminal();
        let mut output = NonblockingWriter::new(&terminal).expect("writer");
        assert_eq!(
            (output.kind, output.write(&terminal, b"a line\n").expect("room")),
            (FileKind::Terminal, 7)
        );
        // Suspends output, as Ctrl-S does.
        // SAFETY: tcflow takes numbers and touches no memory.
        syscall_result(unsafe { libc::tcflow(terminal.as_raw_fd(), libc::TCOOFF) }).expect("stop");
        let error = output.write(&terminal, b"a line\n").expect_err("stopped");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    /// Opens a new pseudo-terminal and returns both ends.
    fn open_pseudo_terminal() -> (OwnedFd, std::fs::File) {
        use std::os::fd::FromRawFd;
        // SAFETY: takes flags and touches no memory.
        let number = syscall_result(unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY) })
            .expect("pty");
        // SAFETY: the kernel has just created this descriptor, so it has no other owner.
        let controller = unsafe { OwnedFd::from_raw_fd(number) };
        let mut name = [0; 64];
        // SAFETY: unlockpt takes a number; ptsname_r writes at most the given number of bytes, including the NUL.
        let done = unsafe {
            [libc::unlockpt(number), libc::ptsname_r(number, name.as_mut_ptr(), name.len())]
        };
        assert_eq!(done, [0, 0]);
        let name: Vec<u8> = name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
        let path = String::from_utf8(name).expect("a path");
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits());
        (controller, options.open(path).expect("terminal"))
    }

    #[test]
    fn files_and_devices_accept_all_bytes_and_report_errors() {
        let file = tempfile::tempfile().expect("file");
        let mut output = NonblockingWriter::new(&file).expect("writer");
        assert_eq!(output.write(&file, &[b'x'; 100_000]).expect("written"), 100_000);
        assert!(output.is_same_file(&file));
        for (path, outcome) in
            [("/dev/null", Ok(5)), ("/dev/full", Err(io::ErrorKind::StorageFull))]
        {
            let device = OpenOptions::new().write(true).open(path).expect(path);
            assert!(!output.is_same_file(&device));
            let mut output = NonblockingWriter::new(&device).expect("writer");
            assert_eq!(output.write(&device, b"bytes").map_err(|e| e.kind()), outcome, "{path}");
        }
    }
}
