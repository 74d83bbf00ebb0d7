//! Writing to a stream of unknown kind, above all standard error, without waiting for whoever reads it.
//!
//! `O_NONBLOCK` is no method to get there: it belongs to the open file description, which the process shares with the
//! shell, the service manager or the next program of a pipeline, and would change it for all of them. Each kind of
//! file has a method that changes nothing for others; see [`NonblockingWriter`].

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::stat::{FileStat, SFlag, fstat};

use super::{cvt, libc, poll, socket};

/// What POSIX guarantees to be written to a pipe in one piece.
pub const PIPE_BUF: usize = 4096;

/// Attempts of one write that signals interrupt.
const MAX_INTERRUPTIONS: usize = 16;

/// What a descriptor refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    Regular,
    Directory,
    Pipe,
    Socket,
    Terminal,
    /// Any other character device, such as `/dev/null`.
    CharacterDevice,
    BlockDevice,
}

/// The kind of the file that `fd` refers to, and numbers that tell it from other files.
pub fn identify_file(fd: impl AsFd) -> io::Result<(FileKind, FileId)> {
    let stat = fstat(&fd)?;
    let kind = match file_kind_of_mode(stat.st_mode) {
        FileKind::CharacterDevice if fd.as_fd().is_terminal() => FileKind::Terminal,
        kind => kind,
    };
    Ok((kind, FileId::of(&stat)))
}

/// The kind that a `st_mode` says; a terminal is a [`FileKind::CharacterDevice`] here.
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

/// Device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId(u64, u64);

impl FileId {
    fn of(stat: &FileStat) -> FileId {
        FileId(stat.st_dev, stat.st_ino)
    }
}

/// How bytes get to a file without waiting for its reader.
#[derive(Debug)]
enum WriteMethod {
    /// `write(2)`, for files that have no reader to wait for.
    Plain,
    /// `send(2)` with `MSG_DONTWAIT`.
    Socket,
    /// `pwritev2(2)` with `RWF_NOWAIT`: pipes since Linux 6.5, and some devices.
    NoWait,
    /// An open file description of our own, with `O_NONBLOCK`: terminals, and pipes of older kernels.
    Reopened(OwnedFd),
    /// `poll(2)` and `write(2)`, where the file cannot be opened again, for instance because a pipe belongs to
    /// another user and the kernel is older than 6.5. Another writer of the pipe could take the room in between,
    /// so half of the pipe is kept free.
    Polled,
}

/// Writes to one descriptor without waiting for the reader of what it refers to.
///
/// A regular file may still make a write wait for its disk, as every access to it may.
#[derive(Debug)]
pub struct NonblockingWriter {
    kind: FileKind,
    id: FileId,
    method: WriteMethod,
}

impl NonblockingWriter {
    /// For what `fd` refers to now.
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

    /// Whether `fd` still refers to the file that this was made for.
    pub fn is_same_file(&self, fd: impl AsFd) -> bool {
        fstat(&fd).is_ok_and(|stat| FileId::of(&stat) == self.id)
    }

    /// How many bytes at most can be written in one piece, for the kinds that have such a bound.
    pub fn max_atomic_write(&self) -> Option<usize> {
        let bounded = matches!(self.kind, FileKind::Pipe | FileKind::Terminal);
        bounded.then_some(PIPE_BUF)
    }

    /// Writes once, without waiting. `WouldBlock` if there is no room; fewer bytes than given if there was room for no
    /// more.
    pub fn write(&mut self, fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
        let fd = fd.as_fd();
        for _ in 0..MAX_INTERRUPTIONS {
            match self.write_once(fd, bytes) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if is_unsupported(&e) && matches!(self.method, WriteMethod::NoWait) => {
                    self.method = reopen(fd);
                }
                outcome => return outcome,
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write_once(&self, fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
        // A terminal stops background processes that write to it by SIGTTOU. The primary handles that signal, so the
        // kernel would restart the write, and send it again, for ever. A blocked SIGTTOU lets the write pass.
        let _mask = (self.kind == FileKind::Terminal).then(BlockedSigttou::block);
        match &self.method {
            WriteMethod::Plain => Ok(nix::unistd::write(fd, bytes)?),
            WriteMethod::Socket => socket::write_nonblocking(fd, bytes),
            WriteMethod::NoWait => write_nowait(fd, bytes),
            WriteMethod::Reopened(own) => Ok(nix::unistd::write(own, bytes)?),
            WriteMethod::Polled if is_room_in_pipe(fd, self.kind)? => {
                Ok(nix::unistd::write(fd, bytes)?)
            }
            WriteMethod::Polled => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// Waits until `fd` takes bytes or has failed, or `limit` has passed.
pub fn wait_until_writable(fd: impl AsFd, limit: Duration) -> io::Result<()> {
    poll::poll_fds(&[poll::WatchedFd::new(fd.as_fd(), poll::PollInterest::Writable)], Some(limit))
        .map(drop)
}

/// SIGTTOU is blocked for the calling thread while this lives.
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
            // Restoring a mask that the kernel gave us cannot fail.
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(before), None);
        }
    }
}

/// Opens what `fd` refers to once more: the flags of the new description are nobody else's.
fn reopen(fd: impl AsFd) -> WriteMethod {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let opened = OpenOptions::new().write(true).custom_flags(flags.bits()).open(path);
    // What another process put in its place meanwhile is no place for a log.
    match opened {
        Ok(own) if same_file(&fd, &own) => WriteMethod::Reopened(own.into()),
        Ok(_) | Err(_) => WriteMethod::Polled,
    }
}

fn same_file(one: impl AsFd, other: impl AsFd) -> bool {
    matches!((fstat(&one), fstat(&other)), (Ok(a), Ok(b)) if FileId::of(&a) == FileId::of(&b))
}

/// Whether the kernel does not know `pwritev2` (ENOSYS) or does not know it for this file.
fn is_unsupported(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::EPERM))
}

fn write_nowait(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let slice = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // An offset of -1 is the position of the file, in two halves where a register has 32 bits. Not every C library has a
    // function for this call.
    let position: libc::c_long = -1;
    // SAFETY: the kernel reads one iovec, and through it `bytes.len()` bytes of `bytes`; both outlive the call.
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

/// Whether a write of [`PIPE_BUF`] bytes would not wait, were there no other writer.
fn is_room_in_pipe(fd: BorrowedFd<'_>, kind: FileKind) -> io::Result<bool> {
    let watch = poll::WatchedFd::new(fd, poll::PollInterest::Writable);
    if !poll::poll_fds(&[watch], Some(Duration::ZERO))?.contains(&true) {
        return Ok(false);
    }
    if kind != FileKind::Pipe {
        return Ok(true);
    }
    let mut unread: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to where the pointer leads.
    cvt(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut unread) })?;
    let size = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETPIPE_SZ)?;
    Ok(unread <= size / 2)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A pipe that is full, and the number of bytes in it.
    fn full_pipe(
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
    fn a_full_pipe_is_not_waited_for_in_any_way_and_takes_bytes_again_when_read() {
        let methods: [fn(&OwnedFd) -> WriteMethod; 3] =
            [|_| WriteMethod::NoWait, |fd| reopen(fd), |_| WriteMethod::Polled];
        for method in methods {
            let (mut reader, writer, mut output, written) = full_pipe(method);
            let mut all = vec![0; written];
            reader.read_exact(&mut all).expect("what was written");
            assert_eq!(output.write(&writer, b"again").expect("room"), 5);
        }
    }

    #[test]
    fn the_description_that_others_share_stays_as_it_was() {
        let (_reader, writer, _, _) = full_pipe(|fd| reopen(fd));
        let flags = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETFL).expect("flags");
        assert!(!OFlag::from_bits_truncate(flags).contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn a_full_socket_is_not_waited_for() {
        let (near, _far) = UnixStream::pair().expect("pair");
        let mut output = NonblockingWriter::new(&near).expect("writer");
        let error = std::iter::repeat_with(|| output.write(&near, &[b'x'; 1000]))
            .take(1 << 16)
            .find_map(Result::err);
        assert_eq!(error.map(|e| e.kind()), Some(io::ErrorKind::WouldBlock));
    }

    #[test]
    fn a_reader_that_is_gone_is_an_error() {
        let (reader, writer) = io::pipe().expect("pipe");
        drop(reader);
        let mut output = NonblockingWriter::new(&writer).expect("writer");
        // The test program ignores SIGPIPE, as all Rust programs do.
        let error = output.write(&writer, b"x").expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_stopped_terminal_is_not_waited_for() {
        let (_controller, terminal) = terminal();
        let mut output = NonblockingWriter::new(&terminal).expect("writer");
        assert_eq!(
            (output.kind, output.write(&terminal, b"a line\n").expect("room")),
            (FileKind::Terminal, 7)
        );
        // As ^S does.
        // SAFETY: tcflow takes numbers and touches no memory.
        cvt(unsafe { libc::tcflow(terminal.as_raw_fd(), libc::TCOOFF) }).expect("stop");
        let error = output.write(&terminal, b"a line\n").expect_err("stopped");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    /// Both ends of a new terminal.
    fn terminal() -> (OwnedFd, std::fs::File) {
        use std::os::fd::FromRawFd;
        // SAFETY: takes flags and touches no memory.
        let number =
            cvt(unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY) }).expect("pty");
        // SAFETY: the kernel has just opened it for us, and nobody else knows it.
        let controller = unsafe { OwnedFd::from_raw_fd(number) };
        let mut name = [0; 64];
        // SAFETY: unlockpt takes a number; ptsname_r writes at most as many bytes as said, with a NUL at the end.
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
    fn files_and_devices_take_everything_and_their_errors_are_told() {
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
