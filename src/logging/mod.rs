//! The log of the binary: one record, one line, on standard error, without waiting for its reader.

pub(crate) mod panic_hook;

use std::fmt;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use log::Level;
use nix::sys::stat::fstat;

use crate::commands::control::status_table::format_utc;
use tokio_prefork::log_output::{self, LogOutput};
use tokio_prefork::text::Printable;

/// Installs the logger; `filter` was checked with the rest of the configuration.
pub(crate) fn init_logger(filter: &str) {
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(filter).target(env_logger::Target::Pipe(Box::new(LogOutput)));
    let is_journal = is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref(), stderr_identity());
    let format = if is_journal { journal_warning } else { plain_warning };
    log_output::init_log_output(Some(format));
    if is_journal {
        builder.format(|out, record| journal_line(out, record.level(), record.args()));
    } else {
        builder.format(|out, record| {
            let now = out.timestamp_millis();
            plain_line(out, &now, record.level(), record.args())
        });
    }
    // Only fails if there is a logger already, and then that one was wanted.
    let _ = builder.try_init();
}

fn journal_warning(text: &str) -> Vec<u8> {
    line_of(|out| journal_line(out, Level::Warn, &text))
}

fn plain_warning(text: &str) -> Vec<u8> {
    line_of(|out| plain_line(out, &now(), Level::Warn, &text))
}

fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    format_utc(since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
}

fn line_of(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> Vec<u8> {
    let mut line = Vec::new();
    // Writing to memory cannot fail.
    let _ = write(&mut line);
    line
}

/// For a reader of plain text, who wants to know when.
fn plain_line(
    out: &mut dyn Write,
    now: &dyn fmt::Display,
    level: Level,
    text: &dyn fmt::Display,
) -> io::Result<()> {
    writeln!(out, "{now} {level:<5} {}", Printable(text))
}

/// For journald, which knows when and wants to know how bad (see sd-daemon(3)).
fn journal_line(out: &mut dyn Write, level: Level, text: &dyn fmt::Display) -> io::Result<()> {
    let priority = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    writeln!(out, "<{priority}>{}", Printable(text))
}

/// Whether stderr is the stream that systemd announced as `DEVICE:INODE`: the variable alone is
/// inherited by processes whose stderr went elsewhere.
fn is_journal(announced: Option<&str>, stderr: Option<(u64, u64)>) -> bool {
    let parse = |text: &str| {
        let (device, inode) = text.split_once(':')?;
        Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
    };
    matches!((announced.and_then(parse), stderr), (Some(a), Some(b)) if a == b)
}

fn stderr_identity() -> Option<(u64, u64)> {
    fstat(io::stderr()).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_a_time_or_a_priority() {
        let mut out = Vec::new();
        plain_line(&mut out, &"2026-11-22T10:00:00.123Z", Level::Info, &"a\nb").expect("write");
        for level in Level::iter() {
            journal_line(&mut out, level, &"text").expect("write");
        }
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            "2026-11-22T10:00:00.123Z INFO  a\\nb\n<3>text\n<4>text\n<6>text\n<7>text\n<7>text\n"
        );
    }

    #[test]
    fn the_journal_is_recognised_by_device_and_inode() {
        assert!(is_journal(Some("9:12345"), Some((9, 12345))));
        for (announced, stderr) in [
            (Some("9:12345"), Some((9, 1))),
            (Some("9:12345"), None),
            (Some("nonsense"), Some((9, 12345))),
            (Some("9:"), Some((9, 0))),
            (None, Some((9, 12345))),
        ] {
            assert!(!is_journal(announced, stderr), "{announced:?}");
        }
        assert!(stderr_identity().is_some());
    }
}
