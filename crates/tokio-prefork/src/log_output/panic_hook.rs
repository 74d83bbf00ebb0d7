//! A panic hook that logs place and message of a panic.
//!
//! The message is escaped: the standard library's hook writes it raw, so that bytes of a request could forge log lines.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{PanicHookInfo, set_hook};
use std::thread;

use super::log_format::{LineStyle, LogFormat};
use crate::text::panic_text;

/// Replaces the standard library's panic hook in this process and in those it forks: a panic is a record of level error.
///
/// With `RUST_BACKTRACE` the backtrace follows: in JSON as part of the message, in text as a line for each of its lines, all with the
/// tag of the worker.
pub fn install_panic_hook() {
    set_hook(Box::new(|info| {
        let panic = format_panic(thread::current().name(), info);
        // Captured only if RUST_BACKTRACE is set.
        let trace = Backtrace::capture();
        if trace.status() != BacktraceStatus::Captured {
            return log::error!("{panic}");
        }
        let trace = trace.to_string();
        let frames = frames_of_panic(&trace);
        if LineStyle::current().is_some_and(|style| style.format == LogFormat::Json) {
            return log::error!("{panic}\n{}", frames.join("\n"));
        }
        log::error!("{panic}");
        frames.iter().for_each(|line| log::error!("    {line}"));
    }));
}

/// Returns the lines of a backtrace without the frames of the panic machinery itself, which would fill a short line.
fn frames_of_panic(trace: &str) -> Vec<&str> {
    let lines: Vec<&str> = trace.lines().collect();
    let is_machinery = |line: &&str| {
        ["core::panicking::", "rust_begin_unwind", "std::panicking::begin_panic"]
            .iter()
            .any(|name| line.contains(name))
    };
    let last = lines.iter().take(64).rposition(is_machinery);
    // The line after a frame says where it is.
    let first = last.map_or(0, |at| {
        at + 1 + usize::from(lines.get(at + 1).is_some_and(|l| l.trim_start().starts_with("at ")))
    });
    lines[first..].to_vec()
}

fn format_panic(thread: Option<&str>, info: &PanicHookInfo<'_>) -> String {
    let at = info.location().map_or("an unknown location".to_string(), ToString::to_string);
    let thread = thread.unwrap_or("<unnamed>");
    format!("thread '{thread}' panicked at {at}: {}", panic_text(info.payload()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backtrace_begins_where_the_panic_was_raised() {
        let trace = "   0: std::backtrace::Backtrace::create\n   1: core::panicking::panic_fmt\n             at /rustc/x.rs:1:2\n   \
                     2: app::handler\n             at src/main.rs:7:9";
        let kept = frames_of_panic(trace);
        assert_eq!(kept, ["   2: app::handler", "             at src/main.rs:7:9"]);
        assert_eq!(frames_of_panic("   0: app::main"), ["   0: app::main"]);
    }
}
