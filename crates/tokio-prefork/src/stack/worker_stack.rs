//! The stacks of a worker, as the control socket sends them, and as text.

use std::fmt::{self, Display, Write};

use serde::{Deserialize, Serialize};

use super::frame_filter::{application_frames, is_noise};
use crate::text::{Printable, printable_json};

/// How many characters of one frame a log line shows.
const MAX_LINE_FRAME_CHARS: usize = 200;

/// The begin of the names of threads with an event loop, under `thread-per-core`.
const LOOP_THREAD_PREFIX: &str = "loop ";

/// How many frames are shown of a thread that does not run the application.
const IDLE_FRAMES: usize = 4;

/// How many frames a log line shows.
const MAX_LINE_FRAMES: usize = 16;

/// The stacks of the threads of one worker, from [`ControlClient::stack`](crate::control::ControlClient::stack).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStack {
    /// The id of the worker.
    pub worker: u64,
    /// Its slot.
    pub slot: u32,
    /// Its kind, such as `web`.
    pub kind: String,
    /// Its generation.
    pub generation: u64,
    /// Its process.
    pub pid: u32,
    /// Its threads, the first one of the process first. At most 64.
    pub threads: Vec<ThreadStack>,
}

/// The stack of one thread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ThreadStack {
    /// The number of the thread (tid).
    pub thread: u32,
    /// Its name.
    pub name: String,
    /// Its frames, innermost first, at most 64. Empty if `problem` says why there is no stack.
    #[serde(default)]
    pub frames: Vec<StackFrame>,
    /// Whether outer frames are missing.
    #[serde(default)]
    pub is_cut: bool,
    /// Why there is no stack: `stopped by a signal`, `in uninterruptible sleep in nfs_wait`, and the like.
    #[serde(default)]
    pub problem: Option<String>,
}

/// One frame of a stack: a function and where it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StackFrame {
    /// The demangled name; `None` if the file has no symbol there.
    pub function: Option<String>,
    /// The source file, if the program has debug information.
    pub file: Option<String>,
    /// The line in `file`.
    pub line: Option<u32>,
    /// The file name of the program or shared library.
    pub module: String,
    /// The address in the module, as `addr2line -e MODULE` takes it.
    pub address: u64,
    /// Whether the function was inlined into the next frame.
    #[serde(default)]
    pub is_inlined: bool,
    /// How many frames in a row are the same, by recursion. At least 1.
    #[serde(default = "one")]
    pub repeats: u32,
}

fn one() -> u32 {
    1
}

impl StackFrame {
    /// Returns the source position as `dir/src/file.rs:12`: directories before the package are left out.
    fn short_location(&self) -> Option<String> {
        let (file, line) = (self.file.as_deref()?, self.line.unwrap_or(0));
        let parts: Vec<&str> = file.split('/').collect();
        let from = parts.iter().rposition(|part| *part == "src").map(|at| at.saturating_sub(1));
        let from = from.unwrap_or(parts.len().saturating_sub(2));
        Some(format!("{}:{line}", parts[from..].join("/")))
    }

    fn name(&self) -> String {
        match &self.function {
            Some(function) => function.clone(),
            None => format!("{}+{:#x}", self.module, self.address),
        }
    }
}

impl ThreadStack {
    /// Returns whether code of the application is on the stack.
    pub(crate) fn runs_application(&self) -> bool {
        application_frames(&self.frames).is_some()
    }

    /// Returns the frames from the innermost one to the request handler on one line: `read < load (app/src/main.rs:12) < ...`.
    /// Without a stack, why there is none.
    pub fn summary(&self) -> String {
        let Some(shown) = application_frames(&self.frames) else {
            return match (&self.problem, self.frames.is_empty()) {
                (Some(problem), _) => problem.clone(),
                (None, true) => "no stack".to_string(),
                (None, false) => {
                    let inner = self.frames.iter().take(IDLE_FRAMES).map(StackFrame::name);
                    inner.collect::<Vec<_>>().join(" < ")
                }
            };
        };
        let frames = &self.frames[..shown];
        let names: Vec<String> = frames
            .iter()
            .enumerate()
            .filter(|(index, frame)| !is_noise(frames, *index, frame))
            .map(|(_, frame)| {
                let mut text: String = frame.name().chars().take(MAX_LINE_FRAME_CHARS).collect();
                if let Some(location) = frame.short_location() {
                    // Writing to a string cannot fail.
                    let _ = write!(text, " ({location})");
                }
                if frame.repeats > 1 {
                    let _ = write!(text, " x{}", frame.repeats);
                }
                text
            })
            .collect();
        let cut = if names.len() > MAX_LINE_FRAMES { " < ..." } else { "" };
        let names = &names[..names.len().min(MAX_LINE_FRAMES)];
        format!("{}{cut}", names.join(" < "))
    }

    /// Writes the thread with its frames, one a line; with `all`, also those of the server below the application.
    fn write_frames(&self, f: &mut fmt::Formatter<'_>, all: bool) -> fmt::Result {
        writeln!(f, "thread {} {}", self.thread, Printable(&self.name))?;
        if let Some(problem) = &self.problem {
            writeln!(f, "      no stack: {}", Printable(problem))?;
        }
        let shown = match all {
            true => self.frames.len(),
            false => application_frames(&self.frames).unwrap_or(self.frames.len().min(IDLE_FRAMES)),
        };
        for (number, frame) in self.frames[..shown].iter().enumerate() {
            let inlined = if frame.is_inlined { " (inlined)" } else { "" };
            writeln!(f, "{number:4}: {}{inlined}", Printable(frame.name()))?;
            if let Some(file) = &frame.file {
                writeln!(f, "             at {}:{}", Printable(file), frame.line.unwrap_or(0))?;
            }
            if frame.repeats > 1 {
                writeln!(f, "             {} times in a row", frame.repeats)?;
            }
        }
        match self.frames.len() - shown {
            0 if self.is_cut => writeln!(f, "      outer frames are missing"),
            0 => Ok(()),
            hidden => writeln!(f, "      {hidden} frames of the server (--full shows them)"),
        }
    }
}

impl WorkerStack {
    /// Returns the thread that runs the application's code: the first one if it does, else another that does, else the first.
    pub fn busy_thread(&self) -> Option<&ThreadStack> {
        self.threads.iter().find(|thread| thread.runs_application()).or(self.threads.first())
    }

    /// Returns the event loop that has stalled: the first one in the application's code, or else one that does not wait for
    /// events. Threads of pools are no event loops.
    fn stalled_thread(&self) -> Option<&ThreadStack> {
        let is_loop = |thread: &&ThreadStack| {
            thread.thread == self.pid || thread.name.starts_with(LOOP_THREAD_PREFIX)
        };
        let loops = || self.threads.iter().filter(is_loop);
        let waits = |thread: &&ThreadStack| {
            let innermost = thread.frames.first().and_then(|frame| frame.function.as_deref());
            innermost.is_some_and(|name| name.starts_with("epoll_"))
        };
        let running = loops().find(|thread| thread.runs_application());
        running.or_else(|| loops().find(|one| !waits(one))).or(self.threads.first())
    }

    /// Returns where the stalled event loop stands, on one line, with its thread if it is not the first one.
    #[cfg_attr(not(feature = "stack-traces"), allow(dead_code))]
    pub(crate) fn stall_summary(&self) -> String {
        match self.stalled_thread() {
            None => "no thread".to_string(),
            Some(thread) if thread.thread == self.pid => thread.summary(),
            Some(thread) => format!("{} (thread {:?})", thread.summary(), thread.name),
        }
    }

    /// Returns why there is no stack of the stalled event loop, if there is none.
    #[cfg_attr(not(feature = "stack-traces"), allow(dead_code))]
    pub(crate) fn stall_problem(&self) -> Option<&str> {
        let thread = self.stalled_thread().filter(|thread| thread.frames.is_empty())?;
        thread.problem.as_deref()
    }

    /// Returns the functions of the stalled event loop. They are the same while it stands still.
    #[cfg_attr(not(feature = "stack-traces"), allow(dead_code))]
    pub(crate) fn stalled_functions(&self) -> Vec<String> {
        let frames = self.stalled_thread().map_or(&[][..], |thread| &thread.frames);
        let shown = application_frames(frames).unwrap_or(frames.len());
        frames[..shown].iter().map(StackFrame::name).collect()
    }

    /// Returns whether a stack has no names because the program is stripped of its symbols.
    pub fn is_stripped(&self) -> bool {
        let mut frames = self.threads.iter().flat_map(|thread| &thread.frames).peekable();
        frames.peek().is_some() && frames.all(|frame| !frame.has_rust_name())
    }

    /// Returns the stacks as JSON on one line.
    pub fn to_json(&self) -> String {
        // Encoding numbers and strings cannot fail.
        printable_json(&serde_json::to_string(self).unwrap_or_default()).into_owned()
    }

    /// Displays the stacks like the backtrace of a panic; with `all`, also the frames of the server below the application.
    pub fn display(&self, all: bool) -> impl Display + '_ {
        Backtraces { stack: self, all }
    }
}

/// Displays the stacks of a worker.
struct Backtraces<'a> {
    stack: &'a WorkerStack,
    all: bool,
}

impl Display for Backtraces<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WorkerStack { worker, slot, generation, pid, .. } = self.stack;
        writeln!(f, "worker={worker} slot={slot} gen={generation} pid={pid}")?;
        for thread in &self.stack.threads {
            thread.write_frames(f, self.all)?;
        }
        if self.stack.is_stripped() {
            writeln!(f, "the program is stripped of its symbols: build it with strip = false")?;
        }
        Ok(())
    }
}

impl StackFrame {
    fn has_rust_name(&self) -> bool {
        self.function.as_ref().is_some_and(|name| name.contains("::"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str, file: Option<(&str, u32)>) -> StackFrame {
        StackFrame {
            function: Some(function.to_string()),
            file: file.map(|(file, _)| file.to_string()),
            line: file.map(|(_, line)| line),
            module: "app".to_string(),
            repeats: 1,
            ..StackFrame::default()
        }
    }

    fn stack_of(functions: &[&str]) -> ThreadStack {
        ThreadStack {
            thread: 7,
            name: "app".to_string(),
            frames: functions.iter().map(|name| frame(name, None)).collect(),
            ..ThreadStack::default()
        }
    }

    #[test]
    fn a_summary_names_the_system_call_and_the_application_up_to_its_handler() {
        let stack = stack_of(&[
            "clock_nanosleep",
            "std::thread::sleep",
            "app::query",
            "app::handler::{{closure}}",
            "<core::pin::Pin<P> as core::future::future::Future>::poll",
            "hyper::proto::h1::dispatch::Dispatcher<D,Bs,I,T>::poll_read",
            "tokio_prefork::worker::run_worker",
            "app::main",
            "main",
            "_start",
        ]);
        assert_eq!(
            stack.summary(),
            "clock_nanosleep < std::thread::sleep < app::query < app::handler::{{closure}}"
        );
        assert!(stack.runs_application());
    }

    #[test]
    fn recursion_is_one_entry_with_a_count_and_a_short_location() {
        let mut stack = stack_of(&["app::handler", "hyper::server::serve"]);
        let fib = frame("app::fib", Some(("/home/me/app/src/math/fib.rs", 12)));
        stack.frames.insert(0, StackFrame { repeats: 40, ..fib });
        assert_eq!(stack.summary(), "app::fib (app/src/math/fib.rs:12) x40 < app::handler");
    }

    #[test]
    fn an_idle_thread_shows_its_innermost_frames_and_a_silent_one_its_problem() {
        let idle = stack_of(&["epoll_wait", "mio::poll::Poll::poll", "tokio::runtime::park"]);
        assert!(!idle.runs_application());
        assert_eq!(idle.summary(), "epoll_wait < mio::poll::Poll::poll < tokio::runtime::park");
        let problem = Some("stopped by a signal".to_string());
        let silent = ThreadStack { problem, ..ThreadStack::default() };
        assert_eq!(silent.summary(), "stopped by a signal");
    }

    #[test]
    fn hostile_names_stay_on_their_line_in_the_text() {
        let mut thread = stack_of(&["evil\n\x1b[2Jfunction", "tokio_prefork::serve"]);
        thread.name = "a\nb".to_string();
        let stack = WorkerStack {
            worker: 3,
            slot: 1,
            kind: "web".to_string(),
            generation: 1,
            pid: 9,
            threads: vec![thread],
        };
        let text = stack.display(false).to_string();
        assert!(!text.contains('\x1b') && !text.contains("evil\n") && !text.contains("a\nb"));
        assert!(text.starts_with("worker=3 slot=1 gen=1 pid=9\nthread 7 "), "{text}");
    }
}
