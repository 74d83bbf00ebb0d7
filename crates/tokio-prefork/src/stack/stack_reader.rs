//! The short-lived process that reads the copies of stacks, and the primary's side of it.
//!
//! Debug information is large and slow to read, and what a worker has copied may be anything. So the primary forks a
//! process for it, which has limits of time and memory, no descriptor of the primary and the user of the workers. It writes
//! lines of JSON: which threads have answered, that it no longer needs the worker, and the stacks.

use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use serde::{Deserialize, Serialize};

use super::loaded_files::loaded_files;
use super::proc_threads::{ThreadFiles, handles_signal, thread_ids};
use super::symbolize::{Symbolizer, symbol_names};
use super::unwind::StackUnwinder;
use super::worker_stack::ThreadStack;
use crate::error::{Error, Result, exit};
use crate::privilege::WorkerCredentials;
use prefork_os::child::ForkResult;
use prefork_os::signal::{BlockedSignals, Signal};
use prefork_os::stack_capture::{StackMemory, send_capture_request};

/// How long the threads of a worker may take to copy their stacks.
const CAPTURE_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a thread may take that could run, but gets no CPU.
const BUSY_CAPTURE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long all of it may take: large debug information is slow to read.
const READER_TIMEOUT: Duration = Duration::from_secs(20);

/// How much CPU time the reader may use, in seconds.
const READER_CPU_SECONDS: u64 = 12;

/// How much private memory the reader may use beside what it has from the primary.
const READER_MEMORY_BYTES: u64 = 1 << 30;

/// The largest answer that the primary reads.
const MAX_ANSWER_BYTES: usize = 2 << 20;

/// One line of the reader's answer.
#[derive(Debug, Serialize, Deserialize)]
enum ReaderMessage {
    /// All threads, without frames.
    Threads(Vec<ThreadStack>),
    /// The reader no longer needs the worker.
    ReleasedWorker,
    /// All threads with their frames: first with names only, then again with source lines and inlined functions.
    Stacks(Vec<ThreadStack>),
}

/// The process whose stacks are read.
pub(crate) struct CaptureTarget<'a> {
    /// A child of this process that has not been reaped.
    pub(crate) pid: u32,
    /// Its area in the memory.
    pub(crate) area: usize,
    /// Whether it was forked by this program, not by the one before an upgrade.
    pub(crate) has_own_image: bool,
    pub(crate) memory: &'a StackMemory,
    /// The user of the worker, if it is not that of the primary.
    pub(crate) credentials: Option<&'a WorkerCredentials>,
}

/// A reader that runs.
#[derive(Debug)]
pub(crate) struct StackReader {
    /// The reader's process. The owner of this value must reap it.
    pub(crate) pid: u32,
    /// When to give up.
    pub(crate) deadline: Instant,
    pipe: PipeReader,
    answer: Vec<u8>,
}

impl StackReader {
    /// Asks the threads of a worker for their stacks, and forks the process that reads them. Never waits.
    ///
    /// # Errors
    /// The worker has no handler, or the process cannot be forked.
    pub(crate) fn start(target: &CaptureTarget<'_>, number: u32) -> Result<StackReader> {
        let CaptureTarget { pid, area, memory, .. } = *target;
        let failed = |what: &'static str| move |e: io::Error| Error::system(what, e);
        let signal = memory.capture_signal(area).ok_or_else(|| {
            Error::refused(
                "the worker has no handler for stacks: it still boots, it handles the signals 57 to 60 itself, or its \
                 binary is too old",
            )
        })?;
        if !handles_signal(pid, signal) {
            return Err(Error::refused(format!(
                "the worker does not handle signal {signal} any more: the application has reset it"
            )));
        }
        memory.begin_request(area, number).map_err(failed("request the stacks of a worker"))?;
        let threads = thread_ids(pid);
        for thread in &threads {
            // A thread that ends meanwhile has no stack. A full queue of signals shows as a thread that does not answer.
            let _ = send_capture_request(pid, *thread, signal, number);
        }
        let (pipe, writer) = io::pipe().map_err(failed("create a pipe for stacks"))?;
        prefork_os::fd::set_nonblocking(&pipe).map_err(failed("create a pipe for stacks"))?;
        let blocked = BlockedSignals::block_all().map_err(failed("block signals"))?;
        let parent = std::process::id();
        match prefork_os::child::fork_process()? {
            ForkResult::Parent(reader) => {
                drop(blocked);
                let deadline = Instant::now() + READER_TIMEOUT;
                Ok(StackReader { pid: reader, deadline, pipe, answer: Vec::new() })
            }
            ForkResult::Child => {
                let request = Request { pid, area, signal, number, threads };
                let read = || -> Result<(), String> {
                    enter_reader(parent, memory, &writer)?;
                    request.answer(target, memory, &writer)
                };
                // A panic must not unwind into the primary's frames.
                let done = catch_unwind(AssertUnwindSafe(read));
                let is_done = matches!(done, Ok(Ok(())));
                prefork_os::child::exit_without_cleanup(if is_done {
                    exit::OK
                } else {
                    exit::FAILURE
                })
            }
        }
    }

    /// Reads the available part of the answer without blocking. Returns whether it is complete.
    pub(crate) fn read_answer(&mut self) -> bool {
        let mut piece = [0u8; 16 << 10];
        loop {
            match self.pipe.read(&mut piece) {
                Ok(0) => return true,
                Ok(n) if self.answer.len() < MAX_ANSWER_BYTES => {
                    self.answer.extend_from_slice(&piece[..n]);
                }
                Ok(_) => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return e.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Kills the reader without reaping it, and returns the threads: with frames if it has come so far.
    ///
    /// # Errors
    /// It has ended before it knew the threads.
    pub(crate) fn finish(&mut self) -> Result<Vec<ThreadStack>, String> {
        let is_complete = self.read_answer();
        let _ = prefork_os::child::signal_child(self.pid, Signal::SIGKILL);
        let (mut threads, mut stacks) = (None, None);
        for line in self.answer.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(ReaderMessage::Stacks(found)) => stacks = Some(found),
                Ok(ReaderMessage::Threads(found)) => threads = Some(found),
                Ok(ReaderMessage::ReleasedWorker) | Err(_) => {}
            }
        }
        if let Some(stacks) = stacks {
            return Ok(stacks);
        }
        let why = match is_complete {
            true => "the process that reads stacks failed (out of memory?)",
            false => "the process that reads stacks was too slow",
        };
        let mut threads = threads.ok_or(why)?;
        for thread in threads.iter_mut().filter(|thread| thread.problem.is_none()) {
            thread.problem = Some(why.to_string());
        }
        Ok(threads)
    }
}

impl AsFd for StackReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Turns the forked child into a reader: tied to the primary, without its descriptors, with limits.
fn enter_reader(parent: u32, memory: &StackMemory, pipe: impl AsFd) -> Result<(), String> {
    // How `ps` tells it from the workers.
    let _ = nix::sys::prctl::set_name(c"stack-reader");
    let failed = |e: io::Error| e.to_string();
    if !prefork_os::parent_death::kill_on_parent_death(parent).map_err(failed)? {
        return Err("the primary is gone".to_string());
    }
    prefork_os::fd::close_all_fds_except_these(&[pipe.as_fd(), memory.as_fd()]).map_err(failed)?;
    let _ = prefork_os::resource_limits::disable_core_dumps();
    let used = prefork_os::resource_limits::ProcessMemory::of_this_process().map(|used| used.data);
    let _ = prefork_os::resource_limits::limit_data(used.unwrap_or(0) + READER_MEMORY_BYTES);
    let _ = setrlimit(Resource::RLIMIT_CPU, READER_CPU_SECONDS, READER_CPU_SECONDS);
    Ok(())
}

/// What the threads of the worker were asked for.
struct Request {
    pid: u32,
    area: usize,
    signal: i32,
    number: u32,
    threads: Vec<u32>,
}

impl Request {
    /// Reads, unwinds and names the stacks, in the reader.
    fn answer(
        &self,
        target: &CaptureTarget<'_>,
        memory: &StackMemory,
        mut pipe: impl Write,
    ) -> Result<(), String> {
        let mut threads = self.wait_for_copies(memory);
        send(&mut pipe, &ReaderMessage::Threads(threads.clone()))?;
        let files = loaded_files(self.pid, target.has_own_image);
        send(&mut pipe, &ReaderMessage::ReleasedWorker)?;
        let files = match files {
            Ok(files) => files,
            Err(why) => {
                threads.iter_mut().for_each(|thread| thread.problem = Some(why.clone()));
                return send(&mut pipe, &ReaderMessage::Stacks(threads));
            }
        };
        // What follows reads bytes and files that the worker may have written.
        if let Some(credentials) = target.credentials {
            credentials.drop_privileges().map_err(|e| e.to_string())?;
        }
        let mut unwinder = StackUnwinder::new(&files);
        let mut stacks = Vec::new();
        let captured =
            memory.captured_threads(self.area, self.number).map_err(|e| e.to_string())?;
        for (slot, id) in captured {
            let index = threads.iter().position(|thread| thread.thread == id);
            let Some(index) = index else { continue };
            let copy = memory.read_stack(self.area, slot).map_err(|e| e.to_string())?;
            stacks.push((index, unwinder.unwind(&copy)));
        }
        let addresses = stacks.iter().flat_map(|(_, stack)| stack.addresses.iter().copied());
        let names = symbol_names(&files, &unwinder, addresses);
        // The names first: the debug information of a large program takes seconds, and may be too much.
        for has_lines in [false, true] {
            let mut symbolizer = Symbolizer::new(&files, &unwinder, &names, has_lines);
            for (index, stack) in &stacks {
                symbolizer.set_frames(&mut threads[*index], stack);
            }
            send(&mut pipe, &ReaderMessage::Stacks(threads.clone()))?;
        }
        Ok(())
    }

    /// Waits until all threads that can answer have copied their stacks, or the time is over.
    fn wait_for_copies(&self, memory: &StackMemory) -> Vec<ThreadStack> {
        let (pid, signal) = (self.pid, self.signal);
        let start = Instant::now();
        let files: Vec<_> =
            self.threads.iter().map(|id| (*id, ThreadFiles::new(pid, *id))).collect();
        let captured = || memory.captured_threads(self.area, self.number).unwrap_or_default();
        loop {
            let done = captured();
            let is_done = |id: u32| done.iter().any(|(_, thread)| *thread == id);
            // A thread that cannot answer is not waited for.
            let is_awaited = |(id, files): &&(u32, ThreadFiles)| {
                let cannot = |state| matches!(state, 'T' | 't' | 'Z' | 'X');
                !is_done(*id) && !files.state().is_none_or(cannot) && !files.blocks_signal(signal)
            };
            let mut awaited = files.iter().filter(is_awaited).peekable();
            let is_starved = |(_, files): &(u32, ThreadFiles)| files.state() == Some('R');
            let elapsed = start.elapsed();
            let is_over = match elapsed >= CAPTURE_TIMEOUT {
                true => elapsed >= BUSY_CAPTURE_TIMEOUT || !awaited.any(is_starved),
                false => awaited.peek().is_none(),
            };
            if is_over {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let done = captured();
        let waited_ms = start.elapsed().as_millis();
        let threads = files.iter().map(|(id, files)| {
            let is_captured = done.iter().any(|(_, thread)| thread == id);
            let problem = (!is_captured).then(|| files.describe_silence(signal, waited_ms));
            ThreadStack { thread: *id, name: files.name(), problem, ..ThreadStack::default() }
        });
        threads.collect()
    }
}

fn send(pipe: &mut impl Write, message: &ReaderMessage) -> Result<(), String> {
    let mut line = serde_json::to_vec(message).map_err(|e| e.to_string())?;
    line.push(b'\n');
    // A failed write means that the primary gave up.
    pipe.write_all(&line).map_err(|e| e.to_string())
}
