//! Panic hook that logs location and message of a panic.
//!
//! The message is escaped: the standard library's hook writes it raw, so that bytes of a request could forge log lines.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{PanicHookInfo, set_hook};
use std::thread;

use tokio_prefork::text::panic_text;

/// Replaces the standard library's panic hook in this process and in those it forks.
pub(crate) fn install_panic_hook() {
    set_hook(Box::new(|info| {
        log::error!("{}", format_panic(thread::current().name(), info));
        // Captured only if RUST_BACKTRACE is set.
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            trace.to_string().lines().for_each(|line| log::error!("    {line}"));
        }
    }));
}

fn format_panic(thread: Option<&str>, info: &PanicHookInfo<'_>) -> String {
    let at = info.location().map_or("an unknown location".to_string(), ToString::to_string);
    let thread = thread.unwrap_or("<unnamed>");
    format!("thread '{thread}' panicked at {at}: {}", panic_text(info.payload()))
}
