//! Logger of the command: writes one line per record to standard error without blocking on its reader.

mod panic_hook;

use std::fmt;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use log::Level;
use nix::sys::stat::fstat;

use crate::commands::control::status_table::format_utc;
pub(crate) use panic_hook::install_panic_hook;
use tokio_prefork::log_output::{self, LogOutput};
use tokio_prefork::text::Printable;

/// Installs the logger. `filter` must be a valid filter: it is checked with the configuration.
pub(crate) fn init_logger(filter: &str) {
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(filter).target(env_logger::Target::Pipe(Box::new(LogOutput)));
    let is_journal = is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref(), stderr_identity());
    let format = if is_journal { format_journal_warning } else { format_plain_warning };
    log_output::init_log_output(Some(format));
    if is_journal {
        builder.format(|out, record| write_journal_line(out, record.level(), record.args()));
    } else {
        builder.format(|out, record| {
            let now = out.timestamp_millis();
            write_plain_line(out, &now, record.level(), record.args())
        });
    }
    // Fails only if a logger is already installed, which is then kept.
    let _ = builder.try_init();
}

fn format_journal_warning(text: &str) -> Vec<u8> {
    render_line(|out| write_journal_line(out, Level::Warn, &text))
}

fn format_plain_warning(text: &str) -> Vec<u8> {
    render_line(|out| write_plain_line(out, &utc_timestamp(), Level::Warn, &text))
}

fn utc_timestamp() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    format_utc(since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
}

fn render_line(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> Vec<u8> {
    let mut line = Vec::new();
    // Writing to memory cannot fail.
    let _ = write(&mut line);
    line
}

/// Writes a line with time stamp and level, for plain text output.
fn write_plain_line(
    out: &mut dyn Write,
    now: &dyn fmt::Display,
    level: Level,
    text: &dyn fmt::Display,
) -> io::Result<()> {
    writeln!(out, "{now} {level:<5} {}", Printable(text))
}

/// Writes a line with a priority prefix for journald, which adds the time itself; see sd-daemon(3).
fn write_journal_line(
    out: &mut dyn Write,
    level: Level,
    text: &dyn fmt::Display,
) -> io::Result<()> {
    let priority = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    writeln!(out, "<{priority}>{}", Printable(text))
}

/// Returns whether stderr is the stream that systemd announced as `DEVICE:INODE` in `JOURNAL_STREAM`.
///
/// The variable alone is not enough: processes whose stderr was redirected inherit it too.
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
    fn plain_lines_have_a_time_and_journal_lines_a_priority() {
        let mut out = Vec::new();
        write_plain_line(&mut out, &"2026-11-22T10:00:00.123Z", Level::Info, &"a\nb")
            .expect("write");
        for level in Level::iter() {
            write_journal_line(&mut out, level, &"text").expect("write");
        }
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            "2026-11-22T10:00:00.123Z INFO  a\\nb\n<3>text\n<4>text\n<6>text\n<7>text\n<7>text\n"
        );
    }

    #[test]
    fn journal_is_recognised_by_device_and_inode() {
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
