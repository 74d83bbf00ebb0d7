//! Starts another program as a child that gets descriptors at fixed numbers and knows its own pid.
//!
//! `std::process::Command` can do neither: `LISTEN_PID` of systemd's protocol is known after the fork only.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{libc, syscall_result};

/// The number of the first passed descriptor: the next one after the standard streams.
const FIRST_FD: RawFd = 3;
/// Room for the digits of a pid and NUL.
const PID_DIGITS: usize = 12;
/// The highest signal number, of the real-time signals.
const MAX_SIGNAL: libc::c_int = 64;

/// A program to start, complete: nothing is allocated after the fork.
pub struct ProgramStart {
    executable: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// The name of a variable that gets the pid of the program, and room for its value.
    pid_variable: Option<Vec<u8>>,
    current_dir: Option<CString>,
}

impl ProgramStart {
    /// Prepares a program. `arguments` includes its name.
    ///
    /// # Errors
    /// `InvalidInput` if a text contains NUL.
    pub fn new(
        executable: &Path,
        arguments: &[OsString],
        environment: &[(OsString, OsString)],
        current_dir: Option<&Path>,
    ) -> io::Result<ProgramStart> {
        let pair = |(name, value): &(OsString, OsString)| {
            let mut pair = name.clone();
            pair.push("=");
            pair.push(value);
            to_c_string(&pair)
        };
        Ok(ProgramStart {
            executable: to_c_string(executable.as_os_str())?,
            arguments: arguments.iter().map(|text| to_c_string(text)).collect::<io::Result<_>>()?,
            environment: environment.iter().map(pair).collect::<io::Result<_>>()?,
            pid_variable: None,
            current_dir: current_dir.map(|dir| to_c_string(dir.as_os_str())).transpose()?,
        })
    }

    /// Sets a variable to the pid of the program.
    pub fn set_pid_variable(&mut self, name: &str) {
        let mut text = [name.as_bytes(), b"="].concat();
        text.resize(text.len() + PID_DIGITS, 0);
        self.pid_variable = Some(text);
    }

    /// Starts the program, and returns its pid. It gets `fds` at the numbers from 3 on, `/dev/null` as standard input, no blocked or
    /// ignored signals, and SIGKILL when this thread's process dies. It stays in the process group of this process.
    ///
    /// Other descriptors that are not close-on-exec are inherited, too.
    ///
    /// # Errors
    /// The system cannot fork, or the error of the step in the child that failed: the directory, or execve(2).
    pub fn start(mut self, fds: &[BorrowedFd<'_>]) -> io::Result<u32> {
        let null: OwnedFd = std::fs::File::open("/dev/null")?.into();
        let (mut report, report_writer) = io::pipe()?;
        let sources: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let mut moved = sources.clone();
        let arguments = pointers(&self.arguments);
        let mut environment = pointers(&self.environment);
        let digits = self.pid_variable.as_mut().map(|text| {
            let start = text.len() - PID_DIGITS;
            environment.insert(0, text.as_ptr().cast());
            &mut text[start..]
        });
        let child = ChildSteps {
            executable: self.executable.as_ptr(),
            arguments: arguments.as_ptr(),
            environment: environment.as_ptr(),
            current_dir: self.current_dir.as_ref().map(|dir| dir.as_ptr()),
            null: null.as_raw_fd(),
            report: report_writer.as_raw_fd(),
            parent: std::process::id() as libc::pid_t,
        };
        // SAFETY: the child calls only async-signal-safe functions, on memory that was allocated before.
        let pid = syscall_result(unsafe { libc::fork() })?;
        if pid == 0 {
            // SAFETY: this is the child; all pointers are to memory of this function, which the child has a copy of.
            unsafe { child.run(&sources, &mut moved, digits) }
        }
        drop(report_writer);
        let mut errno = [0; 4];
        match report.read_exact(&mut errno) {
            // The end without an error: execve has closed the pipe.
            Err(_) => Ok(pid as u32),
            Ok(()) => {
                let _ = crate::child::wait_for_child(pid as u32);
                Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
            }
        }
    }
}

/// What the child needs. Plain pointers, as the child must not run destructors.
struct ChildSteps {
    executable: *const libc::c_char,
    arguments: *const *const libc::c_char,
    environment: *const *const libc::c_char,
    current_dir: Option<*const libc::c_char>,
    null: RawFd,
    report: RawFd,
    parent: libc::pid_t,
}

impl ChildSteps {
    /// Becomes the program, or reports the error and exits.
    ///
    /// # Safety
    /// Only in a freshly forked child; the pointers are valid and the lists end with null. `moved` has the length of `sources`.
    unsafe fn run(&self, sources: &[RawFd], moved: &mut [RawFd], digits: Option<&mut [u8]>) -> ! {
        if let Some(digits) = digits {
            // SAFETY: getpid cannot fail.
            write_digits(digits, unsafe { libc::getpid() } as u32);
        }
        // SAFETY: as this function.
        let error = unsafe { self.become_program(sources, moved) }.err();
        let errno = error.and_then(|e| e.raw_os_error()).unwrap_or(libc::EINVAL).to_ne_bytes();
        // SAFETY: the buffer has four bytes; `_exit` takes any status.
        unsafe {
            libc::write(self.report, errno.as_ptr().cast(), errno.len());
            libc::_exit(127)
        }
    }

    /// # Safety
    /// As [`ChildSteps::run`].
    unsafe fn become_program(&self, sources: &[RawFd], moved: &mut [RawFd]) -> io::Result<()> {
        // SAFETY: these calls take numbers and pointers to valid memory, and are async-signal-safe.
        unsafe {
            for signal in 1..=MAX_SIGNAL {
                // These two would stop a program that uses the terminal from another group than that of the foreground.
                if signal != libc::SIGTTIN && signal != libc::SIGTTOU {
                    // Two others cannot be changed, and two belong to the C library.
                    libc::signal(signal, libc::SIG_DFL);
                }
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            syscall_result(libc::sigprocmask(
                libc::SIG_SETMASK,
                &raw const none,
                std::ptr::null_mut(),
            ))?;
            syscall_result(libc::prctl(
                libc::PR_SET_PDEATHSIG,
                libc::SIGKILL as libc::c_ulong,
                0,
                0,
                0,
            ))?;
            if libc::getppid() != self.parent {
                libc::_exit(127);
            }
            syscall_result(libc::dup2(self.null, libc::STDIN_FILENO))?;
            // Above all target numbers first, so that no target overwrites a source. So does the report.
            let above = FIRST_FD + sources.len() as RawFd;
            let report = syscall_result(libc::fcntl(self.report, libc::F_DUPFD_CLOEXEC, above))?;
            for (to, from) in moved.iter_mut().zip(sources) {
                *to = syscall_result(libc::fcntl(*from, libc::F_DUPFD_CLOEXEC, above))?;
            }
            for (number, from) in moved.iter().enumerate() {
                syscall_result(libc::dup2(*from, FIRST_FD + number as RawFd))?;
            }
            let failed = self.execute();
            // The original may have been overwritten.
            libc::dup2(report, self.report);
            failed
        }
    }

    /// # Safety
    /// As [`ChildSteps::run`].
    unsafe fn execute(&self) -> io::Result<()> {
        // SAFETY: the pointers are valid, and the lists end with null.
        unsafe {
            if let Some(dir) = self.current_dir {
                syscall_result(libc::chdir(dir))?;
            }
            syscall_result(libc::execve(self.executable, self.arguments, self.environment))?;
        }
        Ok(())
    }
}

/// Writes a number in decimal digits and NUL. Allocates nothing.
fn write_digits(to: &mut [u8], number: u32) {
    let (mut digits, mut length, mut rest) = ([0u8; PID_DIGITS], 0, number);
    loop {
        digits[length] = b'0' + (rest % 10) as u8;
        (length, rest) = (length + 1, rest / 10);
        if rest == 0 {
            break;
        }
    }
    for (at, digit) in digits[..length].iter().rev().chain(&[0]).enumerate() {
        to[at] = *digit;
    }
}

fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
}

fn to_c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    /// Runs a shell script with descriptors, and returns its exit status.
    fn run_script(script: &str, fds: &[BorrowedFd<'_>]) -> Option<i32> {
        let arguments = ["sh", "-c", script].map(OsString::from);
        let environment = [("A".into(), "1".into())];
        let mut start = ProgramStart::new(
            Path::new("/bin/sh"),
            &arguments,
            &environment,
            Some(Path::new("/tmp")),
        )
        .expect("prepared");
        start.set_pid_variable("LISTEN_PID");
        let pid = start.start(fds).expect("started");
        crate::child::wait_for_child(pid).expect("a child").code()
    }

    #[test]
    fn the_program_gets_its_descriptors_in_order_and_knows_its_pid() {
        let pipes = [(); 3].map(|()| io::pipe().expect("pipe"));
        for (number, (_, writer)) in pipes.iter().enumerate() {
            writer
                .try_clone()
                .expect("clone")
                .write_all(format!("{number}\n").as_bytes())
                .expect("write");
        }
        // In reverse, so that sources and targets overlap.
        let fds: Vec<BorrowedFd<'_>> =
            pipes.iter().rev().map(|(reader, _)| reader.as_fd()).collect();
        let script = r#"read a <&3; read b <&4; read c <&5
            [ "$a$b$c $LISTEN_PID $A $PWD" = "210 $$ 1 /tmp" ] && exit 7"#;
        assert_eq!(run_script(script, &fds), Some(7));
        assert_eq!(run_script("read x; exit 8", &[]), Some(8), "standard input is empty");
    }

    #[test]
    fn what_prevents_the_start_is_an_error() {
        let prepare = |path: &str, dir: Option<&Path>| {
            ProgramStart::new(Path::new(path), &["x".into()], &[], dir).expect("prepared")
        };
        let missing = prepare("/nonexistent", None).start(&[]).expect_err("no file");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let denied = prepare("/etc/passwd", None).start(&[]).expect_err("not executable");
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
        let no_dir = prepare("/bin/sh", Some(Path::new("/nonexistent"))).start(&[]);
        assert_eq!(no_dir.expect_err("no directory").kind(), io::ErrorKind::NotFound);
        assert!(ProgramStart::new(Path::new("a\0b"), &[], &[], None).is_err());
    }

    #[test]
    fn digits_are_decimal() {
        for (number, text) in [(0, "0"), (7, "7"), (4_194_304, "4194304"), (u32::MAX, "4294967295")]
        {
            let mut room = [b'x'; PID_DIGITS];
            write_digits(&mut room, number);
            let end = room.iter().position(|byte| *byte == 0).expect("NUL");
            assert_eq!(&room[..end], text.as_bytes());
        }
    }
}
