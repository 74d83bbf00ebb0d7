//! Panics as records of the log: where, and what was said, escaped. The standard library's own hook writes the text of a
//! panic raw, so that a request's bytes in it could forge lines of the log.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{PanicHookInfo, set_hook};
use std::thread;

use tokio_prefork::text::panic_text;

/// Logs every panic of this process and of those it forks, in place of the standard library's hook.
pub(crate) fn install() {
    set_hook(Box::new(|info| {
        log::error!("{}", panic_line(thread::current().name(), info));
        // Only where RUST_BACKTRACE asks for it.
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            trace.to_string().lines().for_each(|line| log::error!("    {line}"));
        }
    }));
}

fn panic_line(thread: Option<&str>, info: &PanicHookInfo<'_>) -> String {
    let at = info.location().map_or("an unknown place".to_string(), ToString::to_string);
    let thread = thread.unwrap_or("<unnamed>");
    format!("thread '{thread}' panicked at {at}: {}", panic_text(info.payload()))
}
